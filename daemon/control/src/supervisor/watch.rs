//! Signs of life, deadlines, flushes.

use std::time::{Duration, Instant};

use minisgl_proto::ToWorker;
use minisgl_proto::admin::{AdminError, AdminErrorCode, ModelState};
use tokio::sync::oneshot;

use super::{Phase, Supervisor};

/// Flushes that may wait for their answer.
const FLUSHES_MAX: usize = 16;
/// How long an instance may live on after SIGKILL before the model is failed: a driver that hangs holds it.
const UNKILLABLE: Duration = Duration::from_secs(30);

impl Supervisor {
    pub(super) fn on_deadline(&mut self) {
        self.deadline = None;
        if self.instance.as_ref().is_some_and(|instance| instance.is_reaped()) {
            return self.reap(); // somebody else holds its socket open
        }
        match self.phase {
            Phase::Starting | Phase::Serving => self.kill("it did not exit by itself"),
            Phase::Terminating | Phase::Replacing => self.kill("it did not heed SIGTERM"),
            Phase::Draining => self.terminate("unloaded before the request was done"),
            Phase::Backoff => self.place(),
            Phase::Failed => self.retry(),
            Phase::Resolving | Phase::Queued | Phase::Gone => {}
        }
    }

    pub(super) fn kill(&mut self, fault: &str) {
        if let Some(instance) = &mut self.instance {
            instance.kill(fault.to_string());
            self.killed_at.get_or_insert_with(Instant::now);
        }
    }

    pub(super) fn on_tick(&mut self) {
        let name = &self.model.spec.name;
        self.model.update(|view| view.checked_at = Instant::now());
        let expired = self.model.sessions.expire(self.config.park);
        if expired > 0 {
            tracing::error!(model = name, expired, "requests waited too long for a worker");
        }
        self.metrics.parked(name, self.model.sessions.parked());
        if self.killed_at.is_some() {
            return self.watch_killed(UNKILLABLE);
        }
        let (_, silence) = self.model.heartbeat();
        let stalled = self.model.state() == ModelState::Stalled;
        let fault = match self.phase {
            Phase::Starting if silence >= self.config.load_silence => "made no progress in loading",
            Phase::Serving if stalled && silence >= self.config.stall_kill => {
                "gave no sign of life"
            }
            _ => return self.watch(),
        };
        self.kill(&format!("it {fault} for {:.1} s", silence.as_secs_f64()));
    }

    /// An instance that lives on after SIGKILL is the kernel's or a driver's fault, which no other instance and no
    /// other daemon repairs. Its GPUs stay reserved. Should it end after all, the model goes on.
    pub(super) fn watch_killed(&mut self, patience: Duration) {
        let Some(since) = self.killed_at.filter(|at| at.elapsed() >= patience) else { return };
        if self.is_unkillable {
            return;
        }
        self.is_unkillable = true;
        let pid = self.instance.as_ref().and_then(|instance| instance.pid()).unwrap_or(0);
        let reason = format!(
            "its worker (pid {pid}) lives on {:.0} s after SIGKILL, held by the kernel or a driver: see dmesg, then \
             reboot",
            since.elapsed().as_secs_f64()
        );
        let name = &self.model.spec.name;
        tracing::error!(model = name, pid, reason, "failed");
        self.metrics.up(name, false);
        self.model.sessions.fail_all(&format!("model \"{name}\" failed: {reason}"));
        self.model.update(|view| {
            view.state = ModelState::Failed;
            view.reason = Some(reason);
        });
        for reply in self.unloads.drain(..) {
            let _ = reply.send(self.model.status());
        }
    }

    /// Notes whether the instance stalls, and asks it for a sign of life.
    fn watch(&mut self) {
        let Some(instance) = self.instance.as_ref().filter(|_| self.phase == Phase::Serving) else {
            return;
        };
        let (pong, silence) = self.model.heartbeat();
        let owes = pong < self.ping || self.model.sessions.sent() > 0;
        let stalled = owes && silence >= self.config.stall;
        let was = self.model.state() == ModelState::Stalled;
        let name = &self.model.spec.name;
        if stalled && !was {
            let seconds = silence.as_secs_f64();
            tracing::error!(model = name, seconds, "stalled");
            self.metrics.up(name, false);
            self.model.update(|view| {
                view.state = ModelState::Stalled;
                view.reason = Some(format!("no sign of life for {seconds:.1} s with work to do"));
            });
        } else if was && !stalled {
            tracing::info!(model = name, "goes on");
            self.metrics.up(name, true);
            self.model.update(|view| {
                view.state = ModelState::Ready;
                view.reason = self.last_death.clone();
            });
        }
        // One ping at a time: a worker that reads nothing must not find a heap of them.
        if pong >= self.ping && instance.link.send(ToWorker::Ping(self.ping + 1)) {
            self.ping += 1;
        }
    }

    pub(super) fn on_flush(&mut self, reply: oneshot::Sender<Result<u64, AdminError>>) {
        let ready = self.phase == Phase::Serving && self.flushes.len() < FLUSHES_MAX;
        let instance = self.instance.as_ref().filter(|_| ready);
        if instance.is_some_and(|instance| instance.link.send(ToWorker::Flush)) {
            self.flushes.push_back(reply);
        } else {
            let name = &self.model.spec.name;
            let message = format!("model \"{name}\" cannot be flushed now; see minisglctl ps");
            let _ = reply.send(Err(AdminError { code: AdminErrorCode::Conflict, message }));
        }
    }
}
