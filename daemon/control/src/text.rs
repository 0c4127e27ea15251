//! The text process of a model: it alone reads `tokenizer.json` and the chat template, under limits.
//!
//! ```text
//!   run -> (jobs and bytes are bounded: else Busy) -> driver's queue -> process -> answer
//!                                                         ^    |
//!                                                         +----+ died: another is started, what it was doing is
//!                                                                tried again, one job at a time
//! ```
//!
//! A job that was in the process when it died is tried once more, alone; if the process dies again, that job is
//! refused. One that takes too long is refused with the process that it holds up; the others are sent again.
//!
//! Owns: the process, from spawn to reap, and every job between `run` and its answer. Must never: read a model's
//! files itself.

mod driver;
mod process;

use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use minisgl_proto::text::{TextAnswer, TextFault, TextInfo, TextJob};
use tokio::sync::{mpsc, oneshot};

use crate::command::WorkerCommand;
use driver::{Driver, Message, Pending};
use process::Process;

/// How a model's text process is started, and what it may take.
#[derive(Clone, Debug)]
pub struct TextConfig {
    /// How it is started; it gets its end of the socket as standard input.
    pub command: WorkerCommand,
    /// The dialect that the model was loaded with.
    pub dialect: Option<String>,
    /// For reading the model's files.
    pub load: Duration,
    /// For one job.
    pub job: Duration,
    /// Jobs that wait or run.
    pub jobs_max: usize,
    /// Bytes of text in them. One job alone may have more.
    pub bytes_max: usize,
}

impl Default for TextConfig {
    fn default() -> Self {
        TextConfig {
            command: WorkerCommand { args: vec!["text".into()], ..WorkerCommand::current_exe() },
            dialect: None,
            load: Duration::from_secs(120),
            job: Duration::from_secs(60),
            jobs_max: 16 << 10,
            bytes_max: 128 << 20,
        }
    }
}

/// A model's text process. Clones are the same; the process ends with the last of them, or with the model.
#[derive(Clone)]
pub struct Text(Arc<Handle>);

struct Handle {
    info: Arc<TextInfo>,
    jobs: mpsc::UnboundedSender<Message>,
    next_id: AtomicU64,
    load: Arc<Load>,
}

/// What waits or runs. The channel to the driver is unbounded; this is its bound.
struct Load {
    jobs_max: usize,
    bytes_max: usize,
    taken: Mutex<(usize, usize)>,
}

/// A job's place, from its admission until its work has really stopped.
struct Place {
    load: Arc<Load>,
    bytes: usize,
}

impl Load {
    fn admit(self: &Arc<Load>, bytes: usize) -> Result<Place, TextFault> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (jobs, sum) = *taken;
        if jobs >= self.jobs_max {
            return Err(TextFault::Busy(format!(
                "{jobs} texts wait to be tokenized, the limit is {}",
                self.jobs_max
            )));
        }
        if jobs > 0 && sum + bytes > self.bytes_max {
            return Err(TextFault::Busy(format!(
                "{sum} bytes of text wait to be tokenized, {bytes} more are over the limit of {}",
                self.bytes_max
            )));
        }
        *taken = (jobs + 1, sum + bytes);
        Ok(Place { load: Arc::clone(self), bytes })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.load.taken.lock().unwrap_or_else(PoisonError::into_inner);
        *taken = (taken.0 - 1, taken.1 - self.bytes);
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Text")
    }
}

impl Text {
    /// Starts a process that reads the text side of `dir`, and waits until it has. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// The folder's text side is broken, or takes too much; names the file.
    pub async fn start(config: &TextConfig, dir: &Path) -> Result<Text, String> {
        let (process, info) = Process::start(config, dir).await?;
        let (jobs, inbox) = mpsc::unbounded_channel();
        let driver = Driver::new(config.clone(), dir.to_path_buf(), process, inbox);
        tokio::spawn(driver.run());
        let load = Load {
            jobs_max: config.jobs_max,
            bytes_max: config.bytes_max,
            taken: Mutex::new((0, 0)),
        };
        let (info, load) = (Arc::new(info), Arc::new(load));
        Ok(Text(Arc::new(Handle { info, jobs, next_id: AtomicU64::new(1), load })))
    }

    /// What the folder's text side is.
    pub fn info(&self) -> &Arc<TextInfo> {
        &self.0.info
    }

    /// Does a job. A caller that drops the answer gives the job up: it leaves the queue, or stops soon.
    ///
    /// # Errors
    /// See [`TextFault`]; `Busy` at once.
    pub fn run(&self, job: TextJob) -> Result<Answer, TextFault> {
        let place = self.0.load.admit(bytes_of(&job))?;
        let id = self.0.next_id.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        let pending = Pending::new(id, job, reply, place)
            .map_err(|why| TextFault::TokenizerFailed(why.to_string()))?;
        self.0.jobs.send(Message::Job(Box::new(pending))).map_err(|_| gone())?;
        Ok(Answer { id, answer, jobs: self.0.jobs.clone(), done: false })
    }
}

impl Text {
    /// The model is gone: so is its process from now on, and jobs are refused.
    pub(crate) fn end(&self) {
        let _ = self.0.jobs.send(Message::End);
    }
}

fn gone() -> TextFault {
    TextFault::Gone("the model is being unloaded".to_owned())
}

fn bytes_of(job: &TextJob) -> usize {
    match job {
        TextJob::Encode { texts, .. } => texts.iter().map(String::len).sum(),
        TextJob::EncodeChat { conversation, .. } => conversation.len(),
        TextJob::Decode { lists, .. } => lists.iter().map(|ids| ids.len() * size_of::<u32>()).sum(),
    }
}

/// What becomes of a job.
pub struct Answer {
    id: u64,
    answer: oneshot::Receiver<Result<TextAnswer, TextFault>>,
    jobs: mpsc::UnboundedSender<Message>,
    done: bool,
}

impl Future for Answer {
    type Output = Result<TextAnswer, TextFault>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = Pin::new(&mut self.answer).poll(context);
        self.done |= answer.is_ready();
        answer.map(|answer| answer.unwrap_or_else(|_| Err(gone())))
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.done {
            let _ = self.jobs.send(Message::Abandon(self.id));
        }
    }
}
