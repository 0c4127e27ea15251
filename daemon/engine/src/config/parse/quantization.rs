//! `quantization_config`: how weights are stored.
//!
//! Activations are not quantised here, whatever a checkpoint says of them: the weights are what they are, and all else
//! is computed as without. What changes the weights' arithmetic and is not known is refused by name.

use serde_json::Value;

use super::super::fields::{ConfigError, Fields};
use super::super::quantization::{Group, Pattern, Quantization};
use super::Architecture;
use crate::scheme::{Scales, Scheme};

/// What is known, for people.
const METHODS: &str = "\"fp8\" (E4M3; block, channel or tensor scales), \"compressed-tensors\" (8-bit float weights), \
     \"mxfp4\" (gpt-oss); or unquantized bf16, fp16 and fp32 weights";

/// A block has no longer side than this.
const BLOCK_MAX: usize = 1 << 16;

/// No list is longer, and no pattern either.
const PATTERNS_MAX: usize = 1 << 16;
const PATTERN_BYTES_MAX: usize = 1 << 10;

const KEY: &str = "quantization_config";

pub(super) fn quantization(
    fields: &Fields,
    architecture: Architecture,
) -> Result<Quantization, ConfigError> {
    let Some(said) = fields.object(KEY)? else { return Ok(Quantization::default()) };
    let method = said.required("quant_method", said.string("quant_method")?)?;
    match (method, architecture) {
        ("fp8", Architecture::GptOss) => {
            Err(said.unsupported("quant_method", "\"mxfp4\" for gpt-oss"))
        }
        ("fp8", _) => fp8(&said),
        ("mxfp4", Architecture::GptOss) => mxfp4(&said),
        ("mxfp4", _) => Err(said.unsupported(
            "quant_method",
            format_args!("{METHODS}; this is a {}", architecture.name()),
        )),
        ("compressed-tensors", Architecture::GptOss) => {
            Err(said.unsupported("quant_method", "\"mxfp4\" for gpt-oss"))
        }
        ("compressed-tensors", _) => compressed_tensors(&said),
        _ => Err(said.unsupported("quant_method", METHODS)),
    }
}

/// What Qwen and DeepSeek publish, and transformers writes.
fn fp8(said: &Fields) -> Result<Quantization, ConfigError> {
    for (key, known) in [("fmt", &["e4m3"][..]), ("activation_scheme", &["dynamic", "static"])] {
        if let Some(value) = said.string(key)?
            && !known.contains(&value.to_lowercase().as_str())
        {
            return Err(said.unsupported(key, known.join(" and ")));
        }
    }
    if said.get("modules_to_convert").is_some_and(|list| list != &Value::Array(Vec::new())) {
        return Err(said.unsupported("modules_to_convert", "no list: projections are converted"));
    }
    // Null or not written: a scale a tensor, as all who write such checkpoints have it. (transformers reads blocks of
    // 128 from a file that has no such key, and then finds scales of another shape.)
    let scales = match said.get("weight_block_size") {
        Some(_) => block(said, "weight_block_size")?,
        None => Scales::Tensor,
    };
    let mut skipped = Vec::new();
    let list = match said.get("modules_to_not_convert") {
        Some(_) => "modules_to_not_convert",
        None => "ignored_layers",
    };
    match names(said, list)? {
        // As transformers: the head stays as it is, if nothing else is said.
        None => skipped.push(Pattern::Exactly("lm_head".to_owned())),
        Some(names) => {
            for name in names {
                skipped.extend(unconverted(said, list, name)?);
            }
        }
    }
    let scheme = Scheme::Fp8 { scales };
    let groups = vec![Group { targets: vec![Pattern::Projections], scheme }];
    Ok(Quantization { groups, skipped, experts_are_one: true })
}

/// gpt-oss: its experts, and nothing else.
fn mxfp4(said: &Fields) -> Result<Quantization, ConfigError> {
    let mut skipped = Vec::new();
    for name in names(said, "modules_to_not_convert")?.unwrap_or_default() {
        skipped.extend(unconverted(said, "modules_to_not_convert", name)?);
    }
    let targets = vec![Pattern::End(".experts".to_owned())];
    let groups = vec![Group { targets, scheme: Scheme::Mxfp4 }];
    Ok(Quantization { groups, skipped, experts_are_one: true })
}

/// A name in a list of what is not converted, as transformers 5.17 reads it (`should_convert_module`): a regular
/// expression that module names begin with a match of, or what they end with.
fn unconverted(said: &Fields, key: &str, name: &str) -> Result<[Pattern; 2], ConfigError> {
    let begin = Pattern::begin(name).ok_or_else(|| {
        said.unsupported(
            key,
            format_args!("regular expressions without look-around; {name:?} is none"),
        )
    })?;
    Ok([begin, Pattern::End(name.to_owned())])
}

fn compressed_tensors(said: &Fields) -> Result<Quantization, ConfigError> {
    if said.string("quantization_status")?.unwrap_or("compressed") != "compressed" {
        return Err(said.unsupported("quantization_status", "\"compressed\""));
    }
    for key in ["transform_config", "sparsity_config"] {
        let Some(inner) = said.object(key)? else { continue };
        let is_none = inner.is_empty() || inner.string("format")? == Some("dense");
        if !is_none {
            return Err(said.unsupported(key, "none"));
        }
    }
    let all = said.required("config_groups", said.object("config_groups")?)?;
    let mut groups = Vec::new();
    for name in all.keys() {
        let Some(group) = all.object(name)? else { continue };
        let mut targets = Vec::new();
        let listed = names(&group, "targets")?;
        for target in group.required("targets", listed)? {
            targets.push(match target {
                "Linear" => Pattern::Projections,
                other => named(&group, "targets", other)?,
            });
        }
        let format = match group.string("format")? {
            Some(_) => (&group, group.string("format")?),
            None => (said, said.string("format")?),
        };
        groups.push(Group { targets, scheme: weights(&group, format)? });
    }
    let mut skipped = Vec::new();
    for name in names(said, "ignore")?.unwrap_or_default() {
        skipped.push(match name {
            "Linear" => Pattern::Projections,
            other => named(said, "ignore", other)?,
        });
    }
    Ok(Quantization { groups, skipped, experts_are_one: false })
}

/// What a group of compressed-tensors stores its weights as; `format` as it or the whole says, and who says it.
fn weights(group: &Fields, format: (&Fields, Option<&str>)) -> Result<Scheme, ConfigError> {
    // A group that has activations or keys and values alone.
    let Some(weights) = group.object("weights")? else { return Ok(Scheme::Plain) };
    if !matches!(format.1, None | Some("float-quantized" | "naive-quantized")) {
        return Err(format.0.unsupported("format", "\"float-quantized\""));
    }
    let kind = weights.string("type")?.unwrap_or("int");
    let bits = weights.integer("num_bits", 1..=64)?.unwrap_or(8);
    if kind != "float" {
        return Err(weights.unsupported("type", "\"float\" with 8 bits"));
    }
    if bits != 8 {
        return Err(weights.unsupported("num_bits", "8, with \"type\": \"float\""));
    }
    if !weights.bool("symmetric")?.unwrap_or(true) {
        return Err(weights.unsupported("symmetric", "true"));
    }
    let scales = match weights.string("strategy")?.unwrap_or("tensor") {
        "tensor" => Scales::Tensor,
        "channel" => Scales::Channel,
        "block" => {
            let said = weights.get("block_structure");
            weights.required("block_structure", said)?;
            block(&weights, "block_structure")?
        }
        _ => return Err(weights.unsupported("strategy", "\"tensor\", \"channel\" and \"block\"")),
    };
    if weights.get("actorder").is_some_and(|order| order != &Value::Bool(false)) {
        return Err(weights.unsupported("actorder", "null"));
    }
    Ok(Scheme::Fp8 { scales })
}

/// A name in a list of compressed-tensors: exactly it, or a regular expression behind `re:`.
fn named(said: &Fields, key: &str, name: &str) -> Result<Pattern, ConfigError> {
    match name.strip_prefix("re:") {
        None => Ok(Pattern::Exactly(name.to_owned())),
        Some(expression) => Pattern::begin(expression).ok_or_else(|| {
            let supported = "regular expressions without look-around behind re:";
            said.unsupported(key, format_args!("{supported}; {name:?} is none"))
        }),
    }
}

fn block(said: &Fields, key: &str) -> Result<Scales, ConfigError> {
    let side = |value: &Value| {
        let side = usize::try_from(value.as_u64()?).ok()?;
        (1..=BLOCK_MAX).contains(&side).then_some(side)
    };
    let expected = format!("two integers from 1 to {BLOCK_MAX}");
    let found = said.typed(key, &expected, |value| match &value.as_array()?[..] {
        [rows, cols] => Some(Scales::Block { rows: side(rows)?, cols: side(cols)? }),
        _ => None,
    })?;
    said.required(key, found)
}

fn names<'a>(said: &'a Fields, key: &str) -> Result<Option<Vec<&'a str>>, ConfigError> {
    let expected = format!(
        "a list of up to {PATTERNS_MAX} names of modules, each of at most {PATTERN_BYTES_MAX} bytes"
    );
    said.typed(key, &expected, |value| {
        let list = value.as_array().filter(|list| list.len() <= PATTERNS_MAX)?;
        let name = |value: &'a Value| value.as_str().filter(|name| name.len() <= PATTERN_BYTES_MAX);
        list.iter().map(name).collect()
    })
}
