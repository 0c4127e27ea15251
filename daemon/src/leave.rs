//! The end of a process that holds a GPU.
//!
//! Owns: the forced exit. Must never: start before the last message is sent.

use std::time::Duration;

use nix::sys::signal::{Signal, raise};

/// What the driver may take to give a GPU up.
const PATIENCE: Duration = Duration::from_secs(1);

/// Ends the process if it does not end by itself now: libraries that tidy up at its exit may wait for a GPU that
/// hangs.
pub fn soon() {
    let end = || {
        std::thread::sleep(PATIENCE);
        // Nothing is left that could be done if this fails.
        let _ = raise(Signal::SIGKILL);
    };
    // Without it the daemon, or whoever waits, has to do it.
    let _ = std::thread::Builder::new().name("leave".into()).spawn(end);
}
