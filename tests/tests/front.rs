//! `minisgld bench front`: whole daemons whose worker computes nothing.

#![allow(clippy::unwrap_used)] // a test's way to fail

use std::process::Command;

use minisgl_tests::paths;
use serde_json::Value;

fn bench(args: &[&str]) -> Value {
    let mut command = Command::new(paths::binary("minisgld"));
    command.args(["bench", "front", "--json", "--model"]).arg(paths::smollm2()).args(args);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The benchmark itself fails when a stream has another number of tokens than it asked for.
#[test]
fn every_token_is_relayed_on_every_surface() {
    for api in ["chat", "completions", "generate"] {
        let args = ["--streams", "8", "--tokens", "50", "--step-us", "1000", "--api", api];
        let row = bench(&args);
        assert_eq!((&row["streams"], &row["tokens"]), (&8.into(), &400.into()), "{api}: {row}");
        assert!(row["wall_s"].as_f64().unwrap() >= 0.05, "50 steps of a millisecond: {row}");
    }
}

#[test]
fn streams_that_say_nothing_hold_little() {
    let idle = bench(&["--idle", "200"]);
    assert_eq!(idle["streams"], 200);
    // 20 KiB were measured; the rest is room for an allocator that keeps something.
    let kib = idle["kib_a_stream"].as_f64().unwrap();
    assert!(kib < 200.0, "{idle}");
}
