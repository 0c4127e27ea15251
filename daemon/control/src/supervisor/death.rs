//! An instance is dead: what becomes of its sessions, and whether another takes its place.
//!
//! A death has two signs, the closed link and the exit status. After the first nothing more is sent; the
//! instance is reaped when both were seen, because its last frames have tokens, and may say why it died.

use std::process::ExitStatus;
use std::time::Instant;

use minisgl_proto::admin::{AdminErrorCode, ModelState};

use super::{LINGER, Phase, Supervisor, failed};
use crate::instance::Death;
use crate::resolve::Retry;
use crate::sessions::Blame;

impl Supervisor {
    pub(super) fn on_closed(&mut self, error: Option<String>) {
        if let Some(error) = error {
            self.kill(&format!("it broke the protocol: {error}"));
        }
        let Some(instance) = &mut self.instance else { return };
        instance.closed = true;
        self.model.sessions.suspend();
        if instance.is_reaped() {
            self.reap();
        } else if matches!(self.phase, Phase::Starting | Phase::Serving) {
            self.deadline = Some(Instant::now() + LINGER);
        }
    }

    pub(super) fn on_exited(&mut self, status: ExitStatus) {
        let Some(instance) = &mut self.instance else { return };
        instance.reaped(status);
        self.model.sessions.suspend();
        if instance.closed {
            self.reap();
        } else {
            // Its last frames are still in the socket.
            self.deadline = Some(Instant::now() + LINGER);
        }
    }

    /// The instance is dead, and everything it had to say was heard.
    pub(super) fn reap(&mut self) {
        let Some(instance) = self.instance.take() else { return };
        self.on_death(&instance.death());
    }

    pub(super) fn on_death(&mut self, death: &Death) {
        let Death { how, last_lines, blame } = death;
        self.deadline = None;
        self.killed_at = None;
        self.is_unkillable = false;
        let name = self.model.spec.name.clone();
        self.model.listen_to(None);
        self.metrics.up(&name, false);
        self.metrics.nothing_runs(&name);
        if let Some(reservation) = &self.reservation {
            reservation.pause();
        }
        self.model.update(|view| view.pid = None);
        for reply in self.flushes.drain(..) {
            let _ = reply.send(Err(failed(format!("the worker of model \"{name}\" {how}"))));
        }
        match self.phase {
            Phase::Draining | Phase::Terminating => {
                let told = format!("the worker of model \"{name}\" {how} while it was unloaded");
                self.model.sessions.fail_all(&told);
                self.phase = Phase::Gone;
            }
            Phase::Replacing => {
                self.park(Blame::None, how);
                self.replace();
            }
            _ => {
                let why = match (self.load_error.take(), last_lines.last()) {
                    (Some(reason), _) => reason,
                    (None, Some(line)) => format!("the worker {how}; its last line: {line}"),
                    (None, None) => format!("the worker {how}"),
                };
                tracing::error!(model = name, why, last_lines = ?last_lines, "the worker is dead");
                self.on_unwanted_death(*blame, how, why);
            }
        }
    }

    fn on_unwanted_death(&mut self, blame: Blame, how: &str, why: String) {
        if !self.was_ready {
            return self.fail(AdminErrorCode::Failed, why, Retry::Backoff);
        }
        if self.phase == Phase::Starting && self.fallback.is_some() {
            return self.go_back(&why);
        }
        let was_serving = self.phase == Phase::Serving;
        let had_progress = self.park(blame, how);
        let was_stable = self.serving_since.elapsed() >= self.config.restart.stable;
        if had_progress || (was_serving && was_stable) {
            self.deaths = 0;
        }
        self.deaths += 1;
        let deaths = self.deaths;
        if deaths >= self.config.restart.give_up {
            let why = format!("{why}; given up after {deaths} failures in a row");
            return self.fail(AdminErrorCode::Failed, why, Retry::Backoff);
        }
        self.last_death = Some(format!("restarted, because {why}"));
        self.phase = Phase::Backoff;
        self.deadline = Some(Instant::now() + self.config.restart.backoff.pause(deaths));
        self.model.update(|view| {
            view.state = ModelState::Restarting;
            view.reason = Some(why);
            view.progress = None;
        });
    }

    /// Lets the sessions wait. Returns whether the instance had brought any forward.
    fn park(&self, blame: Blame, how: &str) -> bool {
        let name = &self.model.spec.name;
        let parked = self.model.sessions.park(blame, how);
        self.metrics.parked(name, parked.waiting);
        self.metrics.moved(name, parked.waiting, parked.given_up);
        tracing::info!(
            model = name,
            waiting = parked.waiting,
            lost = parked.lost,
            given_up = parked.given_up,
            "requests wait for the next worker"
        );
        parked.had_progress
    }
}
