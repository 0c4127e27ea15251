//! The text process: one model's tokenizer and chat template, confined.
//!
//! Owns: its limits of memory. Must never: outlive the daemon; it ends with its standard input.

use std::process::ExitCode;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{confine, logging, worker};

/// Bytes of memory of its own at most. Reading the largest vocabularies takes 1 GiB for a moment, and four texts at
/// once that cannot be divided half a GiB each.
const MEMORY_BYTES_MAX: u64 = 3 << 30;

/// How much it gives way to the daemon and the workers, in steps of `nice`: it gets a third of a core that others want.
const NICE: i32 = 5;

/// Serves jobs until the daemon is gone.
pub fn run(log: &str) -> ExitCode {
    let serve = || -> anyhow::Result<()> {
        logging::init_worker(log)?;
        limit_memory();
        give_way();
        let stream = worker::connect()?;
        Ok(minisgl_text::serve(stream, |spec| confine::text(&spec.dir))?)
    };
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Streams and requests that are short go before texts that are long, on whatever cores there are.
fn give_way() {
    if let Err(error) = rustix::process::nice(NICE) {
        tracing::debug!("a text process does not give way: {error}");
    }
}

/// The kernel refuses more than this; whatever asked for it ends the process.
fn limit_memory() {
    let limit = || {
        let (_, hard) = getrlimit(Resource::RLIMIT_DATA)?;
        let max = MEMORY_BYTES_MAX.min(hard);
        setrlimit(Resource::RLIMIT_DATA, max, max)
    };
    if let Err(error) = limit() {
        tracing::warn!("the memory of a text process is not limited: {error}");
    }
}
