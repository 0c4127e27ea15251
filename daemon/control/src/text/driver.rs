//! The task that owns a text process: which job goes in when, and what happens when it dies.
//!
//! Owns: the queue, the jobs in the process, and the process. Must never: wait for anything but the next event.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use minisgl_proto::frame::{self, FrameError};
use minisgl_proto::text::{FromText, TextAnswer, TextFault, TextJob, ToText};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::process::Process;
use super::{Place, TextConfig};

/// Jobs in the process at once; it has as many threads at most.
const INSIDE_MAX: usize = 4;
/// Deaths that a job may see from inside; at this many it is refused.
const DEATHS_MAX: u32 = 2;
/// Pause before a process is started anew that could not be, at first and at most; it doubles.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// What the driver hears from callers.
pub(super) enum Message {
    /// Something to do.
    Job(Box<Pending>),
    /// Nobody waits for this job any more.
    Abandon(u64),
    /// The model is gone, whoever still holds its text.
    End,
}

/// A job that was not answered yet.
pub(super) struct Pending {
    id: u64,
    /// As it is sent, and sent again.
    frame: Vec<u8>,
    reply: oneshot::Sender<Result<TextAnswer, TextFault>>,
    /// Processes that died with it inside.
    deaths: u32,
    sent: Option<Instant>,
    abandoned: bool,
    _place: Place,
}

impl Pending {
    pub(super) fn new(
        id: u64,
        job: TextJob,
        reply: oneshot::Sender<Result<TextAnswer, TextFault>>,
        place: Place,
    ) -> Result<Pending, FrameError> {
        let mut frame = Vec::new();
        frame::encode(&ToText::Job { id, job }, &mut frame)?;
        Ok(Pending { id, frame, reply, deaths: 0, sent: None, abandoned: false, _place: place })
    }

    fn answer(self, answer: Result<TextAnswer, TextFault>) {
        // Nobody listens when the client has gone meanwhile.
        let _ = self.reply.send(answer);
    }
}

/// The task's state.
pub(super) struct Driver {
    config: TextConfig,
    dir: PathBuf,
    process: Option<Process>,
    inbox: mpsc::UnboundedReceiver<Message>,
    queue: VecDeque<Pending>,
    inside: Vec<Pending>,
    /// Starts that failed in a row, and when the next may be.
    failures: u32,
    next_start: Instant,
    last_failure: String,
}

enum Event {
    Message(Option<Message>),
    Said(Option<FromText>),
    Late,
    Start,
}

impl Driver {
    pub(super) fn new(
        config: TextConfig,
        dir: PathBuf,
        process: Process,
        inbox: mpsc::UnboundedReceiver<Message>,
    ) -> Driver {
        Driver {
            config,
            dir,
            process: Some(process),
            inbox,
            queue: VecDeque::new(),
            inside: Vec::new(),
            failures: 0,
            next_start: Instant::now(),
            last_failure: String::new(),
        }
    }

    /// Handles events until nobody holds the model's text any more.
    pub(super) async fn run(mut self) {
        loop {
            self.fill();
            match self.next().await {
                Event::Message(Some(Message::Job(job))) => self.on_job(*job),
                Event::Message(Some(Message::Abandon(id))) => self.on_abandon(id),
                Event::Message(None | Some(Message::End)) => break,
                Event::Said(Some(FromText::Done { id, answer })) => self.on_done(id, answer),
                Event::Said(Some(_)) => self.on_death("it said what it may not").await,
                Event::Said(None) => self.on_death("").await,
                Event::Late => self.on_late().await,
                Event::Start => self.start().await,
            }
        }
        if let Some(mut process) = self.process.take() {
            process.kill().await;
        }
    }

    async fn next(&mut self) -> Event {
        let late = self.inside.iter().filter_map(|job| job.sent).min();
        let late = late.map(|sent| sent + self.config.job);
        // A process is started when there is something to do, or at once after the first death.
        let start = (self.process.is_none() && (self.failures == 0 || !self.queue.is_empty()))
            .then_some(self.next_start);
        let said = async {
            match &mut self.process {
                Some(process) => process.answer().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            said = said => Event::Said(said),
            () = at(late) => Event::Late,
            () = at(start) => Event::Start,
            message = self.inbox.recv() => Event::Message(message),
        }
    }

    /// Sends what there is room for. While a job is suspected of a death, it is inside alone.
    fn fill(&mut self) {
        let Some(process) = &self.process else { return };
        while let Some(next) = self.queue.front() {
            let suspected = next.deaths > 0 || self.inside.iter().any(|job| job.deaths > 0);
            if self.inside.len() >= INSIDE_MAX || (suspected && !self.inside.is_empty()) {
                return;
            }
            let Some(mut job) = self.queue.pop_front() else { return };
            process.send(job.frame.clone());
            job.sent = Some(Instant::now());
            self.inside.push(job);
        }
    }

    fn on_job(&mut self, job: Pending) {
        let waits = self.process.is_none() && self.failures > 0;
        if waits && Instant::now() < self.next_start {
            let why = self.last_failure.clone();
            return job.answer(Err(TextFault::Gone(why)));
        }
        self.queue.push_back(job);
    }

    fn on_abandon(&mut self, id: u64) {
        self.queue.retain(|job| job.id != id);
        // What is inside keeps its place until it has really stopped.
        if let Some(job) = self.inside.iter_mut().find(|job| job.id == id) {
            job.abandoned = true;
            let mut word = Vec::new();
            if let (Some(process), Ok(())) =
                (&self.process, frame::encode(&ToText::Abandon(id), &mut word))
            {
                process.send(word);
            }
        }
    }

    fn on_done(&mut self, id: u64, answer: Result<TextAnswer, TextFault>) {
        if let Some(at) = self.inside.iter().position(|job| job.id == id) {
            self.inside.swap_remove(at).answer(answer);
        }
    }

    /// The process is gone, or must go: what was inside is tried again, one by one, unless it was there before.
    async fn on_death(&mut self, why: &str) {
        let status = match &mut self.process {
            Some(process) => process.death().await,
            None => return,
        };
        self.process = None;
        self.next_start = Instant::now() + PAUSE.0;
        tracing::error!(target: "text", dir = %self.dir.display(), jobs = self.inside.len(),
            "the text process died ({status}) {why}; another is started");
        let mut again = Vec::new();
        for mut job in self.inside.drain(..).filter(|job| !job.abandoned) {
            job.deaths += 1;
            if job.deaths >= DEATHS_MAX {
                let why = format!(
                    "the process that tokenizes it died {DEATHS_MAX} times ({status}); it may take more memory than it may"
                );
                job.answer(Err(TextFault::Killed(why)));
            } else {
                again.push(job);
            }
        }
        // Behind what waits: a job that nobody suspects should not wait for one that kills again.
        again.sort_by_key(|job| job.id);
        self.queue.extend(again);
    }

    /// A job takes too long: it is refused, and the process ends with it. The others were only beside it.
    async fn on_late(&mut self) {
        let now = Instant::now();
        if let Some(process) = &mut self.process {
            process.kill().await;
        }
        self.process = None;
        let limit = self.config.job;
        let is_late = |job: &Pending| job.sent.is_some_and(|sent| sent + limit <= now);
        for mut job in self.inside.drain(..) {
            if is_late(&job) {
                tracing::error!(target: "text", dir = %self.dir.display(), "a text takes longer than {} s; the text \
                    process is started anew", limit.as_secs_f64());
                let why = format!("it takes longer than {} s", limit.as_secs_f64());
                job.answer(Err(TextFault::Killed(why)));
            } else if !job.abandoned {
                job.sent = None;
                self.queue.push_front(job);
            }
        }
    }

    async fn start(&mut self) {
        match Process::start(&self.config, &self.dir).await {
            Ok((process, _)) => {
                self.process = Some(process);
                self.failures = 0;
            }
            Err(why) => {
                tracing::error!(target: "text", "the text process cannot be started anew: {why}");
                self.failures += 1;
                let doublings = self.failures.saturating_sub(1).min(16);
                self.next_start =
                    Instant::now() + PAUSE.0.saturating_mul(1 << doublings).min(PAUSE.1);
                self.last_failure.clone_from(&why);
                for job in self.queue.drain(..) {
                    job.answer(Err(TextFault::Gone(why.clone())));
                }
            }
        }
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
