//! What a model is: the numbers of `config.json` that its arithmetic depends on.
//!
//! Owns: reading and checking `config.json` and `generation_config.json`, and what a layer is as data
//! (`spec.rs`). Must never: look at weights, or let a number through that later code would have to check again. A setting that changes the arithmetic and is not implemented is
//! refused by name; nothing is ignored silently that could make tokens wrong.

mod fields;
mod parse;
mod quantization;
mod spec;
#[cfg(test)]
mod tests;

use std::path::Path;

use crate::scheme::{Scales, Scheme};

pub use fields::ConfigError;
pub use quantization::Quantization;
pub use spec::{
    Activation, AttentionBias, AttentionSpec, ExpertsSpec, Ffn, LayerSpec, NormSpec, Router,
    SharedExpert,
};

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
    /// Qwen 1.5 and 2 with experts, and one that all tokens share.
    Qwen2Moe,
    /// Qwen 3 with experts.
    Qwen3Moe,
    /// Mistral's shape with experts.
    Mixtral,
    /// gpt-oss: experts with biases, windows in every other layer, sinks.
    GptOss,
    /// Gemma 3, its text half: windows in most layers, norms around each block.
    Gemma3,
    /// Phi 3 and 4: Llama's shape, with projections that read the same input in one tensor.
    Phi3,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Architecture; 10] = [
        Architecture::Llama,
        Architecture::Mistral,
        Architecture::Qwen2,
        Architecture::Qwen3,
        Architecture::Qwen2Moe,
        Architecture::Qwen3Moe,
        Architecture::Mixtral,
        Architecture::GptOss,
        Architecture::Gemma3,
        Architecture::Phi3,
    ];

    /// The name in `architectures` of `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "LlamaForCausalLM",
            Architecture::Mistral => "MistralForCausalLM",
            Architecture::Qwen2 => "Qwen2ForCausalLM",
            Architecture::Qwen3 => "Qwen3ForCausalLM",
            Architecture::Qwen2Moe => "Qwen2MoeForCausalLM",
            Architecture::Qwen3Moe => "Qwen3MoeForCausalLM",
            Architecture::Mixtral => "MixtralForCausalLM",
            Architecture::GptOss => "GptOssForCausalLM",
            Architecture::Gemma3 => "Gemma3ForCausalLM",
            Architecture::Phi3 => "Phi3ForCausalLM",
        }
    }

    /// The module that a layer's experts are in, below the layer's, and those of each of them: gate, up and down; `None` where
    /// all experts are one module.
    pub fn expert_modules(self) -> (&'static str, Option<[&'static str; 3]>) {
        match self {
            Architecture::Mixtral => ("block_sparse_moe.experts", Some(["w1", "w3", "w2"])),
            Architecture::GptOss => ("mlp.experts", None),
            _ => ("mlp.experts", Some(["gate_proj", "up_proj", "down_proj"])),
        }
    }
}

/// How the rotation frequencies are stretched for long contexts.
#[derive(Clone, Debug, PartialEq)]
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
    /// YaRN (Peng et al., 2023): low frequencies are divided by `factor`, high ones kept, with a ramp between.
    Yarn {
        /// At least 1.
        factor: f64,
        /// Turns in the original context from which a frequency is kept.
        beta_fast: f64,
        /// Turns in the original context up to which a frequency is divided whole.
        beta_slow: f64,
        /// Context length before stretching.
        original_max_position: usize,
        /// The ramp's ends are whole dimensions.
        truncated: bool,
        /// What rotated vectors are multiplied by.
        magnitude: f64,
    },
    /// LongRoPE (Ding et al., 2024), within the context that a model had before it: each pair has a divisor of its own.
    /// Texts that grow longer would have other divisors, from their first token on; they are not served.
    LongRope {
        /// One for each pair that is rotated.
        divisors: Vec<f64>,
        /// Context length before stretching.
        original_max_position: usize,
        /// What rotated vectors are multiplied by.
        magnitude: f64,
    },
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Dimensions of a head that are not rotated, its last ones: even, and less than all. None where `qk_norm` is.
    pub still: usize,
    /// Base of the geometric row of wavelengths.
    pub theta: f64,
    /// Long-context scaling.
    pub scaling: RopeScaling,
}

impl RopeConfig {
    /// Positions that it holds for, where they have an end of their own.
    pub fn positions_max(&self) -> Option<usize> {
        match self.scaling {
            RopeScaling::LongRope { original_max_position, .. } => Some(original_max_position),
            _ => None,
        }
    }
}

/// A decoder-only transformer: RMSNorm, rotary attention with grouped KV heads, gated feed-forward blocks,
/// in layers that each say what they are.
///
/// All dimensions are positive and within sane bounds, `heads` is a multiple of `kv_heads`, `head_dim` is
/// even, there is a layer at least, and each names a rotation that is there.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Family.
    pub architecture: Architecture,
    /// Valid token ids are below this; rows of embedding and head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// The layers, in order.
    pub layers: Vec<LayerSpec>,
    /// Query heads of every layer.
    pub heads: usize,
    /// Key and value heads of every layer.
    pub kv_heads: usize,
    /// Width of a head; `heads * head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    /// What products of queries and keys are multiplied by.
    pub attention_scale: f32,
    /// Where the attention's projections have biases.
    pub attention_bias: AttentionBias,
    /// RMSNorm on each head of q and k before rotation.
    pub qk_norm: bool,
    /// Each query head has one more logit in its softmax, which no value belongs to (gpt-oss).
    pub sinks: bool,
    /// Between the projections of every feed-forward block.
    pub activation: Activation,
    /// RMSNorm's places and form.
    pub norms: NormSpec,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f32,
    /// Embeddings are multiplied by this on their way into the residual stream.
    pub embedding_scale: f32,
    /// The context length, as far as the rotations hold.
    pub max_position: usize,
    /// Rotary position embeddings that layers name.
    pub ropes: Vec<RopeConfig>,
    /// The head is the embedding; there is no `lm_head.weight`.
    pub tie_word_embeddings: bool,
    /// How matrices are stored.
    pub quantization: Quantization,
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

    /// The widest feed-forward block that a token goes through, all chosen experts side by side.
    pub fn ffn_width(&self) -> usize {
        self.layers.iter().map(|layer| layer.ffn.width()).max().unwrap_or(0)
    }

    /// How the experts' matrices are stored, if there are some: as those of the first one.
    pub fn expert_scheme(&self) -> Scheme {
        let has_experts = |layer: &LayerSpec| matches!(layer.ffn, Ffn::Experts(_));
        let Some(layer) = self.layers.iter().position(has_experts) else { return Scheme::Plain };
        let (all, each) = self.architecture.expert_modules();
        let first = each.map_or(String::new(), |[gate, ..]| format!(".0.{gate}"));
        self.quantization.scheme_of(&format!("model.layers.{layer}.{all}{first}"))
    }

    /// The same model with its layers' projections as E4M3 codes, a scale for each output. Embedding, head, routers and
    /// norms stay what they are.
    ///
    /// # Errors
    /// Why not, as what is expected instead: some matrix is coded already, or experts are stored with inputs before outputs.
    pub fn quantised_to_fp8(mut self) -> Result<ModelConfig, String> {
        if let Some(name) = self.quantization.schemes().find_map(Scheme::name) {
            return Err(format!("none: the checkpoint's weights are {name} already"));
        }
        if self.architecture == Architecture::GptOss {
            return Err("none: experts of gpt-oss cannot be quantised at load".to_owned());
        }
        self.quantization = Quantization::projections(Scheme::Fp8 { scales: Scales::Channel });
        Ok(self)
    }
}

#[cfg(test)]
impl ModelConfig {
    /// A small model of Llama's shape, for tests to change what they are about.
    pub(crate) fn small(layers: usize, width: usize) -> ModelConfig {
        let attention = AttentionSpec { window: None, rope: 0 };
        ModelConfig {
            architecture: Architecture::Llama,
            vocab_size: 61,
            hidden_size: 12,
            layers: vec![LayerSpec { attention, ffn: Ffn::Dense { width } }; layers],
            heads: 2,
            kv_heads: 2,
            head_dim: 8,
            attention_scale: 1.0 / 8.0f32.sqrt(),
            attention_bias: AttentionBias::default(),
            qk_norm: false,
            sinks: false,
            activation: Activation::Silu,
            norms: NormSpec::default(),
            rms_norm_eps: 1e-5,
            embedding_scale: 1.0,
            max_position: 256,
            ropes: vec![RopeConfig { still: 0, theta: 10_000.0, scaling: RopeScaling::None }],
            tie_word_embeddings: true,
            quantization: Quantization::default(),
            eos_token_ids: Vec::new(),
        }
    }
}
