//! One worker's life: the process, and the link to it.
//!
//! Owns: where each frame of this worker goes: tokens to the sessions, counters to the metrics, the rest to the
//! supervisor. Must never: decide what a frame or a death means for the model.

use std::process::ExitStatus;
use std::sync::{Arc, OnceLock};

use minisgl_proto::{FromWorker, ToWorker};
use tracing::Level;

use crate::config::WorkerCommand;
use crate::event::Event;
use crate::link::{Link, Sink};
use crate::metrics::{Metrics, StepMetrics};
use crate::model::Model;
use crate::process::Process;
use crate::sessions::Blame;

/// Lines of standard error that say how it died, at most.
const LAST_LINES: usize = 20;

/// A worker, alive, or dead and not yet described. Dropping it kills it.
pub(crate) struct Instance {
    /// Tells its events from those of the instances before it.
    pub(crate) epoch: u32,
    /// Set once its link is closed.
    pub(crate) closed: bool,
    pub(crate) link: Link,
    process: Process,
    model: Arc<Model>,
    /// Where its lines begin in the model's log.
    log_mark: u64,
}

impl Instance {
    /// Starts one; `Load` is the caller's first frame.
    ///
    /// # Errors
    /// Its process cannot be started.
    pub(crate) fn spawn(
        command: &WorkerCommand,
        model: &Arc<Model>,
        metrics: &Metrics,
        epoch: u32,
        outbox_capacity: usize,
    ) -> std::io::Result<Instance> {
        let log_mark = model.log.mark();
        let logged = Arc::clone(model);
        let log = move |level, text: String| {
            log(level, &logged.spec.name, &text);
            logged.log.push(text);
        };
        let (process, socket) = Process::spawn(command, log)?;
        let (reader, writer) = socket.into_split();
        let (metrics, steps) = (metrics.clone(), OnceLock::new());
        let sink = InstanceSink { epoch, model: Arc::clone(model), metrics, steps };
        let link = Link::over(reader, writer, outbox_capacity, sink);
        let model = Arc::clone(model);
        Ok(Instance { epoch, closed: false, link, process, model, log_mark })
    }

    /// Its process id, until it is reaped.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// Whether it was reaped.
    pub(crate) fn is_reaped(&self) -> bool {
        self.process.status().is_some()
    }

    /// Waits for its end, and reaps it. Can be cancelled.
    pub(crate) async fn wait(&mut self) -> ExitStatus {
        self.process.wait().await
    }

    /// Notes how it ended.
    pub(crate) fn reaped(&mut self, status: ExitStatus) {
        self.process.reaped(status);
    }

    /// Asks it to exit.
    pub(crate) fn terminate(&self) {
        self.process.terminate();
    }

    /// Ends it, for a reason that follows "because".
    pub(crate) fn kill(&mut self, fault: String) {
        self.process.kill(fault);
    }

    /// How it ended.
    pub(crate) fn death(&self) -> Death {
        Death {
            how: self.process.death(),
            last_lines: self.model.log.since(self.log_mark, LAST_LINES),
            blame: match self.process.was_killed_from_outside() {
                true => Blame::Little,
                false => Blame::Much,
            },
        }
    }
}

/// The end of an instance.
pub(crate) struct Death {
    /// In words that follow "the worker".
    pub(crate) how: String,
    /// The last lines it wrote to standard error, oldest first.
    pub(crate) last_lines: Vec<String>,
    /// How much it speaks against the requests that the instance had.
    pub(crate) blame: Blame,
}

/// Takes the frames of one instance.
struct InstanceSink {
    epoch: u32,
    model: Arc<Model>,
    metrics: Metrics,
    /// From the first step on.
    steps: OnceLock<StepMetrics>,
}

impl Sink for InstanceSink {
    async fn frame(&self, frame: FromWorker) {
        let Self { epoch, model, metrics, steps } = self;
        match frame {
            FromWorker::Step { events, stats } => {
                model.sessions.route(*epoch, events);
                model.step(*epoch, stats, |before| {
                    steps.get_or_init(|| metrics.steps_of(&model.spec.name)).step(before, &stats);
                });
            }
            FromWorker::Pong(number) => model.pong(*epoch, number),
            frame => {
                model.heard(*epoch);
                let _ = model.events.send(Event::Frame { epoch: *epoch, frame }).await;
            }
        }
    }

    fn unsendable(&self, frame: ToWorker, why: String) {
        match frame {
            ToWorker::Submit(submit) => self.model.sessions.refuse(self.epoch, submit.id, why),
            other => {
                let model = &self.model.spec.name;
                tracing::error!(model, ?other, why, "a frame was dropped");
            }
        }
    }

    async fn closed(&self, error: Option<String>) {
        let _ = self.model.events.send(Event::Closed { epoch: self.epoch, error }).await;
    }
}

/// The level of an event is part of its place in the code, so there is a place for each.
fn log(level: Level, model: &str, text: &str) {
    match level {
        Level::ERROR => tracing::error!(target: "worker", model, "{text}"),
        Level::WARN => tracing::warn!(target: "worker", model, "{text}"),
        Level::INFO => tracing::info!(target: "worker", model, "{text}"),
        Level::DEBUG => tracing::debug!(target: "worker", model, "{text}"),
        Level::TRACE => tracing::trace!(target: "worker", model, "{text}"),
    }
}
