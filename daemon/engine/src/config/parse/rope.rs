//! Rotary position embeddings: which there are, and how each is stretched.

use std::ops::RangeInclusive;

use super::super::fields::{ConfigError, Fields};
use super::super::{Architecture, RopeConfig, RopeScaling};
use super::POSITION_MAX;

/// Bases of the geometric row of wavelengths.
const THETA: RangeInclusive<f64> = 1.0..=1e15;

/// The rotations that layers name: one for all, or that of full attention, then that of windows.
pub(super) fn ropes(
    fields: &Fields,
    architecture: Architecture,
) -> Result<Vec<RopeConfig>, ConfigError> {
    match architecture {
        Architecture::Gemma3 => gemma(fields),
        Architecture::Mixtral => Ok(vec![one(fields, 1e6)?]),
        Architecture::GptOss => Ok(vec![gpt_oss(fields)?]),
        _ => Ok(vec![one(fields, 1e4)?]),
    }
}

/// Full attention and windows have rotations of their own: in `rope_parameters` by the type of layer, as
/// transformers 5 writes them, or in `rope_theta`, `rope_scaling` and `rope_local_base_freq`.
fn gemma(fields: &Fields) -> Result<Vec<RopeConfig>, ConfigError> {
    if let Some(by_type) = fields.object("rope_parameters")?
        && by_type.get("full_attention").is_some()
    {
        let of = |kind: &str, theta: f64| match by_type.object(kind)? {
            Some(inner) => stretched(&by_type, &inner, kind, None, theta),
            None => Ok(RopeConfig { theta, scaling: RopeScaling::None }),
        };
        return Ok(vec![of("full_attention", 1e6)?, of("sliding_attention", 1e4)?]);
    }
    let local = fields.number("rope_local_base_freq", THETA)?.unwrap_or(1e4);
    let local = RopeConfig { theta: local, scaling: RopeScaling::None };
    Ok(vec![one(fields, 1e6)?, local])
}

/// Without any word on it, gpt-oss is stretched all the same.
fn gpt_oss(fields: &Fields) -> Result<RopeConfig, ConfigError> {
    if fields.get("rope_parameters").is_some() || fields.get("rope_scaling").is_some() {
        return one(fields, 150_000.0);
    }
    let theta = fields.number("rope_theta", THETA)?.unwrap_or(150_000.0);
    let scaling = RopeScaling::Yarn {
        factor: 32.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        original_max_position: 4096,
        truncated: false,
        magnitude: yarn_magnitude(32.0, 1.0),
    };
    Ok(RopeConfig { theta, scaling })
}

/// `rope_theta` beside `rope_scaling`, or both in `rope_parameters` as transformers 5 writes them; where both
/// are there, transformers reads `rope_scaling`.
fn one(fields: &Fields, theta_default: f64) -> Result<RopeConfig, ConfigError> {
    let (inner, key) = match fields.object("rope_scaling")? {
        Some(inner) => (Some(inner), "rope_scaling"),
        None => (fields.object("rope_parameters")?, "rope_parameters"),
    };
    let outer_theta = fields.number("rope_theta", THETA)?;
    match inner {
        Some(inner) => stretched(fields, &inner, key, outer_theta, theta_default),
        None => Ok(RopeConfig {
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

    let type_key = if inner.get("rope_type").is_some() { "rope_type" } else { "type" };
    let supported = "\"default\", \"linear\", \"llama3\", \"yarn\"";
    let original = "original_max_position_embeddings";
    let number = |key: &str, min: f64, max: f64| inner.required(key, inner.number(key, min..=max)?);
    let scaling = match inner.string(type_key)? {
        None if key != "rope_scaling" && inner.get("rope_theta").is_some() => RopeScaling::None,
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
        Some(_) => return Err(inner.unsupported(type_key, supported)),
    };
    Ok(RopeConfig { theta, scaling })
}

/// What YaRN multiplies rotated vectors by (Peng et al., 2023, section 3.4).
fn yarn_magnitude(factor: f64, scale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 }
}
