//! Benchmarks with thresholds: what may not become slower unnoticed.
//!
//! The thresholds are for two cores of an ordinary server and leave room; docs/benchmarks.md has
//! measured numbers.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::{needs, paths, sh};

/// The benchmarks that have thresholds: package and name.
const BENCHES: [(&str, &str); 2] = [("minisgl-sched", "step"), ("minisgl-cache", "radix")];

/// A result, which is a folder under `target/criterion`, and the microseconds that its mean may take.
const THRESHOLDS: [(&str, f64); 4] = [
    ("step with 256 decodes, page size 16", 100.0),
    // The page tables alone are a megabyte here: the copy is bound by memory.
    ("step with 256 decodes, page size 1", 250.0),
    ("match 32768 tokens, page size 16", 200.0),
    ("match 32768 tokens, page size 1", 200.0),
];

/// Runs that a benchmark gets to meet its threshold.
const RUNS_MAX: usize = 3;

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
    // A neighbour on the machine only ever makes a mean larger: the best of a few runs counts.
    let mut slow = too_slow()?;
    for _ in 1..RUNS_MAX {
        if slow.is_empty() {
            break;
        }
        println!("slower than allowed, once more: {}", slow.join("; "));
        slow = too_slow()?;
    }
    ensure!(slow.is_empty(), "slower than allowed in {RUNS_MAX} runs: {}", slow.join("; "));
    let mut throughput = sh::cargo();
    throughput.args(["test", "--locked", "-p", "minisgl-tests", "--test", "throughput", "--"]);
    throughput.args(["--ignored", "--nocapture"]);
    sh::run(needs::with_environment(&mut throughput)?, "SmolLM2 is slower than it has to be")
}

/// Runs the benchmarks; those whose mean is over the threshold.
fn too_slow() -> Result<Vec<&'static str>> {
    for (package, bench) in BENCHES {
        let args = ["bench", "--locked", "-p", package, "--bench", bench];
        sh::run(sh::cargo().args(args), "the benchmark does not run")?;
    }
    let mut slow = Vec::new();
    for (id, max) in THRESHOLDS {
        let mean = mean_microseconds(id)?;
        println!("{mean:>8.1} us, at most {max:.0}: {id}");
        if mean > max {
            slow.push(id);
        }
    }
    Ok(slow)
}

fn mean_microseconds(id: &str) -> Result<f64> {
    let path = paths::target().join("criterion").join(id).join("new/estimates.json");
    let text = std::fs::read(&path).with_context(|| format!("no result in {}", path.display()))?;
    let estimates: Estimates = serde_json::from_slice(&text)?;
    Ok(estimates.mean.point_estimate / 1000.0)
}
