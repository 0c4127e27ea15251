//! Benchmarks with thresholds: what may not become slower unnoticed.
//!
//! The thresholds are for two cores of an ordinary server and leave room; docs/benchmarks.md has
//! measured numbers.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::{paths, sh, test};

/// A criterion benchmark and the most its mean may be.
struct Threshold {
    package: &'static str,
    bench: &'static str,
    /// Folder of the result under `target/criterion`.
    id: &'static str,
    microseconds_max: f64,
}

const THRESHOLDS: [Threshold; 2] = [
    Threshold {
        package: "minisgl-sched",
        bench: "step",
        id: "step_256_running",
        microseconds_max: 100.0,
    },
    Threshold {
        package: "minisgl-cache",
        bench: "radix",
        id: "match_32768",
        microseconds_max: 200.0,
    },
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
    for threshold in &THRESHOLDS {
        let args = ["bench", "--locked", "-p", threshold.package, "--bench", threshold.bench];
        sh::run(sh::cargo().args(args), "the benchmark does not run")?;
    }
    let mut report = Vec::new();
    for threshold in &THRESHOLDS {
        let mean = mean_microseconds(threshold.id)?;
        report.push((threshold, mean));
        println!("{:<24} {mean:>8.1} us, at most {}", threshold.id, threshold.microseconds_max);
    }
    for (threshold, mean) in report {
        let (id, max) = (threshold.id, threshold.microseconds_max);
        ensure!(mean <= max, "{id} takes {mean:.1} us, at most {max} are allowed");
    }
    let mut throughput = sh::cargo();
    throughput.args(["test", "--locked", "-p", "minisgl-tests", "--test", "throughput", "--"]);
    throughput.args(["--ignored", "--nocapture"]);
    sh::run(test::with_environment(&mut throughput)?, "SmolLM2 is slower than it has to be")
}

fn mean_microseconds(id: &str) -> Result<f64> {
    let path = paths::target().join("criterion").join(Path::new(id)).join("new/estimates.json");
    let text = std::fs::read(&path).with_context(|| format!("no result in {}", path.display()))?;
    let estimates: Estimates = serde_json::from_slice(&text)?;
    Ok(estimates.mean.point_estimate / 1000.0)
}
