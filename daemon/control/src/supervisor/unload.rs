//! The way out: drain, then SIGTERM, then SIGKILL.

use std::time::{Duration, Instant};

use minisgl_proto::ToWorker;
use minisgl_proto::admin::{ModelState, ModelStatus};
use tokio::sync::oneshot;

use super::{Phase, Supervisor};

impl Supervisor {
    pub(super) fn on_unload(
        &mut self,
        force: bool,
        drain: Duration,
        reply: oneshot::Sender<ModelStatus>,
    ) {
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
    pub(super) fn terminate(&mut self, reason: &str) {
        if self.phase == Phase::Terminating {
            return;
        }
        let aborted = self.model.streams.abort_all();
        if aborted > 0 {
            tracing::warn!(model = self.model.name, aborted, "{reason}: requests were aborted");
        }
        self.metrics.up(&self.model.name, false);
        if let Some(worker) = &self.worker {
            worker.terminate();
        }
        self.phase = Phase::Terminating;
        self.deadline = Some(Instant::now() + self.config.term_grace);
    }
}
