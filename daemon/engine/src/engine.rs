//! The engine: a loaded model that runs plans.
//!
//! Owns: loading in stages, and [`Executor`] for the scheduler. Must never: look into a request, or go
//! on after a rank has failed.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
#[cfg(feature = "cuda")]
use std::sync::Mutex;

use minisgl_proto::worker::{LoadProgress, LoadStage};
use minisgl_proto::{KvDtype, LoadOptions};
use minisgl_sched::{Executor, ExecutorError, Install, Plan, Row, StepOutput};

use crate::batch::{Batch, PlanLimits};
use crate::config::ModelConfig;
use crate::device::{self, Chosen};
use crate::error::{EngineError, OpError};
use crate::memory::{Budget, KvSize, available_bytes};
use crate::model::{self, Loader, Model};
use crate::ops::cpu::{CpuOps, CpuSpec, KvElement};
#[cfg(feature = "cuda")]
use crate::ops::cuda::{CudaOps, CudaSpec, Gpu, decode_rows};
use crate::ops::{OpResult, Ops, Pending};
use crate::rank::collective::Group;
use crate::rank::shard::Shard;
use crate::rank::{Event, IN_FLIGHT_MAX, Ranks, Runner};
use crate::weights::{self, WeightSource};

/// What is known of a model once it is loaded; see `minisgl_proto::ModelInfo` for the meanings.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the fields of ModelInfo")]
pub struct EngineInfo {
    pub architecture: String,
    pub device: String,
    pub dtype: String,
    pub parameters: u64,
    pub weight_bytes: u64,
    pub kv_bytes: u64,
    pub kv_tokens: u64,
    /// KV pages, of `page_size` tokens: plans may name pages below this.
    pub kv_pages: u32,
    pub page_size: u32,
    pub vocab_size: u32,
    pub max_len: u32,
    pub eos_token_ids: Vec<u32>,
    pub tp: u32,
}

/// A loaded model.
pub struct Engine {
    ranks: Ranks,
    limits: PlanLimits,
    /// Steps launched and not waited for.
    in_flight: VecDeque<u64>,
    /// Which rows of the last launched plan are sampled.
    last_rows: Vec<bool>,
    next_step: u64,
    failed: Option<ExecutorError>,
}

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
        check(options)?;
        let config = Arc::new(ModelConfig::from_dir(dir)?);
        if let Some(len) = options.max_len
            && len as usize > config.max_position
        {
            return Err(EngineError::Option {
                option: "max_len",
                value: len.to_string(),
                expected: format!("at most the model's own {}", config.max_position),
            });
        }
        let tp = options.tp as usize;
        let shards = (0..tp).map(|rank| Shard::new(&config, tp, rank));
        let shards = Arc::new(shards.collect::<Result<Vec<_>, _>>()?);
        let source: Arc<dyn WeightSource> = weights::open(dir, &config, options)?.into();

        let mut load = Load { progress, read_bytes: 0, total_bytes: source.bytes_total() };
        let model = Shared { config: &config, shards: &shards, source: &source, options };
        let spawned = match device::choose(options.device)? {
            Chosen::Cpu => spawn_cpu(&model)?,
            #[cfg(feature = "cuda")]
            Chosen::Cuda(gpu) => spawn_cuda(&model, *gpu)?,
        };
        let Spawned {
            ranks,
            device,
            dtype,
            kv_element_bytes,
            available_bytes,
            used_bytes,
            decode_rows,
        } = spawned;
        let weight_bytes = load.weights(&ranks)?;

        let kv_heads: usize = shards.iter().map(|shard| shard.kv_heads.len()).sum();
        let token_bytes = 2 * config.layers * kv_heads * config.head_dim * kv_element_bytes;
        let budget = Budget {
            available_bytes,
            weight_bytes: used_bytes(weight_bytes)?,
            token_bytes: token_bytes as u64,
            max_position: config.max_position as u64,
        };
        let KvSize { pages, max_len } = budget.kv_size(options)?;
        let kv_tokens = pages * u64::from(options.page_size);
        let kv_bytes = kv_tokens * token_bytes as u64;
        load.kv_pages(&ranks, pages as usize, kv_bytes)?;

        let limits = PlanLimits {
            chunk_tokens: options.chunk_tokens as usize,
            slots: options.max_running as usize,
            max_len: max_len as usize,
            pages: pages as usize,
            page_size: options.page_size as usize,
            vocab_size: config.vocab_size,
        };
        let mut engine = Engine {
            ranks,
            limits,
            in_flight: VecDeque::new(),
            last_rows: Vec::new(),
            next_step: 0,
            failed: None,
        };
        engine.warm_up(&mut load, &decode_rows)?;
        let info = EngineInfo {
            architecture: config.architecture.name().to_owned(),
            device,
            dtype,
            parameters: config
                .tensors()
                .iter()
                .map(|(_, shape)| shape.iter().product::<usize>() as u64)
                .sum(),
            weight_bytes,
            kv_bytes,
            kv_tokens,
            kv_pages: pages as u32,
            page_size: options.page_size,
            vocab_size: config.vocab_size as u32,
            max_len: max_len as u32,
            eos_token_ids: config.eos_token_ids.clone(),
            tp: options.tp,
        };
        Ok((engine, info))
    }

    /// Runs a prefill step and decode steps of `decode_rows` rows over pages that nothing has been written
    /// to yet: buffers reach their size, memory is touched, a GPU records its graphs, and what is
    /// broken breaks here.
    fn warm_up(&mut self, load: &mut Load<'_>, decode_rows: &[usize]) -> Result<(), EngineError> {
        let chunk = self.limits.chunk_tokens.min(self.limits.max_len).min(self.limits.page_size);
        let install = Install {
            slot: 0,
            sampling: minisgl_proto::SamplingParams::default(),
            history: Vec::new(),
            prompt_len: 1,
            banned_until_min: Vec::new(),
            min_tokens: 0,
            generated: 0,
        };
        let row =
            |slot, len| Row { slot, start: 0, len, tokens_at: slot, pages_at: slot, sample: true };
        let pages = self.limits.pages;
        let prefill = (vec![row(0, chunk as u32)], chunk);
        let decode = decode_rows
            .iter()
            .map(|&rows| ((0..rows as u32).map(|slot| row(slot, 1)).collect::<Vec<_>>(), rows));
        let total = 1 + decode_rows.len() as u64;
        for (step, (rows, tokens)) in std::iter::once(prefill).chain(decode).enumerate() {
            load.report(LoadStage::WarmUp, step as u64, total, "first steps");
            let plan = Plan {
                step: step as u64,
                installs: vec![install.clone()],
                pages: (0..rows.len()).map(|slot| (slot % pages) as u32).collect(),
                rows,
                tokens: vec![0; tokens],
            };
            let run = self.launch(plan).and_then(|()| self.wait());
            run.map_err(|error| EngineError::WarmUp { reason: error.0 })?;
        }
        load.report(LoadStage::WarmUp, total, total, "first steps");
        self.next_step = 0;
        self.last_rows.clear();
        Ok(())
    }

    fn fail(&mut self, message: String) -> ExecutorError {
        self.failed.get_or_insert(ExecutorError(message)).clone()
    }
}

impl Executor for Engine {
    fn launch(&mut self, plan: Plan) -> Result<(), ExecutorError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let step = plan.step;
        if self.in_flight.len() == IN_FLIGHT_MAX {
            return Err(self.fail(format!("step {step}: {IN_FLIGHT_MAX} plans are in flight")));
        }
        if step != self.next_step {
            return Err(self.fail(format!("step {step} launched, step {} is next", self.next_step)));
        }
        if let Err(reason) = self.limits.check(&plan, &self.last_rows) {
            return Err(self.fail(format!("step {step}: {reason}")));
        }
        self.last_rows.clear();
        self.last_rows.extend(plan.rows.iter().map(|row| row.sample));
        self.ranks.run(&Arc::new(plan));
        self.in_flight.push_back(step);
        self.next_step += 1;
        Ok(())
    }

    fn wait(&mut self) -> Result<StepOutput, ExecutorError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.in_flight.is_empty() {
            return Err(ExecutorError("nothing is in flight to wait for".to_owned()));
        }
        match self.ranks.next() {
            Some(Event::Step { step, started, pending }) => {
                debug_assert_eq!(Some(step), self.in_flight.front().copied());
                self.in_flight.pop_front();
                match pending.wait() {
                    Ok(sampled) => {
                        let seconds = started.elapsed().as_secs_f32();
                        Ok(StepOutput { step, sampled, seconds })
                    }
                    Err(error) => Err(self.fail(format!("rank 0 failed in step {step}: {error}"))),
                }
            }
            Some(Event::Failed { rank, operation, reason }) => {
                Err(self.fail(format!("rank {rank} failed in {operation}: {reason}")))
            }
            Some(_) | None => Err(self.fail("all ranks are gone".to_owned())),
        }
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

    /// Waits until all ranks hold their weights; returns their bytes.
    fn weights(&mut self, ranks: &Ranks) -> Result<u64, EngineError> {
        let mut weight_bytes = 0;
        self.report(LoadStage::Read, 0, self.total_bytes, "");
        self.until_all(ranks, |load, event| match event {
            Event::Read { bytes, tensor } => {
                // Ranks share some tensors, and read those more than once.
                load.read_bytes = (load.read_bytes + bytes).min(load.total_bytes);
                load.report(LoadStage::Read, load.read_bytes, load.total_bytes, &tensor);
                false
            }
            Event::Loaded { weight_bytes: bytes } => {
                weight_bytes += bytes;
                true
            }
            _ => false,
        })?;
        Ok(weight_bytes)
    }

    /// Has all ranks reserve their KV pages.
    fn kv_pages(&mut self, ranks: &Ranks, pages: usize, bytes: u64) -> Result<(), EngineError> {
        let detail = format!("{pages} pages");
        self.report(LoadStage::KvPages, 0, bytes, &detail);
        ranks.allocate_kv(pages);
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

/// A model on one rank of a device.
struct ModelRunner<O: Ops> {
    ops: O,
    model: Box<dyn Model<O>>,
    batch: Batch,
    page_size: usize,
}

impl<O: Ops> Runner for ModelRunner<O> {
    fn allocate_kv(&mut self, pages: usize) -> OpResult {
        self.ops.allocate_kv(pages)
    }

    fn run(&mut self, plan: Arc<Plan>) -> OpResult<Box<dyn Pending>> {
        self.batch.prepare(plan, self.page_size);
        let (batch, model) = (&self.batch, &mut self.model);
        self.ops.step(batch, &batch.plan().installs, |ops| model.forward(ops, batch))
    }
}

/// What all ranks of a model share.
struct Shared<'a> {
    config: &'a Arc<ModelConfig>,
    shards: &'a Arc<Vec<Shard>>,
    source: &'a Arc<dyn WeightSource>,
    options: &'a LoadOptions,
}

/// Ranks that are loading, and what is known of their device.
struct Spawned {
    ranks: Ranks,
    /// For people.
    device: String,
    /// Of the weights in memory.
    dtype: String,
    kv_element_bytes: usize,
    /// Before anything was loaded.
    available_bytes: u64,
    /// From the bytes of weights, once they are loaded, to all that is taken.
    used_bytes: Box<dyn Fn(u64) -> Result<u64, EngineError>>,
    /// Rows of the decode steps that warm it up.
    decode_rows: Vec<usize>,
}

/// Starts CPU ranks. Another device is another function like this one, with its own [`Ops`].
fn spawn_cpu(model: &Shared<'_>) -> Result<Spawned, EngineError> {
    let Shared { options, .. } = *model;
    let kv_element = kv_element(options.kv_dtype)?;
    let available_bytes = available_bytes()?;
    let tp = model.shards.len();
    let threads = match options.threads as usize {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let (config, slots) = (model.config.clone(), options.max_running as usize);
    let page_size = options.page_size as usize;
    let group = Group::new(tp);
    let seats = group.clone();
    let ranks = spawn(model, group, move |shard| {
        CpuOps::new(CpuSpec {
            config: &config,
            shard,
            member: seats.member(shard.rank),
            threads: (threads / tp).max(1),
            slots,
            page_size,
            kv_element,
        })
    })?;
    Ok(Spawned {
        ranks,
        device: "cpu".to_owned(),
        dtype: model.source.dtype().to_owned(),
        kv_element_bytes: kv_element.bytes(),
        available_bytes,
        used_bytes: Box::new(Ok),
        decode_rows: vec![1],
    })
}

/// Starts the rank of one GPU.
#[cfg(feature = "cuda")]
fn spawn_cuda(model: &Shared<'_>, gpu: Gpu) -> Result<Spawned, EngineError> {
    let Shared { options, .. } = *model;
    let refuse = |option, value: String, expected: &str| {
        Err(EngineError::Option { option, value, expected: expected.to_owned() })
    };
    if options.tp != 1 {
        return refuse("tp", options.tp.to_string(), "1 on a GPU; or load with --device cpu");
    }
    if !matches!(options.kv_dtype, KvDtype::Auto | KvDtype::Bf16) {
        let value = format!("{:?}", options.kv_dtype).to_lowercase();
        return refuse("kv_dtype", value, "auto or bf16 on a GPU");
    }
    let memory = gpu.memory();
    let free_bytes = move || {
        memory.free_bytes().map_err(|error| EngineError::System {
            what: "ask the GPU for its free memory".to_owned(),
            source: std::io::Error::other(error.to_string()),
        })
    };
    let (device, available_bytes) = (gpu.name().to_owned(), free_bytes()?);
    let (config, slots) = (model.config.clone(), options.max_running as usize);
    let (chunk_tokens, page_size) = (options.chunk_tokens as usize, options.page_size as usize);
    let max_len = options.max_len.map_or(config.max_position, |len| len as usize);
    let gpu = Mutex::new(Some(gpu));
    let ranks = spawn(model, Group::new(1), move |shard| {
        let gpu = gpu.lock().ok().and_then(|mut gpu| gpu.take());
        let gpu = gpu.expect("there is one rank, which takes the GPU once");
        CudaOps::new(CudaSpec {
            config: &config,
            shard,
            gpu,
            slots,
            chunk_tokens,
            page_size,
            max_len,
        })
    })?;
    Ok(Spawned {
        ranks,
        device,
        dtype: "bf16".to_owned(),
        kv_element_bytes: 2,
        available_bytes,
        used_bytes: Box::new(move |_| Ok(available_bytes.saturating_sub(free_bytes()?))),
        decode_rows: decode_rows(slots.min(chunk_tokens)),
    })
}

/// Starts ranks that load the model onto what `open` gives each of them.
fn spawn<O: Ops + 'static>(
    model: &Shared<'_>,
    group: Arc<Group>,
    open: impl Fn(&Shard) -> OpResult<O> + Send + Sync + 'static,
) -> Result<Ranks, EngineError> {
    let (config, shards, source) =
        (model.config.clone(), model.shards.clone(), model.source.clone());
    let (slots, page_size) = (model.options.max_running as usize, model.options.page_size as usize);
    let chunk_tokens = model.options.chunk_tokens as usize;
    Ranks::spawn(shards.len(), group, move |rank, reporter| {
        let on_rank = |error: OpError| EngineError::Rank {
            rank,
            operation: error.operation.to_owned(),
            reason: error.reason,
        };
        let mut ops = open(&shards[rank]).map_err(on_rank)?;
        let mut progress = |bytes, name: &str| reporter.read(bytes, name);
        let mut loader = Loader::new(&ops, &*source, &shards[rank], &mut progress);
        let model = model::load(&config, &mut loader, chunk_tokens, slots.min(chunk_tokens))?;
        ops.finish_loading().map_err(on_rank)?;
        let weight_bytes = ops.weight_bytes();
        let runner = ModelRunner { ops, model, batch: Batch::default(), page_size };
        Ok((runner, weight_bytes))
    })
}

fn kv_element(dtype: KvDtype) -> Result<KvElement, EngineError> {
    let unsupported = |value: &str| EngineError::Option {
        option: "kv_dtype",
        value: value.to_owned(),
        expected: "auto, f32 or bf16 on the CPU".to_owned(),
    };
    match dtype {
        KvDtype::Auto | KvDtype::F32 => Ok(KvElement::F32),
        KvDtype::Bf16 => Ok(KvElement::Bf16),
        KvDtype::Fp16 => Err(unsupported("fp16")),
        KvDtype::Fp8 => Err(unsupported("fp8")),
    }
}

/// Options that no model can be loaded with.
fn check(options: &LoadOptions) -> Result<(), EngineError> {
    let ranges = [
        ("tp", u64::from(options.tp), 1..=1024),
        ("threads", u64::from(options.threads), 0..=1024),
        ("page_size", u64::from(options.page_size), 1..=1 << 16),
        ("max_running", u64::from(options.max_running), 1..=1 << 16),
        ("chunk_tokens", u64::from(options.chunk_tokens), 1..=1 << 16),
        ("max_waiting", u64::from(options.max_waiting), 1..=u64::MAX),
        // A request is one prompt token and one generated token at least.
        ("kv_tokens", options.kv_tokens.unwrap_or(2), 2..=u64::MAX),
        ("max_len", options.max_len.map_or(2, u64::from), 2..=u64::MAX),
    ];
    for (option, value, range) in ranges {
        if !range.contains(&value) {
            let expected = match *range.end() {
                u64::MAX => format!("at least {}", range.start()),
                end => format!("{} to {end}", range.start()),
            };
            return Err(EngineError::Option { option, value: value.to_string(), expected });
        }
    }
    let ratio = options.memory_ratio;
    if !(ratio > 0.0 && ratio <= 1.0) {
        return Err(EngineError::Option {
            option: "memory_ratio",
            value: ratio.to_string(),
            expected: "above 0 and at most 1".to_owned(),
        });
    }
    Ok(())
}
