//! Types of the admin API: HTTP with JSON bodies over the daemon's Unix socket.
//!
//! | call | body | answer |
//! |---|---|---|
//! | `GET /admin/v1/version` | | [`VersionInfo`] |
//! | `GET /admin/v1/models` | | `[ModelStatus]`: every model the daemon knows of |
//! | `GET /admin/v1/models/{name}` | | [`ModelStatus`] |
//! | `POST /admin/v1/load` | [`LoadRequest`] | lines of [`LoadEvent`], one JSON object each |
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
    /// Its worker starts for the first time.
    Loading,
    /// It serves.
    Ready,
    /// Its worker has taken requests but made no progress for longer than the stall time.
    Stalled,
    /// Its worker died; another is being started, after a pause.
    Restarting,
    /// Given up after too many failed starts; `load` it again.
    Failed,
    /// It takes no new requests and finishes the running ones.
    Unloading,
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
    /// What its tokenizer or chat template cannot do.
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
