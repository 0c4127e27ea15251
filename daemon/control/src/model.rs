//! One model as everybody sees it: what its supervisor last said, and the requests in flight.
//!
//! Owns: the state shared between a model's supervisor (which alone decides), the reader of its
//! worker (counters, signs of life) and everybody who asks. Must never: change state by itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use minisgl_proto::admin::{ModelState, ModelStatus};
use minisgl_proto::worker::LoadProgress;
use minisgl_proto::{LoadOptions, ModelInfo, StepStats};
use tokio::sync::mpsc;

use crate::placement::Placement;
use crate::streams::Streams;
use crate::supervisor::Event;
use crate::text::Text;

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
    /// Whether it is there again after a restart.
    pub(crate) remembered: AtomicBool,
    /// Requests in flight.
    pub(crate) streams: Arc<Streams>,
    /// The way to its supervisor.
    pub(crate) events: mpsc::Sender<Event>,
    placement: Placement,
    /// Its text process, once its folder was read.
    text: OnceLock<Text>,
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
    /// When its supervisor last looked after it.
    pub(crate) tended: Instant,
    /// When its worker got SIGKILL, until that worker is buried.
    pub(crate) killed: Option<Instant>,
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
            remembered: AtomicBool::new(false),
            streams: Arc::new(Streams::new(stream_buffer)),
            events,
            placement,
            text: OnceLock::new(),
            view: Mutex::new(View {
                state: ModelState::Loading,
                since: Instant::now(),
                reason: None,
                pid: None,
                restarts: 0,
                tended: Instant::now(),
                killed: None,
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

    /// Its text process; `None` for a model that was loaded without one.
    pub(crate) fn text(&self) -> Option<&Text> {
        self.text.get()
    }

    /// Its folder was read. Only the first counts: a model has one folder.
    pub(crate) fn set_text(&self, text: Option<Text>) {
        if let Some(text) = text {
            let _ = self.text.set(text);
        }
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

    /// Why nothing here will repair this model any more, if that is so at `now`: a worker that lives on after
    /// SIGKILL, or a supervisor that does not turn, each for `patience`.
    pub(crate) fn hung(&self, now: Instant, patience: Duration) -> Option<String> {
        let view = self.view();
        let late = |since| Some(now.saturating_duration_since(since)).filter(|&t| t >= patience);
        if let Some(silence) = view.killed.and_then(late) {
            let (name, seconds) = (&self.name, silence.as_secs_f64());
            return Some(format!("the worker of {name} lives on {seconds:.0} s after SIGKILL"));
        }
        let silence = late(view.tended)?.as_secs_f64();
        Some(format!("the supervisor of {} has stood still for {silence:.0} s", self.name))
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
            persisted: self.remembered.load(Ordering::SeqCst),
            notes: self.text.get().map(|text| text.info().notes.clone()).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_hung_when_nobody_tends_it_or_its_worker_outlives_sigkill() {
        let (events, _inbox) = mpsc::channel(1);
        let placement = Placement::default();
        let model =
            Model::new("m".into(), "/m".into(), LoadOptions::default(), 1, events, placement);
        let patience = Duration::from_secs(30);
        let soon = Instant::now() + Duration::from_secs(29);
        let late = Instant::now() + Duration::from_secs(31);
        assert_eq!(model.hung(soon, patience), None);
        assert!(model.hung(late, patience).unwrap().contains("supervisor of m"));
        model.update(|view| {
            view.state = ModelState::Stalled; // to be killed in time, which is repair enough
            view.tended = late;
        });
        assert_eq!(model.hung(late, patience), None);
        model.update(|view| view.killed = Some(Instant::now()));
        assert_eq!(model.hung(soon, patience), None);
        assert!(model.hung(late, patience).unwrap().contains("worker of m lives on"));
    }
}
