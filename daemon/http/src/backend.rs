//! What the HTTP surface needs from the rest of the daemon: models by name, and a way to submit.
//!
//! The daemon implements these traits over the registry of `control`; tests implement them over a
//! scripted model. Nothing here knows of workers, sockets or engines.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use minisgl_proto::text::{TextAnswer, TextFault, TextInfo, TextJob};
pub use minisgl_proto::{Generate, Unavailable};
use minisgl_proto::{ModelInfo, RequestId, StepStats, TokenEvent};
use tokio::sync::mpsc;

/// The models being served.
pub trait Backend: Send + Sync + 'static {
    /// Every model that could be asked for by name, ready or not, in the order it was loaded. For lists of models;
    /// a request asks for its model alone.
    fn models(&self) -> Arc<[ModelEntry]>;

    /// The model of this name, or alias; without a name, the only one there is.
    ///
    /// # Errors
    /// There is none, or it is not ready.
    fn model(&self, name: Option<&str>) -> Result<Arc<dyn Model>, Unavailable>;

    /// Whether the service as a whole should get traffic, and one line saying why (not).
    fn health(&self) -> (bool, String);

    /// Empties the prefix cache of the model of this name; how many pages became free, or why it is as it was.
    fn flush(&self, name: &str) -> BoxFuture<'static, Result<u64, String>>;

    /// Ends the requests of this client, which the name of its API key tells, and those alone that have this id where
    /// one is told. Returns how many.
    fn abort(&self, key: Option<&str>, request_id: Option<&str>) -> usize;
}

/// A line of `/v1/models`.
#[derive(Clone, Debug)]
pub struct ModelEntry {
    /// Name for clients.
    pub name: String,
    /// What was loaded: a folder, or a repo id.
    pub source: String,
    /// Unix time at which it was loaded, in seconds.
    pub created_s: u64,
    /// Another number for each load, also of the same name and folder.
    pub generation: u64,
    /// Whether it takes requests, if only to let them wait for its next worker.
    pub ready: bool,
    /// Its context length, once known.
    pub max_len: Option<u32>,
}

/// A model that takes requests. Stays valid when the model goes away; `submit` then refuses.
pub trait Model: Send + Sync + 'static {
    /// Its name for clients.
    fn name(&self) -> &str;

    /// Another number for each load, larger for a later one.
    fn generation(&self) -> u64;

    /// What it is.
    fn info(&self) -> &ModelInfo;

    /// Counters of its worker after the last step; `None` before its first.
    fn stats(&self) -> Option<StepStats>;

    /// Its tokenizer and chat template.
    fn text(&self) -> Arc<dyn TextService>;

    /// Starts a generation. Never blocks.
    ///
    /// # Errors
    /// Nothing was started.
    fn submit(&self, request: Generate) -> Result<Generation, Unavailable>;
}

/// A model's tokenizer and chat template, somewhere else.
pub trait TextService: Send + Sync + 'static {
    /// What they are.
    fn info(&self) -> Arc<TextInfo>;

    /// Does a job. Dropping the future gives it up.
    fn run(&self, job: TextJob) -> BoxFuture<'static, Result<TextAnswer, TextFault>>;
}

/// A running generation. Dropping it aborts the request, unless its last event was taken.
pub struct Generation {
    /// Its id, for logs.
    pub id: RequestId,
    /// Its events; the last one carries `finish`. A channel that closes without it means that the
    /// request was cut off: the reader fell further behind than the buffer allows.
    pub events: mpsc::Receiver<TokenEvent>,
    /// Aborts when dropped; the implementation makes that a no-op once the request has ended.
    pub guard: Box<dyn Send + Sync>,
}
