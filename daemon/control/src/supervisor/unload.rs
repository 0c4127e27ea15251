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
        if self.is_unkillable {
            let _ = reply.send(self.model.status());
            return;
        }
        self.unloads.push(reply);
        self.model.sessions.close(&format!("model \"{}\" is being unloaded", self.model.spec.name));
        let reason = if force { "unloaded by force" } else { "unloaded" };
        if self.phase != Phase::Terminating {
            self.model.update(|view| {
                view.state = ModelState::Unloading;
                view.reason = Some(reason.to_string());
                view.retry_at = None;
            });
        }
        let draining = matches!(self.phase, Phase::Serving | Phase::Draining);
        match &self.instance {
            None => self.phase = Phase::Gone,
            Some(_) if force || !draining => self.terminate(reason),
            Some(instance) if self.phase == Phase::Serving => {
                self.metrics.up(&self.model.spec.name, false);
                self.phase = Phase::Draining;
                self.deadline = Some(Instant::now() + drain);
                if !instance.link.send(ToWorker::Drain) {
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

    /// Ends every request and asks the instance to exit.
    pub(super) fn terminate(&mut self, reason: &str) {
        if self.phase == Phase::Terminating {
            return;
        }
        let aborted = self.model.sessions.abort_all();
        if aborted > 0 {
            tracing::warn!(
                model = self.model.spec.name,
                aborted,
                "{reason}: requests were aborted"
            );
        }
        self.metrics.up(&self.model.spec.name, false);
        if let Some(instance) = &self.instance {
            instance.terminate();
        }
        self.phase = Phase::Terminating;
        self.deadline = Some(Instant::now() + self.config.term_grace);
    }
}
