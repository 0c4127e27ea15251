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
//! Before `Starting` comes `Queued` where another model is choosing its GPUs just then; what ends the one
//! ends the other too.
//!
//! Clients see `Resolving` and the first `Starting` as *loading*; `Waiting` and every later
//! `Starting` as *restarting*; `Serving` as *ready*, or as *stalled* while the worker owes an answer
//! and sends nothing. `Draining` and `Terminating` are *unloading*.
//!
//! This file has the events and the loop; `load`, `place`, `death`, `unload` and `watch` say what the events
//! do.
//!
//! Owns: the worker of its model, and what [`Model`] says of it. Must never: wait for anything but
//! the next event, so that it is always there to hear of a death.

mod death;
mod load;
mod place;
mod unload;
mod watch;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use minisgl_proto::FromWorker;
use minisgl_proto::admin::{AdminError, AdminErrorCode, LoadEvent, ModelStatus};
use minisgl_proto::worker::LoadProgress;
use tokio::sync::{mpsc, oneshot};

use crate::config::RegistryConfig;
use crate::metrics::Metrics;
use crate::model::Model;
use crate::placement::Seat;
use crate::resolve::ResolveError;
use crate::worker::Worker;

/// How long the other sign of a death (closed socket, exit status) may lag behind the first.
const LINGER: Duration = Duration::from_secs(3);
/// Time between pings at most; less when the stall time is short.
const PING: Duration = Duration::from_secs(2);

/// Time between ticks at least.
const TICK_MIN: Duration = Duration::from_millis(10);

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
    /// Who chose GPUs has them, or is gone.
    Turn,
    /// The time set with the current phase has come.
    Deadline,
    /// Time to ping.
    Tick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Resolving,
    Queued,
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
    /// Its GPUs.
    seat: Seat,
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
    /// What kind of failure ended the load.
    failure: AdminErrorCode,
    /// The worker's own words on why it cannot load.
    load_error: Option<String>,
    load_began: Instant,
    serving_since: Instant,
    /// Failures in a row.
    failures: u32,
    /// Why the worker before this one died; said as long as this one lives.
    last_death: Option<String>,
    ping: u64,
    flushes: VecDeque<oneshot::Sender<Result<u64, AdminError>>>,
    unloads: Vec<oneshot::Sender<ModelStatus>>,
}

impl Supervisor {
    pub(crate) fn new(
        model: Arc<Model>,
        config: Arc<RegistryConfig>,
        metrics: Metrics,
        seat: Seat,
        events: mpsc::Receiver<Event>,
        watcher: mpsc::Sender<LoadEvent>,
    ) -> Self {
        Supervisor {
            model,
            config,
            metrics,
            seat,
            events,
            watcher: Some(watcher),
            phase: Phase::Resolving,
            deadline: None,
            dir: PathBuf::new(),
            worker: None,
            epoch: 0,
            failure: AdminErrorCode::Failed,
            load_error: None,
            load_began: Instant::now(),
            serving_since: Instant::now(),
            failures: 0,
            last_death: None,
            ping: 0,
            flushes: VecDeque::new(),
            unloads: Vec::new(),
        }
    }

    /// Handles events until the model is gone. `gone` runs before anybody hears of it, so that the
    /// name is free for whoever waited.
    pub(crate) async fn run(mut self, gone: impl FnOnce()) {
        self.metrics.up(&self.model.name, false);
        let mut ticks = tokio::time::interval(PING.min(self.config.stall / 3).max(TICK_MIN));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while self.phase != Phase::Gone {
            let event = self.next(&mut ticks).await;
            self.handle(event);
        }
        self.worker = None;
        self.metrics.forget(&self.model.name);
        let status = self.model.status();
        tracing::info!(model = self.model.name, "gone");
        drop(self.seat);
        gone();
        self.events.close();
        let failed = || AdminError {
            code: self.failure,
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
        let (seat, queued) = (&mut self.seat, self.phase == Phase::Queued);
        tokio::select! {
            Some(event) = self.events.recv() => event,
            status = exit => Event::Exited(status),
            () = seat.changed(), if queued => Event::Turn,
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
            Event::Turn => self.on_turn(),
            Event::Deadline => self.on_deadline(),
            Event::Tick => self.on_tick(),
        }
    }

    fn is_current(&self, epoch: u32) -> bool {
        self.worker.as_ref().is_some_and(|worker| worker.epoch == epoch)
    }
}

fn failed(message: String) -> AdminError {
    AdminError { code: AdminErrorCode::Failed, message }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use minisgl_proto::LoadOptions;
    use nix::sys::signal::Signal;

    use super::*;
    use crate::config::WorkerCommand;
    use crate::placement::Placement;

    #[tokio::test]
    async fn a_kill_is_remembered_until_the_worker_is_buried() {
        let worker = WorkerCommand {
            program: "/bin/sleep".into(),
            args: vec!["60".into()],
            ..WorkerCommand::current_exe()
        };
        let config = Arc::new(RegistryConfig { worker, ..RegistryConfig::default() });
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        let (events, inbox) = mpsc::channel(8);
        let (watcher, _progress) = mpsc::channel(8);
        let (placement, options) = (Placement::default(), LoadOptions::default());
        let seat = placement.claim("m", &options, false).unwrap();
        let model = Model::new("m".into(), "/m".into(), options, 8, events, placement);
        let model = Arc::new(model);
        let mut supervisor =
            Supervisor::new(Arc::clone(&model), config, metrics, seat, inbox, watcher);
        supervisor.start_worker(Vec::new(), Vec::new());
        assert!(model.view().pid.is_some() && model.view().killed.is_none());
        let tended = model.view().tended;
        supervisor.on_tick();
        assert!(model.view().tended > tended);
        supervisor.kill("it is in the way");
        let first = model.view().killed.unwrap();
        supervisor.kill("it still is");
        assert_eq!(model.view().killed, Some(first), "the first counts");
        let status = supervisor.worker.as_mut().unwrap().wait().await;
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));
        supervisor.on_exited(status);
        supervisor.on_closed(None);
        assert_eq!((model.view().pid, model.view().killed), (None, None));
    }
}
