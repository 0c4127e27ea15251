//! What scheduling makes of the offline benchmark, over a model of a step's cost:
//! `cargo bench -p minisgl-sched --bench offline`.
//!
//! 256 requests of 100 to 1,024 tokens in and out arrive at once (the lengths that `minisgld bench
//! offline` ships). Nothing is computed: a step takes
//!
//! ```text
//!   fixed + rows * row + KV tokens read * kv_token + prompt tokens * prefill_token
//! ```
//!
//! seconds on a clock of its own, with numbers near those measured on one H100. For each model, pool and
//! chunk it prints output tokens a second, steps, preemptions, prompt tokens computed again, and the part
//! of the time of an endless pool and chunk.

use std::collections::VecDeque;

use minisgl_proto::{CacheMode, RequestId, Sampled, SamplingParams, StopParams, Submit};
use minisgl_sched::{Event, Plan, SchedConfig, Scheduler, StepOutput, Windows};

/// Seconds, see the file's documentation.
struct Cost {
    name: &'static str,
    fixed: f64,
    row: f64,
    kv_token: f64,
    prefill_token: f64,
}

const COSTS: [Cost; 3] = [
    Cost { name: "0.6B", fixed: 1.1e-3, row: 4.0e-6, kv_token: 40e-9, prefill_token: 2.0e-6 },
    Cost { name: "8B", fixed: 5.2e-3, row: 6.0e-6, kv_token: 52e-9, prefill_token: 26e-6 },
    Cost { name: "14B", fixed: 9.6e-3, row: 8.0e-6, kv_token: 58e-9, prefill_token: 48e-6 },
];

const CHUNKS: [u32; 5] = [512, 1024, 2048, 8192, 1 << 18];

/// Tokens of KV cache: enough for anything, what an 80 GB card leaves beside 14B, and ever less.
const POOLS: [u32; 5] = [1 << 20, 250_000, 150_000, 100_000, 50_000];

#[derive(Debug, Default)]
struct Outcome {
    seconds: f64,
    steps: u64,
    prefill_tokens: u64,
    preemptions: u64,
}

impl Cost {
    fn of(&self, plan: &Plan) -> (f64, u64) {
        let (mut seconds, mut prefill) = (self.fixed, 0);
        for row in &plan.rows {
            seconds += self.row + f64::from(row.start) * self.kv_token;
            if row.len > 1 {
                prefill += u64::from(row.len);
            }
        }
        (seconds + prefill as f64 * self.prefill_token, prefill)
    }
}

fn lens() -> (Vec<u32>, Vec<u32>) {
    let text = include_str!("../../src/bench/offline-seed0.json");
    let json: serde_json::Value = serde_json::from_str(text).expect("the shipped file is JSON");
    let of = |name: &str| {
        let list = json[name].as_array().expect("it has both lists");
        list.iter().map(|len| len.as_u64().expect("lengths are numbers") as u32).collect()
    };
    (of("prompt_lens"), of("output_lens"))
}

fn output(plan: &Plan) -> Event {
    let sampled = plan.rows.iter().filter(|row| row.is_sampled());
    // Tokens that differ from request to request, so that the tree shares nothing.
    let sampled = sampled.map(|row| Sampled {
        token: (row.slot * 131 + row.start) % 100_000,
        logprob: None,
        top: Vec::new(),
    });
    Event::Finished(StepOutput { step: plan.step, sampled: sampled.collect(), step_s: 0.0 })
}

fn run(cost: &Cost, kv_tokens: u32, chunk_tokens: u32) -> Outcome {
    let (prompts, outputs) = lens();
    let page_size = 16;
    let mut scheduler = Scheduler::new(SchedConfig {
        pages: kv_tokens / page_size,
        page_size,
        windows: Windows::default(),
        max_running: 256,
        penalised_max: 256,
        max_waiting: 256,
        chunk_tokens,
        scored_max: 256,
        max_len: 4096,
        vocab_size: 200_000,
        eos_token_ids: Vec::new(),
        cache: CacheMode::Radix,
        overlap: true,
    })
    .expect("the configuration is valid");
    let mut events: Vec<Event> = prompts
        .iter()
        .zip(&outputs)
        .enumerate()
        .map(|(i, (&prompt, &output))| {
            Event::Submit(Submit {
                id: RequestId(i as u64),
                prompt: (0..prompt).map(|n| (i as u32 * 7_919 + n * 31) % 100_000).collect(),
                generated: Vec::new(),
                sampling: SamplingParams::default(),
                stop: StopParams { max_tokens: output, ..StopParams::default() },
                priority: 0,
            })
        })
        .collect();
    let mut outcome = Outcome::default();
    let mut in_flight: VecDeque<Plan> = VecDeque::new();
    loop {
        let plan = scheduler.step(events.drain(..), outcome.seconds).plan;
        let launched = plan.is_some();
        in_flight.extend(plan);
        if in_flight.len() > usize::from(launched) {
            let plan = in_flight.pop_front().expect("one is in flight");
            let (seconds, prefill) = cost.of(&plan);
            outcome.seconds += seconds;
            outcome.prefill_tokens += prefill;
            outcome.steps += 1;
            events.push(output(&plan));
        } else if !launched {
            break;
        }
    }
    let stats = scheduler.stats();
    let wanted: u64 = outputs.iter().map(|&len| u64::from(len)).sum();
    assert_eq!(stats.generated_tokens, wanted, "every request got all its tokens");
    outcome.preemptions = stats.preemptions;
    outcome
}

fn main() {
    let (prompts, outputs) = lens();
    let tokens: u32 = outputs.iter().sum();
    let prompt_tokens: u64 = prompts.iter().map(|&len| u64::from(len)).sum();
    println!("model      pool   chunk    tok/s   steps  preempted  again  of best");
    for cost in &COSTS {
        let best = run(cost, 1 << 20, 1 << 18);
        for pool in POOLS {
            for chunk in CHUNKS {
                let outcome = run(cost, pool, chunk);
                println!(
                    "{:<5} {pool:>9} {chunk:>7} {:>8.0} {:>7} {:>10} {:>6} {:>7.1}%",
                    cost.name,
                    f64::from(tokens) / outcome.seconds,
                    outcome.steps,
                    outcome.preemptions,
                    outcome.prefill_tokens.saturating_sub(prompt_tokens),
                    best.seconds / outcome.seconds * 100.0
                );
            }
        }
    }
}
