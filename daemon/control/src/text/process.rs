//! One text process: how it is started, and how frames come and go.
//!
//! Owns: the child and its tasks; dropping a [`Process`] kills it. Must never: decide what a death means for a job.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;

use minisgl_proto::frame::{self, HEADER_BYTES};
use minisgl_proto::text::{FromText, TextInfo, TextSpec, ToText};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::Level;

use super::TextConfig;
use crate::children::Group;
use crate::log_level::Lines;

/// Answers that may wait for the driver, which waits for nothing else.
const ANSWERS_MAX: usize = 64;
/// Frames that may wait for the process. The driver sends a few jobs at a time, and a word on each.
const FRAMES_MAX: usize = 64;
/// Bytes of a line of stderr at most; the rest of it is a line of its own.
const LINE_BYTES_MAX: u64 = 4096;

/// A process, alive or just dead.
pub(super) struct Process {
    child: Child,
    /// By which the daemon knows it again at its doors.
    _group: Option<Group>,
    frames: mpsc::Sender<Vec<u8>>,
    answers: mpsc::Receiver<FromText>,
    tasks: [JoinHandle<()>; 3],
}

impl Process {
    /// Starts one, and waits until it has read the folder.
    ///
    /// # Errors
    /// It cannot start, or its own words, or how it died.
    pub(super) async fn start(
        config: &TextConfig,
        dir: &Path,
    ) -> Result<(Process, TextInfo), String> {
        let mut process = Process::spawn(config, dir).map_err(|why| {
            format!("the text process {} does not start: {why}", config.command.program.display())
        })?;
        let version = minisgl_proto::VERSION.to_owned();
        let mut load = Vec::new();
        let (dir_, dialect) = (dir.to_path_buf(), config.dialect.clone());
        frame::encode(&ToText::Load(TextSpec { version, dir: dir_, dialect }), &mut load)
            .map_err(|why| why.to_string())?;
        let first = async {
            process.send(load);
            process.answer().await
        };
        let place = dir.display();
        match tokio::time::timeout(config.load, first).await {
            Ok(Some(FromText::Loaded(info))) => Ok((process, *info)),
            Ok(Some(FromText::LoadFailed(why))) => Err(why),
            Ok(Some(FromText::Done { .. })) => {
                Err("the text process answered what nobody asked".to_owned())
            }
            Ok(None) => Err(format!(
                "reading tokenizer.json and the chat template of {place} ended the process that does it ({}): they may take \
                 more memory than they may",
                process.death().await
            )),
            Err(_) => Err(format!(
                "reading tokenizer.json and the chat template of {place} takes longer than {} s",
                config.load.as_secs_f64()
            )),
        }
    }

    fn spawn(config: &TextConfig, dir: &Path) -> std::io::Result<Process> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let command = &config.command;
        let mut child = Command::new(&command.program)
            .args(&command.args)
            // It needs none of the daemon's variables, and some are secrets.
            .env_clear()
            .envs(command.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // A Ctrl-C in the daemon's terminal is the daemon's to handle.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let group = child.id().and_then(Group::of);
        let (reader, writer) = UnixStream::from_std(ours)?.into_split();
        let (frames, outgoing) = mpsc::channel(FRAMES_MAX);
        let (incoming, answers) = mpsc::channel(ANSWERS_MAX);
        let stderr = child.stderr.take().expect("stderr was asked for as a pipe");
        let tasks = [
            tokio::spawn(read(reader, incoming)),
            tokio::spawn(write(writer, outgoing)),
            tokio::spawn(listen(stderr, dir.display().to_string())),
        ];
        Ok(Process { child, _group: group, frames, answers, tasks })
    }

    /// Queues a frame. Whether the process is gone is seen by [`Process::answer`].
    pub(super) fn send(&self, frame: Vec<u8>) {
        if self.frames.try_send(frame).is_err() {
            tracing::debug!(target: "text", "a frame for a text process was dropped");
        }
    }

    /// What it says next; `None` when it is gone. Can be cancelled.
    pub(super) async fn answer(&mut self) -> Option<FromText> {
        self.answers.recv().await
    }

    /// Ends it, and says how it ended.
    pub(super) async fn death(&mut self) -> String {
        // One that closed its socket is given a moment to end by itself, so that its status tells.
        let moment = std::time::Duration::from_millis(500);
        let ended = tokio::time::timeout(moment, self.child.wait()).await;
        if ended.is_err() {
            let _ = self.child.start_kill();
        }
        match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(why) => why.to_string(),
        }
    }

    /// Kills it, and reaps it.
    pub(super) async fn kill(&mut self) {
        let _ = self.child.start_kill();
        let _ = self.child.wait().await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn read(socket: OwnedReadHalf, answers: mpsc::Sender<FromText>) {
    let mut socket = BufReader::new(socket);
    let mut payload = Vec::new();
    loop {
        let mut header = [0; HEADER_BYTES];
        if socket.read_exact(&mut header).await.is_err() {
            return;
        }
        let Ok(bytes) = frame::payload_bytes(header) else { return };
        payload.clear();
        // `take` lets the buffer grow with what arrives, not with what a header claims.
        let read = (&mut socket).take(bytes as u64).read_to_end(&mut payload).await;
        if !matches!(read, Ok(n) if n == bytes) {
            return;
        }
        match frame::decode(&payload) {
            Ok(answer) => {
                if answers.send(answer).await.is_err() {
                    return;
                }
            }
            Err(why) => {
                tracing::error!(target: "text", "a text process does not speak as it should: {why}");
                return;
            }
        }
        payload.shrink_to(64 << 10);
    }
}

async fn write(mut socket: OwnedWriteHalf, mut frames: mpsc::Receiver<Vec<u8>>) {
    while let Some(frame) = frames.recv().await {
        if socket.write_all(&frame).await.is_err() {
            return; // the reader sees the end too
        }
    }
}

/// Passes its stderr to the log, line by line.
async fn listen(stderr: ChildStderr, dir: String) {
    let mut stderr = BufReader::new(stderr);
    let (mut line, mut lines) = (Vec::new(), Lines::default());
    loop {
        line.clear();
        match (&mut stderr).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line);
                let (text, level) = lines.read(text.trim_end());
                log(level, &dir, text);
            }
        }
    }
}

/// The level of an event is part of its place in the code, so there is a place for each.
fn log(level: Level, dir: &str, text: &str) {
    match level {
        Level::ERROR => tracing::error!(target: "text", dir, "{text}"),
        Level::WARN => tracing::warn!(target: "text", dir, "{text}"),
        Level::INFO => tracing::info!(target: "text", dir, "{text}"),
        Level::DEBUG => tracing::debug!(target: "text", dir, "{text}"),
        Level::TRACE => tracing::trace!(target: "text", dir, "{text}"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber};

    use super::*;

    /// Keeps the fields of events, and nothing else.
    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<String>>>);

    impl Visit for Seen {
        fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
            self.0.lock().unwrap().push(format!("{field}={value:?}"));
        }
    }

    impl Subscriber for Seen {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, event: &Event<'_>) {
            event.record(&mut self.clone());
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn a_line_says_which_models_process_wrote_it() {
        let all = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];
        for level in all {
            let seen = Seen::default();
            tracing::subscriber::with_default(seen.clone(), || log(level, "/models/m", "words"));
            let fields = seen.0.lock().unwrap().join(" ");
            assert!(fields.contains("dir=\"/models/m\""), "{level}: {fields}");
            assert!(fields.contains("message=words"), "{level}: {fields}");
        }
    }
}
