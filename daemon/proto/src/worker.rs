//! The frames between the daemon and one worker process.
//!
//! ```text
//!   daemon                      worker
//!     | -- Load(WorkerSpec) ----> |
//!     | <---- Progress(..) ------ |  any number
//!     | <---- Ready(ModelInfo) -- |  or LoadFailed, then the worker exits
//!     | -- Submit, Abort, Flush, Ping, Drain --> |
//!     | <---- Step(..), Flushed, Pong ---------- |
//! ```
//!
//! A worker that reads the end of the stream aborts everything and exits.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{LoadOptions, ModelInfo, RequestId, Submit, TokenEvent};

/// What a worker is to load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerSpec {
    /// [`crate::PROTOCOL`] of the daemon; the worker refuses another.
    pub protocol: u32,
    /// The name clients use.
    pub name: String,
    /// Folder with `config.json`, tokenizer and weights.
    pub dir: PathBuf,
    /// How.
    pub options: LoadOptions,
}

/// Daemon to worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    /// First frame, once.
    Load(WorkerSpec),
    /// A new request.
    Submit(Submit),
    /// End this request now; unknown ids are ignored.
    Abort(RequestId),
    /// Forget every cached page that no running request uses.
    Flush,
    /// Answered with `Pong` by the scheduler thread itself: proof that its loop turns.
    Ping(u64),
    /// Refuse new requests, finish the running ones, then exit with status 0.
    Drain,
}

/// Worker to daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromWorker {
    /// How far loading has come.
    Progress(LoadProgress),
    /// Requests are welcome.
    Ready(Box<ModelInfo>),
    /// The model cannot be served; the text names the thing and the remedy. The worker exits.
    LoadFailed(String),
    /// Everything that one step brought, for all requests together. Also sent without events, when
    /// only the counters changed.
    Step {
        /// At most one for each request.
        events: Vec<TokenEvent>,
        /// Counters after the step.
        stats: StepStats,
    },
    /// Answer to `Flush`: pages that became free.
    Flushed {
        /// Pages that became free.
        pages: u64,
    },
    /// Answer to `Ping`.
    Pong(u64),
}

/// What a worker is doing before `Ready`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadStage {
    /// Finding the model: a path, the local cache, or the hub.
    Resolve,
    /// Fetching files from the hub, in bytes.
    Download,
    /// Waiting until another model has its GPUs, so that both do not take the same.
    Place,
    /// Reading weights, in bytes.
    Read,
    /// First steps, graphs, measurements.
    WarmUp,
    /// Allocating KV pages, in bytes, of the memory that is left.
    KvPages,
}

/// A point on the way to `Ready`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadProgress {
    /// Which part of the way.
    pub stage: LoadStage,
    /// Units done (bytes, or steps for `WarmUp`).
    pub done: u64,
    /// Units in all; 0 when unknown.
    pub total: u64,
    /// The file or thing being worked on, for people.
    pub detail: String,
}

/// Counters of a worker after a step. Totals count from the worker's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepStats {
    /// Steps run so far.
    pub steps: u64,
    /// Seconds that the device spent on the last step alone, not counting what it spent on the one before while this
    /// one was launched already; 0 when none ran.
    pub step_s: f32,
    /// Rows (requests) in the last step.
    pub rows: u32,
    /// Prompt tokens computed in the last step.
    pub prefill_tokens: u32,
    /// Requests that hold rows now.
    pub running: u32,
    /// Requests that wait now.
    pub waiting: u32,
    /// KV pages in all.
    pub pages_total: u64,
    /// Pages free.
    pub pages_free: u64,
    /// Pages held by the prefix cache.
    pub pages_cached: u64,
    /// Those of `pages_cached` that no running request uses.
    #[serde(default)]
    pub pages_evictable: u64,
    /// Pages owned by running requests alone.
    pub pages_owned: u64,
    /// Prompt tokens looked up in the prefix cache, total.
    pub prompt_tokens: u64,
    /// Prompt tokens found there, total.
    pub cached_tokens: u64,
    /// Tokens sampled, total.
    pub generated_tokens: u64,
    /// Times a request was preempted, total.
    pub preemptions: u64,
    /// Requests that ended because the model's logits for them were no numbers, total.
    #[serde(default)]
    pub broken_logits: u64,
}
