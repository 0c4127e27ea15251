//! `kill -9` at every phase of a worker's life, again and again, with clients: nothing is left behind.
//!
//! `MINISGL_TEST_KILL_S=600` goes on for ten minutes.

#![allow(clippy::unwrap_used)] // Helpers outside of #[test] functions are tests too.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use minisgl_proto::LoadOptions;
use minisgl_proto::admin::ModelState;
use minisgl_tests::daemon::number;
use minisgl_tests::random::Random;
use minisgl_tests::{Daemon, dummy_folder, model_options};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

/// Unless `MINISGL_TEST_KILL_S` says otherwise.
const SECONDS: u64 = 15;
const CLIENTS: u64 = 4;

#[test]
fn kills_at_every_phase_leave_nothing_behind() {
    let daemon = Daemon::start_configured("[workers]\nfailures_max = 1000\n");
    let dir = dummy_folder("qwen3", &daemon.dir());
    let options = LoadOptions {
        kv_tokens: Some(4096),
        max_len: Some(512),
        dummy_weights: true,
        ..model_options()
    };
    daemon.load("stays", &dir, options.clone());
    daemon.post("/generate", &generation(1, 4)).ok();
    let files = open_files(&daemon);
    let until =
        Instant::now() + Duration::from_secs(number("MINISGL_TEST_KILL_S").unwrap_or(SECONDS));
    let seed = number("MINISGL_TEST_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let (over, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (daemon, over, answers) = (&daemon, &over, &answers);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    // Whatever happens to its worker, this model answers.
                    daemon.post("/generate", &generation(client, 40)).ok();
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut random = Random::new(seed);
        let mut round = 0;
        while Instant::now() < until || round < 4 {
            kill_serving(&daemon, &mut random);
            match round % 3 {
                0 => kill_loading(&daemon, &dir, &options, &mut random),
                1 => kill_draining(&daemon, &dir, &options, false, &mut random),
                _ => kill_draining(&daemon, &dir, &options, true, &mut random),
            }
            round += 1;
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(answers.load(Ordering::Relaxed) >= CLIENTS, "nobody was served");
    daemon.assert_all_pages_back("stays");
    // Connections and pipes close a moment after their owners.
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let (files_now, zombies) = (open_files(&daemon), zombies(daemon.pid()));
        if files_now <= files && zombies == 0 {
            return;
        }
        let late = Instant::now() > deadline;
        let which = names_of_files(daemon.pid());
        assert!(!late, "{files_now} open: {which:?}; before: {files}; {zombies} zombies");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn generation(first: u64, tokens: u64) -> serde_json::Value {
    let sampling = json!({"max_new_tokens": tokens, "temperature": 1.0, "ignore_eos": true});
    json!({"model": "stays", "input_ids": [first + 10, 20, 30], "sampling_params": sampling})
}

fn kill_worker(daemon: &Daemon, name: &str) {
    let path = format!("/admin/v1/models/{name}");
    let Ok(answer) = daemon.admin.call("GET", &path, &serde_json::Value::Null) else { return };
    if let Some(pid) = answer.json()["pid"].as_i64() {
        let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
    }
}

fn kill_serving(daemon: &Daemon, random: &mut Random) {
    daemon.wait_for("stays", "ready", |status| status.state == ModelState::Ready);
    std::thread::sleep(Duration::from_millis(random.below(300)));
    kill_worker(daemon, "stays");
}

fn kill_loading(
    daemon: &Daemon,
    dir: &std::path::Path,
    options: &LoadOptions,
    random: &mut Random,
) {
    std::thread::scope(|scope| {
        let load = scope.spawn(|| daemon.try_load("comes", dir, options.clone()));
        std::thread::sleep(Duration::from_millis(random.below(300)));
        kill_worker(daemon, "comes");
        match load.join().unwrap() {
            Ok(_) => daemon.unload("comes", true),
            Err(error) => assert!(error.message.contains("signal 9"), "{error:?}"),
        }
    });
}

/// Kills while a request is drained, or while the worker is told to go.
fn kill_draining(
    daemon: &Daemon,
    dir: &std::path::Path,
    options: &LoadOptions,
    force: bool,
    random: &mut Random,
) {
    daemon.load("comes", dir, options.clone());
    let mut body = generation(5, 300);
    body["model"] = json!("comes");
    body["stream"] = json!(true);
    let mut events = daemon.events("/generate", &body);
    events.next_event().unwrap();
    std::thread::scope(|scope| {
        let unload = scope.spawn(|| daemon.unload("comes", force));
        std::thread::sleep(Duration::from_millis(random.below(100)));
        kill_worker(daemon, "comes");
        unload.join().unwrap();
    });
    while let Ok(Some(_)) = events.next_event() {}
}

/// Files that the daemon has open, by its own word: nobody else may look but root. The connection that asks is one.
fn open_files(daemon: &Daemon) -> u64 {
    let metrics = daemon.get("/metrics").text();
    let line = metrics.lines().find_map(|line| line.strip_prefix("process_open_fds "));
    let files: u64 = line.unwrap_or_else(|| panic!("no open files in {metrics}")).parse().unwrap();
    // Standard input, output and error, and the sockets of both APIs.
    assert!(files > 5, "{files} open files are no count");
    files
}

/// What they are, for who may know: a hint, and no part of the test.
fn names_of_files(pid: u32) -> Vec<std::path::PathBuf> {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    files.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok()).collect()
}

/// Dead children that a process has not reaped.
fn zombies(pid: u32) -> usize {
    let children = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let stat = std::fs::read_to_string(entry.ok()?.path().join("stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let (state, parent) = (fields.next()?, fields.next()?);
        (parent.parse() == Ok(pid)).then(|| state == "Z")
    });
    children.filter(|is_zombie| *is_zombie).count()
}
