//! The admin commands against a scripted daemon: what is sent, what is shown, how it exits.

#![allow(clippy::unwrap_used)] // a test's way to fail

mod common;

use std::io::Read;
use std::process::Stdio;

use common::{Call, Daemon, End, Reply, Run, ctl};
use minisgl_proto::admin::{
    AdminError, AdminErrorCode, FlushReply, HealthReport, LoadEvent, LoadRequest, ModelState,
    ModelStatus, Origin, VersionInfo,
};
use minisgl_proto::worker::LoadProgress;
use minisgl_proto::{CacheMode, Device, LoadOptions, LoadStage, StepStats};
use serde_json::{Value, json, to_value};

fn status(name: &str) -> ModelStatus {
    ModelStatus {
        name: name.to_string(),
        source: "/models/x".into(),
        state: ModelState::Ready,
        reason: None,
        pid: Some(7),
        gpus: Vec::new(),
        gpu_memory_bytes: None,
        restarts: 0,
        state_s: 5.0,
        in_flight: 0,
        progress: None,
        info: None,
        stats: Some(StepStats { running: 1, ..StepStats::default() }),
        options: LoadOptions::default(),
        persisted: false,
        aliases: vec![],
        origin: Origin::Loaded,
        retry_in_s: None,
        dialect: None,
        notes: vec![],
    }
}

fn refuse(code: AdminErrorCode, http: u16) -> Reply {
    let message = "said so".to_string();
    Reply::json(http, &to_value(AdminError { code, message }).unwrap())
}

fn event(event: &LoadEvent) -> String {
    format!("{}\n", serde_json::to_string(event).unwrap())
}

fn load_lines() -> String {
    let at = |stage, done, total| {
        let detail = String::new();
        event(&LoadEvent::Progress(LoadProgress { stage, done, total, detail }))
    };
    let ready = event(&LoadEvent::Ready(Box::new(status("org/m"))));
    let read: String = (0..=100).map(|n| at(LoadStage::Read, n << 20, 100 << 20)).collect();
    format!("{}{read}{}{ready}", at(LoadStage::Resolve, 0, 0), at(LoadStage::WarmUp, 1, 1))
}

fn answer(call: &Call) -> Reply {
    match (call.method.as_str(), call.path.as_str()) {
        ("GET", "/admin/v1/version") => Reply::json(
            200,
            &to_value(VersionInfo {
                version: "9.9.9".into(),
                pid: 42,
                uptime_s: 3700.0,
                listen: "127.0.0.1:8000".into(),
            })
            .unwrap(),
        ),
        ("GET", "/admin/v1/models") => {
            Reply::json(200, &to_value([status("org/m"), status("other")]).unwrap())
        }
        ("GET", "/admin/v1/models/org%2Fm") => {
            Reply::json(200, &to_value(status("org/m")).unwrap())
        }
        ("POST", "/admin/v1/load") => match call.body["name"].as_str() {
            Some("taken") => refuse(AdminErrorCode::Conflict, 409),
            Some("breaks") => {
                let message = "tensor lm_head.weight is missing".to_string();
                let error = AdminError { code: AdminErrorCode::Failed, message };
                Reply::text(event(&LoadEvent::Failed(error)))
            }
            Some("cut") => {
                let half: String =
                    load_lines().lines().take(5).map(|line| format!("{line}\n")).collect();
                Reply { end: End::Cut, ..Reply::text(half) }
            }
            Some("ends") => Reply::text(""),
            _ => Reply::text(load_lines()),
        },
        ("POST", "/admin/v1/unload") => match call.body["name"].as_str() {
            Some("mine") => refuse(AdminErrorCode::Forbidden, 403),
            _ => Reply::json(200, &to_value(status("org/m")).unwrap()),
        },
        ("POST", "/admin/v1/flush") => {
            Reply::json(200, &to_value(FlushReply { pages_freed: 12 }).unwrap())
        }
        ("GET", "/admin/v1/health") => Reply::json(
            200,
            &to_value(HealthReport {
                ready: false,
                summary: "org/m is stalled".into(),
                models: vec![("org/m".into(), ModelState::Stalled)],
            })
            .unwrap(),
        ),
        ("GET", "/metrics") => Reply::text("# TYPE up gauge\nup{model=\"m\"} 1\n".repeat(20_000)),
        _ => refuse(AdminErrorCode::NotFound, 404),
    }
}

fn value(run: &Run) -> Value {
    serde_json::from_str(&run.out).unwrap_or_else(|error| panic!("{error}: {run:?}"))
}

#[test]
fn load_sends_its_options_and_tells_each_stage() {
    let daemon = Daemon::start(answer);
    let line = "load org/m --name n --tp 2 --device cpu --threads 3 --page-size 8 --kv-tokens 4096 \
                --memory-ratio 0.25 --kv-dtype f32 --quantize fp8 --max-running 9 --max-waiting 10 --chunk-tokens 64 \
                --max-len 99 --cache naive --attn fi --dialect hermes --dummy-weights --no-overlap --persist \
                --alias a --alias b";
    let run = daemon.run(&line.split_whitespace().collect::<Vec<_>>());
    assert_eq!((run.code, run.out.as_str()), (0, "org/m is ready after 0.0s\n"), "{run:?}");
    let lines: Vec<&str> = run.err.lines().collect();
    assert_eq!(lines[..2], ["resolve", "read weights 0 B of 100.0 MiB"]);
    assert_eq!(lines.len(), 14, "{lines:?}"); // a line for each tenth, not for each event
    // This daemon loaded it, and says that it does not remember it.
    assert!(lines[13].contains("not remembered"), "{lines:?}");
    let sent: LoadRequest = serde_json::from_value(daemon.calls()[0].body.clone()).unwrap();
    let options = LoadOptions {
        tp: 2,
        device: Device::Cpu,
        gpus: Vec::new(),
        gpus_taken: Vec::new(),
        threads: 3,
        page_size: 8,
        kv_tokens: Some(4096),
        memory_ratio: Some(0.25),
        kv_dtype: minisgl_proto::KvDtype::F32,
        quantize: minisgl_proto::Quantize::Fp8,
        max_running: 9,
        max_waiting: 10,
        chunk_tokens: Some(64),
        max_len: Some(99),
        cache: CacheMode::Naive,
        attn: "fi,fi".parse().unwrap(),
        dialect: Some("hermes".into()),
        dummy_weights: true,
        overlap: false,
    };
    let (model, name) = ("org/m".into(), Some("n".into()));
    let aliases = vec!["a".into(), "b".into()];
    assert_eq!(sent, LoadRequest { model, name, options, persist: true, aliases });

    daemon.run(&["load", "org/m", "--gpus", "2,3"]);
    let sent: LoadRequest = serde_json::from_value(daemon.calls()[1].body.clone()).unwrap();
    assert_eq!((sent.options.gpus, sent.options.tp), (vec![2, 3], 2));

    let run = daemon.run(&["load", "org/m", "-o", "json"]);
    assert_eq!(value(&run)["state"], "ready");
}

#[test]
fn a_local_folder_is_sent_as_an_absolute_path() {
    let daemon = Daemon::start(answer);
    let folder = daemon.folder.path().join("model");
    std::fs::create_dir(&folder).unwrap();
    let run = daemon.command(&["load", "model"]).current_dir(daemon.folder.path()).output();
    assert_eq!(Run::of(run.unwrap()).code, 0);
    let expected = folder.canonicalize().unwrap();
    assert_eq!(daemon.calls()[0].body["model"].as_str().unwrap(), expected.to_str().unwrap());
}

#[test]
fn every_exit_code_means_one_thing() {
    let daemon = Daemon::start(answer);
    let cases: &[(&[&str], i32, &str)] = &[
        (&["list"], 0, ""),
        (&["lsit"], 2, "unrecognized subcommand"),
        (&["load"], 2, "PATH_OR_REPO"),
        (&["load", "m", "--tp", "x"], 2, "--tp"),
        (&["load", "m", "--gpus", "1,x"], 2, "\"x\" is no GPU's number"),
        (&["load", "m", "--gpus", "1,1"], 2, "GPU 1 twice"),
        (&["load", "m", "--gpus", ""], 2, "--gpus"),
        (&["load", "m", "--gpus", "1,2", "--tp", "3"], 2, "tp is 3 and gpus is 1,2"),
        (&["load", "m", "--gpus", "1", "--device", "cpu"], 2, "device is cpu"),
        (&["show", "nothing"], 4, "said so"),
        (&["load", "m", "--name", "taken"], 5, "said so"),
        (&["unload", "mine"], 5, "said so"),
        (&["load", "m", "--name", "breaks"], 6, "lm_head.weight is missing"),
        (&["load", "m", "--name", "cut"], 6, "closed the connection"),
        (&["load", "m", "--name", "ends"], 6, "went away during the load"),
        (&["health"], 6, "not ready"),
    ];
    for (args, code, message) in cases {
        let run = daemon.run(args);
        assert_eq!(run.code, *code, "{args:?}: {run:?}");
        assert!(run.err.contains(message), "{args:?}: {run:?}");
    }
    let help = daemon.run(&["--help"]);
    assert_eq!(help.code, 0);
    assert!(help.out.contains("3  unreachable"), "{}", help.out);
}

#[test]
fn no_daemon_is_told_with_its_socket_and_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let run = || Run::of(ctl(&["ps", "--socket", socket.to_str().unwrap()]).output().unwrap());
    let absent = run();
    assert_eq!(absent.code, 3);
    for part in [socket.to_str().unwrap(), "there is no such socket", "minisgld serve"] {
        assert!(absent.err.contains(part), "{absent:?}");
    }
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let stale = run();
    assert_eq!(stale.code, 3);
    assert!(stale.err.contains("nobody listens"), "{stale:?}");
}

#[test]
fn the_socket_is_found_as_documented() {
    let daemon = Daemon::start(answer);
    let runtime = tempfile::tempdir().unwrap();
    let mut own = ctl(&["list"]);
    own.env("XDG_RUNTIME_DIR", runtime.path());
    let run = Run::of(own.output().unwrap());
    assert_eq!(run.code, 3);
    assert!(run.err.contains("/run/minisgld/admin.sock"), "{run:?}");
    let uid = nix::unistd::geteuid();
    if !uid.is_root() {
        let place = minisgl_proto::socket::places(uid.as_raw(), Some(runtime.path())).remove(0);
        std::fs::create_dir(&place.folder).unwrap();
        std::os::unix::fs::symlink(&daemon.socket, place.socket()).unwrap();
        assert_eq!(Run::of(own.output().unwrap()).code, 0);
    }
    let flag = daemon.run(&["list", "--socket", "/no/such.sock"]);
    assert!(flag.err.contains("/no/such.sock"), "a flag goes over the environment: {flag:?}");
}

#[test]
fn every_command_speaks_json() {
    let daemon = Daemon::start(answer);
    let json = |args: &[&str]| value(&daemon.run(&[args, &["-o", "json"]].concat()));
    assert_eq!(json(&["list"])[1]["name"], "other");
    assert_eq!(json(&["ps"])[0]["stats"]["running"], 1);
    assert_eq!(json(&["show", "org/m"])["name"], "org/m");
    assert_eq!(json(&["flush", "org/m"]), json!({"pages_freed": 12}));
    assert_eq!(json(&["unload", "org/m", "--force"])["name"], "org/m");
    assert_eq!(json(&["health"])["ready"], false);
    assert_eq!(json(&["version"])["daemon"]["version"], "9.9.9");
    assert_eq!(
        json(&["metrics"])[0],
        json!({"name": "up", "labels": {"model": "m"}, "value": 1.0})
    );
    let unload = daemon.calls().into_iter().find(|call| call.path.ends_with("unload")).unwrap();
    assert_eq!(unload.body, json!({"name": "org/m", "force": true}));
}

#[test]
fn every_command_speaks_to_people() {
    let daemon = Daemon::start(answer);
    let out = |args: &[&str]| daemon.run(args).out;
    assert_eq!(out(&["list"]), out(&["ps"]), "one view of all models");
    assert!(out(&["ps"]).contains("org/m  ready  5.0s"), "{}", out(&["ps"]));
    assert!(out(&["show", "org/m"]).contains("process 7"));
    assert_eq!(out(&["flush", "m"]), "12 pages became free\n");
    assert_eq!(out(&["unload", "m"]), "m is unloaded\n");
    assert_eq!(out(&["health"]), "not ready: org/m is stalled\n");
    let version = out(&["version"]);
    assert!(version.contains("daemon  9.9.9 (process 42, up 1h01m"), "{version}");
    for shell in ["bash", "zsh", "fish"] {
        assert!(out(&["completions", shell]).contains("minisglctl"));
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let daemon = Daemon::start(answer);
    let mut command = daemon.command(&["metrics"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 10];
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut first).unwrap();
    drop(out);
    let run = Run::of(child.wait_with_output().unwrap());
    assert_eq!((run.code, run.err.as_str()), (0, ""));
}
