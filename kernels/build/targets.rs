//! What a source is compiled for, and how many at a time.

use std::path::Path;
use std::{env, fs};

/// Machine code for Ampere (A100), Ada, Hopper and Blackwell (B200), and PTX for what else there is.
const TARGETS: [&str; 5] = [
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_89,code=sm_89",
    "-gencode=arch=compute_90a,code=sm_90a",
    "-gencode=arch=compute_100a,code=sm_100a",
    "-gencode=arch=compute_80,code=compute_80",
];

/// Compilers that run side by side at most.
const JOBS_MAX: usize = 8;

/// What a compiler takes, in kilobytes, and how much more the one of `cu/fa` does.
const JOB_KB: usize = 800_000;
const FA_MORE_KB: usize = 5_000_000;

/// As many compilers as cargo would run, and as fit into memory.
pub fn jobs() -> usize {
    let wanted = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available_kb = available.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    let room = |kb: usize| kb.saturating_sub(FA_MORE_KB) / JOB_KB;
    wanted.min(available_kb.map_or(JOBS_MAX, room)).clamp(1, JOBS_MAX)
}

/// Whether a source is compiled with its host code.
pub fn is_host(source: &Path) -> bool {
    source.starts_with("cu/fi") || source.starts_with("cu/fa")
}

/// What a source is compiled for. `fa` is Hopper's alone; the less common types of `fi`, and its windows, run
/// everywhere, from the machine code of the oldest or from PTX.
pub fn targets(source: &Path) -> Vec<&'static str> {
    let stem = crate::stem(source);
    let rare = stem.ends_with("_fp16") || stem.ends_with("_fp8") || stem.starts_with("fi_window");
    let mut targets = TARGETS.to_vec();
    targets.retain(|target| match () {
        () if source.starts_with("cu/fa") => target.contains("90a"),
        () if rare => !target.contains("89") && !target.contains("100a"),
        () => true,
    });
    if let Ok(one) = env::var("MINISGL_CUDA_TARGET") {
        targets.retain(|target| target.ends_with(&one));
    }
    targets
}
