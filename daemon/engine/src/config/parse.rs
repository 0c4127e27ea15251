//! From the keys of `config.json` to a [`ModelConfig`].
//!
//! Where a key is absent, the default is the one that Hugging Face transformers gives the same
//! architecture, so that a file means here what it means there.

use std::path::Path;

use minisgl_proto::limits::END_TOKENS_MAX;
use serde_json::Value;

use super::fields::{ConfigError, Fields};
use super::{Architecture, ModelConfig, RopeConfig, RopeScaling};

const VOCAB_MAX: usize = 1 << 22;
const HIDDEN_MAX: usize = 1 << 17;
const INTERMEDIATE_MAX: usize = 1 << 20;
const LAYERS_MAX: usize = 1 << 10;
const HEADS_MAX: usize = 1 << 10;
const HEAD_DIM_MAX: usize = 1 << 10;
const POSITION_MAX: usize = 1 << 24;

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

    Ok(ModelConfig {
        architecture,
        vocab_size,
        hidden_size,
        intermediate_size: size("intermediate_size", INTERMEDIATE_MAX)?,
        layers: size("num_hidden_layers", LAYERS_MAX)?,
        heads,
        kv_heads: kv_heads(&fields, heads)?,
        head_dim: head_dim(&fields, architecture, hidden_size, heads)?,
        rms_norm_eps: fields.number("rms_norm_eps", 1e-12..=0.1)?.unwrap_or(1e-6) as f32,
        max_position: max_position
            .min(sliding_window(&fields, architecture)?.unwrap_or(usize::MAX)),
        rope: rope(&fields)?,
        tie_word_embeddings: fields.bool("tie_word_embeddings")?.unwrap_or(false),
        qkv_bias: architecture == Architecture::Qwen2,
        qk_norm: architecture == Architecture::Qwen3,
        eos_token_ids: eos_token_ids(&fields, generation.as_ref(), vocab_size)?,
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
    if fields.get("quantization_config").is_some() {
        return Err(
            fields.unsupported("quantization_config", "unquantized bf16, fp16 and fp32 weights")
        );
    }
    if fields.string("hidden_act")?.unwrap_or("silu") != "silu" {
        return Err(fields.unsupported("hidden_act", "\"silu\""));
    }
    // Llama and Qwen3 put these biases on the output projection too. Mistral and Qwen2 classes do
    // not look at the keys.
    if matches!(architecture, Architecture::Llama | Architecture::Qwen3)
        && fields.bool("attention_bias")?.unwrap_or(false)
    {
        return Err(fields.unsupported("attention_bias", "false"));
    }
    if architecture == Architecture::Llama && fields.bool("mlp_bias")?.unwrap_or(false) {
        return Err(fields.unsupported("mlp_bias", "false"));
    }
    if fields.number("partial_rotary_factor", 0.0..=1.0)?.unwrap_or(1.0) != 1.0 {
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
        None if architecture == Architecture::Qwen3 && !fields.is_null("head_dim") => {
            return Ok(128);
        }
        None => {}
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

/// The window beyond which a token no longer sees the first one. Attention here is always full, so
/// results are exact only up to it.
fn sliding_window(
    fields: &Fields,
    architecture: Architecture,
) -> Result<Option<usize>, ConfigError> {
    let window = fields.integer("sliding_window", 1..=POSITION_MAX)?;
    let default = if fields.is_null("sliding_window") { None } else { Some(4096) };
    Ok(match architecture {
        Architecture::Llama => None,
        Architecture::Mistral => window.or(default),
        Architecture::Qwen2 | Architecture::Qwen3 => {
            if fields.bool("use_sliding_window")?.unwrap_or(false) {
                window.or(default)
            } else {
                None
            }
        }
    })
}

/// `rope_theta` beside `rope_scaling`, or both in `rope_parameters` as transformers 5 writes them.
fn rope(fields: &Fields) -> Result<RopeConfig, ConfigError> {
    let theta = 1.0..=1e15;
    let (inner, key) = match fields.object("rope_parameters")? {
        Some(inner) => (Some(inner), "rope_parameters"),
        None => (fields.object("rope_scaling")?, "rope_scaling"),
    };
    let outer_theta = fields.number("rope_theta", theta.clone())?;
    let Some(inner) = inner else {
        let theta = outer_theta.unwrap_or(10_000.0);
        return Ok(RopeConfig { theta, scaling: RopeScaling::None });
    };
    let theta = inner.number("rope_theta", theta)?.or(outer_theta).unwrap_or(10_000.0);
    if inner.number("partial_rotary_factor", 0.0..=1.0)?.unwrap_or(1.0) != 1.0 {
        return Err(inner.unsupported("partial_rotary_factor", "1.0"));
    }

    let type_key = if inner.get("rope_type").is_some() { "rope_type" } else { "type" };
    let supported = "\"default\", \"linear\", \"llama3\"";
    let number = |key: &str, min: f64, max: f64| inner.required(key, inner.number(key, min..=max)?);
    let scaling = match inner.string(type_key)? {
        None if key == "rope_parameters" && inner.get("rope_theta").is_some() => RopeScaling::None,
        None => return Err(fields.unsupported(key, format_args!("a \"rope_type\" of {supported}"))),
        Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor: number("factor", 1.0, 1e6)? },
        Some("llama3") => {
            let low_freq_factor = number("low_freq_factor", 1e-3, 1e6)?;
            let high_freq_factor = number("high_freq_factor", 1e-3, 1e6)?;
            if high_freq_factor <= low_freq_factor {
                return Err(inner.invalid(
                    "high_freq_factor",
                    format_args!("above \"low_freq_factor\", which is {low_freq_factor:?}"),
                ));
            }
            let original = "original_max_position_embeddings";
            RopeScaling::Llama3 {
                factor: number("factor", 1.0, 1e6)?,
                low_freq_factor,
                high_freq_factor,
                original_max_position: inner
                    .required(original, inner.integer(original, 1..=POSITION_MAX)?)?,
            }
        }
        Some(_) => return Err(inner.unsupported(type_key, supported)),
    };
    Ok(RopeConfig { theta, scaling })
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
