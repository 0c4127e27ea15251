//! The engine: runs plans on a model.
//!
//! Owns: models and their weights, the operations they are written in, KV pages, samplers, and
//! tensor-parallel ranks. Implements the scheduler's `Executor`. Must never: decide what runs, read a
//! clock but to measure a step, or open a socket.
//!
//! ```text
//!   engine    Engine::load, Executor: launch(plan), wait() -> tokens
//!     rank      one thread a rank, collectives, who holds which shard
//!     patience  how long a step may take
//!       model     forward passes, written once over ops
//!         ops       the Ops trait; ops/cpu is the readable reference, ops/cuda runs on NVIDIA GPUs
//!       sampler   logits -> token
//!     weights   safetensors or dummies, slice by slice
//!     scheme    how a matrix is stored: numbers, or codes and scales
//!     config    what config.json says
//!     kv_groups which layers share KV pages
//!   probe     what this machine has: driver, GPUs, libraries
//! ```
//!
//! Reading order: [`batch`], [`ops`], `model/decoder.rs`, [`rank`], `engine.rs`, then what interests
//! you in `ops/cpu`. How to add a model is told in [`model`].

#![deny(unsafe_code)]

pub mod batch;
pub mod collective;
pub mod config;
mod device;
mod engine;
mod error;
pub mod kv_groups;
mod memory;
pub mod model;
pub mod ops;
mod patience;
pub mod probe;
pub mod rank;
pub mod rope;
pub mod sampler;
pub mod scheme;
pub mod shard;
pub mod weights;

pub use engine::{Engine, EngineInfo};
pub use error::{EngineError, OpError};
