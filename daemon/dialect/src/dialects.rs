//! All dialects, a file each.
//!
//! Owns: their order, in which a checkpoint is asked; a dialect whose marks others have as well stands behind them.

mod gpt_oss;
mod hermes;
mod mistral;
mod plain;
mod qwen3_coder;
mod think;

use crate::dialect::Dialect;

/// Every dialect. The last takes any checkpoint.
pub(crate) static ALL: &[&Dialect] = &[
    &gpt_oss::DIALECT,
    &mistral::DIALECT,
    &qwen3_coder::DIALECT,
    &hermes::DIALECT,
    &think::DIALECT,
    &plain::DIALECT,
];
