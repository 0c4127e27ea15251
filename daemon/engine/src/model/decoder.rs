//! The decoder of Llama, Mistral, Qwen 2 and Qwen 3: pre-norm, rotary attention with grouped KV
//! heads, SwiGLU.

use super::Model;
use super::loader::Loader;
use crate::batch::Batch;
use crate::config::ModelConfig;
use crate::error::EngineError;
use crate::ops::{HeadNorms, Linear, OpResult, Ops, Pending, Scratch};

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
    qkv: Linear<O>,
    head_norms: Option<HeadNorms<O>>,
    o: Linear<O>,
    mlp_norm: O::Vector,
    gate_up: Linear<O>,
    down: Linear<O>,
}

struct Workspace<O: Ops> {
    /// The residual stream, `[tokens, hidden]`.
    residual: O::Buffer,
    /// Queries, keys, values side by side.
    qkv: O::Buffer,
    /// `[tokens, heads * head_dim]`
    attention: O::Buffer,
    /// `[tokens, intermediate]`
    activated: O::Buffer,
    /// After the tokens whose logits are wanted: `[logit rows, hidden]`.
    last: O::Buffer,
    scratch: Scratch<O>,
}

impl<O: Ops> Model<O> for Decoder<O> {
    fn forward(&mut self, ops: &mut O, batch: &Batch) -> OpResult<Box<dyn Pending>> {
        let Workspace { residual, qkv, attention, activated, last, scratch } = &mut self.work;
        let tokens = batch.tokens().len();
        ops.embed(batch, &self.embedding, residual)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let next = self.layers.get(index + 1).map(|next| &next.attention_norm);
            ops.norm_linear(tokens, residual, &layer.attention_norm, &layer.qkv, scratch, qkv)?;
            ops.attention(batch, index, layer.head_norms.as_ref(), qkv, attention)?;
            let mlp_norm = Some(&layer.mlp_norm);
            ops.linear_add(tokens, &layer.o, attention, mlp_norm, scratch, residual)?;
            ops.norm_gated(tokens, residual, &layer.mlp_norm, &layer.gate_up, scratch, activated)?;
            ops.linear_add(tokens, &layer.down, activated, next, scratch, residual)?;
        }
        ops.norm_wanted(batch, residual, &self.norm, last)?;
        ops.sample(batch, self.head.as_ref().unwrap_or(&self.embedding), last)
    }
}

impl<O: Ops> Decoder<O> {
    /// Loads this rank's shard.
    pub(super) fn load(
        config: &ModelConfig,
        loader: &mut Loader<'_, O>,
        chunk_tokens: usize,
        logit_rows: usize,
    ) -> Result<Self, EngineError> {
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let shard = loader.shard();
        let head_dim = config.head_dim;
        let q = shard.heads.len() * head_dim;
        let kv = shard.kv_heads.len() * head_dim;
        let mlp = shard.intermediate.len();
        let work = Workspace {
            residual: loader.buffer(chunk_tokens, hidden)?,
            qkv: loader.buffer(chunk_tokens, q + 2 * kv)?,
            attention: loader.buffer(chunk_tokens, q)?,
            activated: loader.buffer(chunk_tokens, mlp)?,
            last: loader.buffer(logit_rows, hidden)?,
            scratch: Scratch {
                normed: loader.buffer(chunk_tokens, hidden)?,
                gate_up: loader.buffer(chunk_tokens, 2 * mlp)?,
            },
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
        let unbiased = |weight| Linear { weight, bias: None };
        Ok(Layer {
            attention_norm: loader.vector(&format!("{at}.input_layernorm.weight"), hidden)?,
            qkv: Linear {
                weight: loader.stacked(&qkv("weight"), hidden)?,
                bias: if config.qkv_bias {
                    Some(loader.stacked_vector(&qkv("bias"))?)
                } else {
                    None
                },
            },
            head_norms: if config.qk_norm {
                Some(HeadNorms {
                    query: loader.vector(&format!("{at}.self_attn.q_norm.weight"), head_dim)?,
                    key: loader.vector(&format!("{at}.self_attn.k_norm.weight"), head_dim)?,
                })
            } else {
                None
            },
            o: unbiased(loader.row_parallel(
                &format!("{at}.self_attn.o_proj.weight"),
                [hidden, inputs],
                q_rows,
            )?),
            mlp_norm: loader.vector(&format!("{at}.post_attention_layernorm.weight"), hidden)?,
            gate_up: unbiased(loader.stacked(&gate_up, hidden)?),
            down: unbiased(loader.row_parallel(
                &format!("{at}.mlp.down_proj.weight"),
                [hidden, mlp],
                shard.intermediate,
            )?),
        })
    }
}
