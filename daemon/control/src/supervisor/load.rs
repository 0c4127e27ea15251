//! From nothing to `Ready`: the model is found, a worker starts, and says how far it is.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use minisgl_proto::admin::{LoadEvent, ModelState};
use minisgl_proto::worker::LoadProgress;
use minisgl_proto::{FromWorker, LoadOptions, ModelInfo, ToWorker, VERSION, WorkerSpec};

use super::{LINGER, Phase, Supervisor};
use crate::resolve::ResolveError;
use crate::streams::outbox_capacity;
use crate::worker::Worker;

impl Supervisor {
    pub(super) fn on_progress(&mut self, progress: LoadProgress) {
        if let Some(watcher) = &self.watcher
            && watcher.capacity() > 1
        {
            let _ = watcher.try_send(LoadEvent::Progress(progress.clone()));
        }
        self.model.update(|view| view.progress = Some(progress));
    }

    pub(super) fn on_resolved(&mut self, found: Result<PathBuf, ResolveError>) {
        if self.phase != Phase::Resolving {
            return; // unloaded meanwhile
        }
        match found {
            Ok(dir) => {
                self.dir = dir;
                self.place();
            }
            Err(error) => {
                self.failure = error.code;
                self.fail_load(error.message);
            }
        }
    }

    /// The first load did not get through: the entry leaves, the name is free again.
    pub(super) fn fail_load(&mut self, reason: String) {
        tracing::error!(model = self.model.name, reason, "not loaded");
        self.model.update(|view| {
            view.state = ModelState::Failed;
            view.reason = Some(reason);
            view.pid = None;
        });
        self.phase = Phase::Gone;
    }

    /// Starts a worker on `gpus`, or where it finds room beside those `taken`.
    pub(super) fn start_worker(&mut self, gpus: Vec<u32>, taken: Vec<u32>) {
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
        let mut options = LoadOptions { gpus_taken: taken, ..self.model.options.clone() };
        if !gpus.is_empty() {
            options.gpus = gpus;
        }
        let spec = WorkerSpec {
            version: VERSION.to_string(),
            name: self.model.name.clone(),
            dir: self.dir.clone(),
            options,
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

    pub(super) fn on_frame(&mut self, frame: FromWorker) {
        match frame {
            FromWorker::Progress(progress) if self.phase == Phase::Starting => {
                self.on_progress(progress);
            }
            FromWorker::Ready(info) if self.phase == Phase::Starting => self.on_ready(*info),
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

    pub(super) fn on_ready(&mut self, info: ModelInfo) {
        let Some(worker) = &self.worker else { return };
        let limit = info.max_running.saturating_add(info.max_waiting).max(1);
        let seconds = self.load_began.elapsed().as_secs_f64();
        self.seat.settle(&info.gpus);
        self.model.update(|view| {
            view.state = ModelState::Ready;
            view.reason = self.last_death.clone();
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
}

/// Requests that may be in flight with a model loaded like this.
fn requests_max(options: &LoadOptions) -> usize {
    options.max_running.saturating_add(options.max_waiting).clamp(1, 1 << 20) as usize
}
