//! What a daemon without a model costs: the time until it listens, and its memory.

#![allow(clippy::unwrap_used)] // Helpers outside of #[test] functions are tests too.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use minisgl_tests::{Server, paths};
use serde_json::Value;

/// From the start of the process to the first connection that the API takes.
const START_MAX: Duration = Duration::from_millis(100);
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
    let probe = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = probe.local_addr().unwrap();
    drop(probe);
    let mut command = Command::new(paths::binary("minisgld"));
    command.args(["serve", "--config", "/dev/null", "--listen", &listen.to_string(), "--socket"]);
    command.arg(folder.path().join("admin.sock")).stdin(Stdio::null()).stderr(Stdio::null());
    let began = Instant::now();
    let (child, api) = (command.spawn().unwrap(), Server::Tcp(listen));
    let mut daemon = Daemon { child, api, took: Duration::MAX, _folder: folder };
    while TcpStream::connect(listen).is_err() {
        assert!(began.elapsed() < Duration::from_secs(20), "it does not listen");
        std::thread::sleep(Duration::from_micros(500));
    }
    daemon.took = began.elapsed();
    daemon
}

fn resident_mb(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: f64 = line.split_whitespace().next().unwrap().parse().unwrap();
    kib * 1024.0 / 1e6
}

#[test]
fn it_listens_at_once_and_takes_little_memory() {
    let mut best = Duration::MAX;
    for _ in 0..STARTS {
        best = best.min(start().took);
    }
    println!("listens after {:.1} ms", best.as_secs_f64() * 1e3);
    assert!(best < START_MAX, "{best:?}");

    let daemon = start();
    for path in ["/health", "/metrics", "/v1/models"] {
        daemon.api.call("GET", path, &Value::Null).unwrap();
    }
    std::thread::sleep(Duration::from_secs(2)); // freed memory goes back after one
    let resident = resident_mb(daemon.child.id());
    println!("{resident:.1} MB resident without a model");
    assert!(resident < RESIDENT_MAX_MB, "{resident:.1} MB");
}
