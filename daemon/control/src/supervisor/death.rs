//! A worker is dead: who is told what, and whether another takes its place.
//!
//! A death has two signs, the closed socket and the exit status. The first shuts the door at once; the
//! worker is buried when both were seen, because its last frames may say why it died.

use std::time::Instant;

use minisgl_proto::StepStats;
use minisgl_proto::admin::ModelState;

use super::{LINGER, Phase, Supervisor, failed};

impl Supervisor {
    pub(super) fn on_closed(&mut self, error: Option<String>) {
        let Some(worker) = &mut self.worker else { return };
        if let Some(error) = error {
            worker.kill(format!("it broke the protocol: {error}"));
        }
        worker.closed = true;
        if worker.status.is_some() {
            self.bury();
        } else if matches!(self.phase, Phase::Starting | Phase::Serving) {
            self.model.streams.shut();
            self.deadline = Some(Instant::now() + LINGER);
        }
    }

    pub(super) fn on_exited(&mut self, status: std::process::ExitStatus) {
        let Some(worker) = &mut self.worker else { return };
        worker.status = Some(status);
        self.model.streams.shut();
        if worker.closed {
            self.bury();
        } else {
            // Its last frames are still in the socket.
            self.deadline = Some(Instant::now() + LINGER);
        }
    }

    /// The worker is dead, and everything it had to say was heard.
    pub(super) fn bury(&mut self) {
        let Some(worker) = self.worker.take() else { return };
        self.on_death(&worker.death(), &worker.last_words());
    }

    pub(super) fn on_death(&mut self, death: &str, last_words: &[String]) {
        self.deadline = None;
        let name = self.model.name.clone();
        let wanted = matches!(self.phase, Phase::Draining | Phase::Terminating);
        let first_load = self.epoch == 1
            && matches!(self.phase, Phase::Resolving | Phase::Queued | Phase::Starting);
        self.metrics.up(&name, false);
        self.metrics.gauges(&name, &StepStats::default());
        self.model.forget_pulse();
        self.seat.pause();
        self.model.update(|view| {
            view.pid = None;
            view.killed = None;
        });
        for reply in self.flushes.drain(..) {
            let _ = reply.send(Err(failed(format!("the worker of model \"{name}\" {death}"))));
        }
        if wanted {
            let told = format!("the worker of model \"{name}\" {death} while it was unloaded");
            self.model.streams.fail_all(&told);
            self.phase = Phase::Gone;
            return;
        }
        let why = match self.load_error.take() {
            Some(reason) => reason,
            None => match last_words.last() {
                Some(line) => format!("the worker {death}; its last words: {line}"),
                None => format!("the worker {death}"),
            },
        };
        if first_load {
            return self.fail_load(why);
        }
        if self.phase == Phase::Serving
            && self.serving_since.elapsed() >= self.config.restart.stable
        {
            self.failures = 0;
        }
        self.failures += 1;
        let given_up = self.failures >= self.config.restart.give_up;
        let next = if given_up { "it is not restarted again" } else { "it is being restarted" };
        let told = format!("the worker of model \"{name}\" {death}; {next}");
        let lost = self.model.streams.fail_all(&told);
        tracing::error!(model = name, why, lost_requests = lost, last_words = ?last_words, "{next}");
        if given_up {
            self.phase = Phase::Failed;
            self.seat.vacate();
            let failures = self.failures;
            self.model.update(|view| {
                view.state = ModelState::Failed;
                view.reason = Some(format!(
                    "{why}; given up after {failures} failures in a row: load it again"
                ));
            });
        } else {
            let pause = self.config.restart.pause(self.failures);
            self.last_death = Some(format!("restarted, because {why}"));
            self.phase = Phase::Waiting;
            self.deadline = Some(Instant::now() + pause);
            self.model.update(|view| {
                view.state = ModelState::Restarting;
                view.reason = Some(why);
                view.progress = None;
            });
        }
    }
}
