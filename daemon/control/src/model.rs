//! One model as everybody sees it: what its supervisor last said, and the requests in flight.
//!
//! Owns: the state shared between a model's supervisor (which alone decides), the reader of its
//! worker (counters, signs of life) and everybody who asks. Must never: change state by itself.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use minisgl_proto::admin::{ModelState, ModelStatus};
use minisgl_proto::worker::LoadProgress;
use minisgl_proto::{LoadOptions, ModelInfo, StepStats};
use tokio::sync::mpsc;

use crate::placement::Placement;
use crate::streams::Streams;
use crate::supervisor::Event;

/// A model the daemon knows of.
pub(crate) struct Model {
    /// Name for clients.
    pub(crate) name: String,
    /// What was asked for.
    pub(crate) source: String,
    /// How.
    pub(crate) options: LoadOptions,
    /// Unix time of the load, in nanoseconds.
    pub(crate) created_ns: u64,
    /// Requests in flight.
    pub(crate) streams: Arc<Streams>,
    /// The way to its supervisor.
    pub(crate) events: mpsc::Sender<Event>,
    placement: Placement,
    view: Mutex<View>,
    pulse: Mutex<Pulse>,
}

/// What the supervisor last said.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) state: ModelState,
    pub(crate) since: Instant,
    pub(crate) reason: Option<String>,
    pub(crate) pid: Option<u32>,
    pub(crate) restarts: u32,
    pub(crate) progress: Option<LoadProgress>,
    pub(crate) info: Option<Arc<ModelInfo>>,
}

/// What the worker itself last said.
struct Pulse {
    frame_at: Instant,
    pong: u64,
    stats: Option<StepStats>,
}

impl Model {
    pub(crate) fn new(
        name: String,
        source: String,
        options: LoadOptions,
        stream_buffer: usize,
        events: mpsc::Sender<Event>,
        placement: Placement,
    ) -> Self {
        let unix_time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Model {
            name,
            source,
            options,
            created_ns: unix_time.map_or(0, |time| time.as_nanos() as u64),
            streams: Arc::new(Streams::new(stream_buffer)),
            events,
            placement,
            view: Mutex::new(View {
                state: ModelState::Loading,
                since: Instant::now(),
                reason: None,
                pid: None,
                restarts: 0,
                progress: None,
                info: None,
            }),
            pulse: Mutex::new(Pulse { frame_at: Instant::now(), pong: 0, stats: None }),
        }
    }

    fn lock_view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_pulse(&self) -> MutexGuard<'_, Pulse> {
        self.pulse.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the supervisor last said.
    pub(crate) fn view(&self) -> View {
        self.lock_view().clone()
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

    /// A frame arrived.
    pub(crate) fn beat(&self) {
        self.lock_pulse().frame_at = Instant::now();
    }

    /// The worker answered this ping.
    pub(crate) fn pong(&self, number: u64) {
        self.lock_pulse().pong = number;
    }

    /// The last ping answered, and the time since the last frame.
    pub(crate) fn pulse(&self) -> (u64, Duration) {
        let pulse = self.lock_pulse();
        (pulse.pong, pulse.frame_at.elapsed())
    }

    /// Counters after a step. Returns those before it.
    pub(crate) fn count(&self, stats: StepStats) -> StepStats {
        self.lock_pulse().stats.replace(stats).unwrap_or_default()
    }

    /// Another worker starts from nothing.
    pub(crate) fn forget_pulse(&self) {
        *self.lock_pulse() = Pulse { frame_at: Instant::now(), pong: 0, stats: None };
    }

    /// All of it, for people and programs.
    pub(crate) fn status(&self) -> ModelStatus {
        let view = self.view();
        ModelStatus {
            name: self.name.clone(),
            source: self.source.clone(),
            state: view.state,
            reason: view.reason,
            pid: view.pid,
            gpus: self.placement.gpus_of(&self.name),
            gpu_memory_bytes: None,
            restarts: view.restarts,
            state_s: view.since.elapsed().as_secs_f64(),
            in_flight: u32::try_from(self.streams.in_flight()).unwrap_or(u32::MAX),
            progress: view.progress,
            info: view.info.map(|info| (*info).clone()),
            stats: self.lock_pulse().stats,
            options: self.options.clone(),
        }
    }
}
