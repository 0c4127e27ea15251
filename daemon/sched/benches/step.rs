//! Processor time of one scheduler step, cache included: `cargo bench -p minisgl-sched`.
//!
//! 256 requests decode with about 1,000 tokens of context each, and 2,048 with more; a step takes the output of the plan
//! before the last, and builds the next one with overlap. The executor is no part of it.

#[path = "../../cache/benches/processor_time/mod.rs"]
mod processor_time;

use std::collections::VecDeque;
use std::mem;
use std::time::Duration;

use criterion::Criterion;
use minisgl_proto::{CacheMode, RequestId, Sampled, SamplingParams, StopParams, Submit};
use minisgl_sched::{Event, Plan, SchedConfig, Scheduler, StepOutput, Windows};
use processor_time::ProcessorTime;

/// Steps until the contexts have grown by a tenth and are started anew.
const STEPS: u64 = 100;

fn output(plan: &Plan) -> Event {
    let sampled = plan.rows.iter().filter(|row| row.is_sampled());
    let sampled = sampled.map(|row| Sampled { token: row.slot, logprob: None, top: Vec::new() });
    Event::Finished(StepOutput { step: plan.step, sampled: sampled.collect(), step_s: 0.01 })
}

/// All requests decode, and two plans are in flight, the older one first.
fn decoding(page_size: u32, requests: u32, context: u32) -> (Scheduler, Plan, Plan) {
    let mut scheduler = Scheduler::new(SchedConfig {
        pages: (requests * (2 * context + 1_000)) / page_size,
        page_size,
        windows: Windows::default(),
        max_running: requests,
        penalised_max: requests,
        max_waiting: requests,
        chunk_tokens: 8 * requests,
        scored_max: 256,
        max_len: 4_000,
        vocab_size: 50_000,
        eos_token_ids: vec![49_999],
        cache: CacheMode::Radix,
        overlap: true,
    })
    .expect("the configuration is valid");
    let submits = (0..requests).map(|i| {
        Event::Submit(Submit {
            id: RequestId(u64::from(i)),
            prompt: (0..context).map(|n| (i * 7 + n) % 40_000).collect(),
            generated: Vec::new(),
            sampling: SamplingParams::default(),
            stop: StopParams { max_tokens: 3_000, ..StopParams::default() },
            priority: 0,
        })
    });
    let mut plans = VecDeque::from_iter(scheduler.step(submits, 0.0).plan);
    plans.extend(scheduler.step([], 0.0).plan);
    loop {
        let newest = plans.pop_back().expect("there is work");
        let oldest = plans.pop_back().expect("two plans are in flight");
        if newest.tokens.len() == requests as usize {
            return (scheduler, oldest, newest);
        }
        plans.push_back(newest);
        plans.extend(scheduler.step([output(&oldest)], 0.0).plan);
    }
}

fn bench(c: &mut Criterion<ProcessorTime>) {
    for (page_size, requests, context) in
        [(16, 256, 1_000), (1, 256, 1_000), (1, 2_048, 250), (1, 2_048, 1_000)]
    {
        let name =
            format!("step with {requests} decodes of {context} tokens, page size {page_size}");
        c.bench_function(&name, |b| {
            b.iter_custom(|iterations| {
                let mut spent = Duration::ZERO;
                let mut left = iterations;
                while left > 0 {
                    let (mut scheduler, mut oldest, mut newest) =
                        decoding(page_size, requests, context);
                    for _ in 0..left.min(STEPS) {
                        let event = output(&oldest);
                        let start = processor_time::now();
                        let step = scheduler.step([event], 0.0);
                        spent += processor_time::now() - start;
                        assert_eq!(step.token_events.len(), requests as usize);
                        let next = step.plan.expect("all go on");
                        scheduler
                            .recycle(mem::replace(&mut oldest, mem::replace(&mut newest, next)));
                    }
                    left -= left.min(STEPS);
                }
                spent
            });
        });
    }
}

fn main() {
    let mut c = Criterion::default()
        .with_measurement(ProcessorTime)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20)
        .without_plots()
        .configure_from_args();
    bench(&mut c);
    c.final_summary();
}
