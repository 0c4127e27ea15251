//! Ranks on a device: one function for each kind.
//!
//! Owns: what a model's ranks are made of. Must never: wait for them.

use std::sync::Arc;
#[cfg(feature = "cuda")]
use std::sync::Mutex;
use std::time::Instant;

#[cfg(feature = "cuda")]
use minisgl_kernels::attention::Heads;
use minisgl_proto::KvDtype;
use minisgl_sched::{Late, Plan};

use super::options::Settings;
#[cfg(feature = "cuda")]
use super::options::dtype_bytes;
use crate::batch::Batch;
use crate::collective::Group;
#[cfg(feature = "cuda")]
use crate::config::Ffn;
use crate::config::ModelConfig;
use crate::error::{EngineError, OpError};
use crate::kv_groups::KvGroups;
#[cfg(feature = "cuda")]
use crate::memory::Budget;
use crate::memory::available_bytes;
#[cfg(feature = "cuda")]
use crate::model;
#[cfg(feature = "cuda")]
use crate::model::parameters;
use crate::model::{Decoder, Loader};
use crate::ops::cpu::{CpuOps, CpuSpec, KvElement};
#[cfg(feature = "cuda")]
use crate::ops::cuda::{CudaOps, CudaSpec, Gpu, KV_UNIT_BYTES, Team, decode_rows};
use crate::ops::{OpResult, Ops, Pending};
use crate::patience::StepCosts;
use crate::rank::{Loaded, Ranks, Runner};
#[cfg(feature = "cuda")]
use crate::scheme::{Element, Scheme, TensorSpec};
use crate::shard::Shard;
use crate::weights::WeightSource;

/// Bytes of a GPU's memory that stay free: the driver loads the code of a kernel that first runs after
/// `Ready`, and grows its own tables.
#[cfg(feature = "cuda")]
pub(super) const GPU_SPARE_BYTES: u64 = 256 << 20;

/// The compute capability that has kernels for experts and for weights in FP8.
#[cfg(feature = "cuda")]
const HOPPER: (i32, i32) = (9, 0);

/// What all ranks of a model share.
pub(super) struct Shared<'a> {
    pub(super) config: &'a Arc<ModelConfig>,
    pub(super) shards: &'a Arc<Vec<Shard>>,
    pub(super) source: &'a Arc<dyn WeightSource>,
    pub(super) settings: &'a Settings,
    pub(super) groups: &'a KvGroups,
}

/// Ranks that are loading, and what is known of their device.
pub(super) struct Spawned {
    pub(super) ranks: Ranks,
    /// For people.
    pub(super) device: String,
    /// The driver's numbers of the GPUs.
    pub(super) gpus: Vec<u32>,
    /// Memories that the ranks have: one a rank, or one for all.
    pub(super) memories: usize,
    /// Of the weights in memory.
    pub(super) dtype: String,
    /// Before anything was loaded.
    pub(super) available_bytes: u64,
    /// That nobody may have.
    pub(super) spare_bytes: u64,
    /// Behind the last page of each KV array.
    pub(super) kv_slack_bytes: u64,
    /// What KV arrays are a multiple of.
    pub(super) kv_unit_bytes: u64,
    /// Positions that there is room for beside the KV pages.
    pub(super) max_len: usize,
    /// From the bytes of weights, once they are loaded, to all that is taken.
    pub(super) used_bytes: UsedBytes,
    /// The steps that warm it up.
    pub(super) first_steps: FirstSteps,
    /// By what it is known how long a step may take, where one may never end.
    pub(super) costs: Option<StepCosts>,
}

pub(super) type UsedBytes = Box<dyn Fn(u64) -> Result<u64, EngineError>>;

/// Steps after which nothing is left to be loaded, allocated or recorded.
pub(super) struct FirstSteps {
    /// Prefills of one row, by their tokens.
    pub(super) prefill: Vec<usize>,
    /// Decode steps, by their rows.
    pub(super) decode: Vec<usize>,
}

/// A model on one rank of a device.
struct ModelRunner<O: Ops> {
    ops: O,
    model: Decoder<O>,
    batch: Batch,
    page_size: usize,
    /// Of layers.
    groups: usize,
}

impl<O: Ops> Runner for ModelRunner<O> {
    fn prepare(&mut self) -> OpResult {
        self.ops.prepare()
    }

    fn reserve_kv(&mut self, pages: usize) -> OpResult {
        self.ops.reserve_kv(pages)
    }

    fn commit_kv(&mut self, pages: usize) -> OpResult {
        self.ops.commit_kv(pages)
    }

    fn run(&mut self, plan: Arc<Plan>) -> OpResult<Option<Box<dyn Pending>>> {
        self.batch.prepare(plan, self.groups, self.page_size);
        self.ops.step(&self.batch, &mut self.model)
    }

    fn complete(&mut self, late: &Late) -> OpResult<Box<dyn Pending>> {
        self.ops.complete(&self.batch, late, &mut self.model)
    }
}

/// Starts CPU ranks. Another device is another function like this one, with its own [`Ops`].
pub(super) fn spawn_cpu(model: &Shared<'_>) -> Result<Spawned, EngineError> {
    let Settings { tp, threads, slots, page_size, chunk_tokens, .. } = *model.settings;
    let logit_rows = model.settings.logit_rows();
    let penalised = model.settings.penalised_max(model.config.vocab_size);
    let kv_element = match model.settings.kv_dtype {
        KvDtype::Bf16 => KvElement::Bf16,
        _ => KvElement::F32,
    };
    let available_bytes = available_bytes()?;
    let (config, groups) = (model.config.clone(), model.groups.clone());
    let group = Group::new(tp);
    let seats = group.clone();
    let ranks = spawn(model, group, move |shard| {
        CpuOps::new(CpuSpec {
            config: &config,
            shard,
            member: seats.member(shard.rank),
            threads: (threads / tp).max(1),
            slots,
            penalised,
            chunk_tokens,
            logit_rows,
            page_size,
            groups: groups.clone(),
            kv_element,
        })
    })?;
    Ok(Spawned {
        ranks,
        device: "cpu".to_owned(),
        gpus: Vec::new(),
        memories: 1,
        dtype: model.source.dtype().to_owned(),
        available_bytes,
        spare_bytes: 0,
        kv_slack_bytes: 0,
        kv_unit_bytes: 1,
        max_len: model.config.max_position,
        used_bytes: Box::new(Ok),
        first_steps: FirstSteps { prefill: vec![page_size], decode: vec![1] },
        costs: None,
    })
}

/// Refuses what GPUs of this compute capability do not serve as a whole model, before anything is read: experts and codes
/// that no kernel takes, and experts of several kinds.
///
/// # Errors
/// It is such a model: which, and the remedy.
#[cfg(feature = "cuda")]
pub(super) fn check_is_served(
    config: &ModelConfig,
    capability: (i32, i32),
) -> Result<(), EngineError> {
    let refuse = |reason: String| {
        Err(EngineError::Rank { rank: 0, operation: "choose kernels".to_owned(), reason })
    };
    let has_experts = config.layers.iter().any(|layer| matches!(layer.ffn, Ffn::Experts(_)));
    let is_fp8 = config.quantization.schemes().any(|scheme| matches!(scheme, Scheme::Fp8 { .. }));
    if capability != HOPPER && (has_experts || is_fp8) {
        let (major, minor) = capability;
        let what = if has_experts { "experts" } else { "weights in fp8" };
        return refuse(format!(
            "there are none for {what} at compute capability {major}.{minor}, only at 9.0 (H100, H200); load with \
             --device cpu"
        ));
    }
    // Kernels take the experts of a model as one kind.
    let mut experts = model::tensors(config).into_iter().filter(|tensor| {
        tensor.name.contains(".experts.")
            && !tensor.name.ends_with("bias")
            && tensor.element != Element::Scale
    });
    if let Some(first) = experts.next()
        && let Some(other) = experts.find(|tensor| tensor.scheme != first.scheme)
    {
        let said = |tensor: &TensorSpec| {
            format!("{} ({})", tensor.name, tensor.scheme.unwrap_or("plain numbers"))
        };
        return refuse(format!(
            "the GPU has no kernels for experts that are stored in several ways, as {} and {} are; load with --device cpu",
            said(&first),
            said(&other)
        ));
    }
    Ok(())
}

/// Starts a rank on each of the GPUs.
#[cfg(feature = "cuda")]
pub(super) fn spawn_cuda(model: &Shared<'_>, gpus: Vec<Gpu>) -> Result<Spawned, EngineError> {
    gpus.iter().try_for_each(|gpu| check_is_served(model.config, gpu.capability()))?;
    let memories: Vec<_> = gpus.iter().map(Gpu::memory).collect();
    let free_bytes = move || {
        let all = memories.iter().map(|memory| memory.free_bytes());
        all.collect::<Result<Vec<u64>, _>>().map_err(|error| EngineError::System {
            what: "ask the GPU for its free memory".to_owned(),
            source: std::io::Error::other(error.to_string()),
        })
    };
    let at_first = free_bytes()?;
    let ordinals: Vec<u32> = gpus.iter().map(|gpu| gpu.ordinal() as u32).collect();
    // Ranks hold equal shares: the GPU with the least decides.
    let available_bytes = at_first.iter().copied().min().unwrap_or(0);
    let name = gpus.first().map_or("", Gpu::name);
    let device = if gpus.len() == 1 { name.to_owned() } else { format!("{} x {name}", gpus.len()) };
    let (config, settings) = (model.config.clone(), model.settings.clone());
    let groups = model.groups.clone();
    if settings.kv_tokens.is_none() {
        even(&ordinals, &at_first)?;
    }
    let shard = &model.shards[0];
    let (q_heads, kv_heads) = (shard.heads.len(), shard.kv_heads.len());
    let heads =
        Heads { q_heads, kv_heads, head_dim: config.head_dim, page_size: settings.page_size };
    let kv_slack_bytes = (heads.pages_slack() * dtype_bytes(settings.kv_dtype)) as u64;
    let max_len = positions(&config, model.shards, &settings, (available_bytes, kv_slack_bytes));
    let group = Group::new(gpus.len());
    let teams = match gpus.len() {
        1 => vec![None],
        _ => {
            let room = (settings.chunk_tokens, settings.rows());
            let member = |rank| group.member(rank);
            Team::gather(&gpus, &config, model.shards, room, member)
                .map(|teams| teams.into_iter().map(Some).collect())
                .map_err(|error| EngineError::Device {
                    device: "cuda",
                    reason: error.to_string(),
                })?
        }
    };
    let seats = Mutex::new(gpus.into_iter().zip(teams).map(Some).collect::<Vec<_>>());
    let ranks = spawn(model, group, move |shard| {
        let seat = seats.lock().ok().and_then(|mut seats| seats[shard.rank].take());
        let (gpu, team) = seat.expect("every rank takes its own GPU once");
        CudaOps::new(CudaSpec {
            config: &config,
            shard,
            gpu,
            team,
            slots: settings.slots,
            penalised: settings.penalised_max(config.vocab_size),
            chunk_tokens: settings.chunk_tokens,
            logit_rows: settings.logit_rows(),
            page_size: settings.page_size,
            groups: groups.clone(),
            max_len,
            kv_dtype: settings.kv_dtype,
            attn: settings.attn,
        })
    })?;
    let Settings { page_size, chunk_tokens, .. } = *model.settings;
    Ok(Spawned {
        ranks,
        device,
        gpus: ordinals,
        memories: model.shards.len(),
        dtype: match model.config.quantization.schemes().find_map(Scheme::name) {
            Some(scheme) => scheme.to_owned(),
            None => "bf16".to_owned(),
        },
        available_bytes,
        spare_bytes: GPU_SPARE_BYTES,
        kv_slack_bytes,
        kv_unit_bytes: KV_UNIT_BYTES as u64,
        max_len,
        used_bytes: Box::new(move |_| {
            let now = free_bytes()?;
            let used = at_first.iter().zip(now).map(|(first, now)| first.saturating_sub(now));
            Ok(used.max().unwrap_or(0))
        }),
        // Attention has kernels for few, some and many tokens a row.
        first_steps: FirstSteps {
            prefill: [page_size, 48, 1024].map(|tokens| tokens.min(chunk_tokens)).into(),
            decode: decode_rows(model.settings.rows()),
        },
        costs: Some(StepCosts::of(
            model.config,
            parameters(model.config),
            model.shards.len(),
            dtype_bytes(model.settings.kv_dtype),
        )),
    })
}

/// The positions of a request that a GPU with `available_bytes` could hold keys and values of, were there nothing but the weights:
/// page tables and rotations are made for no more, whatever context a model claims.
#[cfg(feature = "cuda")]
pub(super) fn positions(
    config: &ModelConfig,
    shards: &[Shard],
    settings: &Settings,
    (available_bytes, slack_bytes): (u64, u64),
) -> usize {
    let weights = shards.iter().map(|shard| model::bytes_of(config, shard)).min();
    let kv_heads = shards.iter().map(|shard| shard.kv_heads.len()).max().unwrap_or(0);
    let groups = settings.groups(config);
    let budget = Budget {
        available_bytes,
        used_bytes: weights.unwrap_or(0),
        spare_bytes: GPU_SPARE_BYTES,
        arrays: 2 * groups.arrays() as u64,
        windows: groups.windows(),
        chunk_tokens: settings.chunk_tokens,
        token_bytes: (kv_heads * config.head_dim * dtype_bytes(settings.kv_dtype)) as u64,
        slack_bytes,
        unit_bytes: KV_UNIT_BYTES as u64,
        max_position: config.max_position as u64,
    };
    // What does not fit at all is refused when the weights are there, by what they took.
    let wished = settings.max_len.unwrap_or(config.max_position);
    budget.kv_size(&settings.wishes()).map_or(wished, |size| size.max_len as usize)
}

/// GPUs may differ in their free memory by this factor at most: what the fuller one lacks is lost on all.
#[cfg(feature = "cuda")]
const UNEVEN_MAX: f64 = 1.25;

#[cfg(feature = "cuda")]
pub(super) fn even(gpus: &[u32], free_bytes: &[u64]) -> Result<(), EngineError> {
    let all = || gpus.iter().zip(free_bytes);
    let (Some((least_gpu, least)), Some((most_gpu, most))) =
        (all().min_by_key(|gpu| gpu.1), all().max_by_key(|gpu| gpu.1))
    else {
        return Ok(());
    };
    if *most as f64 <= *least as f64 * UNEVEN_MAX {
        return Ok(());
    }
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let reason = format!(
        "GPU {least_gpu} has {:.1} GiB free and GPU {most_gpu} {:.1}, and all ranks hold equal shares; free \
         GPU {least_gpu}, choose others with --gpus, or say with --kv-tokens how much is to fit",
        gib(*least),
        gib(*most)
    );
    Err(EngineError::Device { device: "cuda", reason })
}

/// Starts ranks that load the model onto what `open` gives each of them.
fn spawn<O: Ops + 'static>(
    model: &Shared<'_>,
    group: Arc<Group>,
    open: impl Fn(&Shard) -> OpResult<O> + Send + Sync + 'static,
) -> Result<Ranks, EngineError> {
    let (config, shards, source) =
        (model.config.clone(), model.shards.clone(), model.source.clone());
    let Settings { chunk_tokens, page_size, .. } = *model.settings;
    let groups = model.groups.count();
    let logit_rows = model.settings.logit_rows();
    Ranks::spawn(shards.len(), group, move |rank, reporter| {
        let on_rank = |error: OpError| EngineError::Rank {
            rank,
            operation: error.operation.to_owned(),
            reason: error.reason,
        };
        let mut ops = open(&shards[rank]).map_err(on_rank)?;
        let start = Instant::now();
        let mut progress = |bytes, name: &str| reporter.read(bytes, name);
        let mut loader = Loader::new(&ops, &*source, &shards[rank], &mut progress);
        let model = Decoder::load(&config, &mut loader, chunk_tokens, logit_rows)?;
        ops.finish_loading().map_err(on_rank)?;
        let read_s = start.elapsed().as_secs_f64();
        let loaded = Loaded { weight_bytes: ops.weight_bytes(), read_s };
        Ok((ModelRunner { ops, model, batch: Batch::default(), page_size, groups }, loaded))
    })
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use minisgl_proto::LoadOptions;

    use super::*;
    use crate::device::Chosen;

    fn config(positions: usize, quantization: &str) -> ModelConfig {
        let dir = tempfile::tempdir().expect("a folder");
        let text = format!(
            r#"{{"architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 256, "intermediate_size": 512,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
            "vocab_size": 256, "max_position_embeddings": {positions}, "rms_norm_eps": 1e-6, "hidden_act": "silu",
            "moe_intermediate_size": 128, "num_experts": 8, "num_experts_per_tok": 2{quantization}}}"#
        );
        std::fs::write(dir.path().join("config.json"), text).expect("it is written");
        ModelConfig::from_dir(dir.path()).expect("a model")
    }

    /// A token takes 2 KiB of this model in f32, and KV pages half of the memory.
    #[test]
    fn workspaces_are_for_what_the_memory_holds() {
        let of = |positions: usize, max_len: Option<u32>, available_bytes: u64| {
            let config = config(positions, "");
            let shards = [Shard::new(&config, 1, 0).unwrap()];
            let options = LoadOptions { max_len, ..LoadOptions::default() };
            let settings = Settings::new(&options, &Chosen::Cpu).unwrap();
            super::positions(&config, &shards, &settings, (available_bytes, 0))
        };
        let (mib, spare) = (1 << 20, GPU_SPARE_BYTES);
        assert_eq!(of(4096, None, spare + 640 * mib), 4096);
        let cut = of(1 << 20, None, spare + 640 * mib);
        assert!((210 << 10..224 << 10).contains(&cut), "{cut}");
        assert_eq!(of(1 << 20, Some(100_000), spare + 640 * mib), 100_000);
        // What cannot be is refused later, with what the weights took.
        assert_eq!(of(1 << 20, Some(300_000), spare + 640 * mib), 300_000);
        assert_eq!(of(1 << 20, None, spare), 1 << 20);
    }

    #[test]
    fn experts_that_no_kernel_takes_are_refused_before_anything_is_read() {
        let config = |quantization: &str| config(128, quantization);
        let fp8 =
            r#", "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]"#;
        check_is_served(&config(""), HOPPER).unwrap();
        let said = check_is_served(&config(""), (8, 9)).unwrap_err().to_string();
        assert!(said.contains("for experts at compute capability 8.9, only at 9.0"), "{said}");
        let mut dense = config(&format!("{fp8}}}"));
        let ffn = Ffn::Dense { width: 256 };
        dense.layers.iter_mut().for_each(|layer| layer.ffn = ffn.clone());
        check_is_served(&dense, HOPPER).unwrap();
        let said = check_is_served(&dense, (10, 0)).unwrap_err().to_string();
        assert!(said.contains("for weights in fp8 at compute capability 10.0"), "{said}");
        check_is_served(&config(&format!("{fp8}}}")), HOPPER).unwrap();
        let others = format!(r#"{fp8}, "modules_to_not_convert": ["experts"]}}"#);
        check_is_served(&config(&others), HOPPER).unwrap();
        // Those of one layer are numbers.
        let some = format!(r#"{fp8}, "modules_to_not_convert": ["model.layers.1.mlp.experts"]}}"#);
        let said = check_is_served(&config(&some), HOPPER).unwrap_err().to_string();
        let (first, other) = ("layers.0.mlp.experts.0.gate_proj.weight (fp8)", "(plain numbers)");
        assert!(said.contains(first) && said.contains(other), "{said}");
        assert!(said.contains("--device cpu"), "{said}");
    }

    #[test]
    fn gpus_that_differ_too_much_are_named() {
        let gib = |sizes: &[u64]| sizes.iter().map(|size| size << 30).collect::<Vec<_>>();
        even(&[0, 1, 2], &gib(&[80, 70, 66])).unwrap();
        even(&[5], &gib(&[1])).unwrap();
        let told = even(&[2, 7], &gib(&[80, 40])).unwrap_err().to_string();
        for part in ["GPU 7 has 40.0 GiB free and GPU 2 80.0", "--gpus", "--kv-tokens"] {
            assert!(told.contains(part), "{told}");
        }
    }
}
