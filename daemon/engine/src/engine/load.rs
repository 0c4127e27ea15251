//! From a folder to an engine that is ready, in stages.
//!
//! Owns: their order, and that every stage tells how far it has come. Must never: run a plan of the
//! scheduler.
//!
//! ```text
//!   read       weights, into the device's memory
//!   warm up    what depends on shapes is prepared; first steps over the first KV page; on a GPU graphs
//!   KV pages   as many as the memory that is then left holds
//! ```
//!
//! Pages come last, since only then is it known what all else takes: nothing is left to run out later.

use std::path::Path;
use std::sync::Arc;

use minisgl_proto::worker::{LoadProgress, LoadStage};
use minisgl_proto::{LoadOptions, Quantize, SamplingParams};
use minisgl_sched::{Executor, Grown, Install, Plan, Row, Want};

use super::options::{self, Settings};
use super::spawn::{self, FirstSteps, Shared, Spawned};
use super::{Engine, EngineInfo};
use crate::batch::{PlanCheck, PlanLimits, SCORED_MAX};
use crate::config::ModelConfig;
use crate::device::{self, Chosen};
use crate::error::EngineError;
use crate::memory::Budget;
use crate::model;
use crate::rank::{Event, Loaded, Ranks};
use crate::shard::Shard;
use crate::weights::{self, WeightSource};

impl Engine {
    /// Loads the model in `dir`, telling `progress` how far it has come.
    ///
    /// # Errors
    /// Anything about the folder, the options or the machine that cannot be served.
    pub fn load(
        dir: &Path,
        options: &LoadOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<(Engine, EngineInfo), EngineError> {
        options::check(options)?;
        let stored = ModelConfig::from_dir(dir)?;
        let config = quantised(options, stored.clone())?;
        let device = device::choose(options)?;
        let config = Arc::new(config);
        check_len(options, &config)?;
        let tp = options.tp as usize;
        let shards = (0..tp).map(|rank| Shard::new(&config, tp, rank));
        let shards = Arc::new(shards.collect::<Result<Vec<_>, _>>()?);
        let source: Arc<dyn WeightSource> = open_weights(dir, &stored, &config, options)?.into();
        let settings = &Settings::new(options, &device)?;

        let mut load = Load { progress, read_bytes: 0, total_bytes: source.bytes_total() };
        let groups = settings.groups(&config);
        let (config, groups) = (&config, &groups);
        let model = Shared { config, shards: &shards, source: &source, settings, groups };
        let spawned = match device {
            Chosen::Cpu => spawn::spawn_cpu(&model)?,
            #[cfg(feature = "cuda")]
            Chosen::Cuda(gpus) => spawn::spawn_cuda(&model, gpus)?,
        };
        let Spawned { ranks, device, dtype, used_bytes, first_steps, .. } = spawned;
        let Loaded { weight_bytes, read_s } = load.weights(&ranks)?;
        load.prepare(&ranks)?;

        // In the memory that has the most of them.
        let kv_heads = shards.iter().map(|shard| shard.kv_heads.len());
        let kv_heads: usize =
            if spawned.memories == 1 { kv_heads.sum() } else { kv_heads.max().unwrap_or(0) };
        let memories = spawned.memories as u64;
        let element_bytes = options::dtype_bytes(settings.kv_dtype);
        let mut budget = Budget {
            available_bytes: spawned.available_bytes,
            used_bytes: used_bytes(weight_bytes)?,
            spare_bytes: spawned.spare_bytes,
            arrays: 2 * groups.arrays() as u64,
            windows: groups.windows(),
            chunk_tokens: settings.chunk_tokens,
            token_bytes: (kv_heads * config.head_dim * element_bytes) as u64,
            slack_bytes: spawned.kv_slack_bytes,
            unit_bytes: spawned.kv_unit_bytes,
            max_position: config.max_position.min(spawned.max_len) as u64,
        };
        // Graphs and the first page take memory, too: it will be these pages at most.
        let most = budget.kv_size(&settings.wishes())?;
        load.reserve(&ranks, most.pages as usize)?;
        let limits = PlanLimits {
            chunk_tokens: settings.chunk_tokens,
            slots: settings.slots,
            penalised: settings.penalised_max(config.vocab_size),
            max_len: most.max_len as usize,
            pages: 1,
            page_size: settings.page_size,
            groups: groups.count(),
            vocab_size: config.vocab_size,
        };
        let mut engine = Engine::new(ranks, limits, spawned.costs);
        engine.warm_up(&mut load, &first_steps)?;

        let first_page_bytes = budget.kv_bytes(settings.page_size as u64);
        let used = used_bytes(weight_bytes)?;
        // A device that is asked for its free memory counts the first page as used.
        budget.used_bytes = used.saturating_sub(first_page_bytes).max(budget.used_bytes);
        let size = budget.kv_size(&settings.wishes())?;
        let pages = size.pages.min(most.pages);
        let kv_bytes = budget.kv_bytes(pages * settings.page_size as u64) * memories;
        load.commit(&engine.ranks, pages as usize, kv_bytes)?;
        let limits = PlanLimits { pages: pages as usize, max_len: size.max_len as usize, ..limits };
        engine.check = PlanCheck::new(limits);

        let info = EngineInfo {
            architecture: config.architecture.name().to_owned(),
            device,
            dtype,
            parameters: model::parameters(config),
            weight_bytes,
            kv_dtype: options::dtype_name(settings.kv_dtype).to_owned(),
            kv_bytes,
            kv_tokens: size.tokens.min(most.tokens),
            kv_pages: pages as u32,
            page_size: settings.page_size as u32,
            groups: groups.clone(),
            vocab_size: config.vocab_size as u32,
            max_len: size.max_len as u32,
            context_len: settings.max_len.unwrap_or(config.max_position) as u32,
            chunk_tokens: settings.chunk_tokens as u32,
            scored_max: SCORED_MAX as u32,
            penalised_max: settings.penalised_max(config.vocab_size) as u32,
            eos_token_ids: config.eos_token_ids.clone(),
            tp: settings.tp as u32,
            gpus: spawned.gpus,
            read_bytes: load.read_bytes,
            read_s,
        };
        Ok((engine, info))
    }

    /// Runs prefills and decode steps over the first page, to which nothing was written yet: buffers reach
    /// their size, memory is touched, a GPU records its graphs, and what is broken breaks here.
    fn warm_up(&mut self, load: &mut Load<'_>, steps: &FirstSteps) -> Result<(), EngineError> {
        let limits = *self.check.limits();
        let most = limits.chunk_tokens.min(limits.max_len);
        let prefill = steps.prefill.iter().map(|&tokens| (1, tokens.min(most)));
        let decode = steps.decode.iter().map(|&rows| (rows, 1));
        let all: Vec<(usize, usize)> = prefill.chain(decode).collect();
        let total = all.len() as u64;
        for (step, &(rows, tokens)) in all.iter().enumerate() {
            load.report(LoadStage::WarmUp, step as u64, total, "first steps");
            let plan = self.first_step(step as u64, rows, tokens);
            let run = self.launch(plan).and_then(|()| self.wait());
            run.map_err(|error| EngineError::WarmUp { reason: error.0 })?;
        }
        load.report(LoadStage::WarmUp, total, total, "first steps");
        self.restart().map_err(|error| EngineError::WarmUp { reason: error.0 })?;
        Ok(())
    }

    /// A step of `rows` rows of `tokens` tokens, all of them in the first page.
    fn first_step(&self, step: u64, rows: usize, tokens: usize) -> Plan {
        let install = Install {
            slot: 0,
            counts: None,
            sampling: SamplingParams::default(),
            history: Vec::new(),
            prompt_len: 1,
            banned: Vec::new(),
            banned_below: 0,
        };
        let pages = tokens.div_ceil(self.check.limits().page_size);
        let row = |row: usize| Row {
            slot: row as u32,
            start: 0,
            len: tokens as u32,
            tokens_at: (row * tokens) as u32,
            want: Want::Last,
        };
        let groups = self.check.limits().groups;
        let grown = |index: usize| {
            let (slot, group) = ((index / groups) as u32, (index % groups) as u32);
            Grown { slot, group, at: 0, len: pages as u32 }
        };
        Plan {
            step,
            installs: vec![install],
            grown: (0..rows * groups).map(grown).collect(),
            pages: vec![0; rows * groups * pages],
            rows: (0..rows).map(row).collect(),
            tokens: vec![0; rows * tokens],
            masked: Vec::new(),
        }
    }
}

/// The model as it is to be held in memory.
pub(super) fn quantised(
    options: &LoadOptions,
    stored: ModelConfig,
) -> Result<ModelConfig, EngineError> {
    match options.quantize {
        Quantize::None => Ok(stored),
        Quantize::Fp8 => stored.quantised_to_fp8().map_err(|expected| EngineError::Option {
            option: "quantize",
            value: "fp8".to_owned(),
            expected,
        }),
    }
}

/// The weights of a model that is stored as `stored` says, as `config` wants them.
pub(super) fn open_weights(
    dir: &Path,
    stored: &ModelConfig,
    config: &ModelConfig,
    options: &LoadOptions,
) -> Result<Box<dyn WeightSource>, EngineError> {
    let wanted = model::tensors(config);
    Ok(match options.quantize {
        Quantize::None => weights::open(dir, &wanted, options)?,
        Quantize::Fp8 => weights::open_quantised(dir, &model::tensors(stored), &wanted, options)?,
    })
}

/// Whether the model has as many positions as were asked for.
pub(super) fn check_len(options: &LoadOptions, config: &ModelConfig) -> Result<(), EngineError> {
    match options.max_len {
        Some(len) if len as usize > config.max_position => {
            let most = Some(config.max_position);
            let whose = match config.ropes.iter().any(|rope| rope.positions_max() == most) {
                true => "the context that the model had before LongRoPE stretched it,",
                false => "the model's own",
            };
            Err(EngineError::Option {
                option: "max_len",
                value: len.to_string(),
                expected: format!("at most {whose} {}", config.max_position),
            })
        }
        _ => Ok(()),
    }
}

/// The way from a folder to ranks that are ready.
struct Load<'a> {
    progress: &'a mut dyn FnMut(LoadProgress),
    read_bytes: u64,
    total_bytes: u64,
}

impl Load<'_> {
    fn report(&mut self, stage: LoadStage, done: u64, total: u64, detail: &str) {
        (self.progress)(LoadProgress { stage, done, total, detail: detail.to_owned() });
    }

    /// Waits until all ranks hold their weights; returns their bytes, and the seconds of the slowest.
    fn weights(&mut self, ranks: &Ranks) -> Result<Loaded, EngineError> {
        let mut all = Loaded { weight_bytes: 0, read_s: 0.0 };
        self.report(LoadStage::Read, 0, self.total_bytes, "");
        self.until_all(ranks, |load, event| match event {
            Event::Read { bytes, tensor } => {
                // Ranks share some tensors, and read those more than once.
                load.read_bytes = (load.read_bytes + bytes).min(load.total_bytes);
                load.report(LoadStage::Read, load.read_bytes, load.total_bytes, &tensor);
                false
            }
            Event::Loaded(loaded) => {
                all.weight_bytes += loaded.weight_bytes;
                all.read_s = all.read_s.max(loaded.read_s);
                true
            }
            _ => false,
        })?;
        let (read, seconds) = (self.read_bytes as f64, all.read_s);
        let rate = read / seconds.max(1e-9) / 1e9;
        let said = format!("{:.2} GB in {seconds:.2} s, {rate:.1} GB/s", read / 1e9);
        tracing::info!("read weights: {said}");
        self.report(LoadStage::Read, self.total_bytes, self.total_bytes, &said);
        Ok(all)
    }

    fn prepare(&mut self, ranks: &Ranks) -> Result<(), EngineError> {
        self.report(LoadStage::WarmUp, 0, 0, "what depends on shapes");
        ranks.prepare();
        self.until_all(ranks, |_, event| matches!(event, Event::Prepared))
    }

    fn reserve(&mut self, ranks: &Ranks, pages: usize) -> Result<(), EngineError> {
        ranks.reserve_kv(pages);
        self.until_all(ranks, |_, event| matches!(event, Event::KvReady))
    }

    fn commit(&mut self, ranks: &Ranks, pages: usize, bytes: u64) -> Result<(), EngineError> {
        let detail = format!("{pages} pages");
        self.report(LoadStage::KvPages, 0, bytes, &detail);
        ranks.commit_kv(pages);
        self.until_all(ranks, |_, event| matches!(event, Event::KvReady))?;
        self.report(LoadStage::KvPages, bytes, bytes, &detail);
        Ok(())
    }

    /// Takes events until `done` has been true once for each rank.
    fn until_all(
        &mut self,
        ranks: &Ranks,
        mut done: impl FnMut(&mut Self, Event) -> bool,
    ) -> Result<(), EngineError> {
        let mut missing = ranks.count();
        while missing > 0 {
            match ranks.next() {
                Some(Event::LoadFailed(error)) => return Err(error),
                Some(Event::Failed { rank, operation, reason }) => {
                    return Err(EngineError::Rank { rank, operation, reason });
                }
                Some(event) => missing -= usize::from(done(self, event)),
                None => {
                    return Err(EngineError::WarmUp { reason: "all ranks are gone".to_owned() });
                }
            }
        }
        Ok(())
    }
}
