//! A serving worker: signs of life, deadlines, flushes.

use std::time::Instant;

use minisgl_proto::ToWorker;
use minisgl_proto::admin::{AdminError, AdminErrorCode, ModelState};
use tokio::sync::oneshot;

use super::{Phase, Supervisor};

/// Flushes that may wait for their answer.
const FLUSHES_MAX: usize = 16;

impl Supervisor {
    pub(super) fn on_deadline(&mut self) {
        self.deadline = None;
        if self.worker.as_ref().is_some_and(|worker| worker.status.is_some()) {
            return self.bury(); // somebody else holds its socket open
        }
        match self.phase {
            Phase::Starting | Phase::Serving => self.kill("it did not exit by itself"),
            Phase::Terminating => self.kill("it did not heed SIGTERM"),
            Phase::Draining => self.terminate("unloaded before the request was done"),
            Phase::Waiting => self.place(),
            Phase::Resolving | Phase::Queued | Phase::Failed | Phase::Gone => {}
        }
    }

    pub(super) fn kill(&mut self, fault: &str) {
        if let Some(worker) = &mut self.worker {
            worker.kill(fault.to_string());
            self.model.update(|view| {
                view.killed.get_or_insert_with(Instant::now);
            });
        }
    }

    pub(super) fn on_tick(&mut self) {
        self.model.update(|view| view.tended = Instant::now());
        let (_, silence) = self.model.pulse();
        let stalled = self.model.view().state == ModelState::Stalled;
        let fault = match self.phase {
            Phase::Starting if silence >= self.config.load_silence => "made no progress in loading",
            Phase::Serving if stalled && silence >= self.config.stall_kill => {
                "gave no sign of life"
            }
            _ => return self.watch(),
        };
        self.kill(&format!("it {fault} for {:.1} s", silence.as_secs_f64()));
    }

    /// Notes whether the worker stalls, and asks it for a sign of life.
    fn watch(&mut self) {
        let Some(worker) = self.worker.as_ref().filter(|_| self.phase == Phase::Serving) else {
            return;
        };
        let (pong, silence) = self.model.pulse();
        let owes = pong < self.ping || self.model.streams.in_flight() > 0;
        let stalled = owes && silence >= self.config.stall;
        let was = self.model.view().state == ModelState::Stalled;
        if stalled && !was {
            let seconds = silence.as_secs_f64();
            tracing::error!(model = self.model.name, seconds, "stalled");
            self.metrics.up(&self.model.name, false);
            self.model.update(|view| {
                view.state = ModelState::Stalled;
                view.reason = Some(format!("no sign of life for {seconds:.1} s with work to do"));
            });
        } else if was && !stalled {
            tracing::info!(model = self.model.name, "goes on");
            self.metrics.up(&self.model.name, true);
            self.model.update(|view| {
                view.state = ModelState::Ready;
                view.reason = self.last_death.clone();
            });
        }
        // One ping at a time: a worker that reads nothing must not find a heap of them.
        if pong >= self.ping && worker.outbox.try_send(ToWorker::Ping(self.ping + 1)).is_ok() {
            self.ping += 1;
        }
    }

    pub(super) fn on_flush(&mut self, reply: oneshot::Sender<Result<u64, AdminError>>) {
        let ready = self.phase == Phase::Serving && self.flushes.len() < FLUSHES_MAX;
        let worker = self.worker.as_ref().filter(|_| ready);
        let sent = worker.is_some_and(|worker| worker.outbox.try_send(ToWorker::Flush).is_ok());
        if sent {
            self.flushes.push_back(reply);
        } else {
            let message =
                format!("model \"{}\" cannot be flushed now; see minisglctl ps", self.model.name);
            let _ = reply.send(Err(AdminError { code: AdminErrorCode::Conflict, message }));
        }
    }
}
