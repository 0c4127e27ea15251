//! Everything that can happen to a model, for its supervisor.

use std::process::ExitStatus;
use std::time::Duration;

use minisgl_proto::admin::{AdminError, LoadEvent, ModelStatus};
use minisgl_proto::{FromWorker, LoadOptions};
use tokio::sync::{mpsc, oneshot};

use crate::resolve::Finding;

/// See the module's documentation.
pub(crate) enum Event {
    /// It was found, or not, or is being looked for.
    Found(Finding),
    /// An instance said something that is not about tokens.
    Frame { epoch: u32, frame: FromWorker },
    /// An instance's link is closed.
    Closed { epoch: u32, error: Option<String> },
    /// The instance's process ended and was reaped.
    Exited(ExitStatus),
    /// Somebody wants the prefix cache empty.
    Flush(oneshot::Sender<Result<u64, AdminError>>),
    /// Somebody wants another instance, loaded with these options or as before.
    Restart { options: Option<LoadOptions>, reply: oneshot::Sender<Result<Watch, AdminError>> },
    /// Somebody wants the model gone.
    Unload { force: bool, drain: Duration, reply: oneshot::Sender<ModelStatus> },
    /// Who chose GPUs has them, or is gone.
    Turn,
    /// The time set with the current phase has come.
    Deadline,
    /// Time to look after things.
    Tick,
}

/// How a load goes, for whoever asked for it.
pub(crate) type Watch = mpsc::Receiver<LoadEvent>;
