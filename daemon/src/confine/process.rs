//! What a confined process is to the kernel: without root's powers, and the first to go when memory is short.
//!
//! Owns: its capabilities and its badness. Must never: take more of either from another process.

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// Badness of the process itself, see proc_pid_oom_score_adj(5).
const BADNESS: &str = "/proc/self/oom_score_adj";
/// A child's badness is this much above the daemon's.
const BADNESS_ABOVE: i32 = 100;
/// Beyond it the kernel takes no value.
const BADNESS_MAX: i32 = 1000;

/// When memory is short the kernel is to take this process before the daemon, which inherits its own badness to it.
pub(super) fn volunteer() -> Result<(), String> {
    let change = || -> std::io::Result<()> {
        let inherited = std::fs::read_to_string(BADNESS)?;
        let inherited: i32 = inherited.trim().parse().map_err(std::io::Error::other)?;
        std::fs::write(BADNESS, badness(inherited).to_string())
    };
    change().map_err(|error| format!("{BADNESS}: {error}"))
}

fn badness(inherited: i32) -> i32 {
    (inherited + BADNESS_ABOVE).clamp(0, BADNESS_MAX)
}

/// Whether there is one thread alone: rules hold for the thread that makes them and for those that it starts.
pub(super) fn is_single() -> Result<(), String> {
    match std::fs::read_dir("/proc/self/task").map(Iterator::count) {
        Ok(1) => Ok(()),
        Ok(threads) => Err(format!("there are {threads} threads already")),
        Err(error) => Err(error.to_string()),
    }
}

/// Gives up the capabilities of a daemon that root started: they lead into other processes. A model of another
/// user's may still be read.
pub(super) fn drop_capabilities() -> Result<(), String> {
    let change = || {
        let held = capabilities(None)?;
        let kept = CapabilitySet::DAC_READ_SEARCH;
        let permitted = held.permitted & kept;
        let left = CapabilitySets {
            effective: held.effective & kept,
            permitted,
            inheritable: CapabilitySet::empty(),
        };
        if held == left { Ok(()) } else { set_capabilities(None, left) }
    };
    change().map_err(|error: rustix::io::Errno| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_goes_before_its_daemon() {
        assert_eq!([-250, 0, 950, 1000].map(badness), [0, 100, 1000, 1000]);
        assert!([-1000, -250, -1, 0, 500].iter().all(|&own| badness(own) > own));
    }
}
