//! A daemon's end and its next life: the drain, sockets that outlive it, models that are remembered.

#![allow(clippy::unwrap_used)] // Helpers outside of #[test] functions are tests too.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use minisgl_proto::LoadOptions;
use minisgl_proto::admin::ModelState;
use minisgl_tests::{Daemon, model_options, paths};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(120);

fn terminate(daemon: &Daemon) {
    kill(Pid::from_raw(daemon.pid() as i32), Signal::SIGTERM).unwrap();
}

/// A stream that goes on for minutes, after its first event.
fn endless(daemon: &Daemon) -> minisgl_tests::Events {
    let body = json!({
        "model": "smollm2", "prompt": "Once", "max_tokens": 8000, "ignore_eos": true, "stream": true,
    });
    let mut stream = daemon.events("/v1/completions", &body);
    assert!(stream.next_event().unwrap().is_some());
    stream
}

#[test]
fn a_stop_refuses_new_work_and_lets_what_runs_finish() {
    let daemon = Daemon::start_configured("[workers]\ndrain_s = 600.0\n");
    daemon.load("smollm2", &paths::smollm2(), model_options());
    let mut short = daemon.events(
        "/v1/completions",
        &json!({
            "model": "smollm2", "prompt": "Once", "max_tokens": 6, "ignore_eos": true, "stream": true,
        }),
    );
    let long = endless(&daemon);
    assert!(short.next_event().unwrap().is_some());
    terminate(&daemon);
    // Whoever comes now is answered, and told to come back.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let health = daemon.get("/health");
        if health.json()["error"]["code"] == "stopping" {
            break;
        }
        assert!(Instant::now() < deadline, "{}", health.text());
        std::thread::sleep(Duration::from_millis(5));
    }
    for path in ["/v1/completions", "/v1/chat/completions"] {
        let refused = daemon.post(path, &json!({"model": "smollm2", "prompt": "x"}));
        assert_eq!(refused.status, 503, "{}", refused.text());
        assert_eq!(refused.header("retry-after"), Some("5"));
    }
    assert_eq!(daemon.get("/metrics").status, 200);
    assert_eq!(daemon.status("smollm2").state, ModelState::Unloading);
    // What has time to finish does.
    let rest = short.rest().unwrap();
    assert_eq!(rest.last().unwrap()["choices"][0]["finish_reason"], "length", "{rest:?}");
    // Nobody is waited for twice.
    terminate(&daemon);
    long.rest().unwrap();
}

#[test]
fn what_does_not_end_in_the_time_of_the_drain_ends_properly() {
    let daemon = Daemon::start_configured("[workers]\ndrain_s = 2.0\n");
    daemon.load("smollm2", &paths::smollm2(), model_options());
    let long = endless(&daemon);
    let stopped = Instant::now();
    terminate(&daemon);
    // An error event, not a broken connection.
    let rest = long.rest().unwrap();
    let took = stopped.elapsed();
    assert_eq!(rest.last().unwrap()["error"]["code"], "aborted", "{:?}", rest.last());
    assert!(took >= Duration::from_secs(2) && took < PATIENCE, "{took:?}");
}

#[test]
fn a_second_signal_ends_the_drain_and_streams_still_end_properly() {
    let daemon = Daemon::start_configured("[workers]\ndrain_s = 600.0\n");
    daemon.load("smollm2", &paths::smollm2(), model_options());
    let long = endless(&daemon);
    terminate(&daemon);
    daemon.wait_for("smollm2", "unloading", |model| model.state == ModelState::Unloading);
    let again = Instant::now();
    terminate(&daemon);
    let rest = long.rest().unwrap();
    assert_eq!(rest.last().unwrap()["error"]["code"], "aborted", "{:?}", rest.last());
    assert!(again.elapsed() < PATIENCE, "{:?}: as long as the drain", again.elapsed());
}

#[test]
fn unload_waits_for_a_stream_and_by_force_ends_it() {
    let daemon = Daemon::start_configured("[workers]\ndrain_s = 600.0\n");
    daemon.load("smollm2", &paths::smollm2(), model_options());
    let long = endless(&daemon);
    std::thread::scope(|threads| {
        let waiting = threads.spawn(|| daemon.unload("smollm2", false));
        daemon.wait_for("smollm2", "unloading", |model| model.state == ModelState::Unloading);
        std::thread::sleep(Duration::from_millis(300));
        assert!(!waiting.is_finished(), "it did not wait for the stream");
        daemon.unload("smollm2", true);
        waiting.join().unwrap();
    });
    let rest = long.rest().unwrap();
    assert_eq!(rest.last().unwrap()["error"]["code"], "aborted", "{:?}", rest.last());
}

/// A daemon on sockets that somebody else made, as systemd passes them on.
fn spawn(http: &TcpListener, admin: &UnixListener, dir: &Path) -> Child {
    let config = dir.join("minisgld.toml");
    std::fs::write(&config, "").unwrap();
    let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
    // Descriptors 3 and 4 can be made without a line of C by a shell alone.
    Command::new("/bin/sh")
        .args(["-c", "exec 3<&0 4<&1 </dev/null >&2; LISTEN_PID=$$ exec \"$0\" \"$@\""])
        .arg(paths::binary("minisgld"))
        .args(["serve", "--listen", &http.local_addr().unwrap().to_string(), "--config"])
        .arg(config)
        .arg("--socket")
        .arg(dir.join("admin.sock"))
        .env("LISTEN_FDS", "2")
        .env("LISTEN_FDNAMES", "http:admin")
        .env("HF_HUB_OFFLINE", "1")
        .stdin(Stdio::from(OwnedFd::from(http.try_clone().unwrap())))
        .stdout(Stdio::from(OwnedFd::from(admin.try_clone().unwrap())))
        .stderr(log)
        .spawn()
        .unwrap()
}

const ASK: &[u8] = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
const VERSION: &[u8] =
    b"GET /admin/v1/version HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

fn answer(mut stream: impl Read) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// The process that answers on the admin socket.
fn served_by(answer: &str) -> u64 {
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str::<Value>(body).unwrap()["pid"].as_u64().unwrap()
}

#[test]
fn who_connects_between_two_daemons_is_served_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let http = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = http.local_addr().unwrap();
    let path = dir.path().join("admin.sock");
    let admin = UnixListener::bind(&path).unwrap();
    let connect = || {
        let (mut tcp, mut unix) =
            (TcpStream::connect(address).unwrap(), UnixStream::connect(&path).unwrap());
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        unix.set_read_timeout(Some(PATIENCE)).unwrap();
        tcp.write_all(ASK).unwrap();
        unix.write_all(VERSION).unwrap();
        (tcp, unix)
    };
    for ending in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut first = spawn(&http, &admin, dir.path());
        let (tcp, unix) = connect();
        assert!(answer(tcp).starts_with("HTTP/1.1 200"));
        assert_eq!(served_by(&answer(unix)), u64::from(first.id()));
        kill(Pid::from_raw(first.id() as i32), ending).unwrap();
        first.wait().unwrap();
        assert!(path.exists(), "the socket's file is not the daemon's");

        let waiting = connect();
        let mut second = spawn(&http, &admin, dir.path());
        assert!(answer(waiting.0).starts_with("HTTP/1.1 200"));
        assert_eq!(served_by(&answer(waiting.1)), u64::from(second.id()));
        kill(Pid::from_raw(second.id() as i32), Signal::SIGTERM).unwrap();
        second.wait().unwrap();
    }
}

#[test]
fn a_remembered_model_is_there_after_a_restart_until_it_is_unloaded() {
    let state = tempfile::tempdir().unwrap();
    let config = format!("[state]\ndir = {:?}\n", state.path());
    let model = paths::fixture("dummy").join("qwen3");
    let load = |daemon: &Daemon, name: &str, more: &[&str]| {
        let args = ["load", model.to_str().unwrap(), "--dummy-weights", "--kv-tokens", "4096"];
        let output = daemon.ctl(&[&args[..], &["--device", "cpu", "--name", name], more].concat());
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    {
        let daemon = Daemon::start_configured(&config);
        assert_eq!(load(&daemon, "kept", &["--persist"]).0, 0);
        assert_eq!(load(&daemon, "lost", &[]).0, 0);
        assert!(daemon.status("kept").persisted && !daemon.status("lost").persisted);
        let ps = String::from_utf8(daemon.ctl(&["ps"]).stdout).unwrap();
        assert!(ps.lines().next().unwrap().contains("PERSIST"), "{ps}");
    }
    {
        let daemon = Daemon::start_configured(&config);
        let ready = |model: &minisgl_proto::admin::ModelStatus| model.state == ModelState::Ready;
        let deadline = Instant::now() + PATIENCE;
        while daemon.get("/v1/models").json()["data"] == json!([]) {
            assert!(Instant::now() < deadline, "{}", daemon.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        let status = daemon.wait_for("kept", "ready", ready);
        assert!(status.persisted);
        assert_eq!(status.options.kv_tokens, Some(4096), "as it was loaded");
        let names: Value = daemon.get("/v1/models").json()["data"].clone();
        assert_eq!(names.as_array().unwrap().len(), 1, "{names}");
        daemon.unload("kept", false);
    }
    let remembered = std::fs::read_to_string(state.path().join("models.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&remembered).unwrap(), json!([]));

    let daemon = Daemon::start();
    let (code, said) = load(&daemon, "kept", &["--persist"]);
    assert!(code == 2 && said.contains("[state] dir"), "{code} {said}");
    let options = LoadOptions { dummy_weights: true, ..model_options() };
    daemon.load("kept", &model, options);
}
