//! The daemon as systemd sees it: what it says on the notification socket from start to stop.

#![allow(clippy::unwrap_used)] // Helpers outside of #[test] functions are tests too.

use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use minisgl_proto::LoadOptions;
use minisgl_tests::{Daemon, model_options, paths};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(120);

/// Fed each second: a machine has to be stuck for several to be late.
const WATCHDOG: Duration = Duration::from_secs(8);
const WATCHDOG_USEC: &str = "8000000";
const FEEDS: u32 = 3;

/// A service manager's end of the socket.
struct Manager {
    lines: Receiver<String>,
    /// What it was given to keep.
    kept: Arc<Mutex<Vec<OwnedFd>>>,
    path: String,
    _dir: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let (sender, lines) = mpsc::channel();
        let kept = Arc::<Mutex<Vec<OwnedFd>>>::default();
        let keep = Arc::clone(&kept);
        // Few datagrams wait in a socket, so somebody reads all the time.
        std::thread::spawn(move || {
            let mut bytes = [0; 4097];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut rights = RecvAncillaryBuffer::new(&mut space);
            loop {
                let mut parts = [IoSliceMut::new(&mut bytes)];
                let received = recvmsg(&socket, &mut parts, &mut rights, RecvFlags::CMSG_CLOEXEC);
                let Ok(count) = received.map(|message| message.bytes) else { return };
                for message in rights.drain() {
                    if let RecvAncillaryMessage::ScmRights(sockets) = message {
                        keep.lock().unwrap().extend(sockets);
                    }
                }
                assert!(count <= 4096, "systemd drops what is longer");
                let text = std::str::from_utf8(&bytes[..count]).unwrap();
                for line in text.lines() {
                    let _ = sender.send(line.to_owned());
                }
            }
        });
        Manager { lines, kept, path: path.to_str().unwrap().to_owned(), _dir: dir }
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
    let environment = [("NOTIFY_SOCKET", manager.path.as_str()), ("WATCHDOG_USEC", WATCHDOG_USEC)];
    let daemon = Daemon::start_with(&environment);
    let heard = manager.until("idle", |line| line == "STATUS=no model is loaded");
    let first = heard.iter().find(|line| !line.starts_with("FD")).unwrap();
    assert_eq!(first, "READY=1");
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
    for _ in 0..FEEDS {
        manager.until("fed", |line| line == "WATCHDOG=1");
    }
    assert!(fed.elapsed() < WATCHDOG * FEEDS, "{:?}", fed.elapsed());

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

fn hang_up(daemon: &Daemon) {
    kill(Pid::from_raw(daemon.pid() as i32), Signal::SIGHUP).unwrap();
}

#[test]
fn a_reload_applies_what_it_can_says_what_it_cannot_and_a_bad_file_changes_nothing() {
    let manager = Manager::new();
    let daemon = Daemon::start_with(&[("NOTIFY_SOCKET", manager.path.as_str())]);
    manager.until("idle", |line| line == "STATUS=no model is loaded");
    assert_eq!(daemon.get("/v1/models").status, 200);
    let (config, keys) = (daemon.dir().join("minisgld.toml"), daemon.dir().join("keys"));
    std::fs::write(&keys, "# ours\nsk-0123456789abcdef\n").unwrap();
    let text =
        format!("[http]\napi_keys_file = {keys:?}\n[log]\nlevel = \"debug\"\nformat = \"json\"\n");
    std::fs::write(&config, text).unwrap();
    hang_up(&daemon);
    let note = "STATUS=no model is loaded, restart to apply [log] format";
    let heard = manager.until("reloaded", |line| line == note);
    let at = |what: &str| heard.iter().position(|line| line.starts_with(what)).expect(what);
    assert!(at("RELOADING=1") < at("READY=1"), "{heard:?}");
    let clock: u64 = heard[at("MONOTONIC_USEC=")]["MONOTONIC_USEC=".len()..].parse().unwrap();
    assert!(clock > 0);
    assert_eq!(daemon.get("/v1/models").status, 401);
    assert!(daemon.ctl(&["metrics"]).status.success(), "the admin socket asks for no key");
    let log = daemon.log();
    assert!(log.contains("changed: [http] API keys, [log] level"), "{log}");
    assert!(log.contains("needs a restart: [log] format"), "{log}");
    assert!(log.contains("DEBUG") && !log.contains("sk-0123456789abcdef"), "{log}");

    std::fs::write(&config, "[http]\nbody_bytes_max = 0\n").unwrap();
    hang_up(&daemon);
    let heard = manager.until("refused", |line| line.contains("was not reloaded"));
    assert!(heard.iter().any(|line| line == "READY=1"), "{heard:?}");
    assert_eq!(daemon.get("/v1/models").status, 401, "the keys are still asked for");
    let log = daemon.log();
    assert!(log.contains("minisgld.toml, line 2: [http] body_bytes_max = 0"), "{log}");

    // `minisgld reload` waits for the daemon's word, and fails when that is no.
    let reload = || {
        let mut command = Command::new(paths::binary("minisgld"));
        let output = command.arg("reload").arg("--socket").arg(daemon.dir().join("admin.sock"));
        let output = output.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    };
    let (done, said) = reload();
    assert!(!done && said.contains("refuses: in ") && said.contains("line 2"), "{said}");
    for (text, why) in [
        (String::new(), "no API keys any more"),
        (format!("[http]\napi_keys_file = {keys:?}\n"), "there is no key in the API keys"),
    ] {
        std::fs::write(&config, text).unwrap();
        std::fs::write(&keys, "").unwrap();
        let (done, said) = reload();
        assert!(!done && said.contains(why), "{said}");
        assert_eq!(daemon.get("/v1/models").status, 401, "the keys are still asked for");
    }
    let text = format!(
        "[http]\napi_keys_file = {keys:?}\nbody_bytes_max = 64\n[log]\nformat = \"json\"\n"
    );
    std::fs::write(&config, text).unwrap();
    std::fs::write(&keys, "ann:sk-fedcba9876543210\n").unwrap();
    let (done, said) = reload();
    assert!(done && said.contains("ok: changed: [http] API keys, [http] body_bytes_max"), "{said}");
    assert!(said.contains("needs a restart: [log] format"), "{said}");
    let ask = |key: &str| {
        let mut stream = daemon.api.connect().unwrap();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nHost: a.b\r\nAuthorization: Bearer {key}\r\n"
        );
        let body = json!({"model": "x", "prompt": "x".repeat(64)}).to_string();
        let rest = format!("Connection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all((head + &rest).as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(ask("sk-fedcba9876543210").starts_with("HTTP/1.1 413"));
    assert!(ask("sk-0123456789abcdef").starts_with("HTTP/1.1 401"), "the key before");
    assert!(daemon.log().contains("key=\"ann\""), "{}", daemon.log());
    let metrics = String::from_utf8(daemon.ctl(&["metrics"]).stdout).unwrap();
    let line = "minisgl_key_requests_total{key=\"ann\",outcome=\"client_error\"} 1";
    assert!(metrics.contains(line), "{metrics}");
}

/// A daemon that gets `socket` as systemd passes on what it kept.
fn spawn_with(socket: OwnedFd, listen: &str, dir: &Path) -> Child {
    let config = dir.join("minisgld.toml");
    std::fs::write(&config, "").unwrap();
    Command::new("/bin/sh")
        .args(["-c", "exec 3<&0 </dev/null; LISTEN_PID=$$ exec \"$0\" \"$@\""])
        .arg(paths::binary("minisgld"))
        .args(["serve", "--listen", listen, "--config"])
        .arg(config)
        .arg("--socket")
        .arg(dir.join("admin.sock"))
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDNAMES", "http")
        .stdin(Stdio::from(socket))
        .spawn()
        .unwrap()
}

#[test]
fn the_port_is_in_systemds_keeping_while_there_is_no_daemon() {
    let manager = Manager::new();
    let daemon = Daemon::start_with(&[("NOTIFY_SOCKET", manager.path.as_str())]);
    let heard = manager.until("ready", |line| line == "READY=1");
    assert!(heard.windows(2).any(|pair| pair == ["FDSTORE=1", "FDNAME=http"]), "{heard:?}");
    let listen = daemon.listen;
    drop(daemon);
    let socket = manager.kept.lock().unwrap().pop().unwrap();
    // Nobody is there, and yet nobody is refused.
    let mut client = TcpStream::connect(listen).unwrap();
    client
        .write_all(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut next = spawn_with(socket, &listen.to_string(), dir.path());
    let mut text = String::new();
    let read = client.read_to_string(&mut text);
    kill(Pid::from_raw(next.id() as i32), Signal::SIGTERM).unwrap();
    next.wait().unwrap();
    assert!(read.is_ok() && text.starts_with("HTTP/1.1 200"), "{read:?} {text}");
}
