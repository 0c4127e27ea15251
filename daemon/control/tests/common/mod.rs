//! A registry whose workers are this very test binary, run again with [`WORKER_ARGS`].

#![allow(dead_code)] // each test binary uses its part of this

pub mod fake;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use minisgl_control::{
    Generate, Generation, HubConfig, Inspector, Registry, RegistryConfig, RestartPolicy,
    WorkerCommand,
};
use minisgl_proto::admin::{AdminError, LoadEvent, LoadRequest, ModelState, ModelStatus};
use minisgl_proto::{Finish, LoadOptions, SamplingParams, StopParams};

/// Runs the one ignored test, which is the worker.
const WORKER_ARGS: [&str; 4] = ["fake_worker", "--exact", "--ignored", "--nocapture"];

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub struct Daemon {
    pub registry: Registry,
    pub metrics: prometheus::Registry,
    folder: tempfile::TempDir,
}

/// Quick to restart and to lose patience.
pub fn config() -> RegistryConfig {
    RegistryConfig {
        worker: WorkerCommand {
            program: std::env::current_exe().unwrap(),
            args: WORKER_ARGS.iter().map(Into::into).collect(),
            env: Vec::new(),
        },
        hub: HubConfig { offline: true, ..HubConfig::default() },
        inspector: Inspector::default(),
        stall: Duration::from_millis(300),
        stall_kill: Duration::from_secs(60),
        load_silence: Duration::from_secs(60),
        restart: RestartPolicy {
            initial: Duration::from_millis(30),
            max: Duration::from_millis(120),
            give_up: 4,
            stable: Duration::from_secs(60),
        },
        stream_buffer: 64,
        drain: Duration::from_secs(5),
        term_grace: Duration::from_millis(300),
    }
}

impl Daemon {
    pub fn new() -> Self {
        Daemon::with(config())
    }

    pub fn with(config: RegistryConfig) -> Self {
        let metrics = prometheus::Registry::new();
        let registry = Registry::new(config, &metrics).unwrap();
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
        }
    }

    pub async fn load_events(&self, name: &str) -> Vec<LoadEvent> {
        let mut events = self.registry.load(self.request(name)).await.unwrap();
        let mut all = Vec::new();
        while let Some(event) = events.recv().await {
            all.push(event);
        }
        all
    }

    pub async fn load(&self, name: &str) -> Result<ModelStatus, AdminError> {
        match self.load_events(name).await.pop() {
            Some(LoadEvent::Ready(status)) => Ok(*status),
            Some(LoadEvent::Failed(error)) => Err(error),
            other => panic!("a load ended with {other:?}"),
        }
    }

    pub fn submit(&self, name: &str, prompt: &[u32]) -> Generation {
        self.registry.submit(name, generate(prompt)).unwrap()
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

pub fn generate(prompt: &[u32]) -> Generate {
    Generate {
        prompt: prompt.to_vec(),
        sampling: SamplingParams::default(),
        stop: StopParams::default(),
        priority: 0,
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
