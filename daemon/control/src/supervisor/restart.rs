//! Another instance for the same model, because an operator asks for it; perhaps loaded in another way.
//!
//! The sessions wait. When the new options do not load, the model is loaded as it was before.

use std::time::Instant;

use minisgl_proto::LoadOptions;
use minisgl_proto::admin::{AdminError, AdminErrorCode, LoadEvent, ModelState};
use tokio::sync::{mpsc, oneshot};

use super::{Phase, Supervisor, failed};
use crate::event::Watch;

/// Lines of a restart's answer that may wait for a slow caller; progress beyond it is dropped.
const EVENTS_MAX: usize = 256;

impl Supervisor {
    pub(super) fn on_restart(
        &mut self,
        options: Option<LoadOptions>,
        reply: oneshot::Sender<Result<Watch, AdminError>>,
    ) {
        let is_free = match self.phase {
            Phase::Serving | Phase::Backoff | Phase::Failed => true,
            Phase::Starting | Phase::Queued => self.was_ready,
            Phase::Resolving | Phase::Replacing | Phase::Draining | Phase::Terminating => false,
            Phase::Gone => false,
        };
        if !is_free || self.watcher.is_some() || self.is_unkillable {
            let name = &self.model.spec.name;
            let state = format!("{:?}", self.model.state()).to_lowercase();
            let message =
                format!("model \"{name}\" is {state} and cannot be restarted now; try again later");
            let _ = reply.send(Err(AdminError { code: AdminErrorCode::Conflict, message }));
            return;
        }
        let (watcher, watch) = mpsc::channel(EVENTS_MAX);
        self.watcher = Some(watcher);
        let _ = reply.send(Ok(watch));
        if let Some(options) = options {
            let before = std::mem::replace(&mut self.options, options);
            // A failed model has nothing to go back to.
            self.fallback = (self.phase != Phase::Failed).then_some(before);
            self.show_options();
        }
        self.deaths = 0;
        self.last_death = None;
        tracing::info!(model = self.model.spec.name, "restarted by an operator");
        if self.phase == Phase::Failed {
            return self.retry();
        }
        self.model.update(|view| {
            view.state = ModelState::Restarting;
            view.reason = Some("restarted by an operator".to_string());
            view.progress = None;
        });
        match &self.instance {
            None => self.replace(),
            Some(instance) => {
                self.model.sessions.suspend();
                self.metrics.up(&self.model.spec.name, false);
                instance.terminate();
                self.phase = Phase::Replacing;
                self.deadline = Some(Instant::now() + self.config.term_grace);
            }
        }
    }

    /// The way is free for the next instance.
    pub(super) fn replace(&mut self) {
        self.phase = Phase::Replacing;
        if self.fallback.is_some() {
            self.reservation = None; // of the options before
        }
        self.place();
    }

    /// The new options do not work: those before are in force again.
    pub(super) fn go_back(&mut self, why: &str) {
        let Some(options) = self.fallback.take() else { return };
        let name = &self.model.spec.name;
        tracing::error!(model = name, why, "not loaded with new options; it is loaded as before");
        self.options = options;
        self.reservation = None;
        self.show_options();
        self.last_death = Some(format!("loaded as before, because with new options {why}"));
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.try_send(LoadEvent::Failed(failed(format!(
                "{why}; model \"{name}\" is loaded as before"
            ))));
        }
        self.place();
    }

    fn show_options(&self) {
        let options = self.options.clone();
        self.model.update(|view| view.options = options);
    }
}
