//! The registry and its workers: what happens to requests when a worker dies, hangs, floods, leaves.

#![allow(clippy::unwrap_used)] // a test's way to fail

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::fake::{
    COUNT, ENDLESS, FLOOD, HELD, LOAD_DIES, LOAD_FAILS, LOAD_WAITS, RESTART_DIES, STUBBORN,
};
use common::{Daemon, config, end_of, generate, is_alive, read, read_load, signal, token};
use minisgl_control::{Inspector, RegistryConfig, SavedModels, Unavailable};
use minisgl_proto::admin::{AdminErrorCode, LoadEvent, LoadRequest, ModelState};
use minisgl_proto::{Finish, LoadStage};
use nix::sys::signal::Signal;

#[test]
#[ignore = "the worker process of the other tests"]
fn fake_worker() {
    common::fake::run();
}

#[tokio::test]
async fn a_model_loads_in_stages_and_answers() {
    let daemon = Daemon::new();
    let events = daemon.load_events("m").await;
    let stages: Vec<LoadStage> = events
        .iter()
        .filter_map(|event| match event {
            LoadEvent::Progress(at) => Some(at.stage),
            _ => None,
        })
        .collect();
    use LoadStage::{KvPages, Read, Resolve, WarmUp};
    assert_eq!(stages, [Resolve, Read, WarmUp, KvPages]);
    assert!(matches!(events.last(), Some(LoadEvent::Ready(status)) if status.name == "m"));

    let (tokens, finish) = read(&mut daemon.submit("m", &[COUNT, 5])).await;
    assert_eq!((tokens, finish), (vec![0, 1, 2, 3, 4], Some(Finish::Length)));
    let status = daemon.until("m", |status| status.in_flight == 0).await;
    assert_eq!(status.stats.unwrap().generated_tokens, 5);
    assert!(daemon.registry.health().ready);
    let metrics = daemon.metrics_text();
    assert!(metrics.contains("minisgl_worker_generated_tokens_total{model=\"m\"} 5"), "{metrics}");
    assert!(metrics.contains("minisgl_worker_up{model=\"m\"} 1"), "{metrics}");
    assert_eq!(daemon.registry.flush("m").await, Ok(5));

    let began = Instant::now();
    daemon.registry.unload("m", false).await.unwrap();
    assert!(began.elapsed() < config().drain / 2, "it was not asked to go");
    assert!(!is_alive(status.pid.unwrap()));
    assert_eq!(daemon.metrics_text(), "");
    let gone = daemon.registry.submit("m", generate(&[COUNT, 1])).unwrap_err();
    assert!(matches!(gone, Unavailable::NotFound { .. }), "{gone}");
}

#[tokio::test]
async fn a_crash_loop_backs_off_and_is_given_up_and_can_be_loaded_again() {
    let daemon = Daemon::new();
    let pid = daemon.load(RESTART_DIES).await.unwrap().pid.unwrap();
    let began = Instant::now();
    signal(pid, Signal::SIGKILL);
    let status = daemon.until_state(RESTART_DIES, ModelState::Failed).await;
    // Three replacements, after 30, 60 and 120 ms.
    assert!(began.elapsed() >= Duration::from_millis(210), "{:?}", began.elapsed());
    assert_eq!(status.restarts, 3);
    let reason = status.reason.unwrap();
    assert!(reason.contains("signal 6") && reason.contains("4 failures"), "{reason}");
    std::fs::remove_file(daemon.model_dir(RESTART_DIES).join("starts")).unwrap();
    let status = daemon.load(RESTART_DIES).await.unwrap();
    assert_eq!((status.state, status.restarts), (ModelState::Ready, 0));
}

#[tokio::test]
async fn a_load_that_fails_says_why_and_leaves_the_name_free() {
    let daemon = Daemon::new();
    let error = daemon.load(LOAD_FAILS).await.unwrap_err();
    assert_eq!(error.message, "config.json has no hidden_size");
    let error = daemon.load(LOAD_DIES).await.unwrap_err().message;
    assert!(error.contains("status 3") && error.contains("the last words"), "{error}");
    assert!(daemon.registry.list().is_empty());

    let mut request = daemon.request("m");
    request.model = "/no/such/folder".to_string();
    let mut events = daemon.registry.load(request).await.unwrap();
    let mut last = None;
    while let Some(event) = events.recv().await {
        last = Some(event);
    }
    let Some(LoadEvent::Failed(error)) = last else { panic!("{last:?}") };
    assert!(error.message.contains("/no/such/folder"), "{error}");
    daemon.load("m").await.unwrap();
}

#[tokio::test]
async fn a_folder_that_the_inspector_refuses_gets_no_worker() {
    let refuse = |dir: &std::path::Path, _| Err(format!("{} has no soul", dir.display()));
    let config = RegistryConfig { inspector: Inspector(Arc::new(refuse)), ..config() };
    let daemon = Daemon::with(config);
    let error = daemon.load("m").await.unwrap_err();
    assert!(error.message.contains("not a complete model") && error.message.contains("no soul"));
    assert!(daemon.registry.list().is_empty());
}

#[tokio::test]
async fn a_worker_that_cannot_be_started_is_an_error_of_the_load() {
    let mut config = config();
    config.worker.program = "/no/such/program".into();
    let daemon = Daemon::with(config);
    let error = daemon.load("m").await.unwrap_err().message;
    assert!(error.contains("/no/such/program"), "{error}");
}

#[tokio::test]
async fn names_and_options_are_checked_before_anything_starts() {
    let daemon = Daemon::new();
    daemon.load("m").await.unwrap();
    let taken = daemon.registry.load(daemon.request("m")).await.unwrap_err();
    assert_eq!(taken.code, AdminErrorCode::Conflict);
    for name in ["", "a b", "a\n", &"x".repeat(201)] {
        let mut request = daemon.request("other");
        request.name = Some(name.to_string());
        let error = daemon.registry.load(request).await.unwrap_err();
        assert_eq!(error.code, AdminErrorCode::Invalid, "{error}");
    }
    for ratio in [0.0, 1.1, f32::NAN] {
        let mut request = daemon.request("other");
        request.options.memory_ratio = Some(ratio);
        let error = daemon.registry.load(request).await.unwrap_err();
        assert_eq!(error.code, AdminErrorCode::Invalid, "{error}");
    }
}

#[tokio::test]
async fn a_silent_worker_is_stalled_until_it_speaks() {
    let daemon = Daemon::with(RegistryConfig { stall: Duration::from_millis(300), ..config() });
    let pid = daemon.load("m").await.unwrap().pid.unwrap();
    let mut generation = daemon.submit("m", &[ENDLESS]);
    token(&mut generation).await;
    signal(pid, Signal::SIGSTOP);
    let status = daemon.until_state("m", ModelState::Stalled).await;
    assert!(status.reason.unwrap().contains("no sign of life"));
    assert!(!daemon.registry.health().ready);
    let mut waits = daemon.submit("m", &[COUNT, 2]);
    signal(pid, Signal::SIGCONT);
    daemon.until_state("m", ModelState::Ready).await;
    token(&mut generation).await;
    assert_eq!(read(&mut waits).await.0, [0, 1]);
}

#[tokio::test]
async fn a_worker_silent_for_too_long_is_killed_and_replaced() {
    // The next one, which speaks, would have to be held up for that long.
    let (stall, stall_kill) = (Duration::from_millis(300), Duration::from_secs(4));
    let config = RegistryConfig { stall, stall_kill, ..config() };
    let daemon = Daemon::with(config);
    let pid = daemon.load("m").await.unwrap().pid.unwrap();
    let mut generation = daemon.submit("m", &[ENDLESS]);
    token(&mut generation).await;
    signal(pid, Signal::SIGSTOP);
    daemon.until_state("m", ModelState::Stalled).await;
    let status = daemon.until_state("m", ModelState::Ready).await;
    assert_eq!((status.restarts, status.in_flight), (1, 1), "its request goes on");
    token(&mut generation).await;
    assert!(status.reason.unwrap().contains("no sign of life"));
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn a_load_without_progress_ends() {
    let config = RegistryConfig { load_silence: Duration::from_millis(300), ..config() };
    let daemon = Daemon::with(config);
    let load = tokio::time::timeout(common::PATIENCE, daemon.load(LOAD_WAITS));
    let error = load.await.expect("it waits for ever").unwrap_err().message;
    assert!(error.contains("no progress in loading"), "{error}");
    assert!(daemon.registry.list().is_empty());
}

#[tokio::test]
async fn a_flood_cuts_its_slow_reader_off_and_nobody_else() {
    let daemon = Daemon::with(RegistryConfig { stream_buffer: 64, ..config() });
    daemon.load("m").await.unwrap();
    let mut slow = daemon.submit("m", &[FLOOD, 10_000]);
    let (tokens, finish) = read(&mut daemon.submit("m", &[COUNT, 20])).await;
    assert_eq!((tokens.len(), finish), (20, Some(Finish::Length)));
    let (tokens, finish) = read(&mut slow).await;
    assert_eq!((tokens, finish), ((0..64).collect(), None));
    daemon.until("m", |status| status.in_flight == 0).await;
}

#[tokio::test]
async fn a_dropped_generation_is_aborted_and_makes_room() {
    let daemon = Daemon::new();
    daemon.load("m").await.unwrap();
    let mut running: Vec<_> = (0..4).map(|_| daemon.submit("m", &[ENDLESS])).collect();
    let busy = daemon.registry.submit("m", generate(&[ENDLESS])).unwrap_err();
    assert_eq!(busy, Unavailable::Busy { name: "m".into(), limit: 4 });
    drop(running.pop());
    daemon.until("m", |status| status.in_flight == 3).await;
    running.push(daemon.submit("m", &[ENDLESS]));
    drop(running);
    daemon.until("m", |status| status.in_flight == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_thousand_requests_come_and_go_and_nothing_is_left() {
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let daemon = Arc::new(Daemon::new());
    let mut request = daemon.request("m");
    (request.options.max_running, request.options.max_waiting) = (32, 32);
    let mut events = daemon.registry.load(request).await.unwrap();
    while events.recv().await.is_some() {}
    let clients = (0..40).map(|client| {
        let daemon = Arc::clone(&daemon);
        tokio::spawn(async move {
            let mut dice = seed + client;
            for _ in 0..50 {
                dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let Ok(mut generation) = daemon.registry.submit("m", generate(&[ENDLESS])) else {
                    panic!("64 may be in flight, and 40 are, besides those that are being aborted");
                };
                for expected in 0..(dice >> 33) as u32 % 4 {
                    assert_eq!(token(&mut generation).await, expected);
                }
                drop(generation);
                // Room is made when the worker has let go.
                while daemon.registry.status("m").unwrap().in_flight > 20 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    let status = daemon.until("m", |status| status.in_flight == 0).await;
    assert_eq!((status.restarts, status.state), (0, ModelState::Ready));
}

#[tokio::test]
async fn one_model_is_unloaded_while_another_streams() {
    let daemon = Daemon::new();
    daemon.load("a").await.unwrap();
    let pid = daemon.load("b").await.unwrap().pid.unwrap();
    let mut stays = daemon.submit("a", &[ENDLESS]);
    let mut drains = daemon.submit("b", &[HELD, 30]);
    token(&mut drains).await;
    let registry = daemon.registry.clone();
    let unload = tokio::spawn(async move { registry.unload("b", false).await });
    daemon.until_state("b", ModelState::Unloading).await;
    let refused = daemon.registry.submit("b", generate(&[COUNT, 1])).unwrap_err();
    assert!(refused.to_string().contains("being unloaded"), "{refused}");
    std::fs::write(daemon.model_dir("b").join("more"), "").unwrap();
    let (tokens, finish) = read(&mut drains).await;
    assert_eq!((tokens.len(), finish), (29, Some(Finish::Length)));
    unload.await.unwrap().unwrap();
    assert!(!is_alive(pid));
    let names: Vec<String> = daemon.registry.list().into_iter().map(|m| m.name).collect();
    assert_eq!(names, ["a"]);
    let before = token(&mut stays).await;
    assert_eq!(token(&mut stays).await, before + 1);
}

#[tokio::test]
async fn force_and_the_end_of_patience_end_requests_with_a_word() {
    let mut config = config();
    config.drain = Duration::from_millis(50);
    let daemon = Daemon::with(config);
    for (name, force) in [("m", true), ("m", false), (STUBBORN, false)] {
        let pid = daemon.load(name).await.unwrap().pid.unwrap();
        let mut generation = daemon.submit(name, &[ENDLESS]);
        token(&mut generation).await;
        daemon.registry.unload(name, force).await.unwrap();
        assert_eq!(read(&mut generation).await.1, Some(Finish::Aborted));
        assert!(!is_alive(pid));
    }
}

#[tokio::test]
async fn a_worker_deaf_to_sigterm_is_killed() {
    let mut config = config();
    let term_grace = config.term_grace;
    let program = std::mem::replace(&mut config.worker.program, "/bin/sh".into());
    let deaf = ["-c".into(), "trap '' TERM; exec \"$0\" \"$@\"".into(), program.into()];
    config.worker.args.splice(0..0, deaf);
    let daemon = Daemon::with(config);
    let pid = daemon.load(STUBBORN).await.unwrap().pid.unwrap();
    let began = Instant::now();
    daemon.registry.unload(STUBBORN, true).await.unwrap();
    assert!(began.elapsed() >= term_grace, "{:?}", began.elapsed());
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn an_unload_stops_a_load() {
    let daemon = Daemon::new();
    let mut events = daemon.registry.load(daemon.request(LOAD_WAITS)).await.unwrap();
    let status = daemon.until(LOAD_WAITS, |status| status.pid.is_some()).await;
    daemon.registry.unload(LOAD_WAITS, false).await.unwrap();
    assert!(!is_alive(status.pid.unwrap()));
    let mut last = None;
    while let Some(event) = events.recv().await {
        last = Some(event);
    }
    assert!(matches!(last, Some(LoadEvent::Failed(_))), "{last:?}");
}

#[tokio::test]
async fn shutdown_drains_every_model_and_takes_no_more() {
    let daemon = Daemon::new();
    let pids = [
        daemon.load("a").await.unwrap().pid.unwrap(),
        daemon.load("b").await.unwrap().pid.unwrap(),
    ];
    let mut generation = daemon.submit("a", &[COUNT, 10]);
    daemon.registry.shutdown(common::PATIENCE).await;
    assert_eq!(read(&mut generation).await.1, Some(Finish::Length));
    assert!(!pids.into_iter().any(is_alive));
    let refused = daemon.registry.load(daemon.request("c")).await.unwrap_err();
    assert_eq!(refused.code, AdminErrorCode::Conflict);
}

#[tokio::test]
async fn a_load_is_saved_when_it_is_ready_and_forgotten_when_it_is_unloaded() {
    let folder = tempfile::tempdir().unwrap();
    let saved = Arc::new(SavedModels::open(folder.path()).unwrap());
    let daemon = Daemon::saving(config(), Some(saved.clone()));
    let load = async |name: &str| {
        let request = LoadRequest { persist: true, ..daemon.request(name) };
        end_of(read_load(daemon.registry.load(request).await.unwrap()).await)
    };
    assert!(load("m").await.unwrap().persisted);
    assert!(daemon.registry.status("m").unwrap().persisted);
    load(LOAD_FAILS).await.unwrap_err();
    assert!(saved.has("m") && !saved.has(LOAD_FAILS));
    assert!(!daemon.load("other").await.unwrap().persisted);

    // A daemon that ends forgets nothing.
    daemon.registry.shutdown(Duration::ZERO).await;
    assert!(saved.has("m"));
    let next = Daemon::saving(config(), Some(saved.clone()));
    next.load("m").await.unwrap();
    next.registry.unload("m", false).await.unwrap();
    assert!(!saved.has("m"));

    // One that is saved and not loaded can be forgotten.
    saved.add(&LoadRequest { persist: true, ..next.request("gone") }).unwrap();
    let error = next.registry.unload("gone", false).await.unwrap_err();
    assert!(error.message.contains("no longer saved"), "{error}");
    assert!(!saved.has("gone"));
}

#[tokio::test]
async fn a_new_configuration_is_for_the_next_loads() {
    let daemon = Daemon::with(RegistryConfig { drain: common::PATIENCE * 2, ..config() });
    daemon.load("m").await.unwrap();
    let mut generation = daemon.submit("m", &[ENDLESS]);
    // Who does not read is cut off, and nothing would be left to wait for.
    tokio::spawn(async move { while generation.events.recv().await.is_some() {} });
    daemon.registry.reconfigure(RegistryConfig { drain: Duration::from_millis(50), ..config() });
    let began = Instant::now();
    daemon.registry.unload("m", false).await.unwrap();
    assert!(began.elapsed() < common::PATIENCE, "the old drain time was waited for");
}
