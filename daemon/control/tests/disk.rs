//! What is on disk, over the admin API: looking, pulling, removing.

#![allow(clippy::unwrap_used)] // a test's way to fail

mod common;
#[path = "common/hub.rs"]
mod hub;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::{Extension, Router};
use common::{Daemon, config};
use hub::{Hub, SHA, weights};
use minisgl_control::access::{Access, Caller, Peer};
use minisgl_control::admin::{DaemonInfo, router};
use minisgl_control::{Doctor, HubConfig, RegistryConfig, WorkerCommand};
use minisgl_proto::LoadOptions;
use minisgl_proto::admin::{AdminError, AdminErrorCode, LoadRequest};
use minisgl_proto::disk::{DiskReport, PullEvent, RmReply};
use serde_json::json;
use tower::ServiceExt;

#[test]
#[ignore = "the worker process of the other tests"]
fn fake_worker() {
    common::fake::run();
}

/// The admin API as root sees it.
fn api(daemon: &Daemon) -> Router {
    let sh = WorkerCommand { program: "/bin/sh".into(), args: Vec::new(), env: Vec::new() };
    let info = DaemonInfo {
        started: Instant::now(),
        listen: String::new(),
        doctor: Arc::new(Doctor::new(sh, Duration::from_secs(1))),
        access: Access::default(),
    };
    let peer = Peer { uid: 0, gid: 0, pid: None };
    let caller = Caller { peer, user: Some("root".to_string()), is_member: true };
    router(daemon.registry.clone(), info).layer(Extension(caller))
}

async fn call(api: &Router, path: &str, body: Option<serde_json::Value>) -> (StatusCode, Vec<u8>) {
    let method = if body.is_some() { "POST" } else { "GET" };
    let body = body.map_or(Body::empty(), |body| Body::from(body.to_string()));
    let request = Request::builder().method(method).uri(format!("/admin/v1/{path}"));
    let response = api.clone().oneshot(request.body(body).unwrap()).await.unwrap();
    let status = response.status();
    (status, axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap().to_vec())
}

async fn disk(api: &Router) -> DiskReport {
    let (status, body) = call(api, "disk", None).await;
    assert_eq!(status, StatusCode::OK);
    serde_json::from_slice(&body).unwrap()
}

async fn rm(api: &Router, model: &str) -> Result<RmReply, AdminError> {
    let (status, body) = call(api, "rm", Some(json!({"model": model}))).await;
    match status {
        StatusCode::OK => Ok(serde_json::from_slice(&body).unwrap()),
        _ => Err(serde_json::from_slice(&body).unwrap()),
    }
}

async fn pull(api: &Router, model: &str) -> Vec<PullEvent> {
    let (status, body) = call(api, "pull", Some(json!({"model": model}))).await;
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    let lines = String::from_utf8(body).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn daemon(cache: &Path) -> Daemon {
    let hub = HubConfig { cache_dir: Some(cache.into()), offline: true, ..HubConfig::default() };
    Daemon::with(RegistryConfig { hub, ..config() })
}

/// A repo with the revisions `main` and `old`, that share their tokenizer.
fn two_revisions(cache: &Path) -> PathBuf {
    let repo = cache.join("models--org--name");
    let write = |path: &str, text: &str| {
        let path = repo.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    for (blob, text) in [("c", "{}"), ("t", "tokens"), ("w1", "weights!"), ("w2", "other weights")]
    {
        write(&format!("blobs/{blob}"), text);
    }
    write("blobs/w3.incomplete", "wei");
    for (name, commit, weights) in [("main", "aaaa111", "w1"), ("refs/pr/1", "bbbb222", "w2")] {
        write(&format!("refs/{name}"), commit);
        let snapshot = repo.join("snapshots").join(commit);
        std::fs::create_dir_all(&snapshot).unwrap();
        for (file, blob) in
            [("config.json", "c"), ("tokenizer.json", "t"), ("model.safetensors", weights)]
        {
            symlink(format!("../../blobs/{blob}"), snapshot.join(file)).unwrap();
        }
    }
    repo
}

#[tokio::test]
async fn the_disk_is_told_by_repo_and_revision() {
    let cache = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    two_revisions(cache.path());
    for other in ["datasets--a--b", ".locks", "models--", "models--..", "version.txt"] {
        std::fs::create_dir(cache.path().join(other)).unwrap();
    }
    symlink(elsewhere.path(), cache.path().join("models--a--link")).unwrap();
    let daemon = daemon(cache.path());
    let report = disk(&api(&daemon)).await;
    assert_eq!(report.cache.as_deref(), Some(cache.path()));
    assert!(report.free_bytes.unwrap() > 0);
    let [repo] = &report.repos[..] else { panic!("{report:?}") };
    assert_eq!((repo.id.as_str(), repo.bytes, repo.incomplete_bytes), ("org/name", 32, 3));
    assert_eq!(report.bytes, 32);
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    assert!((now - repo.last_used.unwrap()).abs() < 60.0);
    let revisions: Vec<_> = repo
        .revisions
        .iter()
        .map(|r| (r.commit.as_str(), r.refs.join(","), r.bytes, r.files, r.missing.len()))
        .collect();
    assert_eq!(
        revisions,
        [("aaaa111", "main".into(), 16, 3, 0), ("bbbb222", "refs/pr/1".into(), 21, 3, 0)]
    );
    std::fs::remove_file(cache.path().join("models--org--name/blobs/w1")).unwrap();
    let report = disk(&api(&daemon)).await;
    assert_eq!(report.repos[0].revisions[0].missing, ["model.safetensors is missing"]);
}

#[tokio::test]
async fn a_revision_leaves_and_what_others_share_stays() {
    let cache = tempfile::tempdir().unwrap();
    let repo = two_revisions(cache.path());
    let daemon = daemon(cache.path());
    let api = api(&daemon);
    let error = rm(&api, "org/name@v3").await.unwrap_err();
    assert_eq!(error.code, AdminErrorCode::NotFound);
    assert!(error.message.contains("aaaa111, bbbb222"), "{error}");
    let reply = rm(&api, "org/name@refs/pr/1").await.unwrap();
    assert_eq!(reply.freed_bytes, 13);
    assert!(!repo.join("blobs/w2").exists() && !repo.join("snapshots/bbbb222").exists());
    assert!(!repo.join("refs/refs/pr/1").exists());
    for stays in ["blobs/c", "blobs/t", "blobs/w1", "refs/main"] {
        assert!(repo.join(stays).exists(), "{stays}");
    }
    assert!(repo.join("snapshots/aaaa111/model.safetensors").exists());
    // The last one, by its commit: nothing is left.
    assert_eq!(rm(&api, "org/name@aaaa111").await.unwrap().freed_bytes, 19);
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn nothing_outside_of_the_cache_is_removed() {
    let cache = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::write(elsewhere.path().join("precious"), "x").unwrap();
    let repo = two_revisions(cache.path());
    symlink(elsewhere.path(), cache.path().join("models--a--link")).unwrap();
    // Links to a folder and to a file elsewhere, in each place where one could be followed.
    symlink(elsewhere.path(), repo.join("snapshots/aaaa111/folder")).unwrap();
    symlink(elsewhere.path(), repo.join("snapshots/cccc333")).unwrap();
    symlink(elsewhere.path().join("precious"), repo.join("blobs/z")).unwrap();
    symlink(elsewhere.path().join("precious"), repo.join("snapshots/bbbb222/x")).unwrap();
    symlink("../../../../precious", repo.join("snapshots/bbbb222/y")).unwrap();
    let daemon = daemon(cache.path());
    let api = api(&daemon);
    for bad in ["../x", "/etc", "org/name/..", "org/name@../..", "a--b/c", ""] {
        assert_eq!(rm(&api, bad).await.unwrap_err().code, AdminErrorCode::Invalid, "{bad}");
    }
    let error = rm(&api, "a/link").await.unwrap_err();
    assert_eq!(error.code, AdminErrorCode::NotFound);
    assert!(error.message.contains("there is a link in its place"), "{error}");
    assert_eq!(rm(&api, "no/such").await.unwrap_err().code, AdminErrorCode::NotFound);
    rm(&api, "org/name@refs/pr/1").await.unwrap();
    rm(&api, "org/name").await.unwrap();
    assert!(!repo.exists());
    assert_eq!(std::fs::read_to_string(elsewhere.path().join("precious")).unwrap(), "x");
    assert!(cache.path().join("models--a--link").exists());
}

#[tokio::test]
async fn what_is_in_use_is_not_removed() {
    let cache = tempfile::tempdir().unwrap();
    let repo = two_revisions(cache.path());
    let daemon = daemon(cache.path());
    let api = api(&daemon);
    let request = |name: &str, model: &str| LoadRequest {
        model: model.to_string(),
        options: LoadOptions { dummy_weights: true, ..LoadOptions::default() },
        ..daemon.request(name)
    };
    let load = async |name: &str, model: &str| {
        let events = daemon.registry.load(request(name, model)).await.unwrap();
        common::end_of(common::read_load(events).await).unwrap()
    };
    load("m", "org/name").await;
    // By its path, which is inside of the cache.
    load("by-path", repo.join("snapshots/bbbb222").to_str().unwrap()).await;
    assert_eq!(disk(&api).await.repos[0].in_use, ["m", "by-path"]);
    let error = rm(&api, "org/name").await.unwrap_err();
    assert_eq!(error.code, AdminErrorCode::Conflict);
    assert!(error.message.contains("in use by \"m\", \"by-path\""), "{error}");
    daemon.registry.unload("by-path", true).await.unwrap();
    rm(&api, "org/name@refs/pr/1").await.unwrap();
    assert_eq!(rm(&api, "org/name@main").await.unwrap_err().code, AdminErrorCode::Conflict);
    assert!(repo.join("snapshots/aaaa111/model.safetensors").exists());
    daemon.registry.unload("m", true).await.unwrap();
    // Another program downloads it.
    let locks = cache.path().join(".locks/models--org--name");
    std::fs::create_dir_all(&locks).unwrap();
    let lock = std::fs::File::create(locks.join("w3.lock")).unwrap();
    lock.lock().unwrap();
    let error = rm(&api, "org/name").await.unwrap_err();
    assert!(error.message.contains("is being downloaded"), "{error}");
    drop(lock);
    rm(&api, "org/name").await.unwrap();
}

#[tokio::test]
async fn a_pull_brings_the_newest_commit_and_tells_how_far_it_is() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::model(|_| ());
    let daemon = Daemon::with(RegistryConfig { hub: hub.config(cache.path()), ..config() });
    let api = api(&daemon);
    // What the cache has of the branch is old.
    two_revisions(cache.path());
    let events = pull(&api, "org/name").await;
    let Some(PullEvent::Done(done)) = events.last() else { panic!("{events:?}") };
    assert_eq!(
        (done.model.as_str(), done.commit.as_str(), done.bytes),
        ("org/name@main", SHA, 50_005)
    );
    assert_eq!(std::fs::read(done.dir.join("model.safetensors")).unwrap(), weights());
    assert!(matches!(&events[0], PullEvent::Progress(_)), "{events:?}");
    let report = disk(&api).await;
    let newest = report.repos[0].revisions.iter().find(|revision| revision.commit == SHA);
    assert_eq!(newest.unwrap().refs, ["main"]);

    let events = pull(&api, "org/other").await;
    let Some(PullEvent::Failed(error)) = events.last() else { panic!("{events:?}") };
    assert_eq!(error.code, AdminErrorCode::NotFound);
    let (status, _) = call(&api, "pull", Some(json!({"model": "/srv/models/x"}))).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_pull_whose_caller_leaves_stops_and_nothing_is_removed_meanwhile() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::model(|state| state.hold_after = Some(20_000).into());
    let mut from = hub.config(cache.path());
    from.limits.idle = common::PATIENCE * 10;
    let daemon = Daemon::with(RegistryConfig { hub: from, ..config() });
    let api = api(&daemon);
    let request = Request::post("/admin/v1/pull").body(Body::from(r#"{"model": "org/name"}"#));
    let response = api.clone().oneshot(request.unwrap()).await.unwrap();
    hub.until(|_| hub.asked("GET /org/name").len() == 3).await;
    let error = rm(&api, "org/name").await.unwrap_err();
    assert_eq!(error.code, AdminErrorCode::Conflict);
    let report = disk(&api).await;
    assert!(report.repos[0].downloading);
    let since = Instant::now();
    drop(response);
    hub.until(|state| state.left.load(Ordering::SeqCst) == 1).await;
    // Long before the idle time is over.
    assert!(since.elapsed() < common::PATIENCE, "{:?}", since.elapsed());
}

/// A daemon whose children are a shell script that is asked for a fit, and tells what it was asked.
fn fitting(folder: &Path, hub: HubConfig, answer: &str) -> Daemon {
    use std::os::unix::fs::PermissionsExt;
    let program = folder.join("minisgld");
    let asked = folder.join("asked");
    let script =
        format!("#!/bin/sh\n[ \"$1\" = fit ] || exit 9\ncat > {}\n{answer}\n", asked.display());
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let worker = WorkerCommand { program, args: Vec::new(), env: Vec::new() };
    Daemon::with(RegistryConfig { worker, hub, ..config() })
}

#[tokio::test]
async fn a_fit_is_asked_of_a_child_and_downloads_the_configuration_alone() {
    let (cache, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hub = Hub::model(|_| ());
    let fit = json!({
        "architecture": "A", "parameters": 1, "schemes": [{"scheme": "fp8", "bytes": 2}], "device": "cpu", "gpus": [], "tp": 1, "available_bytes": 9,
        "weight_bytes": 2, "other_bytes": 0, "is_estimate": true, "kv_bytes": 4, "kv_tokens": 5, "kv_groups": 2, "max_len": 5,
        "full_requests": 1,
    });
    let answer = format!("echo '{}'", json!({"fit": fit, "problem": null}));
    let daemon = fitting(folder.path(), hub.config(cache.path()), &answer);
    let api = api(&daemon);
    let ask = async |body: serde_json::Value| {
        let (status, body) = call(&api, "fit", Some(body)).await;
        (status, serde_json::from_slice::<serde_json::Value>(&body).unwrap())
    };
    let (status, report) = ask(json!({"model": "org/name", "options": {"kv_tokens": 7}})).await;
    assert_eq!(status, StatusCode::OK, "{report}");
    assert_eq!((&report["name"], &report["fits"]), (&json!("org/name"), &json!(true)));
    assert_eq!(report["fit"], fit);
    let notes = report["notes"].to_string();
    assert!(notes.contains("not on disk") && notes.contains("estimate"), "{notes}");
    assert!(hub.asked("model.safetensors").is_empty(), "{:?}", hub.asked(""));
    let asked = std::fs::read(folder.path().join("asked")).unwrap();
    let asked: serde_json::Value = serde_json::from_slice(&asked).unwrap();
    assert_eq!(asked["options"]["kv_tokens"], 7);
    assert!(asked["dir"].as_str().unwrap().ends_with(SHA), "{asked}");
    assert!(daemon.registry.list().is_empty(), "nothing is loaded");
    assert_eq!(ask(json!({"model": "org/absent"})).await.0, StatusCode::NOT_FOUND);
    assert_eq!(ask(json!({"model": "m", "name": "a b"})).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_child_that_breaks_is_told_with_its_words() {
    let (cache, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hub = Hub::model(|_| ());
    let daemon = fitting(folder.path(), hub.config(cache.path()), "echo no driver >&2; exit 3");
    let (status, body) = call(&api(&daemon), "fit", Some(json!({"model": "org/name"}))).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    let error: AdminError = serde_json::from_slice(&body).unwrap();
    assert!(error.message.contains("exit status: 3): no driver"), "{error}");
}
