//! What a model is: the numbers of `config.json` that its arithmetic depends on.
//!
//! Owns: reading and checking `config.json` and `generation_config.json`, and the list of tensors
//! that follows from them. Must never: look at weights, or let a number through that later code
//! would have to check again. A setting that changes the arithmetic and is not implemented is
//! refused by name; nothing is ignored silently that could make tokens wrong.

mod fields;
mod parse;
#[cfg(test)]
mod tests;

use std::path::Path;

pub use fields::ConfigError;

/// The model families served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2 and 3 and everything of their shape.
    Llama,
    /// Mistral 7B and kin: Llama's shape, possibly with a sliding window.
    Mistral,
    /// Qwen 2 and 2.5: Llama's shape with biases on q, k and v.
    Qwen2,
    /// Qwen 3: Llama's shape with RMSNorm on each head of q and k.
    Qwen3,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Architecture; 4] =
        [Architecture::Llama, Architecture::Mistral, Architecture::Qwen2, Architecture::Qwen3];

    /// The name in `architectures` of `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "LlamaForCausalLM",
            Architecture::Mistral => "MistralForCausalLM",
            Architecture::Qwen2 => "Qwen2ForCausalLM",
            Architecture::Qwen3 => "Qwen3ForCausalLM",
        }
    }
}

/// How the rotation frequencies are stretched for long contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Positions are divided by `factor`.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Llama 3.1: low frequencies are divided by `factor`, high ones kept, those between blended.
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Wavelengths above `original_max_position / low_freq_factor` are stretched whole.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length before stretching.
        original_max_position: usize,
    },
}

/// Rotary position embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the geometric row of wavelengths.
    pub theta: f64,
    /// Long-context scaling.
    pub scaling: RopeScaling,
}

/// A decoder-only transformer: pre-norm (RMSNorm), rotary attention with grouped KV heads, SwiGLU.
///
/// All dimensions are positive and within sane bounds, `heads` is a multiple of `kv_heads`, and
/// `head_dim` is even.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Family.
    pub architecture: Architecture,
    /// Valid token ids are below this; rows of embedding and head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head; `heads * head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f32,
    /// Positions that give exact results: the context length, capped by a sliding window.
    pub max_position: usize,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// The head is the embedding; there is no `lm_head.weight`.
    pub tie_word_embeddings: bool,
    /// q, k and v projections have biases.
    pub qkv_bias: bool,
    /// RMSNorm on each head of q and k before rotation.
    pub qk_norm: bool,
    /// Tokens that end a text, ascending, each in the vocabulary; may be empty.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Reads `config.json` and, where there is one, `generation_config.json` of a model folder.
    ///
    /// # Errors
    /// A file that is missing, unreadable, not JSON or too large; a key that is missing, of the wrong
    /// type, out of bounds or not supported.
    pub fn from_dir(dir: &Path) -> Result<Self, ConfigError> {
        parse::from_dir(dir)
    }

    /// Every tensor the model needs, by its Hugging Face name, with its full shape: `[out, in]` for
    /// a projection, `[n]` for a norm or bias. In the order of the forward pass.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, mlp) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut all = Vec::with_capacity(self.layers * 14 + 3);
        all.push(("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, hidden]));
        for layer in 0..self.layers {
            let mut add = |name: &str, shape: &[usize]| {
                all.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
            };
            add("input_layernorm.weight", &[hidden]);
            for (name, rows) in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)] {
                add(&format!("self_attn.{name}.weight"), &[rows, hidden]);
                if self.qkv_bias {
                    add(&format!("self_attn.{name}.bias"), &[rows]);
                }
            }
            if self.qk_norm {
                add("self_attn.q_norm.weight", &[self.head_dim]);
                add("self_attn.k_norm.weight", &[self.head_dim]);
            }
            add("self_attn.o_proj.weight", &[hidden, q]);
            add("post_attention_layernorm.weight", &[hidden]);
            add("mlp.gate_proj.weight", &[mlp, hidden]);
            add("mlp.up_proj.weight", &[mlp, hidden]);
            add("mlp.down_proj.weight", &[hidden, mlp]);
        }
        all.push(("model.norm.weight".to_owned(), vec![hidden]));
        if !self.tie_word_embeddings {
            all.push(("lm_head.weight".to_owned(), vec![self.vocab_size, hidden]));
        }
        all
    }

    /// Number of parameters; a tied head counts once.
    pub fn parameters(&self) -> u64 {
        self.tensors()
            .iter()
            .map(|(_, shape)| shape.iter().map(|&size| size as u64).product::<u64>())
            .sum()
    }
}
