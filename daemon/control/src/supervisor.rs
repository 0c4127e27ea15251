//! The life of one model: one task owns its state and handles every event.
//!
//! ```text
//!                    +--------------------- unload ---------------------+
//!                    |            |            |                        v
//!   load --> Resolving --> Starting --> Serving ------------------> Draining --> Terminating --> Gone
//!               ^  |          |  ^       |   |  died                    done, late or force
//!               |  |          |  | pause |   +------> Backoff --+
//!               |  |          |  +-------|--------------+       |
//!               |  |          |  ^       | restart              |
//!               |  |          |  +--- Replacing                 |
//!               |  | no such  | first                           | too many in a row
//!               |  | model    | load failed                     v
//!               |  +----------+------------------------------> Failed --> Gone, if nobody stands by it
//!               +---------------- retry -------------------------+
//! ```
//!
//! While another model chooses its GPUs, `Queued` comes before `Starting`; what ends `Starting` ends `Queued` too. A model
//! that was loaded by hand and fails at its first load is `Gone`, since the answer to the load says why. A model that is
//! configured or saved, or that was ready before, stays and is tried again.
//!
//! Clients see `Resolving` and the first `Starting` as *loading*; `Backoff`, `Replacing` and every later `Starting`
//! as *restarting*, while their requests wait; `Serving` as *ready*, or as *stalled* while the worker owes an answer
//! and sends nothing. `Draining` and `Terminating` are *unloading*.
//!
//! This file has the events and the loop; `load`, `place`, `death`, `restart`, `unload` and `watch` say what the
//! events do.
//!
//! Owns: the instance of its model, and what [`Model`] says of it. Must never: wait for anything but
//! the next event, so that it is always there to hear of a death.

mod death;
mod load;
mod place;
mod restart;
#[cfg(test)]
mod tests;
mod unload;
mod watch;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use minisgl_proto::LoadOptions;
use minisgl_proto::admin::{AdminError, AdminErrorCode, LoadEvent, ModelStatus};
use tokio::sync::{mpsc, oneshot};

use crate::config::RegistryConfig;
use crate::event::Event;
use crate::instance::Instance;
use crate::metrics::Metrics;
use crate::model::Model;
use crate::placement::{Placement, Reservation};
use crate::resolve::Finding;

/// How long the other sign of a death (closed link, exit status) may lag behind the first.
const LINGER: Duration = Duration::from_secs(3);
/// Time between pings at most; less when the stall time is short.
const PING: Duration = Duration::from_secs(2);
/// Time between ticks at least.
const TICK_MIN: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Resolving,
    Queued,
    Starting,
    Serving,
    Backoff,
    Replacing,
    Failed,
    Draining,
    Terminating,
    Gone,
}

/// What a supervisor is made of.
pub(crate) struct Parts {
    pub(crate) model: Arc<Model>,
    pub(crate) config: Arc<RegistryConfig>,
    pub(crate) metrics: Metrics,
    pub(crate) placement: Placement,
    /// Its GPUs, if they were reserved already.
    pub(crate) reservation: Option<Reservation>,
    pub(crate) events: mpsc::Receiver<Event>,
    /// Who asked for the load and hears how it goes.
    pub(crate) watcher: Option<mpsc::Sender<LoadEvent>>,
}

/// The task's state; see the module's drawing.
pub(crate) struct Supervisor {
    model: Arc<Model>,
    config: Arc<RegistryConfig>,
    metrics: Metrics,
    placement: Placement,
    reservation: Option<Reservation>,
    events: mpsc::Receiver<Event>,
    watcher: Option<mpsc::Sender<LoadEvent>>,
    phase: Phase,
    /// When the phase has lasted long enough.
    deadline: Option<Instant>,
    /// What looks for the model; dropping it ends that.
    finding: Option<mpsc::Receiver<Finding>>,
    /// Where the model was found.
    dir: PathBuf,
    /// How it is loaded.
    options: LoadOptions,
    /// How it was loaded before, until it is ready with the new options.
    fallback: Option<LoadOptions>,
    instance: Option<Instance>,
    epoch: u32,
    /// The instance's own words on why it cannot load.
    load_error: Option<String>,
    load_began: Instant,
    serving_since: Instant,
    /// It was ready since it was last looked for.
    was_ready: bool,
    /// It was ready once.
    was_ever_ready: bool,
    /// Deaths in a row.
    deaths: u32,
    /// Loads that failed in a row.
    failed_loads: u32,
    /// Why the instance before this one died; said as long as this one lives.
    last_death: Option<String>,
    /// When the instance got SIGKILL, until it is reaped.
    killed_at: Option<Instant>,
    /// It lives on long after that.
    is_unkillable: bool,
    ping: u64,
    flushes: VecDeque<oneshot::Sender<Result<u64, AdminError>>>,
    unloads: Vec<oneshot::Sender<ModelStatus>>,
}

impl Supervisor {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { model, config, metrics, placement, reservation, events, watcher } = parts;
        Supervisor {
            options: model.spec.options.clone(),
            model,
            config,
            metrics,
            placement,
            reservation,
            events,
            watcher,
            phase: Phase::Resolving,
            deadline: None,
            finding: None,
            dir: PathBuf::new(),
            fallback: None,
            instance: None,
            epoch: 0,
            load_error: None,
            load_began: Instant::now(),
            serving_since: Instant::now(),
            was_ready: false,
            was_ever_ready: false,
            deaths: 0,
            failed_loads: 0,
            last_death: None,
            killed_at: None,
            is_unkillable: false,
            ping: 0,
            flushes: VecDeque::new(),
            unloads: Vec::new(),
        }
    }

    /// Handles events until the model is gone. `gone` runs before anybody hears of it, so that the
    /// name is free for the load that waited for it.
    pub(crate) async fn run(mut self, gone: impl FnOnce()) {
        self.metrics.up(&self.model.spec.name, false);
        self.resolve();
        let mut ticks = tokio::time::interval(PING.min(self.config.stall / 3).max(TICK_MIN));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while self.phase != Phase::Gone {
            let event = self.next(&mut ticks).await;
            self.handle(event);
        }
        self.instance = None;
        self.finding = None;
        self.model.listen_to(None);
        let status = self.model.status();
        self.end_text();
        let why = || status.reason.clone().unwrap_or_else(|| "the model was unloaded".to_string());
        self.model.sessions.fail_all(&why());
        self.metrics.forget(&self.model.spec.name);
        tracing::info!(model = self.model.spec.name, "gone");
        drop(self.reservation);
        gone();
        self.events.close();
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.try_send(LoadEvent::Failed(failed(why())));
        }
        // What was asked in the last moment is answered too.
        while let Ok(event) = self.events.try_recv() {
            match event {
                Event::Unload { reply, .. } => self.unloads.push(reply),
                Event::Flush(reply) => drop(reply.send(Err(failed(why())))),
                Event::Restart { reply, .. } => drop(reply.send(Err(failed(why())))),
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
        let (instance, finding) = (&mut self.instance, &mut self.finding);
        let exit = async {
            match instance {
                Some(instance) if !instance.is_reaped() => instance.wait().await,
                _ => std::future::pending().await,
            }
        };
        let found = async {
            match finding {
                Some(finding) => finding.recv().await,
                None => std::future::pending().await,
            }
        };
        let reservation = &mut self.reservation;
        let queued = self.phase == Phase::Queued;
        let turn = async {
            match reservation {
                Some(reservation) if queued => reservation.changed().await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(event) = self.events.recv() => event,
            Some(finding) = found => Event::Found(finding),
            status = exit => Event::Exited(status),
            () = turn => Event::Turn,
            () = alarm => Event::Deadline,
            _ = ticks.tick() => Event::Tick,
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Found(Finding::Progress(progress)) => self.on_progress(progress),
            Event::Found(Finding::Text(text)) => self.model.update(|view| view.text = text),
            Event::Found(Finding::Done(found)) => self.on_found(found),
            Event::Frame { epoch, frame } if self.is_current(epoch) => self.on_frame(frame),
            Event::Closed { epoch, error } if self.is_current(epoch) => self.on_closed(error),
            Event::Frame { .. } | Event::Closed { .. } => {} // of an instance long dead
            Event::Exited(status) => self.on_exited(status),
            Event::Flush(reply) => self.on_flush(reply),
            Event::Restart { options, reply } => self.on_restart(options, reply),
            Event::Unload { force, drain, reply } => self.on_unload(force, drain, reply),
            Event::Turn => self.on_turn(),
            Event::Deadline => self.on_deadline(),
            Event::Tick => self.on_tick(),
        }
    }

    /// Ends the text process, whoever still holds a handle to it.
    fn end_text(&self) {
        if let Some(text) = self.model.text() {
            text.end();
        }
        self.model.update(|view| view.text = None);
    }

    fn is_current(&self, epoch: u32) -> bool {
        self.instance.as_ref().is_some_and(|instance| instance.epoch == epoch)
    }
}

fn failed(message: String) -> AdminError {
    AdminError { code: AdminErrorCode::Failed, message }
}
