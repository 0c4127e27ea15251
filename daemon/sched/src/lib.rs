//! The scheduler: which tokens run in which step.
//!
//! Owns: requests, their queue, pages and lifecycle. Must never: do I/O, read a clock, start a
//! thread, or know that CUDA, tokio or HTTP exist. Time enters as a number.

#![forbid(unsafe_code)]

mod admit;
mod batch;
mod config;
mod driver;
pub mod executor;
pub mod guide;
mod held;
mod integrity;
mod leave;
mod output;
pub mod plan;
mod request;
mod requests;
mod scheduler;
mod submit;

pub use config::{ConfigError, SchedConfig};
pub use driver::{BeginError, Driver};
pub use executor::{Executor, ExecutorError, StepProfile};
pub use held::{Constraint, Crew, Held, Job};
pub use integrity::IntegrityError;
pub use minisgl_cache::Windows;
pub use plan::{
    CountsId, Grown, Install, Late, PageId, Plan, Row, SAMPLED_LAST, SlotId, StepOutput, Want,
};
pub use scheduler::{Event, Scheduler, Step};
