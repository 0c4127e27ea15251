//! The decoder of Llama, Mistral, Qwen 2 and Qwen 3: pre-norm, rotary attention with grouped KV
//! heads, SwiGLU.

use super::Model;
use super::loader::Loader;
use crate::batch::Batch;
use crate::config::ModelConfig;
use crate::error::EngineError;
use crate::ops::{HeadNorms, OpResult, Ops, Pending};

/// One rank's weights and activations.
pub struct Decoder<O: Ops> {
    embedding: O::Matrix,
    layers: Vec<Layer<O>>,
    norm: O::Vector,
    /// `None` where the embedding is the head too.
    head: Option<O::Matrix>,
    work: Workspace<O>,
}

struct Layer<O: Ops> {
    attention_norm: O::Vector,
    qkv: O::Matrix,
    qkv_bias: Option<O::Vector>,
    head_norms: Option<HeadNorms<O>>,
    o: O::Matrix,
    mlp_norm: O::Vector,
    gate_up: O::Matrix,
    down: O::Matrix,
}

struct Workspace<O: Ops> {
    /// The residual stream, what the last block adds to it, and its norm: `[tokens, hidden]`.
    residual: O::Buffer,
    delta: O::Buffer,
    normed: O::Buffer,
    /// Queries, keys, values side by side.
    qkv: O::Buffer,
    attention: O::Buffer,
    gate_up: O::Buffer,
    activated: O::Buffer,
    /// The same three for the rows that are sampled: `[rows, hidden]`.
    last_residual: O::Buffer,
    last_delta: O::Buffer,
    last_normed: O::Buffer,
}

impl<O: Ops> Model<O> for Decoder<O> {
    fn forward(&mut self, ops: &mut O, batch: &Batch) -> OpResult<Box<dyn Pending>> {
        let work = &mut self.work;
        let tokens = batch.tokens().len();
        ops.embed(batch, &self.embedding, &mut work.residual)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let (delta, residual) = (&mut work.delta, &mut work.residual);
            let norm = &layer.attention_norm;
            if index == 0 {
                ops.rms_norm(tokens, residual, norm, &mut work.normed)?;
            } else {
                ops.reduce_add_rms_norm(tokens, delta, residual, norm, &mut work.normed)?;
            }
            let bias = layer.qkv_bias.as_ref();
            ops.linear(tokens, &layer.qkv, bias, &work.normed, &mut work.qkv)?;
            ops.norm_rope_write_kv(batch, index, layer.head_norms.as_ref(), &mut work.qkv)?;
            ops.attention(batch, index, &work.qkv, &mut work.attention)?;
            ops.linear(tokens, &layer.o, None, &work.attention, delta)?;
            ops.reduce_add_rms_norm(tokens, delta, residual, &layer.mlp_norm, &mut work.normed)?;
            ops.linear(tokens, &layer.gate_up, None, &work.normed, &mut work.gate_up)?;
            ops.silu_mul(tokens, &work.gate_up, &mut work.activated)?;
            ops.linear(tokens, &layer.down, None, &work.activated, delta)?;
        }
        // From here on only the rows that are sampled matter.
        let (rows, delta, residual) =
            (batch.sampled().len(), &mut work.last_delta, &mut work.last_residual);
        ops.gather_sampled(batch, &work.delta, delta)?;
        ops.gather_sampled(batch, &work.residual, residual)?;
        ops.reduce_add_rms_norm(rows, delta, residual, &self.norm, &mut work.last_normed)?;
        ops.sample(batch, self.head.as_ref().unwrap_or(&self.embedding), &work.last_normed)
    }
}

impl<O: Ops> Decoder<O> {
    /// Loads this rank's shard.
    pub(super) fn load(
        config: &ModelConfig,
        loader: &mut Loader<'_, O>,
        chunk_tokens: usize,
        rows: usize,
    ) -> Result<Self, EngineError> {
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let shard = loader.shard();
        let head_dim = config.head_dim;
        let q = shard.heads.len() * head_dim;
        let kv = shard.kv_heads.len() * head_dim;
        let mlp = shard.intermediate.len();
        let work = Workspace {
            residual: loader.buffer(chunk_tokens, hidden)?,
            delta: loader.buffer(chunk_tokens, hidden)?,
            normed: loader.buffer(chunk_tokens, hidden)?,
            qkv: loader.buffer(chunk_tokens, q + 2 * kv)?,
            attention: loader.buffer(chunk_tokens, q)?,
            gate_up: loader.buffer(chunk_tokens, 2 * mlp)?,
            activated: loader.buffer(chunk_tokens, mlp)?,
            last_residual: loader.buffer(rows, hidden)?,
            last_delta: loader.buffer(rows, hidden)?,
            last_normed: loader.buffer(rows, hidden)?,
        };
        let vocab_rows = shard.vocab.clone();
        let embedding = [("model.embed_tokens.weight".to_owned(), vocab, vocab_rows.clone())];
        let head = [("lm_head.weight".to_owned(), vocab, vocab_rows)];
        Ok(Decoder {
            embedding: loader.stacked(&embedding, hidden)?,
            layers: (0..config.layers)
                .map(|index| Layer::load(config, loader, &format!("model.layers.{index}")))
                .collect::<Result<_, _>>()?,
            norm: loader.vector("model.norm.weight", hidden)?,
            head: if config.tie_word_embeddings {
                None
            } else {
                Some(loader.stacked(&head, hidden)?)
            },
            work,
        })
    }
}

impl<O: Ops> Layer<O> {
    fn load(
        config: &ModelConfig,
        loader: &mut Loader<'_, O>,
        at: &str,
    ) -> Result<Self, EngineError> {
        let (hidden, head_dim, mlp) =
            (config.hidden_size, config.head_dim, config.intermediate_size);
        let shard = loader.shard().clone();
        let rows = |heads: &std::ops::Range<usize>| heads.start * head_dim..heads.end * head_dim;
        let (q_rows, kv_rows) = (rows(&shard.heads), rows(&shard.kv_heads));
        let qkv = |what: &str| {
            let name = |which: &str| format!("{at}.self_attn.{which}_proj.{what}");
            [
                (name("q"), config.heads * head_dim, q_rows.clone()),
                (name("k"), config.kv_heads * head_dim, kv_rows.clone()),
                (name("v"), config.kv_heads * head_dim, kv_rows.clone()),
            ]
        };
        let gate_up = ["gate", "up"].map(|which| {
            (format!("{at}.mlp.{which}_proj.weight"), mlp, shard.intermediate.clone())
        });
        let inputs = config.heads * head_dim;
        Ok(Layer {
            attention_norm: loader.vector(&format!("{at}.input_layernorm.weight"), hidden)?,
            qkv: loader.stacked(&qkv("weight"), hidden)?,
            qkv_bias: if config.qkv_bias {
                Some(loader.stacked_vector(&qkv("bias"))?)
            } else {
                None
            },
            head_norms: if config.qk_norm {
                Some(HeadNorms {
                    query: loader.vector(&format!("{at}.self_attn.q_norm.weight"), head_dim)?,
                    key: loader.vector(&format!("{at}.self_attn.k_norm.weight"), head_dim)?,
                })
            } else {
                None
            },
            o: loader.row_parallel(
                &format!("{at}.self_attn.o_proj.weight"),
                [hidden, inputs],
                q_rows,
            )?,
            mlp_norm: loader.vector(&format!("{at}.post_attention_layernorm.weight"), hidden)?,
            gate_up: loader.stacked(&gate_up, hidden)?,
            down: loader.row_parallel(
                &format!("{at}.mlp.down_proj.weight"),
                [hidden, mlp],
                shard.intermediate,
            )?,
        })
    }
}
