//! Types of the calls on what is on disk, and on whether a model would fit. They are served beside those of
//! [`crate::admin`].
//!
//! | call | body | answer |
//! |---|---|---|
//! | `POST /admin/v1/pull` | [`PullRequest`] | lines of [`PullEvent`], one JSON object each |
//! | `GET /admin/v1/disk` | | [`DiskReport`] |
//! | `POST /admin/v1/rm` | [`RmRequest`] | [`RmReply`] |
//! | `POST /admin/v1/fit` | [`LoadRequest`](crate::admin::LoadRequest) | [`FitReport`] |

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::LoadOptions;
use crate::admin::AdminError;
use crate::worker::LoadProgress;

/// `POST /admin/v1/pull`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PullRequest {
    /// A repo id of the hub: `org/name[@revision]`.
    pub model: String,
}

/// One line of the answer to a pull.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum PullEvent {
    /// Still on the way.
    Progress(LoadProgress),
    /// Last line: it is on disk.
    Done(Pulled),
    /// Last line: it is not.
    Failed(AdminError),
}

/// A repo that is on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pulled {
    /// Repo id and revision.
    pub model: String,
    /// The commit that the revision is now.
    pub commit: String,
    /// The folder with its files.
    pub dir: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
}

/// `GET /admin/v1/disk`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DiskReport {
    /// The Hugging Face cache; `None` where none is configured.
    pub cache: Option<PathBuf>,
    /// Bytes of all repos.
    pub bytes: u64,
    /// Bytes that may still be written there.
    pub free_bytes: Option<u64>,
    /// By name.
    pub repos: Vec<DiskRepo>,
    /// What could not be looked at, and why.
    pub notes: Vec<String>,
}

/// A model's repo in the cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiskRepo {
    /// `org/name`.
    pub id: String,
    /// Bytes of its files; what revisions share counts once.
    pub bytes: u64,
    /// How many of them are of files that have not come whole.
    pub incomplete_bytes: u64,
    /// Unix time at which a file was last read or written, in seconds. File systems that do not note when a
    /// file is read (`noatime`) tell the time of the download.
    pub last_used: Option<f64>,
    /// Names of the loaded models that use it.
    pub in_use: Vec<String>,
    /// Whether it is being downloaded now.
    pub downloading: bool,
    /// What is there of it.
    pub revisions: Vec<DiskRevision>,
}

/// A commit of a repo in the cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiskRevision {
    /// The commit.
    pub commit: String,
    /// The branches and tags that are this commit.
    pub refs: Vec<String>,
    /// Bytes of its files.
    pub bytes: u64,
    /// Number of its files.
    pub files: u64,
    /// What it lacks to be loaded; empty when it can be.
    pub missing: Vec<String>,
}

/// `POST /admin/v1/rm`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RmRequest {
    /// `org/name`, the whole repo; or `org/name@revision`, that revision alone.
    pub model: String,
}

/// Answer to a removal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RmReply {
    /// What was removed.
    pub removed: String,
    /// Bytes that became free.
    pub freed_bytes: u64,
}

/// `POST /admin/v1/fit`: what a load would come to. Nothing of it was loaded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FitReport {
    /// Name it would have.
    pub name: String,
    /// Whether it fits.
    pub fits: bool,
    /// Why not, and what to do.
    pub problem: Option<String>,
    /// What it would be; `None` when not even that can be said.
    pub fit: Option<Fit>,
    /// What is to be known beside it: what is an estimate, what would be downloaded.
    pub notes: Vec<String>,
}

/// A model on its devices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fit {
    /// As in `config.json`.
    pub architecture: String,
    /// Its parameters.
    pub parameters: u64,
    /// How its weights would be held, most bytes first.
    pub schemes: Vec<SchemeShare>,
    /// What it would run on.
    pub device: String,
    /// The driver's numbers of the GPUs; empty on the CPU.
    pub gpus: Vec<u32>,
    /// Ranks.
    pub tp: u32,
    /// Free bytes in each memory, or in the fullest GPU's.
    pub available_bytes: u64,
    /// Bytes of weights in each memory.
    pub weight_bytes: u64,
    /// Bytes of everything else but KV pages in each memory: workspaces, graphs, what the driver keeps.
    pub other_bytes: u64,
    /// Whether those two are estimates.
    pub is_estimate: bool,
    /// Bytes of KV pages in each memory.
    pub kv_bytes: u64,
    /// Tokens of KV cache in all layers.
    pub kv_tokens: u64,
    /// Groups of layers with pages of their own; of long requests the cache holds more where there are several.
    #[serde(default = "crate::model::one")]
    pub kv_groups: u32,
    /// Prompt plus generated tokens of one request at most.
    pub max_len: u64,
    /// Requests of `max_len` tokens that the KV cache holds at once.
    pub full_requests: u64,
}

/// The weights of a model that are stored by one scheme.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemeShare {
    /// `plain`, `fp8` or `mxfp4`.
    pub scheme: String,
    /// Their bytes, of all ranks together; plain ones as 16 bits.
    pub bytes: u64,
}

/// What the daemon asks `minisgld fit`, on its standard input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FitQuestion {
    /// The model's folder, in which `config.json` is.
    pub dir: PathBuf,
    /// How it would be loaded.
    pub options: LoadOptions,
}

/// What `minisgld fit` answers, on its standard output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FitAnswer {
    /// What it would be.
    pub fit: Option<Fit>,
    /// Why it would not load.
    pub problem: Option<String>,
}
