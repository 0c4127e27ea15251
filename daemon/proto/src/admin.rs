//! Types of the admin API: HTTP with JSON bodies over the daemon's Unix socket.
//!
//! | call | body | answer |
//! |---|---|---|
//! | `GET /admin/v1/version` | | [`VersionInfo`] |
//! | `GET /admin/v1/models` | | `[ModelStatus]`: every model the daemon knows of |
//! | `GET /admin/v1/models/{name}` | | [`ModelStatus`] |
//! | `POST /admin/v1/load` | [`LoadRequest`] | lines of [`LoadEvent`], one JSON object each |
//! | `POST /admin/v1/restart` | [`RestartRequest`] | lines of [`LoadEvent`], one JSON object each |
//! | `GET /admin/v1/models/{name}/logs?lines=N` | | [`LogLines`] |
//! | `GET /admin/v1/requests` | | `[RequestStatus]`: every request that has not ended |
//! | `POST /admin/v1/cancel` | [`CancelRequest`] | [`CancelReply`] |
//! | `POST /admin/v1/unload` | [`UnloadRequest`] | [`ModelStatus`] as it was last |
//! | `POST /admin/v1/flush` | [`FlushRequest`] | [`FlushReply`] |
//! | `GET /admin/v1/health` | | [`HealthReport`] |
//! | `GET /admin/v1/doctor` | | [`DoctorReport`](crate::doctor::DoctorReport) |
//!
//! The OpenAI routes (`/v1/...`, `/metrics`, `/tokenize`, ...) are served on the same socket.
//! Errors are an [`AdminError`] with a 4xx or 5xx status. Model names may contain `/`; in a path it
//! is written `%2F`.

use serde::{Deserialize, Serialize};

use crate::worker::{LoadProgress, StepStats};
use crate::{LoadOptions, ModelInfo};

/// `GET /admin/v1/version`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VersionInfo {
    /// Version of the daemon.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_s: f64,
    /// Address that serves the OpenAI API.
    pub listen: String,
}

/// `POST /admin/v1/load`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadRequest {
    /// A folder, or a repo id of the Hugging Face hub.
    pub model: String,
    /// Name for clients; default: the repo id, or the folder's last part.
    #[serde(default)]
    pub name: Option<String>,
    /// How to load it.
    #[serde(default)]
    pub options: LoadOptions,
    /// Load it again whenever the daemon starts, until it is unloaded.
    #[serde(default)]
    pub persist: bool,
    /// More names for clients; each name is one model's.
    #[serde(default)]
    pub aliases: Vec<String>,
}

/// `POST /admin/v1/restart`: another worker for the same model. Its requests wait for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RestartRequest {
    /// Model name.
    pub name: String,
    /// How to load it from now on; without, as before. When it does not load like this, it is as before again.
    #[serde(default)]
    pub options: Option<LoadOptions>,
}

/// `GET /admin/v1/models/{name}/logs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLines {
    /// The last lines of its workers, oldest first.
    pub lines: Vec<String>,
}

/// A request that has not ended: a line of `GET /admin/v1/requests`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RequestStatus {
    /// Its number, unique for the life of the daemon.
    pub id: u64,
    /// Its id in the log and for its client.
    pub request_id: String,
    /// The model it is for.
    pub model: String,
    /// Name of the API key it came with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Where it is.
    pub state: RequestState,
    /// Tokens of its prompt.
    pub prompt_tokens: u32,
    /// Tokens delivered.
    pub generated_tokens: u32,
    /// Tokens that it may generate.
    pub max_tokens: u32,
    /// Higher goes first.
    pub priority: i32,
    /// Seconds since it was submitted.
    pub age_s: f64,
    /// Times that another worker had to go on with it.
    pub moves: u32,
}

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestState {
    /// A worker has it, and has brought no token of it yet.
    Waiting,
    /// A worker generates.
    Running,
    /// It waits for a worker.
    Parked,
}

/// `POST /admin/v1/cancel`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelRequest {
    /// A request's number, or its `request_id`, which several may have.
    pub id: String,
}

/// Answer to a cancel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelReply {
    /// Requests that were ended.
    pub cancelled: u32,
}

/// One line of the answer to a load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum LoadEvent {
    /// Still on the way.
    Progress(LoadProgress),
    /// Last line: it serves.
    Ready(Box<ModelStatus>),
    /// Last line: it does not.
    Failed(AdminError),
}

/// `POST /admin/v1/unload`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnloadRequest {
    /// Model name.
    pub name: String,
    /// Abort running requests instead of waiting for them.
    #[serde(default)]
    pub force: bool,
}

/// `POST /admin/v1/flush`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlushRequest {
    /// Model name.
    pub name: String,
}

/// Answer to a flush.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlushReply {
    /// Pages that became free.
    pub pages_freed: u64,
}

/// Where a model is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelState {
    /// It is found, and its worker starts for the first time or after a failure.
    Loading,
    /// It serves.
    Ready,
    /// Its worker has taken requests but made no progress for longer than the stall time.
    Stalled,
    /// Its worker died; another is being started, after a pause.
    Restarting,
    /// It did not load, or its workers died too often in a row. It is tried again when
    /// [`ModelStatus::retry_in_s`] says so, and with the next `load` or `restart`.
    Failed,
    /// It takes no new requests and finishes the running ones.
    Unloading,
}

/// Why the daemon has a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The configuration names it.
    Configured,
    /// A load asked for it and for every start of the daemon.
    Persisted,
    /// A load asked for it.
    #[default]
    Loaded,
}

/// One model the daemon knows of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelStatus {
    /// Name for clients.
    pub name: String,
    /// What was asked for: folder or repo id.
    pub source: String,
    /// Where it is in its life.
    pub state: ModelState,
    /// Why it is there, when that needs saying: how the worker died, what failed.
    pub reason: Option<String>,
    /// Process id of the worker.
    pub pid: Option<u32>,
    /// The driver's numbers of the GPUs that it has: those asked for, or those it was placed on. Empty on
    /// the CPU, and before it was placed.
    #[serde(default)]
    pub gpus: Vec<u32>,
    /// Bytes that its worker holds on GPUs, as the driver counts them; asked for `GET` alone. `None` where
    /// the driver does not say.
    pub gpu_memory_bytes: Option<u64>,
    /// Times a dead worker was replaced.
    pub restarts: u32,
    /// Seconds in this state.
    pub state_s: f64,
    /// Requests the daemon has with it.
    pub in_flight: u32,
    /// Progress while loading.
    pub progress: Option<LoadProgress>,
    /// What it is, once loaded.
    pub info: Option<ModelInfo>,
    /// Its last counters.
    pub stats: Option<StepStats>,
    /// How it was loaded.
    pub options: LoadOptions,
    /// Whether it is loaded again whenever the daemon starts, because a load asked for it.
    #[serde(default)]
    pub persisted: bool,
    /// Its other names.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Why the daemon has it.
    #[serde(default)]
    pub origin: Origin,
    /// Failed: seconds until it is tried again; `None` when it is not.
    #[serde(default)]
    pub retry_in_s: Option<f64>,
    /// How it writes tool calls and thoughts: a dialect's name, once its files are read.
    #[serde(default)]
    pub dialect: Option<String>,
    /// What it cannot do, for people.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// `GET /admin/v1/health`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HealthReport {
    /// At least one model is ready, and none is loading, stalled, restarting or failed.
    pub ready: bool,
    /// One line for people.
    pub summary: String,
    /// Each model's name and state.
    pub models: Vec<(String, ModelState)>,
}

/// What kind of refusal; `minisglctl` maps it to its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdminErrorCode {
    /// The request itself is wrong (400).
    Invalid,
    /// No such model, loaded or to be loaded (404).
    NotFound,
    /// Right request, wrong moment: the name is taken, the model is loading (409).
    Conflict,
    /// Not allowed (403).
    Forbidden,
    /// It was tried and failed (500).
    Failed,
}

/// Body of every error answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct AdminError {
    /// What kind.
    pub code: AdminErrorCode,
    /// Names the thing and the remedy.
    pub message: String,
}
