//! What the configuration means to the other rooms: the commands of child processes, and the registry's settings.
//!
//! Owns: the translation. Must never: start anything.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use minisgl_control::{
    Gpus, Inspector, RegistryConfig, RestartPolicy, Text, TextConfig, WorkerCommand,
};

use crate::cli::ServeArgs;
use crate::config::Config;
use crate::confine;

/// `minisgld probe` with the daemon's own configuration.
pub fn probe_command(config: &Config, args: &ServeArgs) -> WorkerCommand {
    let mut arguments = vec!["probe".into()];
    if let Some(path) = &args.config {
        arguments.extend(["--config".into(), path.into()]);
    }
    WorkerCommand { args: arguments, env: libraries(config), ..WorkerCommand::current_exe() }
}

/// Where the children that touch a GPU look for NVIDIA's libraries.
fn libraries(config: &Config) -> Vec<(OsString, OsString)> {
    let folder = config.gpu.libraries.as_ref();
    folder.map(|folder| ("MINISGL_CUDA_LIBRARIES".into(), folder.into())).into_iter().collect()
}

/// A folder of the workers' own in the service's cache, which they may write to when they are confined.
fn own_cache() -> Option<(OsString, OsString)> {
    let folders = std::env::var_os("CACHE_DIRECTORY")?;
    let folder = std::env::split_paths(&folders).next()?.join("workers");
    if let Err(error) = std::fs::create_dir_all(&folder) {
        tracing::warn!("cannot make {}: {error}", folder.display());
    }
    Some(("CACHE_DIRECTORY".into(), folder.into()))
}

/// Whether NCCL may use the multicast of NVLink: not unless the operator says so. A worker that fails while it
/// does can put every GPU of the host out of service.
const MULTICAST: &str = "NCCL_NVLS_ENABLE";
/// The network's interface by which ranks of NCCL find each other. All are threads of one process.
const INTERFACE: &str = "NCCL_SOCKET_IFNAME";

/// As the configuration has it, without what is saved.
pub fn registry_config(config: &Config) -> RegistryConfig {
    let defaults = RegistryConfig::default();
    let mut worker = WorkerCommand::current_exe();
    worker.env = libraries(config);
    for (variable, value) in [(MULTICAST, "0"), (INTERFACE, "lo")] {
        if std::env::var_os(variable).is_none() {
            worker.env.push((variable.into(), value.into()));
        }
    }
    worker.env.push(without_threads());
    worker.args.push(format!("--log={}", config.log.level).into());
    if config.workers.confine_gpu {
        worker.args.push("--confine-gpu".into());
        worker.env.extend(own_cache());
    }
    RegistryConfig {
        worker,
        hub: config.hub_config(),
        inspector: text_reader(config),
        gpus: if cfg!(feature = "cuda") { Gpus::default() } else { Gpus::unusable() },
        stall: Duration::from_secs_f64(config.workers.stall_s),
        stall_kill: Duration::from_secs_f64(config.workers.stall_kill_s),
        load_silence: Duration::from_secs_f64(config.workers.load_s_max),
        drain: Duration::from_secs_f64(config.workers.drain_s),
        stream_buffer: config.workers.stream_buffer_tokens,
        park: Duration::from_secs_f64(config.workers.park_s),
        park_bytes_max: config.workers.park_bytes_max,
        restart: RestartPolicy { give_up: config.workers.failures_max, ..defaults.restart },
        ..defaults
    }
}

/// Has a child start without a thread that its rules would not hold for.
fn without_threads() -> (OsString, OsString) {
    let (name, value) = confine::ENVIRONMENT;
    (name.into(), value.into())
}

/// Starts a model's text process, which reads its tokenizer and templates. Must be called in the runtime.
fn text_reader(config: &Config) -> Inspector {
    let mut text = TextConfig::default();
    text.command.env.push(without_threads());
    text.command.args.push(format!("--log={}", config.log.level).into());
    let runtime = tokio::runtime::Handle::current();
    Inspector(Arc::new(move |dir, dialect| {
        let config = TextConfig { dialect, ..text.clone() };
        runtime.block_on(Text::start(&config, dir)).map(Some)
    }))
}
