//! A registry whose workers are this very test binary, run again with [`WORKER_ARGS`].

#![allow(dead_code)] // each test binary uses its part of this

pub mod fake;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use minisgl_control::{
    Backoff, Generate, Generation, GpuSource, Gpus, HubConfig, Inspector, Registry, RegistryConfig,
    RestartPolicy, SavedModels, WorkerCommand,
};
use minisgl_proto::admin::{AdminError, LoadEvent, LoadRequest, ModelState, ModelStatus};
use minisgl_proto::{Finish, LoadOptions, SamplingParams, StopParams};
use tokio::sync::mpsc;

/// Runs the one ignored test, which is the worker.
const WORKER_ARGS: [&str; 4] = ["fake_worker", "--exact", "--ignored", "--nocapture"];

/// What never happens is told after that long; how long what happens may take is nobody's promise.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub struct Daemon {
    pub registry: Registry,
    pub metrics: prometheus::Registry,
    folder: tempfile::TempDir,
}

/// Quick to restart, and so patient that no worker of a busy machine is given up.
pub fn config() -> RegistryConfig {
    RegistryConfig {
        worker: WorkerCommand {
            program: std::env::current_exe().unwrap(),
            args: WORKER_ARGS.iter().map(Into::into).collect(),
            env: Vec::new(),
        },
        hub: HubConfig { offline: true, ..HubConfig::default() },
        inspector: Inspector::default(),
        gpus: Gpus::none(),
        stall: PATIENCE,
        stall_kill: PATIENCE * 2,
        load_silence: PATIENCE,
        restart: RestartPolicy {
            backoff: Backoff {
                initial: Duration::from_millis(30),
                max: Duration::from_millis(120),
            },
            give_up: 4,
            stable: Duration::from_secs(60),
        },
        // Nobody who reads late is cut off.
        stream_buffer: 1 << 16,
        drain: PATIENCE,
        park: PATIENCE,
        park_bytes_max: 1 << 20,
        retry: Backoff { initial: Duration::from_secs(60), max: Duration::from_secs(60) },
        term_grace: Duration::from_millis(300),
    }
}

/// The clock of a test whose time is paused does not even jump ahead while nothing can run, until this is dropped.
pub fn hold_time() -> std::sync::mpsc::Sender<()> {
    let (held, until_dropped) = std::sync::mpsc::channel();
    // Time does not advance by itself beside a task that blocks.
    tokio::task::spawn_blocking(move || until_dropped.recv());
    held
}

/// A machine's GPUs: what a test says they hold.
#[derive(Default)]
pub struct FakeGpus {
    /// Bytes by process.
    pub memory: Mutex<HashMap<u32, u64>>,
}

impl GpuSource for FakeGpus {
    fn may_exist(&self) -> bool {
        true
    }

    fn memory_by_process(&self) -> HashMap<u32, u64> {
        self.memory.lock().unwrap().clone()
    }
}

/// The same on a machine with `count` GPUs.
pub fn config_with_gpus(count: u32) -> (RegistryConfig, Arc<FakeGpus>) {
    let source = Arc::new(FakeGpus::default());
    let mut config = config();
    config.worker.env.push((fake::GPUS.into(), count.to_string().into()));
    config.gpus = Gpus(Arc::<FakeGpus>::clone(&source));
    (config, source)
}

impl Daemon {
    pub fn new() -> Self {
        Daemon::with(config())
    }

    pub fn with(config: RegistryConfig) -> Self {
        Daemon::saving(config, None)
    }

    pub fn saving(config: RegistryConfig, saved: Option<Arc<SavedModels>>) -> Self {
        let metrics = prometheus::Registry::new();
        let registry = Registry::new(config, saved, &metrics).unwrap();
        Daemon { registry, metrics, folder: tempfile::tempdir().unwrap() }
    }

    /// The folder of a model, which needs no weights.
    pub fn model_dir(&self, name: &str) -> PathBuf {
        let dir = self.folder.path().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("config.json"), "{}").unwrap();
        dir
    }

    pub fn request(&self, name: &str) -> LoadRequest {
        LoadRequest {
            model: self.model_dir(name).to_str().unwrap().to_string(),
            name: Some(name.to_string()),
            options: LoadOptions {
                dummy_weights: true,
                max_running: 2,
                max_waiting: 2,
                ..LoadOptions::default()
            },
            persist: false,
            aliases: Vec::new(),
        }
    }

    pub async fn load_events(&self, name: &str) -> Vec<LoadEvent> {
        read_load(self.registry.load(self.request(name)).await.unwrap()).await
    }

    pub async fn load(&self, name: &str) -> Result<ModelStatus, AdminError> {
        end_of(self.load_events(name).await)
    }

    /// Begins a load with other options than [`Daemon::request`]'s.
    pub async fn begin(
        &self,
        name: &str,
        change: impl FnOnce(&mut LoadOptions),
    ) -> Result<mpsc::Receiver<LoadEvent>, AdminError> {
        let mut request = self.request(name);
        change(&mut request.options);
        self.registry.load(request).await
    }

    /// The same to its end.
    pub async fn load_with(
        &self,
        name: &str,
        change: impl FnOnce(&mut LoadOptions),
    ) -> Result<ModelStatus, AdminError> {
        end_of(read_load(self.begin(name, change).await?).await)
    }

    pub fn submit(&self, name: &str, prompt: &[u32]) -> Generation {
        self.registry.submit(name, generate(prompt)).unwrap()
    }

    /// Its worker.
    pub fn status_pid(&self, name: &str) -> u32 {
        self.registry.status(name).unwrap().pid.unwrap()
    }

    /// Waits until the model's status is as wished.
    pub async fn until(&self, name: &str, wish: impl Fn(&ModelStatus) -> bool) -> ModelStatus {
        let began = Instant::now();
        loop {
            let status = self.registry.status(name).unwrap();
            if wish(&status) {
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "still {status:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn until_state(&self, name: &str, state: ModelState) -> ModelStatus {
        self.until(name, |status| status.state == state).await
    }

    pub fn metrics_text(&self) -> String {
        prometheus::TextEncoder::new().encode_to_string(&self.metrics.gather()).unwrap()
    }
}

/// The events of a load to its end.
pub async fn read_load(mut events: mpsc::Receiver<LoadEvent>) -> Vec<LoadEvent> {
    let mut all = Vec::new();
    let next = async |events: &mut mpsc::Receiver<LoadEvent>| {
        let event = tokio::time::timeout(PATIENCE, events.recv()).await;
        event.expect("the load stands still")
    };
    while let Some(event) = next(&mut events).await {
        all.push(event);
    }
    all
}

/// How a load ended.
pub fn end_of(mut events: Vec<LoadEvent>) -> Result<ModelStatus, AdminError> {
    match events.pop() {
        Some(LoadEvent::Ready(status)) => Ok(*status),
        Some(LoadEvent::Failed(error)) => Err(error),
        other => panic!("a load ended with {other:?}"),
    }
}

pub fn generate(prompt: &[u32]) -> Generate {
    Generate {
        prompt: prompt.to_vec(),
        sampling: SamplingParams::default(),
        stop: StopParams::default(),
        priority: 0,
        request_id: "a request".to_string(),
        key: None,
    }
}

/// Reads a generation to its end: its tokens, and how it finished, if it did.
pub async fn read(generation: &mut Generation) -> (Vec<u32>, Option<Finish>) {
    let mut tokens = Vec::new();
    loop {
        let event = tokio::time::timeout(PATIENCE, generation.events.recv()).await;
        let Some(event) = event.expect("the stream stands still") else { return (tokens, None) };
        tokens.extend(event.sampled.map(|sampled| sampled.token));
        if event.finish.is_some() {
            return (tokens, event.finish);
        }
    }
}

/// Reads one token.
pub async fn token(generation: &mut Generation) -> u32 {
    let event = tokio::time::timeout(PATIENCE, generation.events.recv()).await;
    event.expect("the stream stands still").expect("the stream ended").sampled.unwrap().token
}

pub fn is_alive(pid: u32) -> bool {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), None).is_ok()
}

pub fn signal(pid: u32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), signal).unwrap();
}
