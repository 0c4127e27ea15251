//! The decoder that every architecture served today is: layers of attention and a feed-forward block, each with a
//! norm before it and a sum after it.

use super::layout::{FfnWeights, Weights, layout};
use super::loader::Loader;
use crate::batch::Batch;
use crate::config::ModelConfig;
use crate::error::EngineError;
use crate::ops::{Around, OpResult, Ops, Pass, Scratch, Stream};

/// One rank's weights and activations.
pub struct Decoder<O: Ops> {
    weights: Weights<O>,
    embedding_scale: f32,
    work: Workspace<O>,
}

struct Workspace<O: Ops> {
    stream: Stream<O>,
    /// Queries, keys, values side by side.
    qkv: O::Buffer,
    /// `[tokens, heads * head_dim]`
    attention: O::Buffer,
    /// `[tokens, width]` of the widest dense block.
    activated: O::Buffer,
    /// After the tokens whose logits are wanted: `[logit rows, hidden]`.
    last: O::Buffer,
    scratch: Scratch<O>,
}

impl<O: Ops> Pass<O> for Decoder<O> {
    fn forward(&mut self, ops: &mut O, batch: &Batch) -> OpResult {
        let Workspace { stream, qkv, attention, activated, scratch, .. } = &mut self.work;
        let weights = &self.weights;
        let tokens = batch.tokens().len();
        ops.embed(batch, &weights.embedding, self.embedding_scale, stream)?;
        for (index, layer) in weights.layers.iter().enumerate() {
            let next = weights.layers.get(index + 1).map(|next| &next.attention_norm);
            ops.norm_linear(tokens, stream, &layer.attention_norm, &layer.qkv, qkv)?;
            ops.attention(batch, &layer.attention, qkv, attention, Some(&layer.o))?;
            let norms =
                Around { after: layer.after_attention.as_ref(), next: Some(&layer.ffn_norm) };
            ops.linear_add(tokens, &layer.o, attention, norms, stream)?;
            let (norm, norms) = (&layer.ffn_norm, Around { after: layer.after_ffn.as_ref(), next });
            match &layer.ffn {
                FfnWeights::Dense { gate_up, down } => {
                    let products = [gate_up, down];
                    ops.norm_gated(tokens, stream, norm, products, scratch, activated)?;
                    ops.linear_add(tokens, down, activated, norms, stream)?;
                }
                FfnWeights::Experts(experts) => {
                    ops.experts_add(tokens, norm, experts, norms, stream)?;
                }
            }
        }
        Ok(())
    }

    fn read(&mut self, ops: &mut O, batch: &Batch) -> OpResult {
        let (weights, Workspace { stream, last, .. }) = (&self.weights, &mut self.work);
        ops.norm_wanted(batch, stream, &weights.norm, last)?;
        ops.sample(batch, weights.head.as_ref().unwrap_or(&weights.embedding), last)
    }
}

impl<O: Ops> Decoder<O> {
    /// Loads this rank's shard, with activations for `chunk_tokens` tokens, and logits after `logit_rows` of them.
    ///
    /// # Errors
    /// A tensor is missing or misshapen, or the device has no room.
    pub fn load(
        config: &ModelConfig,
        loader: &mut Loader<'_, O>,
        chunk_tokens: usize,
        logit_rows: usize,
    ) -> Result<Self, EngineError> {
        let shard = loader.rank();
        let (q, kv) = (shard.heads.len() * config.head_dim, shard.kv_heads.len() * config.head_dim);
        let hidden = config.hidden_size;
        let dense = shard.dense_width(config);
        let work = Workspace {
            stream: Stream::new(
                loader.buffer(chunk_tokens, hidden)?,
                loader.buffer(chunk_tokens, hidden)?,
            ),
            qkv: loader.buffer(chunk_tokens, q + 2 * kv)?,
            attention: loader.buffer(chunk_tokens, q)?,
            activated: loader.buffer(chunk_tokens, dense)?,
            last: loader.buffer(logit_rows, hidden)?,
            scratch: Scratch { gate_up: loader.buffer(chunk_tokens, 2 * dense)? },
        };
        let weights = layout(config, loader)?;
        Ok(Decoder { weights, embedding_scale: config.embedding_scale, work })
    }
}
