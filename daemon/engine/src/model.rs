//! Models, written once over [`Ops`].
//!
//! Owns: the order of operations of a forward pass, and which tensors it needs. Must never: know a
//! device, or touch memory itself.
//!
//! Llama, Mistral, Qwen 2 and Qwen 3 are one decoder: they differ in a bias on q, k and v and in a norm on
//! the heads of q and k, which [`ModelConfig`] states. What is not that decoder gets a file of its own.
//!
//! # Adding a model
//! 1. `config`: a variant of [`Architecture`] with its name in `config.json`, and the tensors it has.
//! 2. Here: `mod yours;`, with a struct of `O::Matrix` and `O::Vector` and a `load` that asks the
//!    [`Loader`] for them by name, a few lines a layer:
//!
//!    ```text
//!    o: loader.row_parallel(&format!("{at}.self_attn.o_proj.weight"), hidden, inputs, columns)?,
//!    ```
//!
//! 3. `impl Model<O> for Yours<O>`: the forward pass in ops. An op that is missing is added to [`Ops`],
//!    with a default made of smaller ones where it is a fusion.
//! 4. An arm in [`load`], and a line in the test of the room that holds every architecture against a
//!    naive forward pass.

mod decoder;
mod loader;

pub use loader::Loader;

use crate::batch::Batch;
use crate::config::{Architecture, ModelConfig};
use crate::error::EngineError;
use crate::ops::{OpResult, Ops, Pending};

/// A model's shard on one rank.
pub trait Model<O: Ops>: Send {
    /// Runs one step and samples.
    ///
    /// # Errors
    /// An op failed.
    fn forward(&mut self, ops: &mut O, batch: &Batch) -> OpResult<Box<dyn Pending>>;
}

/// Loads this rank's shard of the model that `config` describes, with activations for
/// `chunk_tokens` tokens, and logits after `logit_rows` of them.
///
/// # Errors
/// A tensor is missing or misshapen, or the device has no room.
pub fn load<O: Ops + 'static>(
    config: &ModelConfig,
    loader: &mut Loader<'_, O>,
    chunk_tokens: usize,
    logit_rows: usize,
) -> Result<Box<dyn Model<O>>, EngineError> {
    match config.architecture {
        Architecture::Llama | Architecture::Mistral | Architecture::Qwen2 | Architecture::Qwen3 => {
            Ok(Box::new(decoder::Decoder::load(config, loader, chunk_tokens, logit_rows)?))
        }
    }
}
