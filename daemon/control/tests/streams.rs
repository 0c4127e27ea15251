//! Streams outlive their worker: what a reader sees, and what it does not, when workers die, are killed, restarted.

#![allow(clippy::unwrap_used)] // a test's way to fail

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::fake::{COUNT, CRASH, ENDLESS, ENOUGH, GARBAGE, HELD, LOAD_WAITS, RESTART_DIES};
use common::{Daemon, config, end_of, generate, is_alive, read, read_load, signal, token};
use minisgl_control::{RegistryConfig, RestartPolicy, SavedModels, Unavailable};
use minisgl_proto::admin::{AdminErrorCode, LoadRequest, ModelState, RequestState, RestartRequest};
use minisgl_proto::{Finish, LoadOptions};
use nix::sys::signal::Signal;

#[test]
#[ignore = "the worker process of the other tests"]
fn fake_worker() {
    common::fake::run();
}

fn failure(finish: Option<Finish>) -> String {
    match finish {
        Some(Finish::Failed(reason)) => reason,
        other => panic!("{other:?} is no failure"),
    }
}

/// Lets a model that waits in its load go on, or not.
fn let_go(daemon: &Daemon, may: bool) {
    let file = daemon.model_dir(LOAD_WAITS).join("go");
    if may { std::fs::write(file, "").unwrap() } else { std::fs::remove_file(file).unwrap() }
}

#[tokio::test]
async fn a_killed_worker_is_a_pause_to_its_readers() {
    let daemon = Daemon::new();
    daemon.load("m").await.unwrap();
    let mut first = daemon.submit("m", &[ENOUGH]);
    let mut second = daemon.submit("m", &[ENDLESS]);
    for kill in 0..3 {
        let status = daemon.until_state("m", ModelState::Ready).await;
        assert_eq!(status.restarts, kill);
        let before = token(&mut second).await;
        assert_eq!(token(&mut second).await, before + 1);
        signal(status.pid.unwrap(), Signal::SIGKILL);
        daemon.until("m", |status| status.restarts > kill || status.pid.is_none()).await;
    }
    std::fs::write(daemon.model_dir("m").join("enough"), "").unwrap();
    let (tokens, finish) = read(&mut first).await;
    let all: Vec<u32> = (0..tokens.len() as u32).collect();
    assert_eq!((tokens, finish), (all, Some(Finish::Length)), "not one lost or twice");
    let ready = daemon.until_state("m", ModelState::Ready).await;
    let reason = ready.reason.unwrap();
    assert!(reason.contains("restarted") && reason.contains("signal 9"), "{reason}");
    let metrics = daemon.metrics_text();
    assert!(metrics.contains("minisgl_worker_restarts_total{model=\"m\"} 3"), "{metrics}");
    assert!(metrics.contains("minisgl_worker_requests_moved_total{model=\"m\"} 6"), "{metrics}");
    assert!(metrics.contains("minisgl_worker_requests_given_up_total{model=\"m\"} 0"), "{metrics}");
}

#[tokio::test]
async fn requests_that_come_while_there_is_no_worker_wait_for_it() {
    let daemon = Daemon::new();
    let_go_after_load(&daemon).await;
    let pid = daemon.status_pid(LOAD_WAITS);
    let mut running = daemon.submit(LOAD_WAITS, &[HELD, 200]);
    token(&mut running).await;
    let_go(&daemon, false);
    signal(pid, Signal::SIGKILL);
    daemon.until_state(LOAD_WAITS, ModelState::Restarting).await;
    assert!(!daemon.registry.health().ready);
    let mut waiting = daemon.submit(LOAD_WAITS, &[COUNT, 3]);
    let left = daemon.submit(LOAD_WAITS, &[ENDLESS]);
    let mut cancelled = daemon.submit(LOAD_WAITS, &[ENDLESS]);
    let busy = daemon.registry.submit(LOAD_WAITS, generate(&[ENDLESS])).unwrap_err();
    assert_eq!(busy, Unavailable::Busy { name: LOAD_WAITS.into(), limit: 4 });
    let requests = daemon.registry.requests();
    assert!(requests.iter().all(|request| request.state == RequestState::Parked), "{requests:?}");
    assert_eq!(daemon.registry.cancel(&cancelled.id.to_string()), 1);
    assert_eq!(read(&mut cancelled).await.1, Some(Finish::Aborted));
    drop(left);
    daemon.until(LOAD_WAITS, |status| status.in_flight == 2).await;
    let_go(&daemon, true);
    std::fs::write(daemon.model_dir(LOAD_WAITS).join("more"), "").unwrap();
    assert_eq!(read(&mut waiting).await, (vec![0, 1, 2], Some(Finish::Length)));
    assert_eq!(read(&mut running).await.0, (1..200).collect::<Vec<u32>>());
}

async fn let_go_after_load(daemon: &Daemon) {
    let_go(daemon, true);
    daemon.load(LOAD_WAITS).await.unwrap();
}

#[tokio::test]
async fn a_request_that_breaks_its_worker_is_given_up_alone() {
    for poison in [CRASH, GARBAGE] {
        let daemon = Daemon::new();
        daemon.load("m").await.unwrap();
        let mut healthy = daemon.submit("m", &[COUNT, 300]);
        token(&mut healthy).await;
        let mut poisonous = daemon.submit("m", &[poison]);
        let (tokens, finish) = read(&mut poisonous).await;
        assert_eq!(tokens, if poison == CRASH { vec![0, 1, 2] } else { vec![] });
        let reason = failure(finish);
        let how = if poison == CRASH { "status 7" } else { "broke the protocol" };
        assert!(reason.contains(how) && reason.contains("given up"), "{reason}");
        assert_eq!(read(&mut healthy).await.0, (1..300).collect::<Vec<u32>>());
        let status = daemon.until_state("m", ModelState::Ready).await;
        assert!(status.restarts <= 3, "{status:?}");
        let metrics = daemon.metrics_text();
        assert!(metrics.contains("requests_given_up_total{model=\"m\"} 1"), "{metrics}");
    }
}

#[tokio::test]
async fn those_that_wait_too_long_or_for_a_model_that_is_given_up_fail_with_a_word() {
    let config = RegistryConfig { park: Duration::from_millis(300), ..config() };
    let daemon = Daemon::with(config);
    let_go_after_load(&daemon).await;
    let pid = daemon.status_pid(LOAD_WAITS);
    let mut waits = daemon.submit(LOAD_WAITS, &[ENDLESS]);
    token(&mut waits).await;
    let_go(&daemon, false);
    signal(pid, Signal::SIGKILL);
    let reason = failure(read(&mut waits).await.1);
    assert!(reason.contains("no worker") && reason.contains("retry later"), "{reason}");

    let daemon = Daemon::new();
    let pid = daemon.load(RESTART_DIES).await.unwrap().pid.unwrap();
    let mut lost = daemon.submit(RESTART_DIES, &[ENDLESS]);
    token(&mut lost).await;
    signal(pid, Signal::SIGKILL);
    let reason = failure(read(&mut lost).await.1);
    assert!(reason.contains("failed") && reason.contains("4 failures"), "{reason}");
    let refused = daemon.registry.submit(RESTART_DIES, generate(&[COUNT, 1])).unwrap_err();
    assert!(matches!(refused, Unavailable::NotReady { .. }), "{refused}");
}

#[tokio::test]
async fn workers_that_bring_requests_forward_are_replaced_for_ever() {
    let daemon = Daemon::new();
    daemon.load("m").await.unwrap();
    let mut generation = daemon.submit("m", &[ENDLESS]);
    let mut next = 0;
    for kill in 0..8 {
        let status =
            daemon.until("m", |s| s.state == ModelState::Ready && s.restarts == kill).await;
        assert_eq!(token(&mut generation).await, next);
        next += 1;
        // Those that are in the channel already came from the worker before.
        while daemon.registry.requests()[0].state != RequestState::Running {
            assert_eq!(token(&mut generation).await, next);
            next += 1;
        }
        signal(status.pid.unwrap(), Signal::SIGKILL);
    }
    daemon.until("m", |s| s.state == ModelState::Ready && s.restarts == 8).await;
}

async fn restart(
    daemon: &Daemon,
    name: &str,
    options: Option<LoadOptions>,
) -> Result<minisgl_proto::admin::ModelStatus, minisgl_proto::admin::AdminError> {
    let request = RestartRequest { name: name.to_string(), options };
    end_of(read_load(daemon.registry.restart(request).await?).await)
}

#[tokio::test]
async fn a_restart_lets_streams_wait_and_takes_new_options() {
    let folder = tempfile::tempdir().unwrap();
    let saved = Arc::new(SavedModels::open(folder.path()).unwrap());
    let daemon = Daemon::saving(config(), Some(saved.clone()));
    let request = LoadRequest { persist: true, ..daemon.request("m") };
    let options = request.options.clone();
    let first = end_of(read_load(daemon.registry.load(request).await.unwrap()).await).unwrap();
    let mut stream = daemon.submit("m", &[COUNT, 300]);
    token(&mut stream).await;
    let second = restart(&daemon, "m", None).await.unwrap();
    assert_ne!(first.pid, second.pid);
    assert!(!is_alive(first.pid.unwrap()));
    assert_eq!(second.state, ModelState::Ready);

    let wider = LoadOptions { max_running: 8, ..options.clone() };
    let third = restart(&daemon, "m", Some(wider.clone())).await.unwrap();
    assert_eq!((third.info.unwrap().max_running, &third.options), (8, &wider));
    assert_eq!(saved.models()[0].options, wider, "the next daemon loads it like this");
    assert_eq!(read(&mut stream).await.0, (1..300).collect::<Vec<u32>>());

    let bad = LoadOptions { memory_ratio: Some(7.0), ..options };
    let error = restart(&daemon, "m", Some(bad)).await.unwrap_err();
    assert_eq!(error.code, AdminErrorCode::Invalid);
    assert_eq!(restart(&daemon, "n", None).await.unwrap_err().code, AdminErrorCode::NotFound);
}

#[tokio::test]
async fn options_that_do_not_load_are_taken_back() {
    let daemon = Daemon::new();
    let before = daemon.load("m").await.unwrap();
    let mut stream = daemon.submit("m", &[COUNT, 300]);
    token(&mut stream).await;
    let refused =
        LoadOptions { max_len: Some(common::fake::MAX_LEN_REFUSED), ..before.options.clone() };
    let error = restart(&daemon, "m", Some(refused)).await.unwrap_err().message;
    assert!(error.contains("is too long") && error.contains("as before"), "{error}");
    let status = daemon.until_state("m", ModelState::Ready).await;
    assert_eq!(status.options, before.options);
    assert!(status.reason.unwrap().contains("is too long"));
    assert_eq!(read(&mut stream).await.0, (1..300).collect::<Vec<u32>>());
}

#[tokio::test]
async fn what_workers_write_is_kept_across_them() {
    let daemon = Daemon::new();
    daemon.load("m").await.unwrap();
    restart(&daemon, "m", None).await.unwrap();
    let began = Instant::now();
    while daemon.registry.logs("m", 10).unwrap() != ["a worker speaks", "a worker speaks"] {
        assert!(began.elapsed() < common::PATIENCE, "{:?}", daemon.registry.logs("m", 10));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(daemon.registry.logs("m", 1).unwrap().len(), 1);
    assert_eq!(daemon.registry.logs("n", 1).unwrap_err().code, AdminErrorCode::NotFound);
}

#[tokio::test]
async fn give_up_counts_only_deaths_without_progress() {
    let restart = RestartPolicy { give_up: 2, ..config().restart };
    let daemon = Daemon::with(RegistryConfig { restart, ..config() });
    let status = daemon.load("m").await.unwrap();
    signal(status.pid.unwrap(), Signal::SIGKILL);
    let status = daemon.until("m", |s| s.state == ModelState::Ready && s.restarts == 1).await;
    assert_eq!(read(&mut daemon.submit("m", &[COUNT, 2])).await.0, [0, 1]);
    signal(status.pid.unwrap(), Signal::SIGKILL);
    let status = daemon.until("m", |s| s.state == ModelState::Ready && s.restarts == 2).await;
    signal(status.pid.unwrap(), Signal::SIGKILL);
    daemon.until_state("m", ModelState::Failed).await;
}

#[tokio::test]
async fn a_device_that_breaks_every_request_fails_the_model_and_not_one_request_after_another() {
    let daemon = Daemon::new(); // gives up with the fourth failure
    daemon.load("m").await.unwrap();
    // The worker dies before any of them gets a token.
    let mut all: Vec<_> = (0..4).map(|_| daemon.submit("m", &[GARBAGE])).collect();
    daemon.until_state("m", ModelState::Failed).await;
    let mut failed = 0;
    for generation in &mut all {
        failed += usize::from(failure(read(generation).await.1).contains("4 failures in a row"));
    }
    assert!(failed >= 2, "{failed}");
}
