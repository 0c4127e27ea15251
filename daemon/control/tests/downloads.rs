//! Downloads that are shared, left and gone on with, by themselves and under loads.

#![allow(clippy::unwrap_used)] // a test's way to fail

mod common;
#[path = "common/hub.rs"]
mod hub;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Daemon, config, end_of, read_load};
use hub::{Hub, weights};
use minisgl_control::RegistryConfig;
use minisgl_control::resolve::resolve;
use minisgl_proto::admin::{LoadRequest, ModelState};
use minisgl_proto::worker::LoadProgress;
use minisgl_proto::{LoadOptions, LoadStage};

#[test]
#[ignore = "the worker process of the other tests"]
fn fake_worker() {
    common::fake::run();
}

fn request(name: &str) -> LoadRequest {
    let daemon = Daemon::new();
    let options = LoadOptions { dummy_weights: false, ..LoadOptions::default() };
    LoadRequest { model: "org/name".into(), options, ..daemon.request(name) }
}

fn is_right(dir: &Path) -> bool {
    std::fs::read(dir.join("model.safetensors")).unwrap() == weights()
}

/// A daemon and a hub that stops in the middle of the weights.
fn stuck(cache: &Path) -> (Hub, Daemon) {
    let hub = Hub::model(|state| state.hold_after = Some(20_000).into());
    let mut from = hub.config(cache);
    from.limits.idle = common::PATIENCE * 10;
    let daemon = Daemon::with(RegistryConfig { hub: from, ..config() });
    (hub, daemon)
}

#[tokio::test]
async fn an_unload_ends_the_download_and_the_next_load_goes_on() {
    let cache = tempfile::tempdir().unwrap();
    let (hub, daemon) = stuck(cache.path());
    let _events = daemon.registry.load(request("m")).await.unwrap();
    let downloads = |status: &minisgl_proto::admin::ModelStatus| {
        status
            .progress
            .as_ref()
            .is_some_and(|at| at.stage == LoadStage::Download && at.total == 50_000)
    };
    daemon.until("m", downloads).await;
    hub.until(|_| hub.asked("GET /org/name").len() == 3).await;
    let since = Instant::now();
    daemon.registry.unload("m", false).await.unwrap();
    hub.until(|state| state.left.load(Ordering::SeqCst) == 1).await;
    // Long before the idle time is over.
    assert!(since.elapsed() < common::PATIENCE, "{:?}", since.elapsed());
    *hub.state.hold_after.lock().unwrap() = None;
    let ended = end_of(read_load(daemon.registry.load(request("m")).await.unwrap()).await);
    let dir = ended.unwrap().info.unwrap().dir;
    assert!(is_right(&dir));
}

#[tokio::test]
async fn two_names_of_one_repo_share_a_download_and_the_end_of_the_daemon_ends_it() {
    let cache = tempfile::tempdir().unwrap();
    let (hub, daemon) = stuck(cache.path());
    let _first = daemon.registry.load(request("a")).await.unwrap();
    let _second = daemon.registry.load(request("b")).await.unwrap();
    hub.until(|_| hub.asked("GET /org/name").len() == 3).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(hub.asked("GET /org/name").len(), 3, "{:?}", hub.asked(""));
    daemon.registry.unload("a", true).await.unwrap();
    assert_eq!(daemon.registry.status("b").unwrap().state, ModelState::Loading);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(hub.state.left.load(Ordering::SeqCst), 0, "b still waits for it");
    let since = Instant::now();
    daemon.registry.shutdown(Duration::ZERO).await;
    hub.until(|state| state.left.load(Ordering::SeqCst) == 1).await;
    // Long before the idle time is over.
    assert!(since.elapsed() < common::PATIENCE, "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_download_that_is_dropped_stops_at_once_and_goes_on_later() {
    let hub = Hub::model(|state| state.hold_after = Some(20_000).into());
    let cache = tempfile::tempdir().unwrap();
    let mut config = hub.config(cache.path());
    config.limits.idle = common::PATIENCE * 10;
    let task = {
        let config = config.clone();
        tokio::spawn(async move { resolve(&config, "org/name", false, &mut |_| ()).await })
    };
    hub.until(|_| blobs_len(cache.path(), "incomplete") == Some(20_000)).await;
    let since = Instant::now();
    task.abort();
    hub.until(|state| state.left.load(Ordering::SeqCst) == 1).await;
    // Long before the idle time is over.
    assert!(since.elapsed() < common::PATIENCE, "{:?}", since.elapsed());
    *hub.state.hold_after.lock().unwrap() = None;
    let dir = resolve(&config, "org/name", false, &mut |_| ()).await.unwrap();
    assert!(is_right(&dir));
    assert_eq!(hub.asked("model.safetensors bytes=20000-").len(), 1);
}

/// Bytes of the one blob that ends so.
fn blobs_len(cache: &Path, ending: &str) -> Option<u64> {
    let folder = cache.join("models--org--name/blobs");
    let mut entries = std::fs::read_dir(folder).ok()?.flatten();
    let entry = entries.find(|entry| entry.file_name().to_string_lossy().ends_with(ending))?;
    Some(entry.metadata().ok()?.len())
}

#[tokio::test]
async fn all_who_wait_for_a_repo_share_one_download() {
    let hub = Hub::model(|state| state.hold_after = Some(20_000).into());
    let cache = tempfile::tempdir().unwrap();
    let mut config = hub.config(cache.path());
    config.limits.idle = common::PATIENCE * 10;
    let told: Arc<[AtomicUsize; 3]> = Arc::default();
    let mut tasks: Vec<_> = (0..3)
        .map(|index| {
            let (config, told) = (config.clone(), Arc::clone(&told));
            tokio::spawn(async move {
                let mut report = |at: LoadProgress| {
                    told[index].fetch_max(at.total as usize, Ordering::SeqCst);
                };
                resolve(&config, "org/name", false, &mut report).await
            })
        })
        .collect();
    hub.until(|_| told.iter().all(|total| total.load(Ordering::SeqCst) == 50_000)).await;
    hub.until(|_| blobs_len(cache.path(), "incomplete") == Some(20_000)).await;
    // One who leaves does not end it for the others.
    tasks.remove(0).abort();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(hub.state.left.load(Ordering::SeqCst), 0);
    *hub.state.hold_after.lock().unwrap() = None;
    for task in tasks {
        assert!(is_right(&task.await.unwrap().unwrap()));
    }
    assert_eq!(hub.asked("GET /org/name").len(), 3, "a request a file: {:?}", hub.asked(""));
    assert_eq!(hub.asked("GET /api").len(), 1);
}
