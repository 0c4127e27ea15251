//! SmolLM2 on the CPU is fast enough, and company makes it faster in total.
//!
//! Alone on the machine and with release binaries only: `cargo xtask test` runs it last.

use std::time::Instant;

use minisgl_tests::{Daemon, greedy, model_options};

/// Tokens a second for one stream, at least, on two cores.
const ONE_STREAM_MIN: f64 = 15.0;
const COUNT: u32 = 96;

#[test]
#[ignore = "measures time: needs the machine for itself"]
fn one_stream_and_eight() {
    let daemon = Daemon::with_smollm2(model_options());
    let prompt = |stream: u32| (500 + stream..540 + stream).collect::<Vec<u32>>();
    greedy(&daemon, "smollm2", &prompt(100), 8);

    let start = Instant::now();
    greedy(&daemon, "smollm2", &prompt(0), COUNT);
    let one = f64::from(COUNT) / start.elapsed().as_secs_f64();

    let start = Instant::now();
    std::thread::scope(|scope| {
        for stream in 0..8 {
            let (daemon, prompt) = (&daemon, prompt(10 * stream));
            scope.spawn(move || greedy(daemon, "smollm2", &prompt, COUNT));
        }
    });
    let eight = f64::from(8 * COUNT) / start.elapsed().as_secs_f64();
    println!("one stream {one:.1} tokens/s, eight {eight:.1} tokens/s in total");
    assert!(one >= ONE_STREAM_MIN, "one stream makes {one:.1} tokens/s");
    assert!(eight > one, "eight streams make {eight:.1} tokens/s, one makes {one:.1}");
}
