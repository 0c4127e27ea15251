//! The layers of an architecture: which see all tokens and which a window, which are dense and which have experts.

use super::super::fields::{ConfigError, Fields};
use super::super::{
    Architecture, AttentionSpec, ExpertsSpec, Ffn, LayerSpec, Router, SharedExpert,
};
use super::class::Class;
use super::{EXPERTS_MAX, INTERMEDIATE_MAX, LAYERS_MAX, POSITION_MAX};

/// How a layer's tokens see each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// All before.
    Full,
    /// As many tokens, itself included.
    Window(usize),
}

/// The kind of each of `count` layers: as `layer_types` says, or as transformers would fill it in.
pub(super) fn types(
    fields: &Fields,
    architecture: Architecture,
    count: usize,
) -> Result<Vec<Kind>, ConfigError> {
    let window = window(fields, architecture)?;
    let kind = |is_window: bool| match window {
        Some(window) if is_window => Kind::Window(window),
        _ => Kind::Full,
    };
    // Classes of one kind of layer do not look at the list.
    let known = "a list of \"full_attention\" and \"sliding_attention\", one for each layer";
    let listed = match Class::of(architecture).has_kinds {
        true => fields.typed("layer_types", known, |value| {
            let list = value.as_array().filter(|list| list.len() == count)?;
            let is_window = |value: &serde_json::Value| match value.as_str()? {
                "full_attention" => Some(false),
                "sliding_attention" => Some(true),
                _ => None,
            };
            list.iter().map(is_window).collect::<Option<Vec<bool>>>()
        })?,
        false => None,
    };
    if let Some(listed) = listed {
        if listed.contains(&true) && window.is_none() && fields.get("sliding_window").is_none() {
            return Err(
                fields.invalid("sliding_window", "the window of \"sliding_attention\" layers")
            );
        }
        return Ok(listed.into_iter().map(kind).collect());
    }
    let first_windows = fields.integer("max_window_layers", 0..=LAYERS_MAX)?.unwrap_or(28);
    let pattern = fields.integer("sliding_window_pattern", 1..=LAYERS_MAX)?.unwrap_or(6);
    let by_place = |layer: usize| match architecture {
        Architecture::Llama => false,
        Architecture::Mistral
        | Architecture::Mixtral
        | Architecture::Qwen3Moe
        | Architecture::Phi3 => true,
        Architecture::Qwen2 | Architecture::Qwen3 => layer >= first_windows,
        Architecture::Qwen2Moe => layer.is_multiple_of(2) && layer < first_windows,
        Architecture::GptOss => layer.is_multiple_of(2),
        Architecture::Gemma3 => !(layer + 1).is_multiple_of(pattern),
    };
    Ok((0..count).map(|layer| kind(by_place(layer))).collect())
}

/// The window of those layers that have one.
fn window(fields: &Fields, architecture: Architecture) -> Result<Option<usize>, ConfigError> {
    let said = fields.integer("sliding_window", 0..=POSITION_MAX)?.filter(|&window| window > 0);
    let or = |default: usize| match fields.is_null("sliding_window") {
        true => None,
        false => said.or(Some(default)),
    };
    Ok(match architecture {
        Architecture::Llama => None,
        Architecture::Mixtral | Architecture::Phi3 => said,
        Architecture::GptOss => or(128),
        Architecture::Mistral | Architecture::Gemma3 => or(4096),
        Architecture::Qwen2
        | Architecture::Qwen3
        | Architecture::Qwen2Moe
        | Architecture::Qwen3Moe => match fields.bool("use_sliding_window")?.unwrap_or(false) {
            true => or(4096),
            false => None,
        },
    })
}

/// The layers, of the kinds given. A window as long as the context is none.
pub(super) fn layers(
    fields: &Fields,
    architecture: Architecture,
    kinds: &[Kind],
    context: usize,
) -> Result<Vec<LayerSpec>, ConfigError> {
    let size = |key: &str| fields.required(key, fields.integer(key, 1..=INTERMEDIATE_MAX)?);
    let experts = experts(fields, architecture)?;
    let dense_only = dense_only(fields, kinds.len())?;
    let step = fields.integer("decoder_sparse_step", 1..=LAYERS_MAX)?.unwrap_or(1);
    let has_both = matches!(architecture, Architecture::Qwen2Moe | Architecture::Qwen3Moe);
    kinds
        .iter()
        .enumerate()
        .map(|(layer, kind)| {
            let is_dense =
                has_both && (dense_only.contains(&layer) || !(layer + 1).is_multiple_of(step));
            let ffn = match &experts {
                Some(experts) if !is_dense => Ffn::Experts(experts.clone()),
                _ => Ffn::Dense { width: size("intermediate_size")? },
            };
            let (window, is_local) = match kind {
                Kind::Full => (None, false),
                Kind::Window(window) => (Some(*window).filter(|window| *window < context), true),
            };
            let rope = usize::from(is_local && architecture == Architecture::Gemma3);
            Ok(LayerSpec { attention: AttentionSpec { window, rope }, ffn })
        })
        .collect()
}

/// Layers that have no experts, among those that could.
fn dense_only(fields: &Fields, layers: usize) -> Result<Vec<usize>, ConfigError> {
    let expected = format!("a list of layers below {layers}");
    let list = fields.typed("mlp_only_layers", &expected, |value| {
        let one = |value: &serde_json::Value| {
            usize::try_from(value.as_u64()?).ok().filter(|&layer| layer < layers)
        };
        value.as_array()?.iter().map(one).collect::<Option<Vec<_>>>()
    })?;
    Ok(list.unwrap_or_default())
}

fn experts(
    fields: &Fields,
    architecture: Architecture,
) -> Result<Option<ExpertsSpec>, ConfigError> {
    let integer = |key: &str, max: usize| fields.integer(key, 1..=max);
    // transformers 5 writes `num_local_experts` for what was `num_experts`.
    let count = || match integer("num_experts", EXPERTS_MAX)? {
        Some(count) => Ok(count),
        None => fields.required("num_experts", integer("num_local_experts", EXPERTS_MAX)?),
    };
    let renormalised = || fields.bool("norm_topk_prob").map(|said| said.unwrap_or(false));
    let width = |key: &str| fields.required(key, integer(key, INTERMEDIATE_MAX)?);
    let (key, router, bias, shared) = match architecture {
        Architecture::Qwen3Moe => (
            "moe_intermediate_size",
            Router::Softmax { renormalised: renormalised()? },
            false,
            None,
        ),
        Architecture::Qwen2Moe => (
            "moe_intermediate_size",
            Router::Softmax { renormalised: renormalised()? },
            false,
            Some(SharedExpert { width: width("shared_expert_intermediate_size")?, gated: true }),
        ),
        Architecture::Mixtral => {
            ("intermediate_size", Router::Softmax { renormalised: true }, false, None)
        }
        Architecture::GptOss => ("intermediate_size", Router::SoftmaxOfChosen, true, None),
        _ => return Ok(None),
    };
    let count = count()?;
    let chosen =
        fields.required("num_experts_per_tok", integer("num_experts_per_tok", EXPERTS_MAX)?)?;
    if chosen > count {
        let most = format!("at most the number of experts, which is {count}");
        return Err(fields.invalid("num_experts_per_tok", most));
    }
    Ok(Some(ExpertsSpec { count, chosen, width: width(key)?, router, bias, shared }))
}
