//! Outputs as models write them, valid and broken, a file a dialect.

pub mod gpt_oss;
pub mod hermes;
pub mod mistral;
pub mod qwen3_coder;
pub mod think;
