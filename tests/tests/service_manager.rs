//! The daemon as systemd sees it: what it says on the notification socket from start to stop.

#![allow(clippy::unwrap_used)] // Helpers outside of #[test] functions are tests too.

use std::os::unix::net::UnixDatagram;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use minisgl_proto::LoadOptions;
use minisgl_tests::{Daemon, model_options, paths};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(20);

/// A service manager's end of the socket.
struct Manager {
    lines: Receiver<String>,
    path: String,
    _dir: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let (sender, lines) = mpsc::channel();
        // Few datagrams wait in a socket, so somebody reads all the time.
        std::thread::spawn(move || {
            let mut bytes = [0; 4097];
            while let Ok(count) = socket.recv(&mut bytes) {
                assert!(count <= 4096, "systemd drops what is longer");
                let text = std::str::from_utf8(&bytes[..count]).unwrap();
                for line in text.lines() {
                    let _ = sender.send(line.to_owned());
                }
            }
        });
        Manager { lines, path: path.to_str().unwrap().to_owned(), _dir: dir }
    }

    /// Everything up to the line that is `done`, which comes within [`PATIENCE`].
    fn until(&self, what: &str, done: impl Fn(&str) -> bool) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut heard = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            heard.push(line.unwrap_or_else(|_| panic!("never {what}; heard {heard:?}")));
            if done(heard.last().unwrap()) {
                return heard;
            }
        }
    }
}

#[test]
fn systemd_hears_of_the_start_the_models_and_the_drain() {
    let manager = Manager::new();
    let environment = [("NOTIFY_SOCKET", manager.path.as_str()), ("WATCHDOG_USEC", "400000")];
    let daemon = Daemon::start_with(&environment);
    let heard = manager.until("idle", |line| line == "STATUS=no model is loaded");
    assert_eq!(heard[0], "READY=1");
    // Both sockets listened before READY=1: nothing is refused after it.
    assert!(daemon.api.connect().is_ok() && daemon.admin.connect().is_ok());

    let options = LoadOptions { dummy_weights: true, ..model_options() };
    let model = paths::fixture("dummy").join("qwen3");
    let pid = daemon.load("dummy", &model, options).pid.unwrap();
    manager.until("ready", |line| line == "STATUS=1 model ready");
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment);
    assert!(environment.contains("HF_HUB_OFFLINE=1"), "{environment}");
    for variable in ["NOTIFY_SOCKET", "WATCHDOG_USEC"] {
        assert!(!environment.contains(variable), "the worker could speak for the service");
    }

    // A watchdog's time after another, WATCHDOG=1 comes.
    let fed = Instant::now();
    for _ in 0..8 {
        manager.until("fed", |line| line == "WATCHDOG=1");
    }
    assert!(fed.elapsed() < Duration::from_millis(400) * 8, "{:?}", fed.elapsed());

    let body = json!({
        "model": "dummy", "prompt": [1, 2, 3], "max_tokens": 2000, "ignore_eos": true, "stream": true,
    });
    let mut stream = daemon.events("/v1/completions", &body);
    assert!(stream.next_event().unwrap().is_some());
    kill(Pid::from_raw(daemon.pid() as i32), Signal::SIGTERM).unwrap();
    let heard = manager.until("draining", |line| line.starts_with("STATUS=stopping: 1 request"));
    assert!(heard.iter().any(|line| line == "STOPPING=1"), "{heard:?}");
    assert!(heard.iter().any(|line| line == "EXTEND_TIMEOUT_USEC=10000000"), "{heard:?}");
    let last = heard.last().unwrap();
    assert!(last.ends_with(" s left"), "{last}");
    drop(stream); // the last request is over, and the daemon ends
}
