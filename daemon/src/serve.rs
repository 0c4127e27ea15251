//! The daemon: wires http and control together, loads configured models, and shuts down in order.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use minisgl_control::access::{self, Access};
use minisgl_control::{
    Doctor, Expected, Gpus, Inspector, Registry, RegistryConfig, RestartPolicy, WorkerCommand,
    admin, socket,
};
use minisgl_http::{Front, Keys, Listener, Settings, TextModels};
use minisgl_proto::admin::LoadEvent;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::bridge::RegistryBackend;
use crate::cli::ServeArgs;
use crate::config::{Config, ModelConfig};
use crate::logging;
use crate::notify::{Notifier, Report};

/// After draining, open connections get this long to take their last bytes.
const LINGER: Duration = Duration::from_secs(2);

/// What `minisgld probe` gets: the driver of many idle GPUs starts slowly. Who asked may leave before.
const PROBE_MAX: Duration = Duration::from_secs(600);

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// The configuration is wrong, or an address or socket cannot be bound.
pub fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let config = Config::load(args)?;
    logging::init(&config.log)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(serve(config, args))
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

async fn serve(config: Config, args: &ServeArgs) -> anyhow::Result<()> {
    let notifier = Notifier::from_env()?;
    let drain = Duration::from_secs_f64(config.workers.drain_s);
    let metrics = prometheus::Registry::new();
    let settings = Settings {
        body_bytes_max: config.http.body_bytes_max,
        connections_max: config.http.connections_max,
        ..Settings::default()
    };
    let texts = Arc::new(TextModels::new(settings.tokenizer_threads));
    let registry = Registry::new(registry_config(&config, Arc::clone(&texts)), &metrics)?;
    let backend = Arc::new(RegistryBackend(registry.clone()));
    let front = Front::new(backend, texts, settings.clone(), &metrics)?;
    let keys = Keys::new(config.key_rule());
    let openai = minisgl_http::keyed_router(Arc::clone(&front), keys);

    let (listener, listen) = bind(config.http.listen).await?;
    let access = Access::new(config.admin.admin_users.clone());
    for user in access::unknown_users(&config.admin.admin_users) {
        tracing::warn!("[admin] admin_users has \"{user}\", and there is no such user");
    }
    let path = config.socket();
    if config.admin.socket.is_none() {
        socket::make_folder(&Config::socket_place())?;
    }
    let admin_listener = socket::bind(&path).await?;
    let info = admin::DaemonInfo {
        started: Instant::now(),
        listen: listen.to_string(),
        doctor: Arc::new(Doctor::new(probe_command(&config, args), PROBE_MAX)),
        access: access.clone(),
    };
    let admin = admin::router(registry.clone(), info).merge(minisgl_http::router(front));
    let admin = access::guard(admin, access);
    tracing::info!("OpenAI API on http://{listen}, admin API on {}", path.display());

    let (stop, stopped) = watch::channel(false);
    let mut http = tokio::spawn({
        let stopped = wait_for(stopped.clone());
        async move {
            minisgl_http::serve(vec![Listener::Tcp(listener)], openai, &settings, stopped).await
        }
    });
    let mut admin =
        tokio::spawn(socket::serve_unix(admin_listener, admin, wait_for(stopped.clone())));
    let models = config.model.into_iter().map(|model| (model, registry.expect())).collect();
    let boot = tokio::spawn(load_configured(registry.clone(), models));
    if let Some(notifier) = notifier {
        let registry = registry.clone();
        let report = move || Report {
            models: registry.list(),
            expected: registry.expected(),
            hung: registry.hung(),
        };
        tokio::spawn(notifier.run(report, stopped, drain));
    }

    let ended = tokio::select! {
        signal = terminated() => signal,
        end = &mut http => Err(anyhow!("the OpenAI API ended by itself: {end:?}")),
        end = &mut admin => Err(anyhow!("the admin API ended by itself: {end:?}")),
    };
    if let Err(error) = &ended {
        tracing::error!("{error:#}");
    }
    boot.abort();
    tracing::info!("stopping: running requests have {} s to finish", drain.as_secs_f64());
    let _ = stop.send(true);
    // A second signal, or the end of the drain time, ends what still runs.
    tokio::select! {
        () = registry.shutdown(drain) => {}
        signal = terminated() => signal?,
    }
    let close = async {
        // A task that ended above must not be asked again.
        while !(http.is_finished() && admin.is_finished()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let _ = tokio::time::timeout(LINGER, close).await;
    let _ = std::fs::remove_file(&path);
    tracing::info!("stopped");
    ended
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

/// Whether NCCL may use the multicast of NVLink: not unless the operator says so. A worker that fails while it
/// does can put every GPU of the host out of service.
const MULTICAST: &str = "NCCL_NVLS_ENABLE";

fn registry_config(config: &Config, texts: Arc<TextModels>) -> RegistryConfig {
    let defaults = RegistryConfig::default();
    let mut worker = WorkerCommand::current_exe();
    worker.env = libraries(config);
    if std::env::var_os(MULTICAST).is_none() {
        worker.env.push((MULTICAST.into(), "0".into()));
    }
    worker.args.push(format!("--log={}", config.log.level).into());
    RegistryConfig {
        worker,
        hub: config.hub_config(),
        inspector: Inspector(Arc::new(move |dir| texts.inspect(dir))),
        gpus: if cfg!(feature = "cuda") { Gpus::default() } else { Gpus::none() },
        stall: Duration::from_secs_f64(config.workers.stall_s),
        stall_kill: Duration::from_secs_f64(config.workers.stall_kill_s),
        load_silence: Duration::from_secs_f64(config.workers.load_s_max),
        drain: Duration::from_secs_f64(config.workers.drain_s),
        stream_buffer: config.workers.stream_buffer_tokens,
        restart: RestartPolicy { give_up: config.workers.failures_max, ..defaults.restart },
        ..defaults
    }
}

async fn bind(listen: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(listen).await.with_context(|| {
        format!("cannot listen on {listen}; choose another address with --listen or [http] listen")
    })?;
    let listen = listener.local_addr()?;
    Ok((listener, listen))
}

/// Loads the models of the configuration, one after the other. One that fails is logged; the others
/// are loaded all the same.
async fn load_configured(registry: Registry, models: Vec<(ModelConfig, Expected)>) {
    for (model, _tried) in models {
        let source = &model.model;
        let mut events = match registry.load(model.request()).await {
            Ok(events) => events,
            Err(error) => {
                tracing::error!("model {source} of the configuration does not load: {error}");
                continue;
            }
        };
        while let Some(event) = events.recv().await {
            match event {
                LoadEvent::Progress(_) => {}
                LoadEvent::Ready(status) => tracing::info!("model \"{}\" is ready", status.name),
                LoadEvent::Failed(error) => {
                    tracing::error!("model {source} of the configuration does not load: {error}");
                }
            }
        }
    }
}

/// Resolves when the process is asked to end.
async fn terminated() -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}

async fn wait_for(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}
