//! The words that the rooms of minisgld share: sampling parameters, what a request yields, the
//! frames between daemon and worker, and the types of the admin API and of `minisglctl doctor`.
//!
//! Owns: data and its (de)serialisation. Must never: do I/O, start threads, or know a runtime.
//! Every type here is plain serde data; the frame codec works on byte slices.

#![forbid(unsafe_code)]

pub mod admin;
pub mod disk;
pub mod doctor;
pub mod frame;
pub mod gpus;
pub mod grammar;
pub mod integers;
pub mod limits;
pub mod model;
pub mod ranges;
pub mod reload;
pub mod request;
pub mod socket;
pub mod text;
pub mod worker;

pub use gpus::{BadGpus, GpuList};
pub use grammar::{Grammar, Guided, Thought};
pub use model::{Attn, AttnBackend, CacheMode, Device, KvDtype, LoadOptions, ModelInfo, Quantize};
pub use ranges::OutOfRange;
pub use request::{
    Finish, Generate, NO_TOKEN, Reject, RequestId, Sampled, SamplingParams, StopParams, Submit,
    TokenEvent, TokenLogprob, Unavailable,
};
pub use worker::{FromWorker, LoadStage, StepStats, ToWorker, WorkerSpec};

/// Version of minisgld, its worker and `minisglctl`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Number of the frames between daemon and worker; it goes up with every change of one. Each refuses another's.
pub const PROTOCOL: u32 = 4;
