//! Outputs as models write them, valid and broken, a file a dialect.

pub mod command;
pub mod deepseek_v3;
pub mod deepseek_v31;
pub mod gemma3;
pub mod gemma4;
pub mod glm;
pub mod gpt_oss;
pub mod granite;
pub mod hermes;
pub mod kimi_k2;
pub mod llama;
pub mod minimax_m2;
pub mod mistral;
pub mod nemotron;
pub mod phi4;
pub mod qwen3_coder;
pub mod smollm3;
pub mod think;
