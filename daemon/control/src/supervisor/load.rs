//! From nothing to `Ready`: the model is found, an instance starts, and says how far it is.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use minisgl_proto::admin::{AdminError, AdminErrorCode, LoadEvent, ModelState};
use minisgl_proto::worker::LoadProgress;
use minisgl_proto::{FromWorker, LoadOptions, ModelInfo, PROTOCOL, ToWorker, WorkerSpec};

use super::{LINGER, Phase, Supervisor};
use crate::instance::{Death, Instance};
use crate::resolve::{self, ResolveError, Retry};
use crate::sessions::{Blame, outbox_capacity};

impl Supervisor {
    /// Begins to look for the model.
    pub(super) fn resolve(&mut self) {
        self.phase = Phase::Resolving;
        self.deadline = None;
        self.was_ready = false;
        self.deaths = 0;
        if let Err(taken) = self.reserve() {
            return self.fail(AdminErrorCode::Conflict, taken.to_string(), Retry::Backoff);
        }
        let source = &self.model.spec.source;
        self.finding = Some(resolve::start(&self.config, source, &self.options));
    }

    pub(super) fn on_progress(&mut self, progress: LoadProgress) {
        if let Some(watcher) = &self.watcher
            && watcher.capacity() > 1
        {
            let _ = watcher.try_send(LoadEvent::Progress(progress.clone()));
        }
        self.model.update(|view| view.progress = Some(progress));
    }

    pub(super) fn on_found(&mut self, found: Result<PathBuf, ResolveError>) {
        self.finding = None;
        if self.phase != Phase::Resolving {
            return; // unloaded meanwhile
        }
        match found {
            Ok(dir) => {
                self.dir = dir;
                self.place();
            }
            Err(error) => self.fail(error.code, error.message, error.retry),
        }
    }

    /// There is no instance and none is started now. Who stands by the model keeps it in sight, and it is tried
    /// again if that may help; else it leaves, and its name is free.
    pub(super) fn fail(&mut self, code: AdminErrorCode, reason: String, retry: Retry) {
        let name = &self.model.spec.name;
        let stays = self.model.spec.is_standing() || self.was_ever_ready;
        self.failed_loads += 1;
        let pause = self.config.retry.pause(self.failed_loads);
        let pause = match retry {
            Retry::Never => None,
            Retry::Backoff => Some(pause),
            Retry::After(at_least) => Some(pause.max(at_least)),
        };
        let pause = pause.filter(|_| stays);
        let retry_in_s = pause.as_ref().map(Duration::as_secs_f64);
        tracing::error!(model = name, reason, retry_in_s, "not loaded");
        self.model.sessions.fail_all(&format!("model \"{name}\" failed: {reason}"));
        self.end_text();
        self.reservation = None;
        self.fallback = None;
        self.finding = None;
        self.deadline = pause.map(|pause| Instant::now() + pause);
        self.model.update(|view| {
            view.state = ModelState::Failed;
            view.reason = Some(reason.clone());
            view.pid = None;
            view.progress = None;
            view.retry_at = self.deadline;
        });
        self.phase = if stays { Phase::Failed } else { Phase::Gone };
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.try_send(LoadEvent::Failed(AdminError { code, message: reason }));
        }
    }

    /// A failed model is tried again.
    pub(super) fn retry(&mut self) {
        tracing::info!(model = self.model.spec.name, "tried again");
        self.model.update(|view| {
            view.state = ModelState::Loading;
            view.retry_at = None;
        });
        self.resolve();
    }

    /// Starts an instance on `gpus`, or where it finds room beside those `taken`.
    pub(super) fn start_instance(&mut self, gpus: Vec<u32>, taken: Vec<u32>) {
        self.epoch += 1;
        self.load_error = None;
        self.load_began = Instant::now();
        self.ping = 0;
        self.phase = Phase::Starting;
        self.deadline = None;
        self.model.listen_to(Some(self.epoch));
        let capacity = outbox_capacity(requests_max(&self.options));
        let command = &self.config.worker;
        let spawned = Instance::spawn(command, &self.model, &self.metrics, self.epoch, capacity);
        let instance = match spawned {
            Ok(instance) => instance,
            Err(error) => {
                let program = command.program.display();
                return self.on_death(&Death {
                    how: format!("could not be started ({program}: {error})"),
                    last_lines: Vec::new(),
                    blame: Blame::None,
                });
            }
        };
        let mut options = LoadOptions { gpus_taken: taken, ..self.options.clone() };
        if !gpus.is_empty() {
            options.gpus = gpus;
        }
        let (name, dir) = (self.model.spec.name.clone(), self.dir.clone());
        // The outbox is new and empty.
        instance.link.send(ToWorker::Load(WorkerSpec { protocol: PROTOCOL, name, dir, options }));
        tracing::info!(model = self.model.spec.name, pid = instance.pid(), "worker started");
        let restarting = self.was_ready;
        self.model.update(|view| {
            view.pid = instance.pid();
            view.restarts += u32::from(restarting);
        });
        if restarting {
            self.metrics.restarted(&self.model.spec.name);
        }
        self.instance = Some(instance);
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
                let name = &self.model.spec.name;
                tracing::warn!(model = name, ?frame, "a frame out of turn was ignored");
            }
        }
    }

    pub(super) fn on_ready(&mut self, info: ModelInfo) {
        let Some(instance) = &self.instance else { return };
        let limit = info.max_running.saturating_add(info.max_waiting).max(1);
        let seconds = self.load_began.elapsed().as_secs_f64();
        let (max_len, mut before) = (info.max_len, None);
        if let Some(reservation) = &self.reservation {
            reservation.settle(&info.gpus);
        }
        self.model.update(|view| {
            view.state = ModelState::Ready;
            view.reason = self.last_death.clone();
            view.progress = None;
            before = view.info.replace(Arc::new(info));
        });
        let name = &self.model.spec.name;
        if let Some(before) = before.map(|info| info.max_len).filter(|&before| max_len < before) {
            tracing::warn!(
                model = name,
                max_len,
                before,
                "requests may be shorter now: those that run end there; load with a larger kv_tokens or max_len"
            );
        }
        self.metrics.loaded(name, seconds);
        self.metrics.up(name, true);
        self.model.sessions.attach(self.epoch, instance.link.outbox().clone(), limit);
        self.metrics.parked(name, self.model.sessions.parked());
        tracing::info!(model = name, seconds, "ready");
        self.phase = Phase::Serving;
        self.deadline = None;
        self.serving_since = Instant::now();
        self.was_ready = true;
        self.was_ever_ready = true;
        self.failed_loads = 0;
        self.fallback = None;
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.try_send(LoadEvent::Ready(Box::new(self.model.status())));
        }
    }
}

/// Requests that may be in flight with a model loaded like this.
fn requests_max(options: &LoadOptions) -> usize {
    options.max_running.saturating_add(options.max_waiting).clamp(1, 1 << 20) as usize
}
