//! Loads the model, then turns the loop: gather frames, step, launch, report, wait.

use std::os::unix::net::UnixStream;
use std::sync::mpsc::{RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use minisgl_engine::{Engine, EngineInfo};
use minisgl_proto::{
    Finish, FromWorker, LoadOptions, ModelInfo, PROTOCOL, Reject, RequestId, Submit, ToWorker,
    TokenEvent, WorkerSpec,
};
use minisgl_sched::{BeginError, Driver, Event, Executor, Held, SchedConfig, Scheduler};

use super::grammars::{Grammars, Masks};
use super::link::{self, Incoming, Link};

/// Set to anything but `0`, each step is waited for before the next is scheduled; for ablation.
const DISABLE_OVERLAP: &str = "MINISGL_DISABLE_OVERLAP_SCHEDULING";

/// Frames taken in before a step, at most: a flood of submissions must not hold up running rows.
const FRAMES_PER_STEP_MAX: usize = 256;

/// A worker checks its accounting when it has been idle for this long, once until it has worked again: not when it falls
/// idle, which is just before the only user's next request.
const CHECK_AFTER: Duration = Duration::from_secs(10);

/// Pages beyond which it does not: the check takes some 20 ns a page, in which no request is taken, and so 20 ms at
/// most.
const CHECKED_PAGES_MAX: u32 = 1 << 20;

/// Serves one model over `stream` until it is drained or the daemon is gone.
///
/// `confine` gives up what the model does not need; no other thread of ours is there yet.
///
/// # Errors
/// The model does not load (the daemon was told), or the engine broke.
pub fn serve(mut stream: UnixStream, confine: impl FnOnce(&WorkerSpec)) -> anyhow::Result<()> {
    let spec = match link::read_frame(&mut stream)? {
        Some(ToWorker::Load(spec)) => spec,
        Some(other) => bail!("the first frame must be Load, not {other:?}"),
        None => return Ok(()),
    };
    confine(&spec);
    let link = Link::over(stream)?;
    match load(&spec, &link) {
        Ok((driver, grammars, info)) => {
            link.send(FromWorker::Ready(Box::new(info)));
            let started = Instant::now();
            let mut worker = Worker::new(link, driver, grammars, started);
            let ended = worker.run();
            if ended.is_err() {
                // Giving up what a broken GPU holds may take for ever; it ends with the process.
                std::mem::forget(worker.driver);
            }
            ended
        }
        Err(error) => {
            link.send(FromWorker::LoadFailed(format!("{error:#}")));
            Err(error.context(format!("model \"{}\" does not load", spec.name)))
        }
    }
}

fn load(spec: &WorkerSpec, link: &Link) -> anyhow::Result<(Driver<Engine>, Grammars, ModelInfo)> {
    let started = Instant::now();
    if spec.protocol != PROTOCOL {
        bail!(
            "the daemon speaks protocol {}, this worker {PROTOCOL}: restart the daemon",
            spec.protocol
        );
    }
    let mut options = spec.options.clone();
    apply_environment(&mut options);
    let mut report = |progress| link.send(FromWorker::Progress(progress));
    let (engine, engine_info) = Engine::load(&spec.dir, &options, &mut report)?;
    let mut scheduler = Scheduler::new(sched_config(&options, &engine_info))?;
    scheduler.set_crew(Masks::default());
    let (vocab_size, stop) = (engine_info.vocab_size as usize, engine_info.eos_token_ids.clone());
    let grammars = Grammars::new(&spec.dir, vocab_size, stop, link.into_inbox.clone());
    let info = model_info(spec, engine_info, started.elapsed().as_secs_f64());
    Ok((Driver::new(scheduler, engine), grammars, info))
}

/// What the environment changes of how a model is loaded.
pub(crate) fn apply_environment(options: &mut LoadOptions) {
    options.overlap &= std::env::var_os(DISABLE_OVERLAP).is_none_or(|value| value == "0");
}

/// A scheduler for the model that the engine has loaded.
pub(crate) fn sched_config(options: &LoadOptions, engine: &EngineInfo) -> SchedConfig {
    SchedConfig {
        pages: engine.kv_pages,
        page_size: engine.page_size,
        windows: engine.groups.windows(),
        max_running: options.max_running,
        penalised_max: engine.penalised_max,
        max_waiting: options.max_waiting,
        chunk_tokens: engine.chunk_tokens,
        scored_max: engine.scored_max,
        max_len: engine.max_len,
        vocab_size: engine.vocab_size,
        eos_token_ids: engine.eos_token_ids.clone(),
        cache: options.cache,
        overlap: options.overlap,
    }
}

fn model_info(spec: &WorkerSpec, engine: EngineInfo, load_s: f64) -> ModelInfo {
    ModelInfo {
        name: spec.name.clone(),
        dir: spec.dir.clone(),
        architecture: engine.architecture,
        device: engine.device,
        dtype: engine.dtype,
        parameters: engine.parameters,
        weight_bytes: engine.weight_bytes,
        kv_dtype: engine.kv_dtype,
        kv_bytes: engine.kv_bytes,
        kv_tokens: engine.kv_tokens,
        page_size: engine.page_size,
        kv_groups: engine.groups.count() as u32,
        vocab_size: engine.vocab_size,
        max_len: engine.max_len,
        context_len: engine.context_len,
        max_running: spec.options.max_running,
        max_waiting: spec.options.max_waiting,
        chunk_tokens: engine.chunk_tokens,
        eos_token_ids: engine.eos_token_ids,
        tp: engine.tp,
        gpus: engine.gpus,
        read_bytes: engine.read_bytes,
        read_s: engine.read_s,
        load_s,
    }
}

/// The scheduler thread.
struct Worker<E> {
    link: Link,
    driver: Driver<E>,
    grammars: Grammars,
    /// A drain was asked for, which waits for those that have a grammar: the scheduler was not told of them.
    draining: bool,
    /// Ends of requests that never reached the scheduler, to be told with the next step.
    ended: Vec<TokenEvent>,
    started: Instant,
    /// Steps that the daemon was told of.
    reported: u64,
    /// The daemon hung up.
    closed: bool,
    /// Since when there has been nothing to do; pings do not count.
    idle_since: Option<Instant>,
    /// Something has happened since the accounting was last checked.
    unchecked: bool,
    /// See [`CHECK_AFTER`].
    check_after: Duration,
    /// How often the accounting was checked.
    checks: u64,
}

impl<E: Executor> Worker<E> {
    fn new(link: Link, driver: Driver<E>, grammars: Grammars, started: Instant) -> Worker<E> {
        Worker {
            link,
            driver,
            grammars,
            draining: false,
            ended: Vec::new(),
            started,
            reported: 0,
            closed: false,
            idle_since: None,
            unchecked: false,
            check_after: CHECK_AFTER,
            checks: 0,
        }
    }

    fn run(&mut self) -> anyhow::Result<()> {
        while !(self.driver.scheduler().is_drained() && self.grammars.is_idle()) {
            let events = self.gather()?;
            if self.closed {
                return Ok(());
            }
            self.turn(events).context("the engine broke")?;
        }
        tracing::info!("drained; exiting");
        Ok(())
    }

    /// Takes in waiting frames; blocks for the first one when there is nothing else to do.
    fn gather(&mut self) -> anyhow::Result<Vec<Event>> {
        let mut events = Vec::new();
        if self.driver.is_idle() {
            let first = self.next_when_idle()?;
            events.extend(self.accept(first)?);
        }
        for _ in 0..FRAMES_PER_STEP_MAX {
            match self.link.inbox.try_recv() {
                Ok(incoming) => events.extend(self.accept(incoming)?),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    self.closed = true;
                    break;
                }
            }
        }
        if self.draining && self.grammars.is_idle() {
            self.draining = false;
            events.push(Event::Drain);
        }
        if !events.is_empty() {
            self.idle_since = None;
            self.unchecked = true;
        }
        Ok(events)
    }

    /// Waits for a frame. While none comes is when wrong accounting would show.
    fn next_when_idle(&mut self) -> anyhow::Result<Incoming> {
        let since = *self.idle_since.get_or_insert_with(Instant::now);
        let few = self.driver.scheduler().config().pages <= CHECKED_PAGES_MAX;
        if self.unchecked && few {
            let left = self.check_after.saturating_sub(since.elapsed());
            match self.link.inbox.recv_timeout(left) {
                Err(RecvTimeoutError::Timeout) => {
                    self.driver.scheduler_mut().check_integrity().context("a bug in minisgld")?;
                    self.unchecked = false;
                    self.checks += 1;
                }
                told => return Ok(told?),
            }
        }
        Ok(self.link.inbox.recv()?)
    }

    /// What a frame means to the scheduler, if anything.
    ///
    /// # Errors
    /// The worker cannot go on.
    fn accept(&mut self, incoming: Incoming) -> anyhow::Result<Option<Event>> {
        let frame = match incoming {
            Incoming::Frame(frame) => *frame,
            Incoming::Closed(why) => {
                tracing::info!("{why}; exiting");
                self.closed = true;
                return Ok(None);
            }
            Incoming::Unsendable(why) => bail!(why),
            Incoming::Guided(guided) => {
                let (submit, held) = *guided;
                return Ok(self.accept_guided(submit, held));
            }
        };
        Ok(match frame {
            ToWorker::Submit(submit) if self.draining => {
                self.end(submit.id, Finish::Rejected(Reject::Draining));
                None
            }
            ToWorker::Submit(submit) if submit.sampling.guided.is_some() => {
                if let Err(refused) = self.grammars.take(submit) {
                    let (submit, reason) = *refused;
                    self.refuse(&submit, reason);
                }
                None
            }
            ToWorker::Submit(submit) => Some(Event::Submit(submit)),
            ToWorker::Abort(id) if self.grammars.settle(id) => {
                self.end(id, Finish::Aborted);
                None
            }
            ToWorker::Abort(id) => Some(Event::Abort(id)),
            ToWorker::Flush => Some(Event::Flush),
            ToWorker::Drain => {
                self.draining = true;
                None
            }
            ToWorker::Ping(nonce) => {
                self.link.send(FromWorker::Pong(nonce));
                None
            }
            ToWorker::Load(_) => {
                tracing::warn!("a second Load frame was ignored");
                None
            }
        })
    }

    /// What came of a request that has a grammar; nothing if it was aborted meanwhile.
    fn accept_guided(&mut self, submit: Submit, held: Result<Held, String>) -> Option<Event> {
        if !self.grammars.settle(submit.id) {
            return None;
        }
        match held {
            Ok(held) => Some(Event::SubmitHeld(submit, held)),
            Err(reason) => {
                self.refuse(&submit, reason);
                None
            }
        }
    }

    /// Ends a request whose output is held to nothing.
    fn refuse(&mut self, submit: &Submit, reason: String) {
        let field = submit.sampling.guided.as_ref().map(|guided| guided.field.clone());
        let field = field.unwrap_or_default();
        self.end(submit.id, Finish::Rejected(Reject::Grammar { field, reason }));
    }

    /// Ends a request that the scheduler does not know.
    fn end(&mut self, id: RequestId, finish: Finish) {
        let (sampled, prompt_logprobs) = (None, Vec::new());
        let (cached_tokens, queue_s, finish) = (None, None, Some(finish));
        self.ended.push(TokenEvent {
            id,
            sampled,
            prompt_logprobs,
            cached_tokens,
            queue_s,
            finish,
        });
    }

    /// One turn: step n + 1 is planned while n runs, then the results of n are waited for.
    fn turn(&mut self, events: Vec<Event>) -> anyhow::Result<()> {
        let now_s = self.started.elapsed().as_secs_f64();
        let changed = !events.is_empty();
        let (step, broken) = match self.driver.begin(events, now_s) {
            Ok(step) => (step, None),
            // What the step before brought is told first: its requests may have ended with it.
            Err(BeginError { step, error }) => (*step, Some(error)),
        };
        for pages in step.flushed {
            self.link.send(FromWorker::Flushed { pages });
        }
        let mut token_events = std::mem::take(&mut self.ended);
        token_events.extend(step.token_events);
        let stats = self.driver.scheduler_mut().stats();
        // A frame for each finished step, also one that only prefilled and so brought no tokens: the
        // daemon counts what it is told of. Also the last turn before the loop falls idle reports,
        // so that the counters are right then.
        let finished = stats.steps != self.reported;
        if changed || finished || !token_events.is_empty() || self.driver.is_idle() {
            self.reported = stats.steps;
            self.link.send(FromWorker::Step { events: token_events, stats });
        }
        match broken {
            Some(error) => return Err(error.into()),
            None => self.driver.finish()?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
