//! What the operator wants: models that the configuration names, that are saved, that somebody loads; and what becomes
//! of them when they cannot be had.

#![allow(clippy::unwrap_used)] // a test's way to fail

mod common;
#[path = "common/hub.rs"]
mod hub;

use std::sync::Arc;
use std::time::Duration;

use common::fake::{COUNT, LOAD_WAITS};
use common::{Daemon, config, config_with_gpus, end_of, generate, read, read_load, token};
use hub::Hub;
use minisgl_control::{Backoff, RegistryConfig, SavedModels, Unavailable};
use minisgl_proto::admin::{AdminErrorCode, LoadRequest, ModelState, Origin};

#[test]
#[ignore = "the worker process of the other tests"]
fn fake_worker() {
    common::fake::run();
}

/// Lets a model that waits in its load go on.
fn let_go(daemon: &Daemon) {
    std::fs::write(daemon.model_dir(LOAD_WAITS).join("go"), "").unwrap();
}

/// Tries again at once, almost.
fn eager(config: RegistryConfig) -> RegistryConfig {
    let retry = Backoff { initial: Duration::from_millis(50), max: Duration::from_millis(100) };
    RegistryConfig { retry, ..config }
}

#[tokio::test]
async fn a_model_that_the_daemon_keeps_stays_listed_and_is_tried_again() {
    let daemon = Daemon::with(eager(config()));
    let mut request = daemon.request("m");
    let dir = std::path::PathBuf::from(&request.model);
    // Away and back at once: what is there in part is no model.
    let away = dir.with_extension("away");
    std::fs::rename(&dir, &away).unwrap();
    request.aliases = vec!["nick".into()];
    daemon.registry.keep(request, Origin::Configured).unwrap();
    let status = daemon.until_state("m", ModelState::Failed).await;
    assert!(status.reason.unwrap().contains("no folder"));
    assert_eq!(status.origin, Origin::Configured);
    assert!(status.retry_in_s.is_some_and(|seconds| seconds <= 0.1));
    let health = daemon.registry.health();
    assert!(!health.ready && health.summary.contains("m is failed"), "{health:?}");
    assert!(daemon.metrics_text().contains("minisgl_worker_up{model=\"m\"} 0"));
    let refused = daemon.registry.submit("m", generate(&[COUNT, 1])).unwrap_err();
    assert!(matches!(refused, Unavailable::NotReady { .. }), "{refused}");

    std::fs::rename(&away, &dir).unwrap();
    let status = daemon.until_state("m", ModelState::Ready).await;
    assert_eq!((status.retry_in_s, status.restarts), (None, 0));
    assert!(daemon.registry.health().ready);
    // By any of its names.
    assert_eq!(read(&mut daemon.submit("nick", &[COUNT, 2])).await.0, [0, 1]);
    assert_eq!(daemon.registry.model("nick").unwrap().name(), "m");
    let taken = LoadRequest { name: Some("nick".into()), ..daemon.request("other") };
    let taken = daemon.registry.load(taken).await.unwrap_err();
    assert!(taken.message.contains("alias") && taken.message.contains("\"m\""), "{taken}");
    daemon.registry.unload("nick", true).await.unwrap();
    assert!(daemon.registry.list().is_empty());
}

#[tokio::test]
async fn what_cannot_pass_is_not_tried_again_until_somebody_asks() {
    let daemon = Daemon::new();
    let mut request = daemon.request("m");
    request.options.dummy_weights = false; // its folder has no weights
    daemon.registry.keep(request.clone(), Origin::Persisted).unwrap();
    let status = daemon.until_state("m", ModelState::Failed).await;
    assert_eq!((status.retry_in_s, status.persisted), (None, true));
    request.options.dummy_weights = true;
    let loaded = end_of(read_load(daemon.registry.load(request).await.unwrap()).await).unwrap();
    assert_eq!((loaded.state, loaded.origin), (ModelState::Ready, Origin::Persisted));
}

#[tokio::test]
async fn models_are_found_side_by_side_and_all_are_listed_at_once() {
    let daemon = Daemon::new();
    for name in [LOAD_WAITS, "a", "b"] {
        daemon.registry.keep(daemon.request(name), Origin::Configured).unwrap();
    }
    let names: Vec<String> = daemon.registry.listed().into_iter().map(|m| m.name).collect();
    assert_eq!(names, [LOAD_WAITS, "a", "b"]);
    daemon.until_state("a", ModelState::Ready).await;
    daemon.until_state("b", ModelState::Ready).await;
    assert!(!daemon.registry.health().ready, "one is still loading");
    assert_eq!(daemon.registry.status(LOAD_WAITS).unwrap().state, ModelState::Loading);
    let_go(&daemon);
    daemon.until_state(LOAD_WAITS, ModelState::Ready).await;
    assert!(daemon.registry.health().ready);
    let generations: Vec<u64> = daemon.registry.listed().iter().map(|m| m.generation).collect();
    assert!(generations.is_sorted_by(|a, b| a < b), "{generations:?}");
}

#[tokio::test]
async fn a_changed_configuration_changes_its_models_and_no_others() {
    let daemon = Daemon::new();
    let request = |name: &str| daemon.request(name);
    for name in ["stays", "changes", "leaves"] {
        daemon.registry.keep(request(name), Origin::Configured).unwrap();
        daemon.until_state(name, ModelState::Ready).await;
    }
    let by_hand = daemon.load("by-hand").await.unwrap();
    let stays = daemon.registry.status("stays").unwrap();
    let mut stream = daemon.submit("changes", &[COUNT, 200]);
    token(&mut stream).await;
    let mut changes = request("changes");
    changes.options.max_running = 5;
    let mut named = request("stays");
    let wanted = vec![named.clone(), changes.clone(), request("comes"), request("by-hand")];
    daemon.registry.reconcile(wanted).await;
    daemon.until_state("comes", ModelState::Ready).await;
    assert_eq!(daemon.registry.status("changes").unwrap().options, changes.options);
    assert_eq!(daemon.registry.status("stays").unwrap().pid, stays.pid);
    assert_eq!(daemon.registry.status("by-hand").unwrap().pid, by_hand.pid);
    assert_eq!(read(&mut stream).await.0, (1..200).collect::<Vec<u32>>());
    named.aliases = vec!["other".into()];
    daemon.registry.reconcile(vec![named]).await;
    let names: Vec<String> = daemon.registry.listed().into_iter().map(|m| m.name).collect();
    assert_eq!(names, ["by-hand", "stays"]);
    daemon.until_state("other", ModelState::Ready).await;
}

#[tokio::test]
async fn an_unload_right_after_ready_leaves_nothing_saved() {
    let folder = tempfile::tempdir().unwrap();
    let saved = Arc::new(SavedModels::open(folder.path()).unwrap());
    let daemon = Daemon::saving(config(), Some(saved.clone()));
    for _ in 0..20 {
        let request = LoadRequest { persist: true, ..daemon.request("m") };
        let events = daemon.registry.load(request).await.unwrap();
        // Ready, and on its way to be saved.
        while daemon.registry.status("m").unwrap().state != ModelState::Ready {
            tokio::task::yield_now().await;
        }
        daemon.registry.unload("m", true).await.unwrap();
        read_load(events).await;
        assert!(!saved.has("m"));
    }
}

#[tokio::test]
async fn a_hub_that_is_busy_at_the_start_is_asked_again_when_it_wants_to_be() {
    let hub = Hub::model(|state| {
        state.answers = vec![("GET /api/models", "429 Too Many Requests\r\nRetry-After: 3")].into();
    });
    let cache = tempfile::tempdir().unwrap();
    let config = RegistryConfig { hub: hub.config(cache.path()), ..eager(config()) };
    let daemon = Daemon::with(config);
    let request = LoadRequest { model: "org/name".into(), ..daemon.request("m") };
    daemon.registry.keep(request, Origin::Configured).unwrap();
    let status = daemon.until_state("m", ModelState::Failed).await;
    assert!(status.reason.unwrap().contains("429"));
    let retry_in_s = status.retry_in_s.unwrap();
    // Without the hub's wish it would be 0.1 s at most.
    assert!((0.2..=3.0).contains(&retry_in_s), "not before the hub wants: {retry_in_s}");
    assert!(daemon.metrics_text().contains("minisgl_worker_up{model=\"m\"} 0"));
    assert!(!daemon.registry.health().ready);
    daemon.until_state("m", ModelState::Ready).await;
    assert!(daemon.registry.health().ready);
}

#[tokio::test]
async fn a_hub_that_hangs_at_the_start_holds_no_other_model_up() {
    let hub = Hub::model(|state| state.silent = Some("GET /api/models").into());
    let cache = tempfile::tempdir().unwrap();
    let mut impatient = hub.config_within(Duration::from_millis(400), cache.path());
    impatient.limits.attempts = 1;
    let daemon = Daemon::with(RegistryConfig { hub: impatient, ..eager(config()) });
    let request = LoadRequest { model: "org/name".into(), ..daemon.request("remote") };
    daemon.registry.keep(request, Origin::Configured).unwrap();
    daemon.registry.keep(daemon.request("local"), Origin::Configured).unwrap();
    daemon.until_state("local", ModelState::Ready).await;
    assert_ne!(daemon.registry.status("remote").unwrap().state, ModelState::Ready);
    daemon.until("remote", |status| status.retry_in_s.is_some()).await;
    *hub.state.silent.lock().unwrap() = None;
    daemon.until_state("remote", ModelState::Ready).await;
}

#[tokio::test]
async fn a_model_whose_gpu_is_taken_at_the_start_gets_it_later() {
    let (config, _) = config_with_gpus(1);
    let daemon = Daemon::with(eager(config));
    let request = |name: &str| {
        let mut request = daemon.request(name);
        request.options.gpus = vec![0];
        request
    };
    daemon.registry.keep(request("first"), Origin::Configured).unwrap();
    daemon.registry.keep(request("second"), Origin::Configured).unwrap();
    daemon.until_state("first", ModelState::Ready).await;
    let status = daemon.until_state("second", ModelState::Failed).await;
    assert!(status.reason.unwrap().contains("GPU 0 has model \"first\""));
    assert!(status.gpus.is_empty() && status.retry_in_s.is_some());
    daemon.registry.unload("first", true).await.unwrap();
    let status = daemon.until_state("second", ModelState::Ready).await;
    assert_eq!(status.gpus, [0]);
}

#[tokio::test]
async fn unloading_a_model_that_waits_to_be_tried_again_ends_it() {
    let daemon = Daemon::with(eager(config()));
    let mut request = daemon.request("m");
    request.model = "/no/such/folder".into();
    daemon.registry.keep(request, Origin::Configured).unwrap();
    daemon.until_state("m", ModelState::Failed).await;
    daemon.registry.unload("m", false).await.unwrap();
    assert_eq!(daemon.registry.status("m").unwrap_err().code, AdminErrorCode::NotFound);
}
