//! Models and GPUs: who gets which, who is refused, who waits, and what people see of it.

#![allow(clippy::unwrap_used)] // a test's way to fail

mod common;

use common::fake::{LOAD_FAILS, LOAD_WAITS, RESTART_DIES};
use common::{Daemon, FakeGpus, config_with_gpus, end_of, read_load, signal};
use minisgl_proto::admin::{AdminError, AdminErrorCode, LoadEvent, ModelState, ModelStatus};
use minisgl_proto::{Device, LoadOptions, LoadStage};
use nix::sys::signal::Signal;
use std::sync::Arc;
use tokio::sync::mpsc;

#[test]
#[ignore = "the worker process of the other tests"]
fn fake_worker() {
    common::fake::run();
}

fn machine(gpus: u32) -> (Daemon, Arc<FakeGpus>) {
    let (config, source) = config_with_gpus(gpus);
    (Daemon::with(config), source)
}

fn on(gpus: &[u32]) -> impl FnOnce(&mut LoadOptions) {
    move |options| {
        options.gpus = gpus.to_vec();
        options.tp = gpus.len() as u32;
    }
}

fn anywhere(_: &mut LoadOptions) {}

async fn gpus(load: impl Future<Output = Result<ModelStatus, AdminError>>) -> Vec<u32> {
    load.await.unwrap().gpus
}

/// Lets a model that waits in its load go on.
fn go(daemon: &Daemon) {
    std::fs::write(daemon.model_dir(LOAD_WAITS).join("go"), "").unwrap();
}

/// Begins a load that stays between its start and `Ready` until [`go`].
async fn begin_slow(
    daemon: &Daemon,
    change: impl FnOnce(&mut LoadOptions),
) -> mpsc::Receiver<LoadEvent> {
    let events = daemon.begin(LOAD_WAITS, change).await.unwrap();
    daemon.until(LOAD_WAITS, |status| status.pid.is_some()).await;
    events
}

/// Waits until a model waits for its turn; the line that says for whom.
async fn waits(daemon: &Daemon, name: &str) -> String {
    let is_queued = |status: &ModelStatus| {
        status.progress.as_ref().is_some_and(|at| at.stage == LoadStage::Place)
    };
    let status = daemon.until(name, is_queued).await;
    assert_eq!((status.pid, status.state), (None, ModelState::Loading));
    status.progress.unwrap().detail
}

#[tokio::test]
async fn two_models_on_disjoint_gpus_serve_side_by_side() {
    let (daemon, _) = machine(4);
    assert_eq!(gpus(daemon.load_with("a", on(&[2, 3]))).await, [2, 3]);
    assert_eq!(gpus(daemon.load_with("b", on(&[1, 0]))).await, [1, 0], "in the order of ranks");
    let states: Vec<_> = daemon.registry.list().into_iter().map(|m| (m.gpus, m.state)).collect();
    assert_eq!(states, [(vec![2, 3], ModelState::Ready), (vec![1, 0], ModelState::Ready)]);
}

#[tokio::test]
async fn a_gpu_that_another_model_has_is_refused_unless_memory_is_shared_out() {
    let (daemon, _) = machine(4);
    daemon.load_with("a", on(&[1, 2])).await.unwrap();
    let refused = daemon.load_with("b", on(&[0, 2])).await.unwrap_err();
    assert_eq!(refused.code, AdminErrorCode::Conflict);
    for part in ["GPU 2", "\"a\"", "--kv-tokens", "--memory-ratio"] {
        assert!(refused.message.contains(part), "{refused}");
    }
    assert_eq!(daemon.registry.list().len(), 1, "the refused load leaves nothing behind");
    let ratio = |options: &mut LoadOptions| options.memory_ratio = Some(0.5);
    let tokens = |options: &mut LoadOptions| options.kv_tokens = Some(64);
    let shared = |name, change: fn(&mut LoadOptions)| {
        daemon.load_with(name, move |options| {
            on(&[0, 2])(options);
            change(options);
        })
    };
    assert_eq!(gpus(shared("b", ratio)).await, [0, 2]);
    assert_eq!(gpus(shared("c", tokens)).await, [0, 2]);
    // Those who share keep others out as well.
    let refused = daemon.load_with("d", on(&[0])).await.unwrap_err();
    assert!(refused.message.contains("GPU 0 has model \"b\""), "{refused}");
    for name in ["a", "b", "c"] {
        daemon.registry.unload(name, true).await.unwrap();
    }
    assert_eq!(gpus(daemon.load_with("d", on(&[0, 2]))).await, [0, 2]);
}

#[tokio::test]
async fn gpus_are_had_while_the_model_still_loads() {
    let (daemon, _) = machine(2);
    let slow = begin_slow(&daemon, on(&[0])).await;
    assert_eq!(daemon.registry.status(LOAD_WAITS).unwrap().gpus, [0]);
    let refused = daemon.load_with("b", on(&[0])).await.unwrap_err();
    assert_eq!(refused.code, AdminErrorCode::Conflict);
    assert_eq!(gpus(daemon.load_with("c", anywhere)).await, [1], "and nobody chooses them");
    go(&daemon);
    end_of(read_load(slow).await).unwrap();
}

#[tokio::test]
async fn automatic_placement_avoids_other_models_and_shares_only_when_told() {
    let (daemon, _) = machine(2);
    assert_eq!(gpus(daemon.load("a")).await, [0]);
    assert_eq!(gpus(daemon.load("b")).await, [1]);
    let error = daemon.load("c").await.unwrap_err();
    assert!(error.message.contains("0 of 2 GPUs are free"), "{error}");
    assert_eq!(gpus(daemon.load_with("c", |o| o.kv_tokens = Some(64))).await, [0]);
    assert_eq!(gpus(daemon.load_with("d", |o| o.memory_ratio = Some(0.1))).await, [0]);
    let two = daemon.load_with("e", |options| options.tp = 2).await.unwrap_err();
    assert!(two.message.contains("0 of 2 GPUs"), "{two}");
}

#[tokio::test]
async fn what_others_say_of_taken_gpus_is_not_heard() {
    let (daemon, _) = machine(1);
    let status = daemon.load_with("a", |options| options.gpus_taken = vec![0]).await.unwrap();
    assert_eq!((status.gpus, status.options.gpus_taken), (vec![0], vec![]));
}

#[tokio::test]
async fn two_automatic_loads_at_once_do_not_take_the_same_gpu() {
    let (daemon, _) = machine(4);
    let slow = begin_slow(&daemon, anywhere).await;
    let second = daemon.begin("b", anywhere).await.unwrap();
    let third = daemon.begin("c", |options| options.kv_tokens = Some(64)).await.unwrap();
    for name in ["b", "c"] {
        let line = waits(&daemon, name).await;
        assert!(line.contains(LOAD_WAITS), "{line}");
    }
    // Those who have no choice to make, and none to lose, do not wait.
    assert!(gpus(daemon.load_with("cpu", |o| o.device = Device::Cpu)).await.is_empty());
    let shares = daemon.load_with("shares", |options| {
        on(&[0])(options);
        options.kv_tokens = Some(64);
    });
    assert_eq!(gpus(shares).await, [0]);
    go(&daemon);
    // The slow one started before there was anybody on GPU 0.
    assert_eq!(end_of(read_load(slow).await).unwrap().gpus, [0]);
    let events = read_load(second).await;
    let place = |event: &LoadEvent| {
        matches!(event, LoadEvent::Progress(at)
            if at.stage == LoadStage::Place && at.detail.contains(LOAD_WAITS))
    };
    assert!(events.iter().any(place), "{events:?}");
    assert_eq!(end_of(events).unwrap().gpus, [1]);
    assert_eq!(end_of(read_load(third).await).unwrap().gpus, [0], "it shares");
}

#[tokio::test]
async fn a_load_on_a_gpu_that_another_was_just_choosing_waits_and_is_refused() {
    let (daemon, _) = machine(4);
    let slow = begin_slow(&daemon, anywhere).await;
    let loses = daemon.begin("loses", on(&[0])).await.unwrap();
    let wins = daemon.begin("wins", on(&[3])).await.unwrap();
    waits(&daemon, "loses").await;
    waits(&daemon, "wins").await;
    assert_eq!(daemon.registry.status("loses").unwrap().gpus, [0]);
    go(&daemon);
    end_of(read_load(slow).await).unwrap();
    let error = end_of(read_load(loses).await).unwrap_err();
    assert_eq!(error.code, AdminErrorCode::Conflict);
    assert!(error.message.contains(&format!("GPU 0 has model \"{LOAD_WAITS}\"")), "{error}");
    assert_eq!(end_of(read_load(wins).await).unwrap().gpus, [3]);
}

#[tokio::test]
async fn a_turn_ends_with_whoever_had_it() {
    let (daemon, _) = machine(1);
    // One that fails to load.
    let (failed, next) = (daemon.load(LOAD_FAILS), daemon.load("a"));
    let (failed, next) = tokio::join!(failed, next);
    assert!(failed.is_err());
    assert_eq!(next.unwrap().gpus, [0]);
    daemon.registry.unload("a", true).await.unwrap();
    // One that is unloaded in the middle, and one that waits.
    let _slow = begin_slow(&daemon, anywhere).await;
    let left = daemon.begin("left", anywhere).await.unwrap();
    let next = daemon.begin("b", anywhere).await.unwrap();
    waits(&daemon, "left").await;
    waits(&daemon, "b").await;
    daemon.registry.unload("left", false).await.unwrap();
    assert!(end_of(read_load(left).await).is_err());
    daemon.registry.unload(LOAD_WAITS, true).await.unwrap();
    assert_eq!(end_of(read_load(next).await).unwrap().gpus, [0]);
}

#[tokio::test]
async fn without_gpus_loads_wait_for_nobody() {
    let daemon = Daemon::new();
    let slow = begin_slow(&daemon, anywhere).await;
    assert!(gpus(daemon.load("b")).await.is_empty());
    go(&daemon);
    end_of(read_load(slow).await).unwrap();
}

#[tokio::test]
async fn a_restarted_worker_keeps_its_gpus() {
    let (daemon, _) = machine(2);
    daemon.load("a").await.unwrap();
    let second = daemon.load("b").await.unwrap();
    assert_eq!(second.gpus, [1]);
    daemon.registry.unload("a", true).await.unwrap();
    signal(second.pid.unwrap(), Signal::SIGKILL);
    let restarting = daemon.until("b", |status| status.state == ModelState::Restarting).await;
    assert_eq!(restarting.gpus, [1], "also while there is no worker");
    let refused = daemon.load_with("c", on(&[1])).await.unwrap_err();
    assert_eq!(refused.code, AdminErrorCode::Conflict);
    let again = daemon.until_state("b", ModelState::Ready).await;
    assert_eq!((again.restarts, again.info.unwrap().gpus), (1, vec![1]), "GPU 0 is free, too");
    // One that comes to share does not lock the first out of its own restart.
    let share = |options: &mut LoadOptions| {
        on(&[1])(options);
        options.kv_tokens = Some(64);
    };
    daemon.load_with("d", share).await.unwrap();
    signal(again.pid.unwrap(), Signal::SIGKILL);
    daemon.until("b", |status| status.restarts == 2 && status.state == ModelState::Ready).await;
}

#[tokio::test]
async fn a_model_that_was_given_up_has_no_gpus() {
    let (daemon, _) = machine(1);
    let pid = daemon.load(RESTART_DIES).await.unwrap().pid.unwrap();
    signal(pid, Signal::SIGKILL);
    let status = daemon.until_state(RESTART_DIES, ModelState::Failed).await;
    assert!(status.gpus.is_empty());
    assert_eq!(gpus(daemon.load_with("a", on(&[0]))).await, [0]);
}

#[tokio::test]
async fn gpus_that_cannot_be_are_refused_before_anything_starts() {
    let (daemon, _) = machine(4);
    let cases: [(&[u32], u32, Device, &str); 3] = [
        (&[1, 1], 2, Device::Auto, "GPU 1 twice"),
        (&[1, 2], 3, Device::Auto, "tp is 3 and gpus is 1,2"),
        (&[1], 1, Device::Cpu, "device is cpu"),
    ];
    for (gpus, tp, device, words) in cases {
        let load = daemon.load_with("m", |options| {
            *options = LoadOptions { gpus: gpus.to_vec(), tp, device, ..options.clone() };
        });
        let error = load.await.unwrap_err();
        assert_eq!(error.code, AdminErrorCode::Invalid);
        assert!(error.message.contains(words), "{error}");
    }
}

#[tokio::test]
async fn status_tells_the_memory_that_the_driver_counts() {
    let (daemon, source) = machine(2);
    let status = daemon.load("a").await.unwrap();
    daemon.load_with("cpu", |options| options.device = Device::Cpu).await.unwrap();
    let pid = status.pid.unwrap();
    source.memory.lock().unwrap().insert(pid, 5 << 30);
    let model = daemon.registry.status_with_gpu_memory("a").await.unwrap();
    assert_eq!((model.gpus, model.gpu_memory_bytes), (vec![0], Some(5 << 30)));
    let all = daemon.registry.list_with_gpu_memory().await;
    let memory: Vec<_> = all.into_iter().map(|model| model.gpu_memory_bytes).collect();
    assert_eq!(memory, [Some(5 << 30), None]);
    source.memory.lock().unwrap().clear();
    let model = daemon.registry.status_with_gpu_memory("a").await.unwrap();
    assert_eq!(model.gpu_memory_bytes, None);
}
