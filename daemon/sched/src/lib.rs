//! The scheduler: which tokens run in which step.
//!
//! Owns: requests, their queue, pages and lifecycle. Must never: do I/O, read a clock, start a
//! thread, or know that CUDA, tokio or HTTP exist. Time enters as a number.

#![forbid(unsafe_code)]

pub mod executor;
pub mod plan;

pub use executor::{Executor, ExecutorError};
pub use plan::{Install, PageId, Plan, Row, SlotId, StepOutput};
