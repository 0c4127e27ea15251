//! One worker process: how it is started, how frames come and go, and how it died.
//!
//! ```text
//!   supervisor --outbox--> writer task --+                    +--> streams (tokens)
//!                                        socket = its stdin --reader task--> supervisor (the rest)
//!                                        stderr --listener task--> log, last words
//! ```
//!
//! Owns: the child and its three tasks; dropping a [`Worker`] kills it. Must never: decide what a
//! frame or a death means for the model. The reader waits for nobody but the supervisor, which waits
//! for nobody.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use minisgl_proto::frame::{self, HEADER_BYTES};
use minisgl_proto::{FromWorker, ToWorker};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::Level;

use crate::children::Group;
use crate::config::WorkerCommand;
use crate::metrics::Metrics;
use crate::model::Model;
use crate::supervisor::Event;

/// Lines of stderr kept to say how it died.
const LAST_WORDS_LINES: usize = 20;
/// How long a dead worker's stderr is read on.
const LAST_WORDS_WAIT: Duration = Duration::from_millis(200);
/// Bytes of a line of stderr at most; the rest of the line is dropped.
const LINE_BYTES_MAX: usize = 4096;
/// Frames are gathered into one write up to this many bytes.
const WRITE_BYTES: usize = 64 << 10;

/// A worker process, alive or a corpse not yet described.
pub(crate) struct Worker {
    /// Tells its events from those of the workers before it.
    pub(crate) epoch: u32,
    /// Frames on their way to it.
    pub(crate) outbox: mpsc::Sender<ToWorker>,
    /// Set once it was reaped.
    pub(crate) status: Option<ExitStatus>,
    /// Set once its end of the socket is closed.
    pub(crate) closed: bool,
    /// Why this side killed it.
    fault: Option<String>,
    child: Child,
    /// Keeps it, and what comes from it, away from the admin socket.
    _group: Option<Group>,
    last_words: LastWords,
    tasks: [JoinHandle<()>; 3],
}

/// The task among [`Worker::tasks`] that reads stderr.
const LISTENER: usize = 2;

type LastWords = Arc<Mutex<VecDeque<String>>>;

impl Worker {
    /// Starts one; `Load` is the caller's first frame.
    pub(crate) fn spawn(
        command: &WorkerCommand,
        model: &Arc<Model>,
        metrics: &Metrics,
        epoch: u32,
        outbox_capacity: usize,
    ) -> std::io::Result<Worker> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut child = Command::new(&command.program)
            .args(&command.args)
            .envs(command.env.iter().map(|(name, value)| (name, value)))
            .env_remove("HF_TOKEN") // it downloads nothing
            .env_remove("NOTIFY_SOCKET") // the daemon alone speaks for the service
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID")
            .env_remove("LISTEN_FDNAMES") // its sockets are the daemon's
            .env_remove("CREDENTIALS_DIRECTORY") // and so are its secrets
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // A Ctrl-C in the daemon's terminal is the daemon's to handle.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let (reader, writer) = UnixStream::from_std(ours)?.into_split();
        let (outbox, frames) = mpsc::channel(outbox_capacity);
        let last_words = LastWords::default();
        let stderr = child.stderr.take().expect("stderr was asked for as a pipe");
        let tasks = [
            tokio::spawn(read(reader, Arc::clone(model), metrics.clone(), epoch)),
            tokio::spawn(write(writer, frames, Arc::clone(model))),
            tokio::spawn(listen(stderr, Arc::clone(model), Arc::clone(&last_words))),
        ];
        Ok(Worker {
            epoch,
            outbox,
            status: None,
            closed: false,
            fault: None,
            _group: child.id().and_then(Group::of),
            child,
            last_words,
            tasks,
        })
    }

    /// Its process id, until it is reaped.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for its end and its last words, and reaps it. Can be cancelled.
    pub(crate) async fn wait(&mut self) -> ExitStatus {
        // waitpid fails only for a child that is not ours; that one is as good as gone.
        let status = self.child.wait().await.unwrap_or_else(|_| ExitStatus::from_raw(0));
        // A grandchild may hold stderr open; it does not hold us.
        let _ = tokio::time::timeout(LAST_WORDS_WAIT, &mut self.tasks[LISTENER]).await;
        status
    }

    /// Asks it to exit.
    pub(crate) fn terminate(&self) {
        if let Some(pid) = self.pid().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }

    /// Ends it, for a reason that follows "because".
    pub(crate) fn kill(&mut self, fault: String) {
        if self.child.start_kill().is_ok() {
            self.fault.get_or_insert(fault);
        }
    }

    /// How it ended, in words that follow "the worker".
    pub(crate) fn death(&self) -> String {
        match (&self.fault, self.status) {
            // Only where our SIGKILL was what ended it.
            (Some(fault), Some(status)) if status.signal() == Some(Signal::SIGKILL as i32) => {
                format!("was killed because {fault}")
            }
            (_, Some(status)) => describe(status),
            (_, None) => "is gone".to_string(),
        }
    }

    /// The last lines it wrote to stderr, oldest first.
    pub(crate) fn last_words(&self) -> Vec<String> {
        let lines = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().cloned().collect()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(number), _) => match Signal::try_from(number) {
            Ok(signal) => format!("was killed by signal {number} ({signal})"),
            Err(_) => format!("was killed by signal {number}"),
        },
        (None, Some(code)) => format!("exited with status {code}"),
        (None, None) => status.to_string(),
    }
}

/// Reads frames until the socket closes: tokens go straight to their readers, counters to the
/// metrics, everything else to the supervisor.
async fn read(socket: OwnedReadHalf, model: Arc<Model>, metrics: Metrics, epoch: u32) {
    let mut socket = BufReader::with_capacity(WRITE_BYTES, socket);
    let mut payload = Vec::new();
    let error = loop {
        let frame = match next_frame(&mut socket, &mut payload).await {
            Ok(Some(frame)) => frame,
            Ok(None) => break None,
            Err(error) => break Some(error),
        };
        model.beat();
        match frame {
            FromWorker::Step { events, stats } => {
                model.streams.route(events);
                metrics.step(&model.name, &model.count(stats), &stats);
            }
            FromWorker::Pong(number) => model.pong(number),
            frame => {
                if model.events.send(Event::Frame { epoch, frame }).await.is_err() {
                    break None;
                }
            }
        }
    };
    let _ = model.events.send(Event::Closed { epoch, error }).await;
}

/// The next frame; `None` at the end of the stream.
async fn next_frame(
    socket: &mut BufReader<OwnedReadHalf>,
    payload: &mut Vec<u8>,
) -> Result<Option<FromWorker>, String> {
    let mut header = [0; HEADER_BYTES];
    // A worker killed between two bytes of a frame leaves a torn one; that is an end, not an error.
    if socket.read_exact(&mut header).await.is_err() {
        return Ok(None);
    }
    let bytes = frame::payload_bytes(header).map_err(|error| error.to_string())?;
    payload.clear();
    // `take` lets the buffer grow with what arrives, not with what a header claims.
    let read = socket.take(bytes as u64).read_to_end(payload).await;
    if !matches!(read, Ok(n) if n == bytes) {
        return Ok(None);
    }
    frame::decode(payload).map(Some).map_err(|error| error.to_string())
}

/// Writes frames, several at once when they queue, until the socket or the outbox closes.
async fn write(
    mut socket: OwnedWriteHalf,
    mut frames: mpsc::Receiver<ToWorker>,
    model: Arc<Model>,
) {
    let mut bytes = Vec::new();
    while let Some(frame) = frames.recv().await {
        bytes.clear();
        push(&frame, &mut bytes, &model);
        while bytes.len() < WRITE_BYTES
            && let Ok(frame) = frames.try_recv()
        {
            push(&frame, &mut bytes, &model);
        }
        if socket.write_all(&bytes).await.is_err() {
            return; // the reader sees the end too, and tells
        }
    }
}

fn push(frame: &ToWorker, bytes: &mut Vec<u8>, model: &Model) {
    if let Err(error) = frame::encode(frame, bytes) {
        match frame {
            ToWorker::Submit(submit) => model.streams.refuse(submit.id, error.to_string()),
            other => tracing::error!(model = model.name, ?other, %error, "a frame was dropped"),
        }
    }
}

/// The line without the level that the worker's own log put before it, which is left in `level`. A
/// line without one goes on with the line before it: a panic has several.
fn text_of(line: &str, level: &mut Level) -> String {
    let trimmed = line.trim_start();
    let (first, rest) = trimmed.split_once(' ').unwrap_or((trimmed, ""));
    match first {
        "ERROR" => *level = Level::ERROR,
        "WARN" => *level = Level::WARN,
        "INFO" => *level = Level::INFO,
        "DEBUG" => *level = Level::DEBUG,
        "TRACE" => *level = Level::TRACE,
        _ => {
            if trimmed.starts_with("thread '") && trimmed.contains(" panicked at ") {
                *level = Level::ERROR;
            }
            return line.to_string();
        }
    }
    rest.to_string()
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

/// Passes the worker's stderr to the log, line by line, and keeps the last of it.
async fn listen(stderr: ChildStderr, model: Arc<Model>, last_words: LastWords) {
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    let mut level = Level::INFO;
    while let Ok(chunk) = stderr.fill_buf().await {
        let (end, used) = match chunk.iter().position(|&byte| byte == b'\n') {
            Some(at) => (true, at + 1),
            None => (chunk.is_empty(), chunk.len()),
        };
        let room = LINE_BYTES_MAX - line.len();
        line.extend_from_slice(&chunk[..used.min(room)]);
        stderr.consume(used);
        if end {
            let text = String::from_utf8_lossy(&line).trim_end().to_string();
            if !text.is_empty() {
                let text = text_of(&text, &mut level);
                log(level, &model.name, &text);
                let mut lines = last_words.lock().unwrap_or_else(PoisonError::into_inner);
                if lines.len() == LAST_WORDS_LINES {
                    lines.pop_front();
                }
                lines.push_back(text);
            }
            line.clear();
            if used == 0 {
                break; // end of stream
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_keep_the_level_that_the_worker_gave_them() {
        let mut level = Level::INFO;
        let mut read = |line| (text_of(line, &mut level), level);
        assert_eq!(read("a library's words"), ("a library's words".to_string(), Level::INFO));
        assert_eq!(read(" WARN slow disk"), ("slow disk".to_string(), Level::WARN));
        assert_eq!(read("  and more of it"), ("  and more of it".to_string(), Level::WARN));
        assert_eq!(read("DEBUG step"), ("step".to_string(), Level::DEBUG));
        assert_eq!(read("ERROR the engine broke: x").1, Level::ERROR);
        assert_eq!(read(" INFO drained; exiting").1, Level::INFO);
        let panic = "thread 'rank-0' (77) panicked at src/x.rs:1:2:";
        assert_eq!(read(panic), (panic.to_string(), Level::ERROR));
        assert_eq!(read("index out of bounds").1, Level::ERROR);
    }
}
