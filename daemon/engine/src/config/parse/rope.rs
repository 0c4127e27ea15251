//! Rotary position embeddings: which there are, and how each is stretched.

use std::ops::RangeInclusive;

use serde_json::Value;

use super::super::fields::{ConfigError, Fields};
use super::super::{Architecture, RopeConfig, RopeScaling};
use super::POSITION_MAX;
use super::class::Class;

/// Bases of the geometric row of wavelengths.
const THETA: RangeInclusive<f64> = 1.0..=1e15;

/// The rotations that layers name: one for all, or that of full attention, then that of windows.
pub(super) fn ropes(
    fields: &Fields,
    architecture: Architecture,
    head_dim: usize,
) -> Result<Vec<RopeConfig>, ConfigError> {
    let theta = Class::of(architecture).rope_theta;
    match architecture {
        Architecture::Gemma3 => gemma(fields, theta),
        Architecture::GptOss => Ok(vec![gpt_oss(fields, theta)?]),
        Architecture::Phi3 => Ok(vec![phi(fields, head_dim, theta)?]),
        Architecture::Llama
        | Architecture::Mistral
        | Architecture::Mixtral
        | Architecture::Qwen2
        | Architecture::Qwen3
        | Architecture::Qwen2Moe
        | Architecture::Qwen3Moe => Ok(vec![one(fields, theta)?]),
    }
}

/// A part of each head is rotated, and stretched by LongRoPE.
fn phi(fields: &Fields, head_dim: usize, theta_default: f64) -> Result<RopeConfig, ConfigError> {
    let (inner, key) = said(fields)?;
    let inner = inner.as_ref();
    let first = |key: &str| inner.filter(|inner| inner.get(key).is_some()).unwrap_or(fields);
    let theta = first("rope_theta").number("rope_theta", THETA)?.unwrap_or(theta_default);

    let part = "partial_rotary_factor";
    let share = first(part).number(part, 0.0..=1.0)?.unwrap_or(1.0);
    let rotated = (head_dim as f64 * share) as usize;
    if rotated == 0 || !rotated.is_multiple_of(2) {
        let expected = format!(
            "a share that rotates an even number of a head's {head_dim} dimensions, and not {rotated}"
        );
        return Err(first(part).invalid(part, expected));
    }

    let supported = "\"default\", \"longrope\"";
    let scaling = match inner {
        None => RopeScaling::None,
        Some(inner) => match kind(fields, inner, key, supported)? {
            None | Some("default") => RopeScaling::None,
            // What the class was published with: its "su" and "yarn" are this too.
            Some("longrope" | "su" | "yarn") => long(fields, inner, rotated)?,
            Some(_) => return Err(inner.unsupported(type_key(inner), supported)),
        },
    };
    Ok(RopeConfig { still: head_dim - rotated, theta, scaling })
}

/// LongRoPE, of which the divisors for short texts are taken.
fn long(fields: &Fields, inner: &Fields, rotated: usize) -> Result<RopeScaling, ConfigError> {
    let context = |key: &str| fields.integer(key, 2..=POSITION_MAX);
    let key = "max_position_embeddings";
    let stretched = fields.required(key, context(key)?)?;
    // The class does not look at one beside the factors.
    let original = context("original_max_position_embeddings")?.unwrap_or(4096);
    let ratio = stretched as f64 / original as f64;
    let factor = inner.number("factor", 1e-6..=1e6)?.unwrap_or(ratio);
    let magnitude = match inner.number("attention_factor", 0.0..=1e6)? {
        Some(magnitude) => magnitude,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
    };
    let expected = format!("a list of {} positive numbers", rotated / 2);
    let divisors = inner.typed("short_factor", &expected, |value| {
        let list = value.as_array().filter(|list| list.len() == rotated / 2)?;
        let one = |value: &Value| value.as_f64().filter(|divisor| *divisor > 0.0);
        list.iter().map(one).collect()
    })?;
    Ok(RopeScaling::LongRope {
        divisors: inner.required("short_factor", divisors)?,
        original_max_position: original,
        magnitude,
    })
}

/// Full attention and windows have rotations of their own: in `rope_parameters` by the type of layer, as
/// transformers 5 writes them, or in `rope_theta`, `rope_scaling` and `rope_local_base_freq`.
fn gemma(fields: &Fields, theta_default: f64) -> Result<Vec<RopeConfig>, ConfigError> {
    if let Some(by_type) = fields.object("rope_parameters")?
        && by_type.get("full_attention").is_some()
    {
        let of = |kind: &str, theta: f64| match by_type.object(kind)? {
            Some(inner) => stretched(&by_type, &inner, kind, None, theta),
            None => Ok(RopeConfig { still: 0, theta, scaling: RopeScaling::None }),
        };
        return Ok(vec![of("full_attention", theta_default)?, of("sliding_attention", 1e4)?]);
    }
    let local = fields.number("rope_local_base_freq", THETA)?.unwrap_or(1e4);
    let local = RopeConfig { still: 0, theta: local, scaling: RopeScaling::None };
    Ok(vec![one(fields, theta_default)?, local])
}

/// Without any word on it, gpt-oss is stretched all the same.
fn gpt_oss(fields: &Fields, theta_default: f64) -> Result<RopeConfig, ConfigError> {
    if fields.get("rope_parameters").is_some() || fields.get("rope_scaling").is_some() {
        return one(fields, theta_default);
    }
    let theta = fields.number("rope_theta", THETA)?.unwrap_or(theta_default);
    let scaling = RopeScaling::Yarn {
        factor: 32.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        original_max_position: 4096,
        truncated: false,
        magnitude: yarn_magnitude(32.0, 1.0),
    };
    Ok(RopeConfig { still: 0, theta, scaling })
}

/// What is said of the rotation, and under which key; where both are there, transformers reads `rope_scaling`.
fn said(fields: &Fields) -> Result<(Option<Fields>, &'static str), ConfigError> {
    Ok(match fields.object("rope_scaling")? {
        Some(inner) => (Some(inner), "rope_scaling"),
        None => (fields.object("rope_parameters")?, "rope_parameters"),
    })
}

/// The name of the key that says which kind of stretching it is.
fn type_key(inner: &Fields) -> &'static str {
    if inner.get("rope_type").is_some() { "rope_type" } else { "type" }
}

/// The kind of stretching that `inner` asks for, which is `key` of `fields`.
fn kind<'a>(
    fields: &Fields,
    inner: &'a Fields,
    key: &str,
    supported: &str,
) -> Result<Option<&'a str>, ConfigError> {
    match inner.string(type_key(inner))? {
        None if key == "rope_scaling" || inner.get("rope_theta").is_none() => {
            Err(fields.unsupported(key, format_args!("a \"rope_type\" of {supported}")))
        }
        kind => Ok(kind),
    }
}

/// `rope_theta` beside `rope_scaling`, or both in `rope_parameters` as transformers 5 writes them.
fn one(fields: &Fields, theta_default: f64) -> Result<RopeConfig, ConfigError> {
    let (inner, key) = said(fields)?;
    let outer_theta = fields.number("rope_theta", THETA)?;
    match inner {
        Some(inner) => stretched(fields, &inner, key, outer_theta, theta_default),
        None => Ok(RopeConfig {
            still: 0,
            theta: outer_theta.unwrap_or(theta_default),
            scaling: RopeScaling::None,
        }),
    }
}

/// The rotation that `inner` describes, which is `key` of `fields`.
fn stretched(
    fields: &Fields,
    inner: &Fields,
    key: &str,
    outer_theta: Option<f64>,
    theta_default: f64,
) -> Result<RopeConfig, ConfigError> {
    let theta = inner.number("rope_theta", THETA)?.or(outer_theta).unwrap_or(theta_default);
    if inner.number("partial_rotary_factor", 0.0..=1.0)?.unwrap_or(1.0) != 1.0 {
        return Err(inner.unsupported("partial_rotary_factor", "1.0"));
    }

    let supported = "\"default\", \"linear\", \"llama3\", \"yarn\"";
    let original = "original_max_position_embeddings";
    let number = |key: &str, min: f64, max: f64| inner.required(key, inner.number(key, min..=max)?);
    let scaling = match kind(fields, inner, key, supported)? {
        None | Some("default") => RopeScaling::None,
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
            RopeScaling::Llama3 {
                factor: number("factor", 1.0, 1e6)?,
                low_freq_factor,
                high_freq_factor,
                original_max_position: inner
                    .required(original, inner.integer(original, 1..=POSITION_MAX)?)?,
            }
        }
        Some("yarn") => {
            let factor = number("factor", 1.0, 1e6)?;
            let optional = |key: &str| inner.number(key, 0.0..=1e6);
            let set =
                |found: Option<f64>, default: f64| found.filter(|&x| x > 0.0).unwrap_or(default);
            let magnitude = match optional("attention_factor")? {
                Some(magnitude) => magnitude,
                None => match (optional("mscale")?, optional("mscale_all_dim")?) {
                    (Some(one), Some(all)) if one > 0.0 && all > 0.0 => {
                        yarn_magnitude(factor, one) / yarn_magnitude(factor, all)
                    }
                    _ => yarn_magnitude(factor, 1.0),
                },
            };
            RopeScaling::Yarn {
                factor,
                beta_fast: set(optional("beta_fast")?, 32.0),
                beta_slow: set(optional("beta_slow")?, 1.0),
                original_max_position: inner
                    .required(original, inner.integer(original, 1..=POSITION_MAX)?)?,
                truncated: inner.bool("truncate")?.unwrap_or(true),
                magnitude,
            }
        }
        Some(_) => return Err(inner.unsupported(type_key(inner), supported)),
    };
    Ok(RopeConfig { still: 0, theta, scaling })
}

/// What YaRN multiplies rotated vectors by (Peng et al., 2023, section 3.4).
fn yarn_magnitude(factor: f64, scale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 }
}
