//! `[[model]]` tables that change while the daemon runs, applied by SIGHUP.

#![allow(clippy::unwrap_used)] // Helpers outside of #[test] functions are tests too.

use std::path::Path;
use std::time::{Duration, Instant};

use minisgl_proto::LoadOptions;
use minisgl_proto::admin::{ModelState, Origin};
use minisgl_tests::{Daemon, Events, dummy_folder, is_exact, model_options};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(120);

/// A `[[model]]` table with dummy weights and so many running requests at most.
fn table(name: &str, folder: &Path, max_running: u32) -> String {
    let options = model_options();
    let device = serde_json::to_value(options.device).unwrap();
    format!(
        "[[model]]\nmodel = {folder:?}\nname = {name:?}\n[model.options]\ndevice = {device}\ntp = {}\nthreads = 1\n\
         kv_tokens = 4096\ndummy_weights = true\nmax_running = {max_running}\n",
        options.tp
    )
}

fn reload(daemon: &Daemon, configuration: &str) {
    std::fs::write(daemon.dir().join("minisgld.toml"), configuration).unwrap();
    kill(Pid::from_raw(daemon.pid() as i32), Signal::SIGHUP).unwrap();
}

/// A stream of that many tokens, of which the first has come.
fn stream(daemon: &Daemon, model: &str, tokens: u32) -> (Events, Vec<Value>) {
    let body = json!({
        "model": model, "prompt": [5, 6, 7, 8], "max_tokens": tokens, "ignore_eos": true, "stream": true,
        "temperature": 0.8, "seed": 11, "stream_options": {"include_usage": true},
    });
    let mut events = daemon.events("/v1/completions", &body);
    let first = events.next_event().unwrap().unwrap();
    (events, vec![first])
}

/// Text and number of tokens, at its end.
fn whole((events, mut parts): (Events, Vec<Value>)) -> (String, u64) {
    parts.extend(events.rest().unwrap());
    let error = parts.iter().find(|part| part.get("error").is_some());
    assert!(error.is_none(), "{error:?}");
    let texts = parts.iter().filter_map(|part| part["choices"][0]["text"].as_str());
    let tokens = parts.last().unwrap()["usage"]["completion_tokens"].as_u64().unwrap();
    (texts.collect(), tokens)
}

fn names(daemon: &Daemon) -> Vec<String> {
    let list = daemon.get("/v1/models").ok();
    let mut names: Vec<String> =
        list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap().into()).collect();
    names.sort();
    names
}

fn until(daemon: &Daemon, what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "never {what}\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a stream was promised there may be no room for any more: it ends by length, with its own number of tokens, and the reason.
#[test]
fn a_smaller_cache_says_that_it_is_what_limits() {
    let daemon = Daemon::start();
    let dir = dummy_folder("qwen3", &daemon.dir());
    let options = LoadOptions { dummy_weights: true, kv_tokens: Some(4096), ..model_options() };
    let before = daemon.load("shrinks", &dir, options).info.unwrap();
    assert!(before.max_len > 1024, "{before:?}");
    let body = json!({
        "model": "shrinks", "input_ids": [5, 6, 7, 8], "stream": true,
        "sampling_params": {"max_new_tokens": 1500, "ignore_eos": true},
    });
    let mut events = daemon.events("/generate", &body);
    events.next_event().unwrap().unwrap();
    let done = daemon.ctl(&["restart", "shrinks", "--kv-tokens", "32"]);
    assert!(done.status.success(), "{done:?}");
    let info = daemon.status("shrinks").info.unwrap();
    assert_eq!((info.max_len, info.context_len), (32, before.context_len));

    let last = events.rest().unwrap().pop().unwrap();
    let (meta, reason) = (&last["meta_info"], &last["meta_info"]["finish_reason"]);
    assert_eq!(
        (&reason["type"], &reason["length"]),
        (&json!("length"), &meta["completion_tokens"])
    );
    assert!(reason["length"].as_u64().unwrap() < 1500, "{reason}");
    assert!(reason["message"].as_str().unwrap().contains("kv_tokens"), "{reason}");
    assert!(daemon.log().contains("requests may be shorter now"), "{}", daemon.log());

    let refused =
        daemon.post("/v1/completions", &json!({"model": "shrinks", "prompt": vec![5; 40]}));
    let (status, text) = (refused.status, refused.text());
    assert!(
        status == 400 && text.contains("maximum context length is 32 tokens"),
        "{status} {text}"
    );
    assert!(text.contains(&format!("it takes up to {}", before.context_len)), "{text}");
}

#[test]
fn tables_that_change_restart_go_and_come_and_no_stream_breaks() {
    let folder = tempfile::tempdir().unwrap();
    let dir = dummy_folder("qwen3", folder.path());
    let common = "[workers]\ndrain_s = 120.0\n";
    let before = [table("changed", &dir, 4), table("gone", &dir, 4), table("same", &dir, 4)];
    let daemon = Daemon::start_configured(&format!("{common}{}", before.join("")));
    let ready =
        |name: &str| daemon.wait_for(name, "ready", |status| status.state == ModelState::Ready);
    let old = ["changed", "gone", "same"].map(|name| ready(name).pid.unwrap());
    let right = whole(stream(&daemon, "changed", 1500));
    assert_eq!(right.1, 1500);

    let (moving, leaving) = (stream(&daemon, "changed", 1500), stream(&daemon, "gone", 1500));
    let after = [table("changed", &dir, 6), table("same", &dir, 4), table("new", &dir, 4)];
    reload(&daemon, &format!("{common}{}", after.join("")));
    // The streams are read by nobody meanwhile, and a stream that is not read loses nothing.
    let restarted = daemon.wait_for("changed", "restarted", |status| {
        status.state == ModelState::Ready && status.pid != Some(old[0])
    });
    assert_eq!(restarted.options.max_running, 6);
    let moved = whole(moving);
    assert!(!is_exact() || moved == right, "{moved:?} is not {right:?}");
    assert_eq!(moved.1, 1500);
    let metrics = daemon.get("/metrics").text();
    assert!(
        metrics.contains("minisgl_worker_requests_moved_total{model=\"changed\"} 1"),
        "the stream did not go from one worker to the other:\n{metrics}"
    );
    assert_eq!(whole(leaving).1, 1500, "a model that goes ends its requests first");

    until(&daemon, "three models", || names(&daemon) == ["changed", "new", "same"]);
    let new = ready("new");
    assert_eq!((new.origin, new.options.max_running), (Origin::Configured, 4));
    assert_eq!(ready("same").pid, Some(old[2]), "who has no change is left alone");
    let refused = daemon.post("/v1/completions", &json!({"model": "gone", "prompt": [5]}));
    assert_eq!(refused.status, 404, "{}", refused.text());
    until(&daemon, "gone", || !Path::new(&format!("/proc/{}", old[1])).exists());
    assert_eq!(whole(stream(&daemon, "new", 3)).1, 3);

    // What a load by hand brought is nobody's to take away but by hand; an invalid file changes nothing.
    daemon.load(
        "by-hand",
        &dir,
        minisgl_proto::LoadOptions { dummy_weights: true, ..model_options() },
    );
    reload(&daemon, &format!("{common}[[model]]\nmodel = 7\n"));
    until(&daemon, "refused", || daemon.log().contains("the configuration is not reloaded"));
    assert_eq!(names(&daemon), ["by-hand", "changed", "new", "same"]);
    reload(&daemon, common);
    until(&daemon, "empty", || names(&daemon) == ["by-hand"]);
}
