//! All dialects, a file each.
//!
//! Owns: their order, in which a checkpoint is asked; a dialect whose marks others have as well stands behind them.

mod command;
mod deepseek_v3;
mod deepseek_v31;
mod gemma3;
mod gemma4;
mod glm;
mod gpt_oss;
mod granite;
mod hermes;
mod kimi_k2;
mod llama;
mod minimax_m2;
mod mistral;
mod nemotron;
mod phi4;
mod plain;
mod qwen3_coder;
mod smollm3;
mod think;
mod tool_call;

use crate::dialect::Dialect;

/// Every dialect. The last takes any checkpoint.
pub(crate) static ALL: &[&Dialect] = &[
    &gpt_oss::DIALECT,
    &gemma4::DIALECT,
    &kimi_k2::DIALECT,
    &deepseek_v3::DIALECT,
    &deepseek_v31::DIALECT,
    &minimax_m2::DIALECT,
    &mistral::DIALECT,
    &command::DIALECT,
    &nemotron::DIALECT,
    &glm::DIALECT,
    &granite::DIALECT,
    &phi4::DIALECT,
    &smollm3::DIALECT,
    &qwen3_coder::DIALECT,
    &hermes::DIALECT,
    &llama::DIALECT,
    &gemma3::DIALECT,
    &think::DIALECT,
    &plain::DIALECT,
];
