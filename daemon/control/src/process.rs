//! The child process of a worker on this machine: how it starts, what it writes to standard error, how it ends.
//!
//! Owns: the child; dropping a [`Process`] kills it. Must never: know a frame, or decide what a death means.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, Command};
use tokio::task::JoinHandle;
use tracing::Level;

use crate::children::Group;
use crate::command::WorkerCommand;
use crate::log_level::Lines;

/// How long a dead worker's standard error is read on.
const STDERR_WAIT: Duration = Duration::from_millis(200);
/// Bytes of a line of standard error at most; the rest of the line is dropped.
const LINE_BYTES_MAX: usize = 4096;

/// A worker's process, alive or dead.
pub(crate) struct Process {
    child: Child,
    /// Keeps it, and what comes from it, away from the admin socket.
    _group: Option<Group>,
    stderr: JoinHandle<()>,
    status: Option<ExitStatus>,
    /// Why this side killed it.
    fault: Option<String>,
}

impl Process {
    /// Starts one, with its end of a socket as standard input; the other end comes back. `log` gets its lines.
    /// Must be called in a tokio runtime.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn spawn(
        command: &WorkerCommand,
        log: impl FnMut(Level, String) + Send + 'static,
    ) -> io::Result<(Process, UnixStream)> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut child = Command::new(&command.program);
        child
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
            .kill_on_drop(true);
        let mut child = start(child)?;
        let stderr = child.stderr.take().ok_or_else(|| io::Error::other("it has no stderr"))?;
        let stderr = tokio::spawn(read_lines(stderr, log));
        let _group = child.id().and_then(Group::of);
        let process = Process { child, _group, stderr, status: None, fault: None };
        Ok((process, UnixStream::from_std(ours)?))
    }

    /// Its process id, until it is reaped.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Set once it was reaped and [`Process::reaped`] was told.
    pub(crate) fn status(&self) -> Option<ExitStatus> {
        self.status
    }

    /// Waits for its end and its last lines, and reaps it. Can be cancelled.
    pub(crate) async fn wait(&mut self) -> ExitStatus {
        // waitpid fails only for a child that is not ours; that one is as good as gone.
        let status = self.child.wait().await.unwrap_or_else(|_| ExitStatus::from_raw(0));
        // A grandchild may hold stderr open; it does not hold us.
        let _ = tokio::time::timeout(STDERR_WAIT, &mut self.stderr).await;
        status
    }

    /// Notes how it ended.
    pub(crate) fn reaped(&mut self, status: ExitStatus) {
        self.status = Some(status);
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
            (Some(fault), Some(status)) if is_sigkill(status) => {
                format!("was killed because {fault}")
            }
            (_, Some(status)) => describe(status),
            (_, None) => "is gone".to_string(),
        }
    }

    /// Whether somebody else killed it.
    pub(crate) fn was_killed_from_outside(&self) -> bool {
        self.fault.is_none() && self.status.is_some_and(is_sigkill)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stderr.abort();
    }
}

fn is_sigkill(status: ExitStatus) -> bool {
    status.signal() == Some(Signal::SIGKILL as i32)
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

/// A child to be started, and where it goes.
type Start = (Command, tokio::runtime::Handle, mpsc::SyncSender<io::Result<Child>>);

/// Starts a child from a thread that never ends. A worker asks the kernel for its end when its parent's ends, and
/// by that the kernel means the thread that started it; the runtime's threads come and go.
fn start(command: Command) -> io::Result<Child> {
    static STARTER: OnceLock<Option<mpsc::Sender<Start>>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (starts, inbox) = mpsc::channel::<Start>();
        let run = move || {
            for (mut command, runtime, reply) in inbox {
                let _in_runtime = runtime.enter();
                let _ = reply.send(command.spawn());
            }
        };
        std::thread::Builder::new().name("starter".to_string()).spawn(run).ok().map(|_| starts)
    });
    let gone = || io::Error::other("the thread that starts workers is gone");
    let (reply, started) = mpsc::sync_channel(1);
    let start = (command, tokio::runtime::Handle::current(), reply);
    starter.as_ref().ok_or_else(gone)?.send(start).map_err(|_| gone())?;
    started.recv().map_err(|_| gone())?
}

/// Passes standard error on, line by line.
async fn read_lines(stderr: ChildStderr, mut log: impl FnMut(Level, String)) {
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    let mut lines = Lines::default();
    while let Ok(chunk) = stderr.fill_buf().await {
        let (end, used) = match chunk.iter().position(|&byte| byte == b'\n') {
            Some(at) => (true, at + 1),
            None => (chunk.is_empty(), chunk.len()),
        };
        let room = LINE_BYTES_MAX - line.len();
        line.extend_from_slice(&chunk[..used.min(room)]);
        stderr.consume(used);
        if end {
            let text = String::from_utf8_lossy(&line);
            if !text.trim_end().is_empty() {
                let (text, level) = lines.read(text.trim_end());
                log(level, text.to_owned());
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
    fn a_worker_outlives_the_thread_that_asked_for_it() {
        let command = WorkerCommand {
            program: "setpriv".into(), // of util-linux; asks what a worker asks of the kernel
            args: ["--pdeathsig", "KILL", "sleep", "60"].map(Into::into).to_vec(),
            env: Vec::new(),
        };
        let runtime =
            || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let keeper = runtime();
        let handle = keeper.handle().clone();
        let spawn = move || {
            let _in_runtime = handle.enter();
            Process::spawn(&command, |_, _| {}).unwrap().0
        };
        let mut process = std::thread::spawn(spawn).join().unwrap();
        let ended = keeper.block_on(async {
            tokio::time::timeout(Duration::from_millis(300), process.wait()).await
        });
        assert!(ended.is_err(), "{ended:?}");
        process.kill("the test is over".to_string());
        keeper.block_on(process.wait());
    }
}
