//! What a machine has for running models: `minisgld probe` prints a [`DoctorReport`], the daemon
//! passes it on, `minisglctl doctor` shows it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What one `minisgld` found, on the machine and in the configuration it was given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DoctorReport {
    /// Version of the `minisgld` that looked.
    pub version: String,
    /// What it found to compute on.
    pub machine: MachineReport,
    /// Configuration file that was read.
    pub config: Option<PathBuf>,
    /// Why the configuration could not be used; the rest then holds for the defaults.
    pub config_error: Option<String>,
    /// Where models come from.
    pub hub: HubReport,
}

/// Whether models run on a GPU here, and if not, what comes first in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Models load onto a GPU.
    Ready,
    /// This build has no CUDA backend.
    NoBackend,
    /// No NVIDIA driver, or one that is too old or does not work.
    NoDriver,
    /// The driver works, and shows no GPU that can be used.
    NoGpu,
    /// The GPU is fine, and a library of CUDA's is missing.
    NoLibrary,
}

/// Driver, GPUs and libraries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineReport {
    /// The short answer.
    pub verdict: Verdict,
    /// What is in the way and what to do; `None` when `verdict` is `Ready`.
    pub problem: Option<String>,
    /// NVIDIA's driver.
    pub driver: DriverReport,
    /// Every GPU that the driver shows, in its order.
    pub gpus: Vec<GpuReport>,
    /// Every pair of GPUs that models can run on; empty with fewer than two.
    #[serde(default)]
    pub links: Vec<LinkReport>,
    /// Every library that is used beside the driver's.
    pub libraries: Vec<LibraryReport>,
    /// Folder for libraries from the configuration.
    pub libraries_folder: Option<PathBuf>,
}

/// NVIDIA's driver.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DriverReport {
    /// File of its library, `libcuda.so.1`.
    pub path: Option<PathBuf>,
    /// Version of its kernel module.
    pub version: Option<String>,
    /// Latest CUDA version that it supports, major and minor.
    pub cuda: Option<(u32, u32)>,
    /// Why it cannot be used.
    pub error: Option<String>,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GpuReport {
    /// The driver's number, after `CUDA_VISIBLE_DEVICES`.
    pub ordinal: u32,
    /// What the driver calls it.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes that nobody has; `None` when the GPU could not be opened to ask.
    pub free_bytes: Option<u64>,
    /// Which of the machine code in this build it runs, such as `sm_90a`; `None` when it is too old.
    pub code: Option<String>,
    /// Whether that is code for this very GPU, not PTX that the driver compiles at the first start.
    pub native: bool,
    /// Why it could not be opened.
    pub error: Option<String>,
}

/// Whether two GPUs read and write each other's memory. Without, ranks on them need NCCL for their sums.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkReport {
    /// Their numbers, the lower first.
    pub gpus: (u32, u32),
    /// The driver's rank of the link between them, 0 the best; `None` when there is none.
    pub rank: Option<u32>,
    /// Why the driver did not say.
    pub error: Option<String>,
}

/// A library of NVIDIA's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LibraryReport {
    /// File name.
    pub name: String,
    /// What minisgld needs it for.
    pub purpose: String,
    /// Whether a single GPU needs it.
    pub required: bool,
    /// Where it is.
    pub path: Option<PathBuf>,
    /// Its own version.
    pub version: Option<String>,
    /// Why it cannot be used, where it was looked for, and what to install.
    pub error: Option<String>,
}

/// The Hugging Face cache and hub, as the daemon would use them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HubReport {
    /// The cache folder; `None` when neither configuration nor environment has one.
    pub cache: Option<PathBuf>,
    /// Models in the cache, complete or not.
    pub models: u32,
    /// Bytes free on the cache's disk, for this user.
    pub free_bytes: Option<u64>,
    /// The hub's address.
    pub endpoint: String,
    /// Downloads are switched off.
    pub offline: bool,
    /// Where the access token comes from; never the token.
    pub token: Option<String>,
    /// Why the hub cannot be reached; `None` when it can, or was not tried because of `offline`.
    pub error: Option<String>,
}
