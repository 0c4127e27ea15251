//! What operators do beside loading: disks, requests, logs, waiting. Against a scripted daemon.

#![allow(clippy::unwrap_used)] // a test's way to fail

mod common;

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Call, Daemon, End, Reply, Run, ctl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// What never happens is told after that long.
const PATIENCE: Duration = Duration::from_secs(120);
/// What no text of a daemon may do to a terminal: clear it, name its window, go back in the line.
const EVIL: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}31m\r";

fn status(name: &str, state: &str) -> Value {
    json!({
        "name": name, "source": "/m", "state": state, "reason": null, "pid": 7, "restarts": 0,
        "state_s": 1.0, "in_flight": 0, "progress": null, "info": null, "stats": null,
        "options": {"kv_tokens": 4096, "tp": 2, "gpus": [4, 5]},
    })
}

fn lines(events: &[Value]) -> Reply {
    Reply::text(events.iter().map(|event| format!("{event}\n")).collect::<String>())
}

fn error(status: u16, code: &str, message: &str) -> Reply {
    Reply::json(status, &json!({"code": code, "message": message}))
}

fn progress(detail: &str) -> Value {
    json!({"event": "progress", "stage": "download", "done": 1, "total": 2, "detail": detail})
}

fn with(event: &str, mut value: Value) -> Value {
    value["event"] = event.into();
    value
}

fn answer(call: &Call) -> Reply {
    match (call.method.as_str(), call.path.as_str()) {
        ("POST", "/admin/v1/pull") => match call.body["model"].as_str() {
            Some("org/absent") => lines(&[
                progress("x"),
                json!({"event": "failed", "code": "not_found", "message": "no such repo"}),
            ]),
            Some("org/slow") => Reply { end: End::Hang, ..lines(&[progress("w.safetensors")]) },
            _ => lines(&[
                progress("model.safetensors"),
                json!({"event": "done", "model": "org/m@main", "commit": "abc", "dir": "/c/abc", "bytes": 2048}),
            ]),
        },
        ("GET", "/admin/v1/disk") => Reply::json(
            200,
            &json!({
                "cache": "/c", "bytes": 1024, "free_bytes": 2048, "notes": [],
                "repos": [{"id": "org/m", "bytes": 1024, "incomplete_bytes": 0, "last_used": 0.0,
                           "in_use": ["m"], "downloading": false,
                           "revisions": [{"commit": "abcdef", "refs": ["main"], "bytes": 1024, "files": 4, "missing": []}]}],
            }),
        ),
        ("POST", "/admin/v1/rm") => match call.body["model"].as_str() {
            Some("org/used") => error(409, "conflict", "\"org/used\" is in use by \"m\""),
            model => Reply::json(200, &json!({"removed": model, "freed_bytes": 4096})),
        },
        ("GET", "/admin/v1/requests") => Reply::json(
            200,
            &json!([
                {"id": 9, "request_id": "r-9", "model": "m", "key": "ci", "state": "running", "prompt_tokens": 3,
                 "generated_tokens": 4, "max_tokens": 10, "priority": 0, "age_s": 2.0, "moves": 1},
                {"id": 8, "request_id": "r-8", "model": "other", "state": "waiting", "prompt_tokens": 3,
                 "generated_tokens": 0, "max_tokens": 10, "priority": 0, "age_s": 1.0, "moves": 0},
            ]),
        ),
        ("POST", "/admin/v1/cancel") => {
            Reply::json(200, &json!({"cancelled": u32::from(call.body["id"] == "r-9")}))
        }
        ("POST", "/admin/v1/restart") => {
            lines(&[progress("x"), with("ready", status("m", "ready"))])
        }
        ("POST", "/admin/v1/load") => {
            Reply { end: End::Hang, ..lines(&[progress("w.safetensors")]) }
        }
        ("POST", "/admin/v1/fit") => {
            let fits = call.body["name"] != "big";
            let problem = (!fits).then_some("GPU 0 has 3 GiB free; try --tp 2");
            Reply::json(
                200,
                &json!({"name": "m", "fits": fits, "problem": problem, "fit": null, "notes": ["an estimate"]}),
            )
        }
        ("GET", "/admin/v1/models/m") => Reply::json(200, &status("m", "ready")),
        _ => error(404, "not_found", "model is not loaded"),
    }
}

fn value(run: &Run) -> Value {
    serde_json::from_str(&run.out).unwrap_or_else(|error| panic!("{error}: {run:?}"))
}

#[test]
fn models_are_pulled_shown_and_removed() {
    let daemon = Daemon::start(answer);
    let run = daemon.run(&["pull", "org/m"]);
    assert_eq!((run.code, run.out.as_str()), (0, "org/m@main is on disk: 2.0 KiB in /c/abc\n"));
    assert!(run.err.contains("download 1 B of 2 B (model.safetensors)"), "{run:?}");
    assert_eq!(value(&daemon.run(&["-o", "json", "pull", "org/m"]))["commit"], "abc");
    let run = daemon.run(&["pull", "org/absent"]);
    assert_eq!((run.code, run.out.as_str()), (4, ""), "{run:?}");
    let run = daemon.run(&["models"]);
    assert!(run.out.contains("org/m  main      1.0 KiB"), "{run:?}");
    assert!(run.out.ends_with("1.0 KiB in 1 model of /c, 2.0 KiB free\n"), "{run:?}");
    assert_eq!(value(&daemon.run(&["models", "-o", "json"]))["repos"][0]["in_use"][0], "m");
    let run = daemon.run(&["rm", "org/a", "org/used", "org/b"]);
    assert_eq!((run.code, run.out.as_str()), (5, "org/a is removed, 4.0 KiB became free\n"));
    assert!(run.err.contains("in use by \"m\""), "{run:?}");
    let removed: Vec<Call> =
        daemon.calls().into_iter().filter(|call| call.path.ends_with("/rm")).collect();
    assert_eq!(removed.len(), 2, "what follows a refusal is left alone");
}

#[test]
fn requests_are_shown_and_ended() {
    let daemon = Daemon::start(answer);
    let run = daemon.run(&["requests"]);
    assert_eq!(run.out.lines().count(), 3, "{run:?}");
    assert!(
        run.out.contains("9   m      running  2.0s  3       4/10       0         ci"),
        "{run:?}"
    );
    let run = daemon.run(&["requests", "other"]);
    assert!(run.out.contains("r-8") && !run.out.contains("r-9"), "{run:?}");
    let run = daemon.run(&["cancel", "r-9"]);
    assert_eq!((run.code, run.out.as_str()), (0, "1 request ended\n"));
    let run = daemon.run(&["cancel", "r-7"]);
    assert_eq!(run.code, 4);
    assert!(run.err.contains("minisglctl requests"), "{run:?}");
}

#[test]
fn a_restart_sends_options_only_when_they_change() {
    let daemon = Daemon::start(answer);
    let sent = |args: &[&str]| {
        let run = daemon.run(args);
        assert_eq!(run.code, 0, "{run:?}");
        daemon.calls().pop().unwrap().body
    };
    assert_eq!(sent(&["restart", "m"]), json!({"name": "m", "options": null}));
    let body = sent(&["restart", "m", "--max-running", "8"]);
    let options = &body["options"];
    assert_eq!((&options["max_running"], &options["kv_tokens"]), (&json!(8), &json!(4096)));
    assert_eq!(options["gpus"], json!([4, 5]));
    assert_eq!(daemon.run(&["restart", "none"]).code, 4);
}

#[test]
fn a_dry_run_says_whether_it_fits_and_loads_nothing() {
    let daemon = Daemon::start(answer);
    let run = daemon.run(&["load", "org/m", "--dry-run"]);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.out.contains("verdict  fits\nnote     an estimate\n"), "{run:?}");
    let run = daemon.run(&["load", "org/m", "--dry-run", "--name", "big", "-o", "json"]);
    assert_eq!((run.code, value(&run)["fits"].clone()), (5, json!(false)));
    assert!(run.err.contains("try --tp 2"), "{run:?}");
    assert!(daemon.calls().iter().all(|call| call.path == "/admin/v1/fit"));
}

#[test]
fn flags_that_every_command_has_stand_before_or_after_it() {
    let daemon = Daemon::start(answer);
    let socket = daemon.socket.to_str().unwrap();
    for line in [
        "-o json --socket SOCKET models",
        "models -o json --socket SOCKET",
        "--socket SOCKET models --output=json",
        "--output json models --socket SOCKET --wait-daemon 0",
    ] {
        let line = line.replace("SOCKET", socket);
        let run = Run::of(ctl(&line.split(' ').collect::<Vec<_>>()).output().unwrap());
        assert_eq!(run.code, 0, "{line}: {run:?}");
        assert_eq!(value(&run)["cache"], "/c", "{line}");
    }
    let run = daemon.run(&["models", "-o", "yaml"]);
    assert_eq!(run.code, 2);
    assert!(run.err.contains("-o is table or json, not \"yaml\""), "{run:?}");
}

#[test]
fn waiting_ends_when_it_happened_or_cannot_any_more() {
    let looks = AtomicUsize::new(0);
    let daemon = Daemon::start(move |call| {
        let look = looks.fetch_add(1, Ordering::SeqCst);
        let model = |name: &str, state: &str, retry: Value| {
            let mut status = status(name, state);
            status["reason"] = "no network".into();
            status["retry_in_s"] = retry;
            Reply::json(200, &status)
        };
        match call.path.as_str() {
            "/admin/v1/models/slow" if look < 3 => model("slow", "failed", json!(4.0)),
            "/admin/v1/models/slow" => model("slow", "ready", Value::Null),
            "/admin/v1/models/broken" => model("broken", "failed", Value::Null),
            "/admin/v1/models/stuck" => model("stuck", "failed", json!(60.0)),
            "/admin/v1/health" => {
                let ready = look > 12;
                Reply::json(200, &json!({"ready": ready, "summary": "so it is", "models": []}))
            }
            _ => error(404, "not_found", "no such model"),
        }
    });
    let run = daemon.run(&["wait", "slow"]);
    assert_eq!((run.code, run.out.as_str()), (0, "slow is ready\n"), "{run:?}");
    assert_eq!(daemon.calls().len(), 4);
    let run = daemon.run(&["wait", "broken"]);
    assert_eq!(run.code, 6);
    assert!(run.err.contains("broken is failed: no network"), "{run:?}");
    let run = daemon.run(&["wait", "stuck", "--timeout", "1"]);
    assert_eq!(run.code, 6);
    assert!(run.err.contains("not within 1 s: stuck is failed: no network; tried again in 1m00s"));
    assert_eq!(daemon.run(&["wait", "nothing"]).code, 4);
    assert_eq!(daemon.run(&["wait", "nothing", "--for", "gone"]).out, "nothing is gone\n");
    assert_eq!(daemon.run(&["wait", "--for", "gone"]).code, 2, "gone what?");
    assert_eq!(daemon.run(&["wait"]).out, "ready: so it is\n");
}

#[test]
fn logs_are_followed_without_a_line_twice() {
    let looks = AtomicUsize::new(0);
    let daemon = Daemon::start(move |call| {
        assert!(call.path.starts_with("/admin/v1/models/org%2Fm/logs?lines="), "{call:?}");
        match looks.fetch_add(1, Ordering::SeqCst) {
            0 => Reply::json(200, &json!({"lines": ["b", "c"]})),
            1 => Reply::json(200, &json!({"lines": ["a", "b", "c"]})),
            2 => Reply::json(200, &json!({"lines": ["b", "c", EVIL, "d"]})),
            _ => error(404, "not_found", "it was unloaded"),
        }
    });
    let run = daemon.run(&["logs", "org/m", "-n", "2", "-f"]);
    assert_eq!(run.out, "b\nc\n[2J]0;owned31m\nd\n");
    assert_eq!(run.code, 4, "{run:?}");
    assert!(daemon.calls()[0].path.ends_with("lines=2"));
}

#[test]
fn a_watch_shows_the_models_again_and_again() {
    let looks = AtomicUsize::new(0);
    let daemon = Daemon::start(move |_| match looks.fetch_add(1, Ordering::SeqCst) {
        0..2 => Reply::json(200, &json!([status("m", "ready")])),
        _ => error(500, "failed", "enough"),
    });
    let run = daemon.run(&["ps", "--watch=1", "-o", "json"]);
    assert_eq!((run.code, run.out.lines().count()), (6, 2), "{run:?}");
    for line in run.out.lines() {
        assert_eq!(serde_json::from_str::<Value>(line).unwrap()[0]["name"], "m");
    }
}

/// Starts a command and waits until its standard error has said `word`.
fn start(daemon: &Daemon, args: &[&str], word: &str) -> Child {
    let mut command = daemon.command(args);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until_said(&mut child, word);
    child
}

fn until_said(child: &mut Child, word: &str) {
    let mut said = Vec::new();
    let err = child.stderr.as_mut().unwrap();
    while !String::from_utf8_lossy(&said).contains(word) {
        let mut byte = [0];
        assert_eq!(err.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&said));
        said.push(byte[0]);
    }
}

#[test]
fn ctrl_c_says_what_goes_on_and_how_to_stop_it() {
    let daemon = Daemon::start(answer);
    for (args, told) in [
        (["load", "org/m"], "the load goes on in the daemon"),
        (["pull", "org/slow"], "the download is stopped"),
    ] {
        let child = start(&daemon, &args, "w.safetensors");
        kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
        let run = Run::of(child.wait_with_output().unwrap());
        assert_eq!(run.code, 130, "{run:?}");
        assert!(run.err.contains(told), "{run:?}");
        // The daemon hears that the caller left.
        let since = Instant::now();
        while !daemon
            .calls()
            .iter()
            .any(|call| call.method == "gone" && call.path.ends_with(args[0]))
        {
            assert!(since.elapsed() < PATIENCE, "{args:?}: {:?}", daemon.calls());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let run = daemon.run(&["load", "org/m", "--detach"]);
    assert_eq!(run.code, 0);
    assert!(run.out.contains("minisglctl wait org/m"), "{run:?}");
}

#[test]
fn a_daemon_that_is_just_starting_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let path = socket.to_str().unwrap().to_string();
    // A dead daemon's file is in the way at first.
    drop(UnixListener::bind(&socket).unwrap());
    let mut command = ctl(&["pull", "org/m", "--wait-daemon", "600", "--socket", &path]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until_said(&mut child, "waiting for a daemon");
    std::fs::remove_file(&socket).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            common::serve(&stream, &std::sync::Mutex::default(), &answer);
        }
    });
    let run = Run::of(child.wait_with_output().unwrap());
    assert_eq!(run.code, 0, "{run:?}");
    let absent = folder.path().join("no.sock");
    let absent = absent.to_str().unwrap();
    let run = Run::of(ctl(&["models", "--socket", absent]).output().unwrap());
    assert_eq!(run.code, 3);
    assert!(!run.err.contains("waiting"), "a question is not kept waiting: {run:?}");
    let since = Instant::now();
    let run = Run::of(ctl(&["models", "--wait-daemon", "1", "--socket", absent]).output().unwrap());
    assert_eq!(run.code, 3);
    assert!(since.elapsed() >= Duration::from_secs(1));
}

#[test]
fn nothing_that_a_daemon_says_can_steer_the_terminal() {
    let evil = |call: &Call| {
        let text = |name: &str| format!("{EVIL}{name}");
        let mut model = status(&text("name"), "failed");
        model["reason"] = text("reason").into();
        model["source"] = text("source").into();
        model["notes"] = json!([text("note")]);
        match (call.method.as_str(), call.path.as_str()) {
            ("GET", "/admin/v1/models") => Reply::json(200, &json!([model])),
            ("GET", path) if path.starts_with("/admin/v1/models/") && path.contains("/logs") => {
                Reply::json(200, &json!({"lines": [text("line")]}))
            }
            ("GET", path) if path.starts_with("/admin/v1/models/") => Reply::json(200, &model),
            ("GET", "/admin/v1/health") => {
                Reply::json(200, &json!({"ready": false, "summary": text("summary"), "models": []}))
            }
            ("GET", "/admin/v1/version") => Reply::json(
                200,
                &json!({"version": text("v"), "pid": 1, "uptime_s": 1.0, "listen": text("l")}),
            ),
            ("GET", "/admin/v1/disk") => Reply::json(
                200,
                &json!({
                    "cache": text("cache"), "bytes": 0, "free_bytes": 0, "notes": [text("note")],
                    "repos": [{"id": text("id"), "bytes": 0, "incomplete_bytes": 1, "last_used": null,
                        "in_use": [text("user")], "downloading": false, "revisions": [
                            {"commit": text("c"), "refs": [text("r")], "bytes": 0, "files": 0, "missing": [text("m")]}]}],
                }),
            ),
            ("GET", "/metrics") => Reply::text(format!("# HELP a {EVIL}\na{{m=\"{EVIL}\"}} 1\n")),
            ("POST", "/admin/v1/load") => lines(&[
                progress(&text("tensor")),
                json!({"event": "failed", "code": "failed", "message": text("why")}),
            ]),
            ("POST", "/admin/v1/restart") => {
                let mut ready = with("ready", model);
                ready["state"] = "ready".into();
                lines(&[progress(&text("tensor")), ready])
            }
            _ => error(500, "failed", &text("error")),
        }
    };
    let daemon = Daemon::start(evil);
    for line in [
        "ps",
        "show m",
        "logs m",
        "health",
        "version",
        "models",
        "metrics",
        "load x",
        "restart m",
        "top --once",
        "unload m",
        "flush m",
        "requests",
        "cancel 1",
        "rm org/m",
        "wait m",
        "chat",
        "pull org/m",
        "load x --dry-run",
        "doctor",
    ] {
        for format in ["table", "json"] {
            let args: Vec<&str> = line.split(' ').chain(["-o", format]).collect();
            let run = daemon.run(&args);
            let said = format!("{}{}", run.out, run.err);
            let steers = |c: char| c.is_control() && c != '\n' && c != '\t';
            assert!(!said.contains(steers), "{line} -o {format}: {said:?}");
            let shown = said.contains("owned") || matches!(line, "chat" | "doctor");
            assert!(shown, "{line} -o {format} shows none of it, so this tests nothing: {said:?}");
        }
    }
}
