//! The life of one model: one task owns its state and handles every event.
//!
//! ```text
//!              +------------------- unload ------------------+
//!              |             |              |                v
//!   load --> Resolving --> Starting --> Serving ----> Draining ----> Terminating --> Gone
//!              |             |    ^         |       done |    late or force |            ^
//!              | no such     |    |         | died       +---------- dead --+------------+
//!              | model       |    | pause   v                                            |
//!              |   first load|    +----- Waiting --unload--------------------------------+
//!              |   failed    |              | too many in a row                          |
//!              v             v              v                                            |
//!             Gone          Gone         Failed --unload, or the next load---------------+
//! ```
//!
//! Clients see `Resolving` and the first `Starting` as *loading*; `Waiting` and every later
//! `Starting` as *restarting*; `Serving` as *ready*, or as *stalled* while the worker owes an answer
//! and sends nothing. `Draining` and `Terminating` are *unloading*.
//!
//! Owns: the worker of its model, and what [`Model`] says of it. Must never: wait for anything but
//! the next event, so that it is always there to hear of a death.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use minisgl_proto::admin::{AdminError, AdminErrorCode, LoadEvent, ModelState, ModelStatus};
use minisgl_proto::worker::LoadProgress;
use minisgl_proto::{FromWorker, LoadOptions, ModelInfo, StepStats, ToWorker, VERSION, WorkerSpec};
use tokio::sync::{mpsc, oneshot};

use crate::config::RegistryConfig;
use crate::metrics::Metrics;
use crate::model::Model;
use crate::resolve::ResolveError;
use crate::streams::outbox_capacity;
use crate::worker::Worker;

/// How long the other sign of a death (closed socket, exit status) may lag behind the first.
const LINGER: Duration = Duration::from_secs(1);
/// Time between pings at most; less when the stall time is short.
const PING: Duration = Duration::from_secs(2);
/// Requests in flight that an outbox is made for when the load options leave it open.
const REQUESTS_DEFAULT: usize = 4096;

/// Everything that can happen to a model.
pub(crate) enum Event {
    /// It was found, or not.
    Resolved(Result<PathBuf, ResolveError>),
    /// Progress of finding it.
    Progress(LoadProgress),
    /// The worker said something that is not about tokens.
    Frame { epoch: u32, frame: FromWorker },
    /// The worker's end of the socket is closed.
    Closed { epoch: u32, error: Option<String> },
    /// The worker's process ended and was reaped.
    Exited(std::process::ExitStatus),
    /// Somebody wants the prefix cache empty.
    Flush(oneshot::Sender<Result<u64, AdminError>>),
    /// Somebody wants the model gone.
    Unload { force: bool, drain: Duration, reply: oneshot::Sender<ModelStatus> },
    /// The time set with the current phase has come.
    Deadline,
    /// Time to ping.
    Tick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Resolving,
    Starting,
    Serving,
    Waiting,
    Failed,
    Draining,
    Terminating,
    Gone,
}

/// The task's state; see the module's drawing.
pub(crate) struct Supervisor {
    model: Arc<Model>,
    config: Arc<RegistryConfig>,
    metrics: Metrics,
    events: mpsc::Receiver<Event>,
    /// Who asked for the load and hears how it goes.
    watcher: Option<mpsc::Sender<LoadEvent>>,
    phase: Phase,
    /// When the phase has lasted long enough.
    deadline: Option<Instant>,
    /// Where the model was found.
    dir: PathBuf,
    worker: Option<Worker>,
    epoch: u32,
    /// The worker's own words on why it cannot load.
    load_error: Option<String>,
    load_began: Instant,
    serving_since: Instant,
    /// Failures in a row.
    failures: u32,
    ping: u64,
    flushes: VecDeque<oneshot::Sender<Result<u64, AdminError>>>,
    unloads: Vec<oneshot::Sender<ModelStatus>>,
}

impl Supervisor {
    pub(crate) fn new(
        model: Arc<Model>,
        config: Arc<RegistryConfig>,
        metrics: Metrics,
        events: mpsc::Receiver<Event>,
        watcher: mpsc::Sender<LoadEvent>,
    ) -> Self {
        Supervisor {
            model,
            config,
            metrics,
            events,
            watcher: Some(watcher),
            phase: Phase::Resolving,
            deadline: None,
            dir: PathBuf::new(),
            worker: None,
            epoch: 0,
            load_error: None,
            load_began: Instant::now(),
            serving_since: Instant::now(),
            failures: 0,
            ping: 0,
            flushes: VecDeque::new(),
            unloads: Vec::new(),
        }
    }

    /// Handles events until the model is gone. `gone` runs before anybody hears of it, so that the
    /// name is free for whoever waited.
    pub(crate) async fn run(mut self, gone: impl FnOnce()) {
        self.metrics.up(&self.model.name, false);
        let mut ticks = tokio::time::interval(PING.min(self.config.stall / 3));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while self.phase != Phase::Gone {
            let event = self.next(&mut ticks).await;
            self.handle(event);
        }
        self.worker = None;
        self.metrics.forget(&self.model.name);
        let status = self.model.status();
        tracing::info!(model = self.model.name, "gone");
        gone();
        self.events.close();
        let failed = || AdminError {
            code: AdminErrorCode::Failed,
            message: status.reason.clone().unwrap_or_else(|| "the model was unloaded".to_string()),
        };
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.try_send(LoadEvent::Failed(failed()));
        }
        // What was asked in the last moment is answered too.
        while let Ok(event) = self.events.try_recv() {
            match event {
                Event::Unload { reply, .. } => self.unloads.push(reply),
                Event::Flush(reply) => drop(reply.send(Err(failed()))),
                _ => {}
            }
        }
        for reply in self.unloads.drain(..) {
            let _ = reply.send(status.clone());
        }
    }

    async fn next(&mut self, ticks: &mut tokio::time::Interval) -> Event {
        let deadline = self.deadline;
        let alarm = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let worker = &mut self.worker;
        let exit = async {
            match worker {
                Some(worker) if worker.status.is_none() => worker.wait().await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(event) = self.events.recv() => event,
            status = exit => Event::Exited(status),
            () = alarm => Event::Deadline,
            _ = ticks.tick() => Event::Tick,
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Progress(progress) => self.on_progress(progress),
            Event::Resolved(found) => self.on_resolved(found),
            Event::Frame { epoch, frame } if self.is_current(epoch) => self.on_frame(frame),
            Event::Closed { epoch, error } if self.is_current(epoch) => self.on_closed(error),
            Event::Frame { .. } | Event::Closed { .. } => {} // of a worker long dead
            Event::Exited(status) => self.on_exited(status),
            Event::Flush(reply) => self.on_flush(reply),
            Event::Unload { force, drain, reply } => self.on_unload(force, drain, reply),
            Event::Deadline => self.on_deadline(),
            Event::Tick => self.on_tick(),
        }
    }

    fn is_current(&self, epoch: u32) -> bool {
        self.worker.as_ref().is_some_and(|worker| worker.epoch == epoch)
    }

    // Loading.

    fn on_progress(&mut self, progress: LoadProgress) {
        if let Some(watcher) = &self.watcher
            && watcher.capacity() > 1
        {
            let _ = watcher.try_send(LoadEvent::Progress(progress.clone()));
        }
        self.model.update(|view| view.progress = Some(progress));
    }

    fn on_resolved(&mut self, found: Result<PathBuf, ResolveError>) {
        if self.phase != Phase::Resolving {
            return; // unloaded meanwhile
        }
        match found {
            Ok(dir) => {
                self.dir = dir;
                self.start_worker();
            }
            Err(error) => self.fail_load(error.to_string()),
        }
    }

    /// The first load did not get through: the entry leaves, the name is free again.
    fn fail_load(&mut self, reason: String) {
        tracing::error!(model = self.model.name, reason, "not loaded");
        self.model.update(|view| {
            view.state = ModelState::Failed;
            view.reason = Some(reason);
            view.pid = None;
        });
        self.phase = Phase::Gone;
    }

    fn start_worker(&mut self) {
        self.epoch += 1;
        self.load_error = None;
        self.load_began = Instant::now();
        self.ping = 0;
        self.model.forget_pulse();
        let capacity = outbox_capacity(requests_max(&self.model.options));
        let spawned =
            Worker::spawn(&self.config.worker, &self.model, &self.metrics, self.epoch, capacity);
        let worker = match spawned {
            Ok(worker) => worker,
            Err(error) => {
                let program = self.config.worker.program.display();
                return self.on_death(&format!("could not be started ({program}: {error})"), &[]);
            }
        };
        let spec = WorkerSpec {
            version: VERSION.to_string(),
            name: self.model.name.clone(),
            dir: self.dir.clone(),
            options: self.model.options.clone(),
        };
        let _ = worker.outbox.try_send(ToWorker::Load(spec)); // the outbox is new and empty
        tracing::info!(model = self.model.name, pid = worker.pid(), "worker started");
        let restarting = self.epoch > 1;
        self.model.update(|view| {
            view.pid = worker.pid();
            view.restarts += u32::from(restarting);
        });
        if restarting {
            self.metrics.restarted(&self.model.name);
        }
        self.worker = Some(worker);
        self.phase = Phase::Starting;
        self.deadline = None;
    }

    fn on_frame(&mut self, frame: FromWorker) {
        match frame {
            FromWorker::Progress(progress) if self.phase == Phase::Starting => {
                self.on_progress(progress);
            }
            FromWorker::Ready(info) if self.phase == Phase::Starting => self.on_ready(info),
            FromWorker::LoadFailed(reason) if self.phase == Phase::Starting => {
                self.load_error = Some(reason);
                self.deadline = Some(Instant::now() + LINGER); // it exits by itself, soon
            }
            FromWorker::Flushed { pages } => {
                if let Some(reply) = self.flushes.pop_front() {
                    let _ = reply.send(Ok(pages));
                }
            }
            frame => {
                let name = &self.model.name;
                tracing::warn!(model = name, ?frame, "a frame out of turn was ignored");
            }
        }
    }

    fn on_ready(&mut self, info: ModelInfo) {
        let Some(worker) = &self.worker else { return };
        let limit = info.max_running.saturating_add(info.max_waiting).max(1);
        let seconds = self.load_began.elapsed().as_secs_f64();
        self.model.update(|view| {
            view.state = ModelState::Ready;
            view.reason = None;
            view.progress = None;
            view.info = Some(Arc::new(info));
        });
        self.model.streams.open(worker.outbox.clone(), limit);
        self.metrics.loaded(&self.model.name, seconds);
        self.metrics.up(&self.model.name, true);
        tracing::info!(model = self.model.name, seconds, "ready");
        self.phase = Phase::Serving;
        self.deadline = None;
        self.serving_since = Instant::now();
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.try_send(LoadEvent::Ready(Box::new(self.model.status())));
        }
    }

    // Death.

    fn on_closed(&mut self, error: Option<String>) {
        let Some(worker) = &mut self.worker else { return };
        if error.is_some() {
            worker.kill(); // nothing it says can be believed
        }
        worker.closed = Some(error);
        if worker.status.is_some() {
            self.bury();
        } else if matches!(self.phase, Phase::Starting | Phase::Serving) {
            self.model.streams.shut();
            self.deadline = Some(Instant::now() + LINGER);
        }
    }

    fn on_exited(&mut self, status: std::process::ExitStatus) {
        let Some(worker) = &mut self.worker else { return };
        worker.status = Some(status);
        self.model.streams.shut();
        if worker.closed.is_some() {
            self.bury();
        } else {
            // Its last frames are still in the socket.
            self.deadline = Some(Instant::now() + LINGER);
        }
    }

    /// The worker is dead, and everything it had to say was heard.
    fn bury(&mut self) {
        let Some(worker) = self.worker.take() else { return };
        self.on_death(&worker.death(), &worker.last_words());
    }

    fn on_death(&mut self, death: &str, last_words: &[String]) {
        self.deadline = None;
        let name = self.model.name.clone();
        let wanted = matches!(self.phase, Phase::Draining | Phase::Terminating);
        let first_load =
            self.epoch == 1 && matches!(self.phase, Phase::Starting | Phase::Resolving);
        self.metrics.up(&name, false);
        self.metrics.gauges(&name, &StepStats::default());
        self.model.forget_pulse();
        self.model.update(|view| view.pid = None);
        for reply in self.flushes.drain(..) {
            let _ = reply.send(Err(failed(format!("the worker of model \"{name}\" {death}"))));
        }
        if wanted {
            self.model.streams.fail_all(&format!("model \"{name}\" was unloaded"));
            self.phase = Phase::Gone;
            return;
        }
        let why = match self.load_error.take() {
            Some(reason) => reason,
            None => match last_words.last() {
                Some(line) => format!("the worker {death}; its last words: {line}"),
                None => format!("the worker {death}"),
            },
        };
        if first_load {
            return self.fail_load(why);
        }
        if self.phase == Phase::Serving
            && self.serving_since.elapsed() >= self.config.restart.stable
        {
            self.failures = 0;
        }
        self.failures += 1;
        let given_up = self.failures >= self.config.restart.give_up;
        let next = if given_up { "it is not restarted again" } else { "it is being restarted" };
        let told = format!("the worker of model \"{name}\" {death}; {next}");
        let lost = self.model.streams.fail_all(&told);
        tracing::error!(model = name, why, lost_requests = lost, last_words = ?last_words, "{next}");
        if given_up {
            self.phase = Phase::Failed;
            let failures = self.failures;
            self.model.update(|view| {
                view.state = ModelState::Failed;
                view.reason = Some(format!(
                    "{why}; given up after {failures} failures in a row: load it again"
                ));
            });
        } else {
            let pause = self.config.restart.pause(self.failures);
            self.phase = Phase::Waiting;
            self.deadline = Some(Instant::now() + pause);
            self.model.update(|view| {
                view.state = ModelState::Restarting;
                view.reason = Some(why);
                view.progress = None;
            });
        }
    }

    // Unloading.

    fn on_unload(&mut self, force: bool, drain: Duration, reply: oneshot::Sender<ModelStatus>) {
        self.unloads.push(reply);
        self.model.streams.shut();
        let reason = if force { "unloaded by force" } else { "unloaded" };
        if self.phase != Phase::Terminating {
            self.model.update(|view| {
                view.state = ModelState::Unloading;
                view.reason = Some(reason.to_string());
            });
        }
        let draining = matches!(self.phase, Phase::Serving | Phase::Draining);
        match &self.worker {
            None => self.phase = Phase::Gone,
            Some(_) if force || !draining => self.terminate(reason),
            Some(worker) if self.phase == Phase::Serving => {
                self.metrics.up(&self.model.name, false);
                self.phase = Phase::Draining;
                self.deadline = Some(Instant::now() + drain);
                if worker.outbox.try_send(ToWorker::Drain).is_err() {
                    self.terminate(reason);
                }
            }
            // Draining already: the earlier deadline stands.
            Some(_) => {
                let until = Instant::now() + drain;
                self.deadline = Some(self.deadline.map_or(until, |at| at.min(until)));
            }
        }
    }

    /// Ends every request and asks the worker to exit.
    fn terminate(&mut self, reason: &str) {
        if self.phase == Phase::Terminating {
            return;
        }
        self.model.streams.fail_all(&format!("model \"{}\" was {reason}", self.model.name));
        self.metrics.up(&self.model.name, false);
        if let Some(worker) = &self.worker {
            worker.terminate();
        }
        self.phase = Phase::Terminating;
        self.deadline = Some(Instant::now() + self.config.term_grace);
    }

    // Time.

    fn on_deadline(&mut self) {
        self.deadline = None;
        if self.worker.as_ref().is_some_and(|worker| worker.status.is_some()) {
            return self.bury(); // somebody else holds its socket open
        }
        match self.phase {
            Phase::Starting | Phase::Serving | Phase::Terminating => {
                if let Some(worker) = &mut self.worker {
                    worker.kill();
                }
            }
            Phase::Draining => self.terminate("unloaded before the request was done"),
            Phase::Waiting => self.start_worker(),
            Phase::Resolving | Phase::Failed | Phase::Gone => {}
        }
    }

    fn on_tick(&mut self) {
        let Some(worker) = self.worker.as_ref().filter(|_| self.phase == Phase::Serving) else {
            return;
        };
        let (pong, silence) = self.model.pulse();
        let owes = pong < self.ping || self.model.streams.in_flight() > 0;
        let stalled = owes && silence >= self.config.stall;
        let was = self.model.view().state == ModelState::Stalled;
        if stalled && !was {
            let seconds = silence.as_secs_f64();
            tracing::error!(model = self.model.name, seconds, "stalled");
            self.metrics.up(&self.model.name, false);
            self.model.update(|view| {
                view.state = ModelState::Stalled;
                view.reason = Some(format!("no sign of life for {seconds:.1} s with work to do"));
            });
        } else if was && !stalled {
            tracing::info!(model = self.model.name, "goes on");
            self.metrics.up(&self.model.name, true);
            self.model.update(|view| {
                view.state = ModelState::Ready;
                view.reason = None;
            });
        }
        // One ping at a time: a worker that reads nothing must not find a heap of them.
        if pong >= self.ping && worker.outbox.try_send(ToWorker::Ping(self.ping + 1)).is_ok() {
            self.ping += 1;
        }
    }

    fn on_flush(&mut self, reply: oneshot::Sender<Result<u64, AdminError>>) {
        let worker = self.worker.as_ref().filter(|_| self.phase == Phase::Serving);
        let sent = worker.is_some_and(|worker| worker.outbox.try_send(ToWorker::Flush).is_ok());
        if sent {
            self.flushes.push_back(reply);
        } else {
            let message = format!("model \"{}\" is not ready; nothing to flush", self.model.name);
            let _ = reply.send(Err(AdminError { code: AdminErrorCode::Conflict, message }));
        }
    }
}

fn failed(message: String) -> AdminError {
    AdminError { code: AdminErrorCode::Failed, message }
}

/// Requests that may be in flight with a model loaded like this.
fn requests_max(options: &LoadOptions) -> usize {
    match (options.max_running, options.max_waiting) {
        (0, _) | (_, 0) => REQUESTS_DEFAULT,
        (running, waiting) => (running as usize).saturating_add(waiting as usize).min(1 << 20),
    }
}
