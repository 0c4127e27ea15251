//! SmolLM2 on the CPU is fast enough, and company makes it faster in total.
//!
//! Alone on the machine and with release binaries only: `cargo xtask test` runs it last.

use std::time::Instant;

use minisgl_tests::{Daemon, greedy, model_options};

/// Tokens a second for one stream, at least, on two cores.
const ONE_STREAM_MIN: f64 = 15.0;
const COUNT: u32 = 96;
const RUNS_MAX: u32 = 3;

#[test]
#[ignore = "measures time: needs the machine for itself"]
fn one_stream_and_eight() {
    let daemon = Daemon::with_smollm2(model_options());
    greedy(&daemon, "smollm2", &prompt(1000), 8);
    // A neighbour on the machine only ever makes it slower: the best of a few runs counts.
    let mut runs = (0..RUNS_MAX).map(|run| measure(&daemon, 100 * run));
    let fast_enough = runs.any(|(one, eight)| {
        println!("one stream {one:.1} tokens/s, eight {eight:.1} tokens/s in total");
        one >= ONE_STREAM_MIN && eight > one
    });
    assert!(fast_enough, "not {ONE_STREAM_MIN} tokens/s for one stream and more for eight");
}

/// Tokens a second of one stream, and of eight in total, over prompts that nobody has asked before.
fn measure(daemon: &Daemon, first: u32) -> (f64, f64) {
    let start = Instant::now();
    greedy(daemon, "smollm2", &prompt(first), COUNT);
    let one = f64::from(COUNT) / start.elapsed().as_secs_f64();

    let start = Instant::now();
    std::thread::scope(|scope| {
        for stream in 1..9 {
            let prompt = prompt(first + 10 * stream);
            scope.spawn(move || greedy(daemon, "smollm2", &prompt, COUNT));
        }
    });
    (one, f64::from(8 * COUNT) / start.elapsed().as_secs_f64())
}

/// 40 tokens, different ones for each stream.
fn prompt(stream: u32) -> Vec<u32> {
    (500 + stream..540 + stream).collect()
}
