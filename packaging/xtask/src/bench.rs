//! Benchmarks with thresholds: what may not become slower unnoticed.
//!
//! The thresholds are for two cores of an ordinary server and leave room; docs/benchmarks.md has
//! measured numbers.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::{paths, sh, test};

/// The benchmarks that have thresholds: package and name.
const BENCHES: [(&str, &str); 2] = [("minisgl-sched", "step"), ("minisgl-cache", "radix")];

/// A result, which is a folder under `target/criterion`, and the microseconds that its mean may take.
const THRESHOLDS: [(&str, f64); 4] = [
    ("step with 256 decodes, page size 16", 100.0),
    ("step with 256 decodes, page size 1", 100.0),
    ("match 32768 tokens, page size 16", 200.0),
    ("match 32768 tokens, page size 1", 200.0),
];

#[derive(Deserialize)]
struct Estimates {
    mean: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    /// Nanoseconds.
    point_estimate: f64,
}

/// Runs the benchmarks and the throughput test, alone on the machine.
///
/// # Errors
/// One is slower than its threshold.
pub fn run() -> Result<()> {
    for (package, bench) in BENCHES {
        let args = ["bench", "--locked", "-p", package, "--bench", bench];
        sh::run(sh::cargo().args(args), "the benchmark does not run")?;
    }
    let means = THRESHOLDS.map(|(id, _)| mean_microseconds(id));
    let mut slow = Vec::new();
    for ((id, max), mean) in THRESHOLDS.into_iter().zip(means) {
        let mean = mean?;
        println!("{mean:>8.1} us, at most {max:.0}: {id}");
        if mean > max {
            slow.push(id);
        }
    }
    ensure!(slow.is_empty(), "slower than allowed: {}", slow.join("; "));
    let mut throughput = sh::cargo();
    throughput.args(["test", "--locked", "-p", "minisgl-tests", "--test", "throughput", "--"]);
    throughput.args(["--ignored", "--nocapture"]);
    sh::run(test::with_environment(&mut throughput)?, "SmolLM2 is slower than it has to be")
}

fn mean_microseconds(id: &str) -> Result<f64> {
    let path = paths::target().join("criterion").join(id).join("new/estimates.json");
    let text = std::fs::read(&path).with_context(|| format!("no result in {}", path.display()))?;
    let estimates: Estimates = serde_json::from_slice(&text)?;
    Ok(estimates.mean.point_estimate / 1000.0)
}
