//! Placeholder.

pub mod config;
pub mod sampler;
pub mod weights;
