//! Where classes of transformers differ without a word in their files.
//!
//! Owns: a row for each class. Must never: read a file.

use super::super::{Activation, Architecture, NormSpec};

/// What a class has where `config.json` is silent, or always.
pub(super) struct Class {
    /// Where `rms_norm_eps` is absent.
    pub(super) rms_norm_eps: f64,
    /// Where `rope_theta` is absent; of full attention.
    pub(super) rope_theta: f64,
    /// Where `head_dim` is absent; `None`: `hidden_size / num_attention_heads`.
    pub(super) head_dim: Option<usize>,
    /// Where `tie_word_embeddings` is absent.
    pub(super) is_tied: bool,
    /// It looks at `layer_types`.
    pub(super) has_kinds: bool,
    /// RMSNorm on each head of queries and keys.
    pub(super) qk_norm: bool,
    /// Attention has sinks.
    pub(super) sinks: bool,
    /// In feed-forward blocks.
    pub(super) activation: Activation,
    /// Norms' places and form.
    pub(super) norms: NormSpec,
}

const LLAMA: Class = Class {
    rms_norm_eps: 1e-6,
    rope_theta: 1e4,
    head_dim: None,
    is_tied: false,
    has_kinds: false,
    qk_norm: false,
    sinks: false,
    activation: Activation::Silu,
    norms: NormSpec { plus_one: false, after_blocks: false },
};

impl Class {
    /// As transformers 5.17 has it: `configuration_*.py` for what is absent, `modeling_*.py` for the rest.
    pub(super) fn of(architecture: Architecture) -> Class {
        match architecture {
            Architecture::Llama | Architecture::Mistral => LLAMA,
            Architecture::Qwen2 | Architecture::Qwen2Moe => Class { has_kinds: true, ..LLAMA },
            Architecture::Qwen3 => {
                Class { head_dim: Some(128), has_kinds: true, qk_norm: true, ..LLAMA }
            }
            Architecture::Qwen3Moe => Class { qk_norm: true, ..LLAMA },
            Architecture::Mixtral => Class { rms_norm_eps: 1e-5, rope_theta: 1e6, ..LLAMA },
            Architecture::GptOss => Class {
                rms_norm_eps: 1e-5,
                rope_theta: 150_000.0,
                head_dim: Some(64),
                has_kinds: true,
                sinks: true,
                activation: Activation::ClampedSwish,
                ..LLAMA
            },
            Architecture::Gemma3 => Class {
                rope_theta: 1e6,
                head_dim: Some(256),
                is_tied: true,
                has_kinds: true,
                qk_norm: true,
                activation: Activation::GeluTanh,
                norms: NormSpec { plus_one: true, after_blocks: true },
                ..LLAMA
            },
            Architecture::Phi3 => Class { rms_norm_eps: 1e-5, ..LLAMA },
        }
    }
}
