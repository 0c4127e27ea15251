//! What a load would come to, reckoned and not tried.
//!
//! Owns: the sums that [`Engine::load`] finds by loading: weights by rank from the shapes, workspaces by a rule of
//! thumb. Must never: read weights, or start a rank.

use std::path::Path;

use minisgl_proto::disk::{Fit, SchemeShare};
use minisgl_proto::{LoadOptions, Quantize};

use super::options::{self, Settings};
use super::{Engine, load};
use crate::config::{Ffn, LayerSpec, ModelConfig};
use crate::device::{self, Chosen};
use crate::error::EngineError;
use crate::memory::{Budget, KvSize, available_bytes};
use crate::model;
use crate::scheme::Scheme;
use crate::shard::Shard;
use crate::weights::{self, TensorSpec};

/// Bytes of an element of activations on a GPU.
const ACTIVATION_BYTES: u64 = 2;

/// The device's side of the sums.
struct Memory {
    device: String,
    gpus: Vec<u32>,
    available_bytes: u64,
    spare_bytes: u64,
    slack_bytes: u64,
    unit_bytes: u64,
    /// Of the memory that has the most of them.
    weight_bytes: u64,
    other_bytes: u64,
    is_estimate: bool,
}

impl Engine {
    /// What loading the model in `dir` would come to, of which only `config.json` needs to be there; and why it
    /// would not load, if its memory is the reason. GPUs are opened for it, and let go.
    ///
    /// # Errors
    /// As [`Engine::load`], for any other reason.
    pub fn fit(
        dir: &Path,
        options: &LoadOptions,
    ) -> Result<(Fit, Option<EngineError>), EngineError> {
        options::check(options)?;
        let stored = ModelConfig::from_dir(dir)?;
        let config = load::quantised(options, stored.clone())?;
        let device = device::choose(options)?;
        load::check_len(options, &config)?;
        let tp = options.tp as usize;
        let shards = (0..tp).map(|rank| Shard::new(&config, tp, rank));
        let shards = shards.collect::<Result<Vec<_>, _>>()?;
        let is_here = weights::are_in(dir);
        let reckoned = || model::tensors(&config).iter().map(TensorSpec::bytes).sum();
        let stored_bytes = match is_here || options.dummy_weights {
            true => {
                let source = load::open_weights(dir, &stored, &config, options)?;
                // What is quantised takes other memory than it is stored in.
                if options.quantize == Quantize::None { source.bytes_total() } else { reckoned() }
            }
            false => reckoned(),
        };
        let settings = Settings::new(options, &device)?;
        let memory = match device {
            Chosen::Cpu => Memory {
                device: "cpu".to_owned(),
                gpus: Vec::new(),
                available_bytes: available_bytes()?,
                spare_bytes: 0,
                slack_bytes: 0,
                unit_bytes: 1,
                weight_bytes: stored_bytes,
                other_bytes: 0,
                is_estimate: !(is_here || options.dummy_weights),
            },
            #[cfg(feature = "cuda")]
            Chosen::Cuda(gpus) => {
                for gpu in &gpus {
                    super::spawn::check_is_served(&config, gpu.capability())?;
                }
                for (rank, shard) in shards.iter().enumerate() {
                    crate::ops::cuda::check(&config, shard).map_err(|error| EngineError::Rank {
                        rank,
                        operation: error.operation.to_owned(),
                        reason: error.reason,
                    })?;
                }
                on_gpus(&gpus, &config, &shards, &settings)?
            }
        };
        Ok(reckon(&config, &shards, &settings, memory))
    }
}

fn reckon(
    config: &ModelConfig,
    shards: &[Shard],
    settings: &Settings,
    memory: Memory,
) -> (Fit, Option<EngineError>) {
    let is_shared = memory.gpus.is_empty();
    let kv_heads = shards.iter().map(|shard| shard.kv_heads.len());
    let kv_heads: usize =
        if is_shared { kv_heads.sum() } else { kv_heads.max().unwrap_or_default() };
    let element_bytes = options::dtype_bytes(settings.kv_dtype);
    let groups = settings.groups(config);
    let budget = Budget {
        available_bytes: memory.available_bytes,
        used_bytes: memory.weight_bytes + memory.other_bytes,
        spare_bytes: memory.spare_bytes,
        arrays: 2 * groups.arrays() as u64,
        windows: groups.windows(),
        chunk_tokens: settings.chunk_tokens,
        token_bytes: (kv_heads * config.head_dim * element_bytes) as u64,
        slack_bytes: memory.slack_bytes,
        unit_bytes: memory.unit_bytes,
        max_position: config.max_position as u64,
    };
    let (size, problem) = match budget.kv_size(&settings.wishes()) {
        Ok(size) => (size, None),
        Err(error) => (KvSize { pages: 0, tokens: 0, max_len: 0 }, Some(error)),
    };
    let page_size = settings.page_size as u64;
    // Of each the pages that it has at its end, where it is fed a token at a time.
    let full = groups.windows().pages_for(size.max_len as usize, 1, settings.page_size) as u64;
    let fit = Fit {
        architecture: config.architecture.name().to_owned(),
        parameters: model::parameters(config),
        schemes: schemes(config),
        device: memory.device,
        gpus: memory.gpus,
        tp: settings.tp as u32,
        available_bytes: memory.available_bytes,
        weight_bytes: memory.weight_bytes,
        other_bytes: memory.other_bytes + memory.spare_bytes,
        is_estimate: memory.is_estimate,
        kv_bytes: if size.pages == 0 { 0 } else { budget.kv_bytes(size.pages * page_size) },
        kv_tokens: size.tokens,
        kv_groups: groups.count() as u32,
        max_len: size.max_len,
        full_requests: size.pages.checked_div(full).unwrap_or(0),
    };
    (fit, problem)
}

/// How the model's weights are held, most bytes first.
fn schemes(config: &ModelConfig) -> Vec<SchemeShare> {
    let mut shares: Vec<SchemeShare> = Vec::new();
    for tensor in model::tensors(config) {
        let (scheme, bytes) = (tensor.scheme.unwrap_or("plain"), tensor.bytes());
        match shares.iter_mut().find(|share| share.scheme == scheme) {
            Some(share) => share.bytes += bytes,
            None => shares.push(SchemeShare { scheme: scheme.to_owned(), bytes }),
        }
    }
    shares.sort_by_key(|share| std::cmp::Reverse(share.bytes));
    shares
}

#[cfg(feature = "cuda")]
fn on_gpus(
    gpus: &[crate::ops::cuda::Gpu],
    config: &ModelConfig,
    shards: &[Shard],
    settings: &Settings,
) -> Result<Memory, EngineError> {
    use minisgl_kernels::attention::Heads;

    let free = gpus.iter().map(|gpu| gpu.memory().free_bytes());
    let free = free.collect::<Result<Vec<u64>, _>>().map_err(|error| EngineError::System {
        what: "ask the GPU for its free memory".to_owned(),
        source: std::io::Error::other(error.to_string()),
    })?;
    let ordinals: Vec<u32> = gpus.iter().map(|gpu| gpu.ordinal() as u32).collect();
    if settings.kv_tokens.is_none() {
        super::spawn::even(&ordinals, &free)?;
    }
    let name = gpus.first().map_or("", crate::ops::cuda::Gpu::name);
    let weights = shards.iter().map(|shard| model::bytes_of(config, shard)).max();
    let shard = &shards[0];
    let (q_heads, kv_heads) = (shard.heads.len(), shard.kv_heads.len());
    let page_size = settings.page_size;
    let slack = Heads { q_heads, kv_heads, head_dim: config.head_dim, page_size }.pages_slack();
    let slack_bytes = (slack * options::dtype_bytes(settings.kv_dtype)) as u64;
    let available_bytes = free.iter().copied().min().unwrap_or(0);
    let positions =
        super::spawn::positions(config, shards, settings, (available_bytes, slack_bytes));
    Ok(Memory {
        device: if gpus.len() == 1 { name.to_owned() } else { format!("{} x {name}", gpus.len()) },
        gpus: ordinals,
        available_bytes,
        spare_bytes: super::spawn::GPU_SPARE_BYTES,
        slack_bytes,
        unit_bytes: crate::ops::cuda::KV_UNIT_BYTES as u64,
        weight_bytes: weights.unwrap_or(0),
        other_bytes: workspace_bytes(config, shard, settings, positions),
        is_estimate: true,
    })
}

/// About what a GPU's workspaces, graphs and libraries take: activations of a step at its largest, those between the
/// products of all experts that its tokens chose, logits of its rows in f32 and their copy for sampling, what requests are sampled by, page tables and
/// rotations of requests of up to `positions`, and half a GiB for graphs, cuBLASLt and code.
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "the CPU's workspaces are small"))]
fn workspace_bytes(
    config: &ModelConfig,
    shard: &Shard,
    settings: &Settings,
    positions: usize,
) -> u64 {
    const FIXED_BYTES: u64 = 512 << 20;
    let heads = shard.heads.len() + 2 * shard.kv_heads.len();
    let streams = if config.norms.after_blocks { 5 } else { 4 };
    let width =
        streams * config.hidden_size + 2 * heads * config.head_dim + 3 * shard.dense_width(config);
    let experts = |layer: &LayerSpec| match &layer.ffn {
        Ffn::Dense { .. } => 0,
        Ffn::Experts(experts) => {
            let shared = experts
                .shared
                .map_or(0, |shared| 3 * shard.columns(shared.width).len() + config.hidden_size);
            let width = shard.expert_columns(config, experts).len();
            // In bf16, and once more as codes with scales.
            let coded = matches!(config.expert_scheme(), Scheme::Fp8 { .. });
            let each = width + if coded { width * 17 / 32 } else { 0 } + config.hidden_size;
            // Logits are f32.
            experts.chosen * each + shared + 2 * experts.count
        }
    };
    // Layers take turns.
    let width = width + config.layers.iter().map(experts).max().unwrap_or(0);
    let mut activations = settings.chunk_tokens as u64 * width as u64 * ACTIVATION_BYTES;
    if config.quantization.schemes().any(|scheme| scheme != Scheme::Plain) {
        // Those of the widest product once more, as codes with a scale for each 128.
        let heads_width = shard.heads.len() * config.head_dim;
        let width = config.hidden_size.max(shard.dense_width(config)).max(heads_width);
        activations += settings.chunk_tokens as u64 * (width + width / 32) as u64;
    }
    let logits = settings.rows() as u64 * shard.vocab.len() as u64 * 8;
    // By slot, and once more those of a step's rows as lists.
    let tables = settings.groups(config).count() * positions.div_ceil(settings.page_size);
    let tables = 4 * (settings.slots + settings.rows()) * tables;
    let rotations = 4 * config.ropes.len() * positions * config.head_dim;
    // Token counts of requests with penalties, and a bit for each token that a row may sample.
    let vocab = config.vocab_size;
    let sampling = 4 * settings.penalised_max(vocab) * vocab + settings.slots * vocab.div_ceil(8);
    activations + logits + (tables + rotations + sampling) as u64 + FIXED_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::options::Settings;

    const CONFIG: &str = r#"{
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false
    }"#;

    fn folder() -> tempfile::TempDir {
        folder_of(CONFIG)
    }

    fn folder_of(config: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        dir
    }

    fn options() -> LoadOptions {
        let device = minisgl_proto::Device::Cpu;
        LoadOptions { device, dummy_weights: true, max_running: 3, ..LoadOptions::default() }
    }

    #[test]
    fn a_fit_is_what_a_load_comes_to() {
        // The same sizes, with tensors that projections share.
        let phi = CONFIG.replace("Llama", "Phi3");
        // Two layers, one of which sees a window: two groups.
        let windowed = CONFIG.replace("Llama", "Qwen2").replacen(
            '{',
            r#"{"use_sliding_window": true, "sliding_window": 40, "max_window_layers": 1,"#,
            1,
        );
        let windowed = windowed
            .replace("\"max_position_embeddings\": 128", "\"max_position_embeddings\": 2048");
        for (config, change) in [
            (CONFIG, (|_| ()) as fn(&mut LoadOptions)),
            (CONFIG, |options| options.kv_tokens = Some(100)),
            (CONFIG, |options| options.max_len = Some(50)),
            (CONFIG, |options| options.tp = 2),
            (CONFIG, |options| options.kv_dtype = minisgl_proto::KvDtype::Bf16),
            (&phi, |_| ()),
            (&phi, |options| options.tp = 2),
            (&windowed, |options| options.max_len = Some(900)),
            (&windowed, |options| options.tp = 2),
            // No longer than a window: one group takes less.
            (&windowed, |options| options.kv_tokens = Some(48)),
        ] {
            let dir = folder_of(config);
            let mut options = options();
            change(&mut options);
            let (fit, problem) = Engine::fit(dir.path(), &options).unwrap();
            assert!(problem.is_none());
            let (_engine, info) = Engine::load(dir.path(), &options, &mut |_| ()).unwrap();
            assert_eq!(fit.kv_tokens, info.kv_tokens, "{options:?}");
            assert_eq!((fit.max_len, fit.kv_bytes), (u64::from(info.max_len), info.kv_bytes));
            assert_eq!((fit.parameters, fit.tp), (info.parameters, info.tp));
            let windows = info.groups.windows();
            assert_eq!(windows.groups > 0, config == windowed && options.kv_tokens.is_none());
            let full = windows.pages_for(info.max_len as usize, 1, info.page_size as usize);
            assert_eq!(fit.full_requests, u64::from(info.kv_pages) / full as u64);
            assert!(!fit.is_estimate);
            // As stored; every rank has norms of its own, in f32.
            let difference = fit.weight_bytes.abs_diff(info.weight_bytes);
            assert!(difference * 10 < info.weight_bytes, "{fit:?} {}", info.weight_bytes);
        }
    }

    #[test]
    fn weights_that_are_not_here_are_an_estimate() {
        let options = LoadOptions { dummy_weights: false, ..options() };
        let (fit, problem) = Engine::fit(folder().path(), &options).unwrap();
        assert!(fit.is_estimate && problem.is_none());
        assert_eq!(fit.weight_bytes, fit.parameters * 2);
    }

    #[test]
    fn what_does_not_fit_says_why() {
        let options = LoadOptions { kv_tokens: Some(u64::from(u32::MAX)), ..options() };
        let (fit, problem) = Engine::fit(folder().path(), &options).unwrap();
        assert_eq!((fit.kv_tokens, fit.full_requests), (0, 0));
        assert!(fit.available_bytes > 0 && fit.weight_bytes > 0);
        let problem = problem.unwrap().to_string();
        assert!(problem.contains("no memory for the KV cache"), "{problem}");
    }

    #[test]
    fn ranks_hold_together_what_the_model_has_and_norms_each() {
        let config = ModelConfig::from_dir(folder().path()).unwrap();
        let one = Shard::new(&config, 1, 0).unwrap();
        assert_eq!(model::parameters_of(&config, &one), model::parameters(&config));
        let two: u64 = (0..2)
            .map(|rank| Shard::new(&config, 2, rank).unwrap())
            .map(|shard| model::parameters_of(&config, &shard))
            .sum();
        // Five norms of 64: two a layer, and the last.
        assert_eq!(two, model::parameters(&config) + 5 * 64);
        let settings = Settings::new(&options(), &Chosen::Cpu).unwrap();
        let mut larger = settings.clone();
        larger.chunk_tokens *= 2;
        let of = |settings| workspace_bytes(&config, &one, settings, 4096);
        assert!(of(&larger) > of(&settings));
        // A table for each slot and each row, and cosines and sines for each position.
        let entries = (settings.slots + settings.rows()) * 4096 / settings.page_size;
        let longer = workspace_bytes(&config, &one, &settings, 8192) - of(&settings);
        assert_eq!(longer, (4 * (entries + config.ropes.len() * 4096 * config.head_dim)) as u64);
        // What lies between the experts' products: 32 values of 4 experts and 64 of what they give, and two logits.
        let mut mixture = config.clone();
        let router = crate::config::Router::SoftmaxOfChosen;
        mixture.layers[1].ffn = Ffn::Experts(crate::config::ExpertsSpec {
            count: 8,
            chosen: 4,
            width: 32,
            router,
            bias: false,
            shared: None,
        });
        let more = workspace_bytes(&mixture, &one, &settings, 4096) - of(&settings);
        assert_eq!(more, settings.chunk_tokens as u64 * (4 * (32 + 64) + 2 * 8) * 2);
    }
}
