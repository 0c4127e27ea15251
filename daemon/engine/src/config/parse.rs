//! From the keys of `config.json` to a [`ModelConfig`].
//!
//! Where a key is absent, the default is the one that Hugging Face transformers gives the same
//! architecture, so that a file means here what it means there.

use std::path::Path;

use minisgl_proto::limits::END_TOKENS_MAX;
use serde_json::Value;

mod class;
mod layers;
mod quantization;
mod rope;

use class::Class;
use half::{bf16, f16};

use super::fields::{ConfigError, Fields};
use super::{Architecture, AttentionBias, LayerSpec, ModelConfig, Quantization, RopeConfig};

const VOCAB_MAX: usize = 1 << 22;
const HIDDEN_MAX: usize = 1 << 17;
const INTERMEDIATE_MAX: usize = 1 << 20;
const LAYERS_MAX: usize = 1 << 10;
const HEADS_MAX: usize = 1 << 10;
const HEAD_DIM_MAX: usize = 1 << 10;
const POSITION_MAX: usize = 1 << 24;

/// Bounds of a window, and of the context that it is a part of.
const EXPERTS_MAX: usize = 1 << 12;

pub(super) fn from_dir(dir: &Path) -> Result<ModelConfig, ConfigError> {
    let fields = Fields::read(dir.join("config.json"))?;
    let generation = Fields::read_if_there(dir.join("generation_config.json"))?;

    let architecture = architecture(&fields)?;
    refuse_what_changes_the_arithmetic(&fields, architecture)?;

    let size = |key: &str, max: usize| fields.required(key, fields.integer(key, 1..=max)?);
    let vocab_size = size("vocab_size", VOCAB_MAX)?;
    let hidden_size = size("hidden_size", HIDDEN_MAX)?;
    let heads = size("num_attention_heads", HEADS_MAX)?;
    let max_position = size("max_position_embeddings", POSITION_MAX)?;
    let head_dim = head_dim(&fields, architecture, hidden_size, heads)?;
    let is_gemma = architecture == Architecture::Gemma3;
    let class = Class::of(architecture);
    let types = layers::types(&fields, architecture, size("num_hidden_layers", LAYERS_MAX)?)?;

    let ropes = rope::ropes(&fields, architecture, head_dim)?;
    let ends = ropes.iter().filter_map(RopeConfig::positions_max);
    let max_position = ends.fold(max_position, usize::min);
    let layers = layers::layers(&fields, architecture, &types, max_position)?;
    let quantization = quantization::quantization(&fields, architecture)?;
    refuse_halved_blocks(&fields, &quantization, hidden_size, &layers)?;

    Ok(ModelConfig {
        architecture,
        vocab_size,
        hidden_size,
        layers,
        heads,
        kv_heads: kv_heads(&fields, heads)?,
        head_dim,
        attention_scale: attention_scale(&fields, architecture, head_dim)?,
        attention_bias: attention_bias(&fields, architecture)?,
        qk_norm: class.qk_norm,
        sinks: class.sinks,
        activation: class.activation,
        norms: class.norms,
        rms_norm_eps: fields.number("rms_norm_eps", 1e-12..=0.1)?.unwrap_or(class.rms_norm_eps)
            as f32,
        embedding_scale: match is_gemma {
            true => rounded_as_stored(&fields, (hidden_size as f32).sqrt())?,
            false => 1.0,
        },
        max_position,
        ropes,
        tie_word_embeddings: fields.bool("tie_word_embeddings")?.unwrap_or(class.is_tied),
        quantization,
        eos_token_ids: eos_token_ids(&fields, generation.as_ref(), vocab_size)?,
    })
}

/// A scheme that packs inputs in groups needs whole ones.
fn refuse_halved_blocks(
    fields: &Fields,
    quantization: &Quantization,
    hidden_size: usize,
    layers: &[LayerSpec],
) -> Result<(), ConfigError> {
    for scheme in quantization.schemes() {
        let expected = "a multiple of 32, because of its \"quantization_config\"";
        if !scheme.fits(hidden_size) {
            return Err(fields.invalid("hidden_size", expected));
        }
        if layers.iter().any(|layer| !scheme.fits(layer.ffn.narrowest())) {
            return Err(fields.invalid("intermediate_size", expected));
        }
    }
    Ok(())
}

/// The product of queries and keys is multiplied by this.
fn attention_scale(
    fields: &Fields,
    architecture: Architecture,
    head_dim: usize,
) -> Result<f32, ConfigError> {
    let width = match architecture {
        Architecture::Gemma3 => {
            fields.number("query_pre_attn_scalar", 1e-3..=1e6)?.unwrap_or(256.0)
        }
        _ => head_dim as f64,
    };
    Ok((1.0 / width.sqrt()) as f32)
}

fn attention_bias(
    fields: &Fields,
    architecture: Architecture,
) -> Result<AttentionBias, ConfigError> {
    let said = |default: bool| fields.bool("attention_bias").map(|said| said.unwrap_or(default));
    let both = |has: bool| AttentionBias { qkv: has, output: has };
    Ok(match architecture {
        Architecture::Qwen2 => AttentionBias { qkv: true, output: false },
        Architecture::Qwen2Moe => {
            AttentionBias { qkv: fields.bool("qkv_bias")?.unwrap_or(true), output: false }
        }
        Architecture::GptOss => both(said(true)?),
        Architecture::Llama
        | Architecture::Qwen3
        | Architecture::Qwen3Moe
        | Architecture::Gemma3 => both(said(false)?),
        // These classes do not look at the key.
        Architecture::Mistral | Architecture::Mixtral | Architecture::Phi3 => {
            AttentionBias::default()
        }
    })
}

/// A constant that transformers casts to the type of the weights before it multiplies by it.
fn rounded_as_stored(fields: &Fields, value: f32) -> Result<f32, ConfigError> {
    let dtype = match fields.string("dtype")? {
        Some(dtype) => Some(dtype),
        None => fields.string("torch_dtype")?,
    };
    Ok(match dtype {
        Some("float32") => value,
        Some("float16") => f16::from_f32(value).to_f32(),
        _ => bf16::from_f32(value).to_f32(),
    })
}

fn architecture(fields: &Fields) -> Result<Architecture, ConfigError> {
    let names = fields
        .typed("architectures", "a list with the model's class name", |value| {
            value.as_array()?.first()?.as_str()
        })
        .and_then(|found| fields.required("architectures", found))?;
    Architecture::ALL.into_iter().find(|known| known.name() == names).ok_or_else(|| {
        fields.unsupported("architectures", Architecture::ALL.map(Architecture::name).join(", "))
    })
}

fn refuse_what_changes_the_arithmetic(
    fields: &Fields,
    architecture: Architecture,
) -> Result<(), ConfigError> {
    let (key, act) = match architecture {
        Architecture::Gemma3 => ("hidden_activation", "gelu_pytorch_tanh"),
        _ => ("hidden_act", "silu"),
    };
    if fields.string(key)?.unwrap_or(act) != act {
        return Err(fields.unsupported(key, format_args!("{act:?}")));
    }
    if architecture == Architecture::Llama && fields.bool("mlp_bias")?.unwrap_or(false) {
        return Err(fields.unsupported("mlp_bias", "false"));
    }
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if architecture == Architecture::Gemma3 && fields.get(key).is_some() {
            return Err(fields.unsupported(key, "null"));
        }
    }
    if fields.bool("use_bidirectional_attention")?.unwrap_or(false) {
        return Err(fields.unsupported("use_bidirectional_attention", "false"));
    }
    if architecture != Architecture::Phi3
        && fields.number("partial_rotary_factor", 0.0..=1.0)?.unwrap_or(1.0) != 1.0
    {
        return Err(fields.unsupported("partial_rotary_factor", "1.0"));
    }
    Ok(())
}

fn kv_heads(fields: &Fields, heads: usize) -> Result<usize, ConfigError> {
    let kv_heads = fields.integer("num_key_value_heads", 1..=HEADS_MAX)?.unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        return Err(fields.invalid(
            "num_key_value_heads",
            format_args!("a divisor of \"num_attention_heads\", which is {heads}"),
        ));
    }
    Ok(kv_heads)
}

fn head_dim(
    fields: &Fields,
    architecture: Architecture,
    hidden_size: usize,
    heads: usize,
) -> Result<usize, ConfigError> {
    let even = "an even number, because RoPE rotates pairs";
    match fields.integer("head_dim", 1..=HEAD_DIM_MAX)? {
        Some(head_dim) if head_dim.is_multiple_of(2) => return Ok(head_dim),
        Some(_) => return Err(fields.invalid("head_dim", even)),
        None => match Class::of(architecture).head_dim {
            Some(head_dim) if !fields.is_null("head_dim") => return Ok(head_dim),
            _ => {}
        },
    }
    if !hidden_size.is_multiple_of(heads) {
        return Err(fields.invalid(
            "hidden_size",
            format_args!("a multiple of \"num_attention_heads\" ({heads}) without \"head_dim\""),
        ));
    }
    let head_dim = hidden_size / heads;
    if head_dim > HEAD_DIM_MAX || !head_dim.is_multiple_of(2) {
        return Err(fields.invalid(
            "head_dim",
            format_args!(
                "even and at most {HEAD_DIM_MAX}; \"hidden_size\" / \"num_attention_heads\" is {head_dim}"
            ),
        ));
    }
    Ok(head_dim)
}

/// `generation_config.json` wins, because it is what generation with transformers obeys; without
/// an answer there, `config.json` is asked.
fn eos_token_ids(
    fields: &Fields,
    generation: Option<&Fields>,
    vocab_size: usize,
) -> Result<Vec<u32>, ConfigError> {
    let key = "eos_token_id";
    let expected = format!("a token id below {vocab_size}, or a list of up to {END_TOKENS_MAX}");
    let id = |value: &Value| {
        value.as_u64().filter(|&id| id < vocab_size as u64).and_then(|id| u32::try_from(id).ok())
    };
    for source in generation.into_iter().chain([fields]) {
        let ids: Option<Vec<u32>> = source.typed(key, &expected, |value| match value {
            Value::Array(list) if list.len() <= END_TOKENS_MAX => list.iter().map(id).collect(),
            other => id(other).map(|id| vec![id]),
        })?;
        if let Some(mut ids) = ids.filter(|ids| !ids.is_empty()) {
            ids.sort_unstable();
            ids.dedup();
            return Ok(ids);
        }
    }
    Ok(Vec::new())
}
