use std::os::unix::process::ExitStatusExt;

use minisgl_proto::admin::{LoadRequest, ModelState, Origin};
use nix::sys::signal::Signal;

use super::*;
use crate::command::WorkerCommand;
use crate::model::SessionLimits;
use crate::spec::Spec;

#[tokio::test]
async fn a_worker_that_outlives_sigkill_fails_its_model_alone() {
    let worker = WorkerCommand {
        program: "/bin/sleep".into(),
        args: vec!["60".into()],
        ..WorkerCommand::current_exe()
    };
    let config = Arc::new(RegistryConfig { worker, ..RegistryConfig::default() });
    let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
    let (sender, events) = mpsc::channel(8);
    let placement = Placement::default();
    let request = LoadRequest {
        model: "/m".into(),
        name: None,
        options: LoadOptions { gpus: vec![3], ..LoadOptions::default() },
        persist: false,
        aliases: vec![],
    };
    let spec = Spec::new("m".into(), request, Origin::Loaded);
    let limits = SessionLimits { buffer: 8, bytes_max: 1 << 20 };
    let model = Arc::new(Model::new(spec, 1, limits, sender, placement.clone()));
    let mut supervisor = Supervisor::new(Parts {
        model: Arc::clone(&model),
        config,
        metrics,
        placement: placement.clone(),
        reservation: None,
        events,
        watcher: None,
    });
    supervisor.reserve().unwrap();
    supervisor.start_instance(vec![3], vec![]);
    let checked_at = model.view().checked_at;
    supervisor.on_tick();
    assert!(model.view().checked_at > checked_at);
    supervisor.kill("it is in the way");
    let first = supervisor.killed_at.unwrap();
    supervisor.kill("it still is");
    assert_eq!(supervisor.killed_at, Some(first), "the first counts");
    supervisor.watch_killed(Duration::from_secs(60));
    assert_eq!(model.state(), ModelState::Loading, "it has time to end");

    supervisor.watch_killed(Duration::ZERO);
    let status = model.status();
    assert_eq!((status.state, status.gpus), (ModelState::Failed, vec![3]), "the GPU is kept");
    assert!(status.reason.unwrap().contains("lives on") && status.pid.is_some());
    let (reply, answer) = oneshot::channel();
    supervisor.on_unload(true, Duration::ZERO, reply);
    assert_eq!(answer.await.unwrap().state, ModelState::Failed, "an unload does not hang");
    // Its supervisor turns: nothing that a new daemon would repair.
    supervisor.on_tick();
    assert_eq!(model.stuck(Instant::now(), Duration::from_secs(30)), None);
    let late = Instant::now() + Duration::from_secs(31);
    assert!(model.stuck(late, Duration::from_secs(30)).unwrap().contains("supervisor of m"));

    // It ends after all.
    let ended = supervisor.instance.as_mut().unwrap().wait().await;
    assert_eq!(ended.signal(), Some(Signal::SIGKILL as i32));
    supervisor.on_exited(ended);
    supervisor.on_closed(None);
    assert_eq!((model.view().pid, supervisor.killed_at), (None, None));
    assert_eq!(supervisor.phase, Phase::Gone, "it was never ready, and nobody stands by it");
}
