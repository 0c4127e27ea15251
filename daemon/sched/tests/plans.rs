//! What plans carry, whatever else they say.

#![allow(clippy::unwrap_used, reason = "tests")]

use minisgl_proto::{CacheMode, RequestId, Sampled, SamplingParams, StopParams, Submit};
use minisgl_sched::{Event, Plan, SchedConfig, Scheduler, StepOutput, Windows};

const REQUESTS: u32 = 300;

fn output(plan: &Plan) -> Event {
    let sampled = plan.rows.iter().filter(|row| row.is_sampled());
    let sampled = sampled.map(|row| Sampled { token: row.slot, logprob: None, top: Vec::new() });
    Event::Finished(StepOutput { step: plan.step, sampled: sampled.collect(), step_s: 0.01 })
}

/// Changes and pages of each of the first ten steps in which all requests decode, at page size 1.
fn sizes(context: u32, windows: Windows) -> Vec<(usize, usize)> {
    let mut scheduler = Scheduler::new(SchedConfig {
        pages: 4 * REQUESTS * (context + 500),
        page_size: 1,
        windows,
        max_running: REQUESTS,
        penalised_max: REQUESTS,
        max_waiting: REQUESTS,
        chunk_tokens: 4_096,
        scored_max: 256,
        max_len: context + 500,
        vocab_size: 50_000,
        eos_token_ids: vec![49_999],
        cache: CacheMode::Radix,
        overlap: false,
    })
    .unwrap();
    let submits = (0..REQUESTS).map(|i| {
        Event::Submit(Submit {
            id: RequestId(u64::from(i)),
            prompt: (0..context).map(|n| (i * 7 + n) % 40_000).collect(),
            generated: Vec::new(),
            sampling: SamplingParams::default(),
            stop: StopParams { max_tokens: 400, ..StopParams::default() },
            priority: 0,
        })
    });
    let mut plan = scheduler.step(submits, 0.0).plan.unwrap();
    let mut sizes = Vec::new();
    while sizes.len() < 10 {
        if plan.rows.len() == REQUESTS as usize && plan.rows.iter().all(|row| row.len == 1) {
            sizes.push((plan.grown.len(), plan.pages.len()));
        }
        plan = scheduler.step([output(&plan)], 0.0).plan.unwrap();
    }
    sizes
}

/// Each row's new page, and nothing of those that it has: a step's work on the host does not grow with what is in the cache.
#[test]
fn a_decode_step_is_as_large_at_any_length() {
    let each = REQUESTS as usize;
    let all = Windows::default();
    assert_eq!(sizes(60, all), [(each, each); 10]);
    assert_eq!(sizes(900, all), sizes(60, all));
    // A page for each group of layers.
    let windows = Windows { groups: 2, keep: 30 };
    assert_eq!(sizes(60, windows), [(3 * each, 3 * each); 10]);
    assert_eq!(sizes(900, windows), sizes(60, windows));
}

/// A request that finds all but its end in the cache is told the pages of a window, however long it is.
#[test]
fn pages_before_a_window_are_not_told() {
    let mut scheduler = Scheduler::new(SchedConfig {
        pages: 20_000,
        page_size: 1,
        windows: Windows { groups: 2, keep: 30 },
        max_running: 4,
        penalised_max: 4,
        max_waiting: 4,
        chunk_tokens: 4_096,
        scored_max: 256,
        max_len: 4_000,
        vocab_size: 50_000,
        eos_token_ids: vec![49_999],
        cache: CacheMode::Radix,
        overlap: false,
    })
    .unwrap();
    let mut first_plan = |id: u64| {
        let submit = Submit {
            id: RequestId(id),
            prompt: (0..3_000).collect(),
            generated: Vec::new(),
            sampling: SamplingParams::default(),
            stop: StopParams { max_tokens: 1, ..StopParams::default() },
            priority: 0,
        };
        let plan = scheduler.step([Event::Submit(submit)], 0.0).plan.unwrap();
        scheduler.step([output(&plan)], 0.0);
        plan
    };
    assert_eq!(first_plan(1).pages.len(), 3 * 3_000);
    let plan = first_plan(2);
    assert_eq!(plan.rows[0].start, 2_999);
    assert_eq!(plan.pages.len(), 3_000 + 2 * 31, "all of the first group, and two windows");
}
