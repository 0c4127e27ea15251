//! One model as everybody sees it: what is wanted, what its supervisor last said, and its sessions.
//!
//! Owns: the state shared between a model's supervisor (which alone decides), the reader of its
//! instance (counters, signs of life) and everybody who asks. Must never: change state by itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use minisgl_proto::admin::{ModelState, ModelStatus, Origin};
use minisgl_proto::worker::LoadProgress;
use minisgl_proto::{LoadOptions, ModelInfo, StepStats};
use tokio::sync::mpsc;

use crate::event::Event;
use crate::log_ring::LogRing;
use crate::placement::Placement;
use crate::sessions::Sessions;
use crate::spec::Spec;
use crate::text::Text;

/// A model the daemon knows of.
pub(crate) struct Model {
    /// What is wanted.
    pub(crate) spec: Spec,
    /// Another number for each load, also of the same name.
    pub(crate) generation: u64,
    /// Unix time of the load, in seconds.
    pub(crate) created_s: u64,
    /// Whether it is there again after a restart of the daemon, because a load asked for it.
    pub(crate) persisted: AtomicBool,
    /// Somebody unloads it.
    pub(crate) unwanted: AtomicBool,
    /// Its requests.
    pub(crate) sessions: Arc<Sessions>,
    /// What its workers wrote to standard error.
    pub(crate) log: LogRing,
    /// The way to its supervisor.
    pub(crate) events: mpsc::Sender<Event>,
    placement: Placement,
    view: Mutex<View>,
    heartbeat: Mutex<Heartbeat>,
}

/// What the supervisor last said.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) state: ModelState,
    pub(crate) since: Instant,
    pub(crate) reason: Option<String>,
    pub(crate) pid: Option<u32>,
    pub(crate) restarts: u32,
    /// When its supervisor last came round.
    pub(crate) checked_at: Instant,
    pub(crate) progress: Option<LoadProgress>,
    pub(crate) info: Option<Arc<ModelInfo>>,
    /// How it is loaded now.
    pub(crate) options: LoadOptions,
    /// When a failed model is tried again.
    pub(crate) retry_at: Option<Instant>,
    /// Its text process; `None` until its folder was read.
    pub(crate) text: Option<Text>,
}

/// What the instance itself last said.
struct Heartbeat {
    /// The instance that is listened to.
    epoch: Option<u32>,
    frame_at: Instant,
    pong: u64,
    stats: Option<StepStats>,
}

impl Heartbeat {
    fn of(epoch: Option<u32>) -> Self {
        Heartbeat { epoch, frame_at: Instant::now(), pong: 0, stats: None }
    }
}

/// What the sessions of a model may keep.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionLimits {
    /// Events that a reader may lie behind.
    pub(crate) buffer: usize,
    /// Bytes of all of them.
    pub(crate) bytes_max: usize,
}

impl Model {
    pub(crate) fn new(
        spec: Spec,
        generation: u64,
        limits: SessionLimits,
        events: mpsc::Sender<Event>,
        placement: Placement,
    ) -> Self {
        let unix_time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let name = spec.name.clone();
        Model {
            generation,
            created_s: unix_time.map_or(0, |time| time.as_secs()),
            persisted: AtomicBool::new(spec.origin == Origin::Persisted),
            unwanted: AtomicBool::new(false),
            sessions: Arc::new(Sessions::new(name, limits.buffer, limits.bytes_max)),
            log: LogRing::default(),
            events,
            placement,
            view: Mutex::new(View {
                state: ModelState::Loading,
                since: Instant::now(),
                reason: None,
                pid: None,
                restarts: 0,
                checked_at: Instant::now(),
                progress: None,
                info: None,
                options: spec.options.clone(),
                retry_at: None,
                text: None,
            }),
            heartbeat: Mutex::new(Heartbeat::of(None)),
            spec,
        }
    }

    fn lock_view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_heartbeat(&self) -> MutexGuard<'_, Heartbeat> {
        self.heartbeat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the supervisor last said.
    pub(crate) fn view(&self) -> View {
        self.lock_view().clone()
    }

    /// The state alone.
    pub(crate) fn state(&self) -> ModelState {
        self.lock_view().state
    }

    /// Its text process; `None` for a model that is loaded without one.
    pub(crate) fn text(&self) -> Option<Text> {
        self.lock_view().text.clone()
    }

    /// Counters of its instance after the last step.
    pub(crate) fn stats(&self) -> Option<StepStats> {
        self.lock_heartbeat().stats
    }

    /// State, and what it is, if it was ready before.
    pub(crate) fn state_and_info(&self) -> (ModelState, Option<Arc<ModelInfo>>) {
        let view = self.lock_view();
        (view.state, view.info.clone())
    }

    /// Says something; the supervisor alone calls this.
    pub(crate) fn update(&self, change: impl FnOnce(&mut View)) {
        let mut view = self.lock_view();
        let before = view.state;
        change(&mut view);
        if view.state != before {
            view.since = Instant::now();
        }
    }

    /// Why nothing here will repair this model any more, if that is so at `now`: its supervisor has not come
    /// round for `patience`.
    pub(crate) fn stuck(&self, now: Instant, patience: Duration) -> Option<String> {
        let silence = now.saturating_duration_since(self.lock_view().checked_at);
        let name = &self.spec.name;
        (silence >= patience).then(|| {
            format!("the supervisor of {name} has stood still for {:.0} s", silence.as_secs_f64())
        })
    }

    /// The instance `epoch` is listened to from now on, and has said nothing yet; `None`: nobody is.
    pub(crate) fn listen_to(&self, epoch: Option<u32>) {
        *self.lock_heartbeat() = Heartbeat::of(epoch);
    }

    /// A frame of the instance arrived.
    pub(crate) fn heard(&self, epoch: u32) {
        let mut heartbeat = self.lock_heartbeat();
        if heartbeat.epoch == Some(epoch) {
            heartbeat.frame_at = Instant::now();
        }
    }

    /// The instance answered this ping.
    pub(crate) fn pong(&self, epoch: u32, number: u64) {
        let mut heartbeat = self.lock_heartbeat();
        if heartbeat.epoch == Some(epoch) {
            heartbeat.frame_at = Instant::now();
            heartbeat.pong = number;
        }
    }

    /// The last ping answered, and the time since the last frame.
    pub(crate) fn heartbeat(&self) -> (u64, Duration) {
        let heartbeat = self.lock_heartbeat();
        (heartbeat.pong, heartbeat.frame_at.elapsed())
    }

    /// Counters of the instance after a step; `count` gets those before it. An instance that nobody listens to any
    /// more is not counted.
    pub(crate) fn step(&self, epoch: u32, stats: StepStats, count: impl FnOnce(&StepStats)) {
        let mut heartbeat = self.lock_heartbeat();
        if heartbeat.epoch == Some(epoch) {
            heartbeat.frame_at = Instant::now();
            // Under the lock, so that nothing is counted after the model has stopped listening to this instance.
            count(&heartbeat.stats.replace(stats).unwrap_or_default());
        }
    }

    /// All of it, for people and programs.
    pub(crate) fn status(&self) -> ModelStatus {
        let view = self.view();
        let now = Instant::now();
        let retry_in = view.retry_at.map(|at| at.saturating_duration_since(now).as_secs_f64());
        ModelStatus {
            name: self.spec.name.clone(),
            source: self.spec.source.clone(),
            state: view.state,
            reason: view.reason,
            pid: view.pid,
            gpus: self.placement.gpus_of(&self.spec.name),
            gpu_memory_bytes: None,
            restarts: view.restarts,
            state_s: view.since.elapsed().as_secs_f64(),
            in_flight: u32::try_from(self.sessions.in_flight()).unwrap_or(u32::MAX),
            progress: view.progress,
            info: view.info.map(|info| (*info).clone()),
            stats: self.lock_heartbeat().stats,
            options: view.options,
            persisted: self.persisted.load(Ordering::SeqCst),
            aliases: self.spec.aliases.clone(),
            origin: match self.persisted.load(Ordering::SeqCst) {
                true if self.spec.origin == Origin::Loaded => Origin::Persisted,
                _ => self.spec.origin,
            },
            retry_in_s: retry_in,
            dialect: view.text.as_ref().map(|text| text.info().dialect.clone()),
            notes: view.text.map(|text| text.info().notes.clone()).unwrap_or_default(),
        }
    }
}
