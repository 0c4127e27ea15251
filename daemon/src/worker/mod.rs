//! The worker process: one model, plain threads, no network.
//!
//! Owns: the loop that turns frames into scheduler events, plans into engine steps, and results into
//! frames. Must never: open a socket, or outlive the daemon.
//!
//! ```text
//!   stdin (a socket) -> Load, then confined
//!   stdin (a socket) -> reader thread -> inbox -> [ scheduler thread: step, launch, wait ] -> link writer
//!                                          ^  |           |  ^
//!                            grammar threads <+        engine ranks
//! ```

mod grammars;
pub(crate) mod link;
mod run;

pub(crate) use grammars::{Compilers, Masks};
pub(crate) use link::connect;
pub(crate) use run::{apply_environment, sched_config};

use std::process::ExitCode;

use nix::sys::signal::Signal;

use crate::{confine, logging};

/// Runs the worker until it is drained or the daemon is gone.
pub fn run(log: &str, confine_gpu: bool) -> ExitCode {
    if let Err(error) = logging::init_worker(log) {
        eprintln!("minisgld worker: {error:#}");
        return ExitCode::FAILURE;
    }
    // A worker without its daemon would hold memory for nobody.
    if let Err(error) = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL) {
        tracing::warn!("cannot ask to die with the daemon: {error}");
    }
    let serve = |stream| run::serve(stream, |spec| confine::worker(spec, confine_gpu));
    match link::connect().map_err(anyhow::Error::from).and_then(serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            crate::leave::soon();
            ExitCode::FAILURE
        }
    }
}
