//! The registry of models, their workers, and the admin API over a Unix socket.
//!
//! | file | what it holds |
//! |---|---|
//! | [`registry`] | the models by name: load, unload, submit, status, health |
//! | `spec` | what the operator wants: a model, its names, how it is loaded |
//! | `checks` | what is wrong with a load before anything starts |
//! | [`resolve`] | from what was asked for to a folder: path, local cache, hub |
//! | [`admin`], [`socket`] | HTTP over the Unix socket |
//! | [`access`] | who may do what there |
//! | `saved` | the models that are there again after a restart of the daemon |
//! | `model` | a model as everybody sees it |
//! | `supervisor`, `event` | one task a model: its state machine, and what drives it |
//! | `instance` | one worker's life: `process` is the child, `link` the frames, wherever they go |
//! | `sessions` | the requests that have not ended, which outlive their worker, and the way of a token to its reader |
//! | `log_ring` | the last lines that a model's workers wrote |
//! | `placement` | which model has which GPUs |
//! | [`gpus`] | whether this machine has GPUs, how they do, and how much of their memory workers hold |
//! | `layout` | what a model's files are called, and where they lie |
//! | `hub`, `downloads` | a download, and those that run |
//! | `disk` | what of models is on disk, and how it leaves |
//! | `doctor` | what the machine has, asked of a child process |
//! | `fit` | what a load would come to, asked of a child process |
//! | `metrics` | what Prometheus sees of the workers |
//!
//! Owns: worker processes, from spawn to reap, and every request between `submit` and its last
//! event. Must never: know HTTP's view of a model (text, templates), or touch an engine.

#![forbid(unsafe_code)]

pub mod access;
pub mod admin;
mod checks;
pub mod children;
mod command;
pub mod config;
mod disk;
mod doctor;
mod downloads;
mod event;
mod fit;
pub mod gpus;
mod hub;
mod instance;
mod layout;
mod link;
pub mod log_level;
mod log_ring;
mod metrics;
mod model;
mod placement;
mod process;
pub mod registry;
pub mod reload;
mod reply;
pub mod resolve;
mod saved;
mod sessions;
pub mod socket;
mod spec;
mod supervisor;
pub mod text;

pub use checks::check_load;
pub use config::{
    Backoff, HubConfig, HubLimits, Inspector, RegistryConfig, RestartPolicy, WorkerCommand,
};
pub use doctor::Doctor;
pub use gpus::{GpuReading, GpuSource, Gpus};
pub use minisgl_proto::{Generate, Unavailable};
pub use registry::{Generation, Listed, ModelHandle, Registry};
pub use saved::SavedModels;
pub use sessions::AbortGuard;
pub use text::{Text, TextConfig};
