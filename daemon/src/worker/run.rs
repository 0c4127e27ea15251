//! Loads the model, then turns the loop: gather events, step, launch, wait, report.

use std::sync::mpsc::TryRecvError;
use std::time::Instant;

use anyhow::{Context, bail};
use minisgl_engine::Engine;
use minisgl_proto::{FromWorker, ModelInfo, ToWorker, WorkerSpec};
use minisgl_sched::{Event, Executor, SchedConfig, Scheduler};

use super::link::{Incoming, Link};

/// Set to anything but `0` to wait for each step before the next is scheduled, for ablation.
const DISABLE_OVERLAP: &str = "MINISGL_DISABLE_OVERLAP_SCHEDULING";

/// Frames taken in before a step, at most: a flood of submissions must not hold up running rows.
const FRAMES_PER_STEP_MAX: usize = 256;

/// Serves one model over `link` until it is drained or the daemon is gone.
///
/// # Errors
/// The model does not load (the daemon was told), or the engine broke.
pub fn serve(link: Link) -> anyhow::Result<()> {
    let spec = match link.inbox.recv()? {
        Incoming::Frame(ToWorker::Load(spec)) => spec,
        Incoming::Frame(other) => bail!("the first frame must be Load, not {other:?}"),
        Incoming::Closed(_) => return Ok(()),
    };
    match load(&spec, &link) {
        Ok((engine, scheduler, info)) => {
            link.send(FromWorker::Ready(info));
            Loop::new(link, engine, scheduler).run()
        }
        Err(error) => {
            link.send(FromWorker::LoadFailed(format!("{error:#}")));
            Err(error.context(format!("model \"{}\" does not load", spec.name)))
        }
    }
}

fn load(spec: &WorkerSpec, link: &Link) -> anyhow::Result<(Engine, Scheduler, ModelInfo)> {
    let started = Instant::now();
    if spec.version != minisgl_proto::VERSION {
        bail!("the daemon is {}, this worker {}: restart the daemon", spec.version, minisgl_proto::VERSION);
    }
    let mut options = spec.options.clone();
    options.overlap &= std::env::var_os(DISABLE_OVERLAP).is_none_or(|value| value == "0");
    let mut report = |progress| link.send(FromWorker::Progress(progress));
    let engine = Engine::load(&spec.dir, &options, &mut report)?;
    let facts = engine.facts();
    let scheduler = Scheduler::new(SchedConfig {
        pages: facts.pages,
        page_size: options.page_size,
        max_running: options.max_running,
        max_waiting: options.max_waiting,
        chunk_tokens: options.chunk_tokens,
        max_len: facts.max_len,
        vocab_size: facts.vocab_size,
        eos_token_ids: facts.eos_token_ids.clone(),
        cache: options.cache,
        overlap: options.overlap,
    })
    .context("the scheduler refuses these options")?;
    let info = ModelInfo {
        name: spec.name.clone(),
        dir: spec.dir.clone(),
        architecture: facts.architecture.clone(),
        device: facts.device.clone(),
        dtype: facts.dtype.clone(),
        parameters: facts.parameters,
        weight_bytes: facts.weight_bytes,
        kv_bytes: facts.kv_bytes,
        kv_tokens: u64::from(facts.pages) * u64::from(options.page_size),
        page_size: options.page_size,
        vocab_size: facts.vocab_size,
        max_len: facts.max_len,
        max_running: options.max_running,
        max_waiting: options.max_waiting,
        eos_token_ids: facts.eos_token_ids.clone(),
        tp: options.tp,
        load_s: started.elapsed().as_secs_f64(),
    };
    Ok((engine, scheduler, info))
}

/// The scheduler thread's state.
struct Loop {
    link: Link,
    engine: Engine,
    scheduler: Scheduler,
    started: Instant,
    /// What happened since the last step.
    events: Vec<Event>,
    /// Plans launched and not yet waited for.
    in_flight: usize,
    /// The daemon hung up.
    closed: bool,
}

impl Loop {
    fn new(link: Link, engine: Engine, scheduler: Scheduler) -> Loop {
        Loop { link, engine, scheduler, started: Instant::now(), events: Vec::new(), in_flight: 0, closed: false }
    }

    fn run(mut self) -> anyhow::Result<()> {
        while !self.closed && !self.scheduler.is_drained() {
            self.gather()?;
            self.turn().context("the engine broke")?;
        }
        Ok(())
    }

    /// Takes in waiting frames; blocks for one when there is nothing else to do.
    fn gather(&mut self) -> anyhow::Result<()> {
        let idle = self.in_flight == 0 && self.events.is_empty() && self.scheduler.is_idle();
        if idle {
            let first = self.link.inbox.recv()?;
            self.accept(first);
        }
        for _ in 0..FRAMES_PER_STEP_MAX {
            match self.link.inbox.try_recv() {
                Ok(incoming) => self.accept(incoming),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    self.closed = true;
                    break;
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Frame(ToWorker::Submit(submit)) => self.events.push(Event::Submit(submit)),
            Incoming::Frame(ToWorker::Abort(id)) => self.events.push(Event::Abort(id)),
            Incoming::Frame(ToWorker::Flush) => self.events.push(Event::Flush),
            Incoming::Frame(ToWorker::Drain) => self.events.push(Event::Drain),
            Incoming::Frame(ToWorker::Ping(nonce)) => self.link.send(FromWorker::Pong(nonce)),
            Incoming::Frame(ToWorker::Load(_)) => tracing::warn!("a second Load frame was ignored"),
            Incoming::Closed(why) => {
                tracing::info!("{why}; exiting");
                self.closed = true;
            }
        }
    }

    /// One turn: plan step n + 1 while n runs, then take the results of n.
    fn turn(&mut self) -> anyhow::Result<()> {
        let now_s = self.started.elapsed().as_secs_f64();
        let step = self.scheduler.step(self.events.drain(..), now_s);
        if let Some(pages) = step.flushed_pages {
            self.link.send(FromWorker::Flushed { pages });
        }
        if !step.token_events.is_empty() || step.stats_changed {
            self.link.send(FromWorker::Step { events: step.token_events, stats: self.scheduler.stats() });
        }
        let planned = step.plan.is_some();
        if let Some(plan) = step.plan {
            self.engine.launch(plan)?;
            self.in_flight += 1;
        }
        let may_stay = usize::from(planned && self.scheduler.overlaps());
        if self.in_flight > may_stay {
            let output = self.engine.wait()?;
            self.in_flight -= 1;
            self.events.push(Event::Finished(output));
        }
        Ok(())
    }
}
