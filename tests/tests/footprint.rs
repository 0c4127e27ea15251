//! What a daemon without a model costs: the time until it listens, and its memory.

#![allow(clippy::unwrap_used)] // Helpers outside of #[test] functions are tests too.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use minisgl_tests::{Server, daemon, paths};
use serde_json::Value;

/// From the start of the process until it says where it listens, on an idle machine.
const START_MAX: Duration = Duration::from_millis(100);
/// The same on a busy one, in starts of a process that prints its version and ends.
const STARTS_MAX: u32 = 40;
/// Resident, after some requests.
const RESIDENT_MAX_MB: f64 = 40.0;
/// A neighbour on the machine only ever makes it slower: the best of a few starts counts.
const STARTS: u32 = 10;

struct Daemon {
    child: Child,
    api: Server,
    took: Duration,
    _folder: tempfile::TempDir,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A daemon, and how long it took to listen.
fn start() -> Daemon {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let mut command = Command::new(paths::binary("minisgld"));
    command.args(["serve", "--config", "/dev/null", "--listen", "127.0.0.1:0", "--socket"]);
    command.arg(&socket).stdin(Stdio::null()).stderr(Stdio::null());
    let began = Instant::now();
    let (child, admin) = (command.spawn().unwrap(), Server::Unix(socket));
    // Ended even if it never listens.
    let mut started = Daemon { child, api: admin, took: Duration::MAX, _folder: folder };
    let listen = loop {
        if let Some(listen) = daemon::listens_on(&started.api) {
            break listen;
        }
        assert!(began.elapsed() < Duration::from_secs(120), "it does not listen");
        std::thread::sleep(Duration::from_micros(500));
    };
    (started.took, started.api) = (began.elapsed(), Server::Tcp(listen));
    started
}

/// How long the same program takes to say its version: what this machine needs to start a process now.
fn version() -> Duration {
    let began = Instant::now();
    let output = Command::new(paths::binary("minisgld")).arg("--version").output().unwrap();
    assert!(output.status.success());
    began.elapsed()
}

fn resident_mb(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: f64 = line.split_whitespace().next().unwrap().parse().unwrap();
    kib * 1024.0 / 1e6
}

#[test]
fn it_listens_at_once_and_takes_little_memory() {
    let (mut best, mut process) = (Duration::MAX, Duration::MAX);
    for _ in 0..STARTS {
        process = process.min(version());
        best = best.min(start().took);
    }
    println!("listens after {best:.1?}; a process takes {process:.1?}");
    assert!(best < START_MAX.max(STARTS_MAX * process), "{best:?}, a process takes {process:?}");

    let daemon = start();
    for path in ["/health", "/metrics", "/v1/models"] {
        daemon.api.call("GET", path, &Value::Null).unwrap();
    }
    // Freed memory goes back within a second or so.
    let began = Instant::now();
    let mut resident = resident_mb(daemon.child.id());
    while resident >= RESIDENT_MAX_MB && began.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(100));
        resident = resident_mb(daemon.child.id());
    }
    println!("{resident:.1} MB resident without a model");
    assert!(resident < RESIDENT_MAX_MB, "{resident:.1} MB");
}
