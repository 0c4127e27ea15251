//! The registry of models, their workers, and the admin API over a Unix socket.
//!
//! | file | what it holds |
//! |---|---|
//! | [`registry`] | the models by name: load, unload, submit, status, health |
//! | `checks` | what is wrong with a load before anything starts |
//! | [`resolve`] | from what was asked for to a folder: path, local cache, hub |
//! | [`admin`], [`socket`] | HTTP over the Unix socket |
//! | [`access`] | who may do what there |
//! | `remember` | the models that are there again after a restart |
//! | `supervisor` | one task a model: its state machine, and the life of its worker |
//! | `worker` | one worker process: its socket, its frames, its last words |
//! | `streams` | the requests in flight, and the way of a token to its reader |
//! | `placement` | which model has which GPUs |
//! | [`gpus`] | whether this machine has GPUs, how they do, and how much of their memory workers hold |
//! | `hub` | downloads |
//! | [`text`] | the process that reads a model's tokenizer and templates |
//! | `doctor` | what the machine has, asked of a child process |
//! | `metrics` | what Prometheus sees of the workers |
//!
//! Owns: worker processes, from spawn to reap, and every request between `submit` and its last
//! event. Must never: know HTTP's view of a model (text, templates), or touch an engine.

#![forbid(unsafe_code)]

pub mod access;
pub mod admin;
mod checks;
pub mod children;
pub mod config;
mod doctor;
pub mod gpus;
mod hub;
mod metrics;
mod model;
mod placement;
pub mod registry;
mod remember;
pub mod resolve;
pub mod socket;
mod streams;
mod supervisor;
pub mod text;
mod worker;

pub use checks::check_load;
pub use config::{HubConfig, Inspector, RegistryConfig, RestartPolicy, WorkerCommand};
pub use doctor::Doctor;
pub use gpus::{GpuReading, GpuSource, Gpus};
pub use minisgl_proto::{Generate, Unavailable};
pub use registry::{Expected, Generation, ModelHandle, Registry};
pub use remember::Memory;
pub use streams::AbortGuard;
pub use text::{Text, TextConfig};
