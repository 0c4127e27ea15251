//! The daemon: wires http and control together, loads configured models, and shuts down in order.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use minisgl_control::access::{self, Access};
use minisgl_control::{
    Doctor, Expected, Gpus, Inspector, Memory, Registry, RegistryConfig, RestartPolicy, Text,
    TextConfig, WorkerCommand, admin, check_load, socket,
};
use minisgl_http::{Front, Keys, Listener, Tls};
use minisgl_proto::admin::{LoadEvent, LoadRequest};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::bridge::RegistryBackend;
use crate::cli::ServeArgs;
use crate::config::{Config, ModelConfig};
use crate::listen::{Inherited, Sockets};
use crate::logging::{self, LevelHandle};
use crate::notify::{Notifier, Report};
use crate::reload::{Live, warn_of_unknown_users};

/// After draining, open connections get this long to take their last bytes.
const LINGER: Duration = Duration::from_secs(2);

/// A second signal gives workers this long to end their requests; their SIGTERM is followed by SIGKILL after 3 s.
const FORCE: Duration = Duration::from_secs(5);

/// What `minisgld probe` gets: the driver of many idle GPUs starts slowly. Who asked may leave before.
const PROBE_MAX: Duration = Duration::from_secs(600);

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// The configuration is wrong, or an address or socket cannot be bound.
pub fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let inherited = Inherited::from_env();
    let config = Config::load(args)?;
    let level = logging::init(&config.log)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(serve(config, args, inherited, level))
}

/// Reads the configuration as `run` would.
///
/// # Errors
/// What is wrong with it.
pub fn check_config(args: &ServeArgs) -> anyhow::Result<()> {
    let config = Config::load(args)?;
    println!("ok: listen {}, admin socket {}", config.http.listen, config.socket().display());
    Ok(())
}

async fn serve(
    mut config: Config,
    args: &ServeArgs,
    inherited: Inherited,
    level: LevelHandle,
) -> anyhow::Result<()> {
    // Before anything else: a SIGHUP that nobody handles ends the process.
    let mut hangup = signal(SignalKind::hangup()).context("cannot handle SIGHUP")?;
    let mut stops = Stops::new()?;
    let notifier = Notifier::from_env()?;
    let metrics = prometheus::Registry::new();
    crate::metrics::register(&metrics)?;
    let settings = config.http_settings();
    let memory = remembered(&config);
    let registry_config = RegistryConfig { memory: memory.clone(), ..registry_config(&config) };
    let registry = Registry::new(registry_config, &metrics)?;
    let backend = Arc::new(RegistryBackend(registry.clone()));
    let front = Front::new(backend, settings.clone(), &metrics)?;
    let live = Live {
        keys: Keys::new(config.key_rule()),
        tls: Tls::new(config.certificate.clone()),
        access: Access::new(config.admin.admin_users.clone()),
        limits: front.limits.clone(),
        registry: registry.clone(),
        level,
    };
    warn_of_unknown_users(&config);
    let openai = minisgl_http::keyed_router(Arc::clone(&front), live.keys.clone());

    let sockets = Sockets::open(&config, inherited, notifier.as_ref()).await?;
    let listen = sockets.http.local_addr()?;
    let info = admin::DaemonInfo {
        started: Instant::now(),
        listen: listen.to_string(),
        doctor: Arc::new(Doctor::new(probe_command(&config, args), PROBE_MAX)),
        access: live.access.clone(),
    };
    let admin = admin::router(registry.clone(), info).merge(minisgl_http::router(front));
    let admin = access::guard(admin, live.access.clone());
    let scheme = if config.certificate.is_some() { "https" } else { "http" };
    tracing::info!("OpenAI API on {scheme}://{listen}, admin API on {}", config.socket().display());

    let (stop, stopping) = watch::channel(None);
    let (close, closed) = watch::channel(false);
    let mut http = tokio::spawn({
        let (closed, limits) = (wait_for(closed.clone()), live.limits.clone());
        let listeners = vec![Listener::Tcp(sockets.http, live.tls.clone())];
        async move { minisgl_http::serve(listeners, openai, &settings, &limits, closed).await }
    });
    let mut admin = tokio::spawn(async move {
        if sockets.is_admin_lent {
            socket::serve_lent(sockets.admin, admin, wait_for(closed)).await;
        } else {
            socket::serve_unix(sockets.admin, admin, wait_for(closed)).await;
        }
    });
    let models = models_at_start(&config, memory.as_deref());
    let models = models.into_iter().map(|model| (model, registry.expect())).collect();
    let boot = tokio::spawn(load_configured(registry.clone(), models));
    let (note, noted) = watch::channel(None);
    if let Some(notifier) = notifier.clone() {
        let registry = registry.clone();
        let report = move || Report {
            models: registry.list(),
            expected: registry.expected(),
            hung: registry.hung(),
            note: noted.borrow().clone(),
        };
        tokio::spawn(notifier.run(report, stopping));
    }

    let ended = loop {
        tokio::select! {
            () = stops.next() => break Ok(()),
            _ = hangup.recv() => {
                note.send_replace(reload(&live, notifier.as_ref(), args, &mut config).await);
            }
            end = &mut http => break Err(anyhow!("the OpenAI API ended by itself: {end:?}")),
            end = &mut admin => break Err(anyhow!("the admin API ended by itself: {end:?}")),
        }
    };
    if let Err(error) = &ended {
        tracing::error!("{error:#}");
    }
    boot.abort();
    let drain = Duration::from_secs_f64(config.workers.drain_s);
    tracing::info!("stopping: running requests have {} s to finish", drain.as_secs_f64());
    live.limits.close();
    let _ = stop.send(Some(drain));
    // A second signal, or the end of the drain time, ends what still runs.
    tokio::select! {
        () = registry.shutdown(drain) => {}
        () = stops.next() => {
            tracing::warn!("told to stop again: running requests are ended");
            let _ = tokio::time::timeout(FORCE, registry.shutdown(Duration::ZERO)).await;
        }
    }
    let _ = close.send(true);
    let close = async {
        // A task that ended above must not be asked again.
        while !(http.is_finished() && admin.is_finished()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let _ = tokio::time::timeout(LINGER, close).await;
    if !sockets.is_admin_lent {
        let _ = std::fs::remove_file(config.socket());
    }
    tracing::info!("stopped");
    ended
}

/// Reads the configuration again; what the status line should say of it.
async fn reload(
    live: &Live,
    notifier: Option<&Notifier>,
    args: &ServeArgs,
    config: &mut Config,
) -> Option<String> {
    if let Some(notifier) = notifier {
        notifier.reloading().await;
    }
    let note = match tokio::task::block_in_place(|| live.reload(args, config)) {
        Ok(outcome) => {
            outcome.log();
            outcome.note()
        }
        Err(error) => {
            tracing::error!("the configuration is not reloaded and stays as it was: {error:#}");
            Some("the configuration was not reloaded, the log says why".to_owned())
        }
    };
    if let Some(notifier) = notifier {
        notifier.reloaded().await;
    }
    note
}

/// `minisgld probe` with the daemon's own configuration.
fn probe_command(config: &Config, args: &ServeArgs) -> WorkerCommand {
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

/// As the configuration has it, without what is remembered.
pub fn registry_config(config: &Config) -> RegistryConfig {
    let defaults = RegistryConfig::default();
    let mut worker = WorkerCommand::current_exe();
    worker.env = libraries(config);
    if std::env::var_os(MULTICAST).is_none() {
        worker.env.push((MULTICAST.into(), "0".into()));
    }
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
        restart: RestartPolicy { give_up: config.workers.failures_max, ..defaults.restart },
        ..defaults
    }
}

/// Starts a model's text process, which reads its tokenizer and templates. Must be called in the runtime.
fn text_reader(config: &Config) -> Inspector {
    let mut text = TextConfig::default();
    text.command.args.push(format!("--log={}", config.log.level).into());
    let runtime = tokio::runtime::Handle::current();
    Inspector(Arc::new(move |dir| runtime.block_on(Text::start(&text, dir)).map(Some)))
}

/// The models that `load --persist` remembers, unless there is no folder for them, or it cannot be used.
fn remembered(config: &Config) -> Option<Arc<Memory>> {
    match Memory::open(&config.state_dir()?) {
        Ok(memory) => Some(Arc::new(memory)),
        Err(error) => {
            tracing::error!("models loaded with --persist are not loaded: {error}");
            None
        }
    }
}

/// The models of the configuration, then those that are remembered; of one name the configuration's.
fn models_at_start(config: &Config, memory: Option<&Memory>) -> Vec<LoadRequest> {
    let mut models: Vec<LoadRequest> = config.model.iter().map(ModelConfig::request).collect();
    let names: Vec<_> = models.iter().filter_map(|model| check_load(model).ok()).collect();
    let is_new = |model: &LoadRequest| check_load(model).is_ok_and(|name| !names.contains(&name));
    models.extend(memory.map(Memory::models).unwrap_or_default().into_iter().filter(is_new));
    models
}

/// Loads models, one after the other. One that fails is logged; the others are loaded all the same.
async fn load_configured(registry: Registry, models: Vec<(LoadRequest, Expected)>) {
    for (model, _tried) in models {
        let source = model.model.clone();
        let from = if model.persist { "remembered" } else { "of the configuration" };
        let mut events = match registry.load(model).await {
            Ok(events) => events,
            Err(error) => {
                tracing::error!("model {source} {from} does not load: {error}");
                continue;
            }
        };
        while let Some(event) = events.recv().await {
            match event {
                LoadEvent::Progress(_) => {}
                LoadEvent::Ready(status) => tracing::info!("model \"{}\" is ready", status.name),
                LoadEvent::Failed(error) => {
                    tracing::error!("model {source} {from} does not load: {error}");
                }
            }
        }
    }
}

/// The signals that ask the process to end.
struct Stops {
    term: Signal,
    int: Signal,
}

impl Stops {
    fn new() -> anyhow::Result<Stops> {
        Ok(Stops {
            term: signal(SignalKind::terminate()).context("cannot handle SIGTERM")?,
            int: signal(SignalKind::interrupt()).context("cannot handle SIGINT")?,
        })
    }

    /// Resolves with the next one.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

async fn wait_for(mut closed: watch::Receiver<bool>) {
    let _ = closed.wait_for(|closed| *closed).await;
}
