//! The daemon: wires http and control together, loads configured models, and shuts down in order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use minisgl_control::access::{self, Access};
use minisgl_control::{Doctor, Registry, SavedModels, admin, check_load, socket};
use minisgl_http::{Front, Keys, Tls};
use minisgl_proto::admin::{LoadRequest, Origin};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::bridge::RegistryBackend;
use crate::cli::ServeArgs;
use crate::config::{Config, ModelConfig};
use crate::listen::{Inherited, Sockets};
use crate::logging::{self, LevelHandle};
use crate::notify::{Notifier, Report};
use crate::reload::{self, Live, warn_of_unknown_users};
use crate::wiring::{probe_command, registry_config};

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
    let saved = saved_models(&config);
    let mut registry_config = registry_config(&config);
    if let (Some(subcommand), Some(first)) = (&args.worker, registry_config.worker.args.first_mut())
    {
        *first = subcommand.into();
    }
    let registry = Registry::new(registry_config, saved.clone(), &metrics)?;
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
    let (ask, mut asked) = mpsc::channel(1);
    let admin = admin::router(registry.clone(), info)
        .merge(minisgl_control::reload::router(ask, live.access.clone()))
        .merge(minisgl_http::router(front));
    let admin = access::guard(admin, live.access.clone());
    let scheme = if config.certificate.is_some() { "https" } else { "http" };
    tracing::info!("OpenAI API on {scheme}://{listen}, admin API on {}", config.socket().display());

    let (stop, stopping) = watch::channel(None);
    let (close, closed) = watch::channel(false);
    let mut http = tokio::spawn({
        let (closed, limits) = (wait_for(closed.clone()), live.limits.clone());
        let (port, tls) = (sockets.http, live.tls.clone());
        async move { minisgl_http::serve(port, tls, openai, &settings, &limits, closed).await }
    });
    let mut admin = tokio::spawn(async move {
        if sockets.is_admin_lent {
            socket::serve_lent(sockets.admin, admin, wait_for(closed)).await;
        } else {
            socket::serve_unix(sockets.admin, admin, wait_for(closed)).await;
        }
    });
    keep_models(&registry, &config, saved.as_deref());
    let (note, noted) = watch::channel(None);
    if let Some(notifier) = notifier.clone() {
        let registry = registry.clone();
        let report = move || Report {
            models: registry.list(),
            hung: registry.stuck(),
            note: noted.borrow().clone(),
        };
        tokio::spawn(notifier.run(report, stopping));
    }

    let ended = loop {
        tokio::select! {
            () = stops.next() => break Ok(()),
            _ = hangup.recv() => {
                let reloaded = live.reload(notifier.as_ref(), args, &mut config).await;
                note.send_replace(reload::note(&reloaded));
            }
            Some(reply) = asked.recv() => {
                let reloaded = live.reload(notifier.as_ref(), args, &mut config).await;
                note.send_replace(reload::note(&reloaded));
                // Nobody may be left who asked.
                let _ = reply.send(reload::reply(reloaded));
            }
            end = &mut http => break Err(anyhow!("the OpenAI API ended by itself: {end:?}")),
            end = &mut admin => break Err(anyhow!("the admin API ended by itself: {end:?}")),
        }
    };
    if let Err(error) = &ended {
        tracing::error!("{error:#}");
    }
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

/// The models that `load --persist` saved, unless there is no folder for them, or it is of no use.
fn saved_models(config: &Config) -> Option<Arc<SavedModels>> {
    match SavedModels::open(&config.state_dir()?) {
        Ok(saved) => Some(Arc::new(saved)),
        Err(error) => {
            tracing::error!("models loaded with --persist are not loaded: {error}");
            None
        }
    }
}

/// Has the registry keep the models of the configuration and those that are saved; of one name the configuration's.
/// All are listed from now on, and load side by side.
fn keep_models(registry: &Registry, config: &Config, saved: Option<&SavedModels>) {
    let configured: Vec<LoadRequest> = config.model.iter().map(ModelConfig::request).collect();
    let names: Vec<_> = configured.iter().filter_map(|model| check_load(model).ok()).collect();
    let is_new = |model: &LoadRequest| check_load(model).is_ok_and(|name| !names.contains(&name));
    let saved = saved.map(SavedModels::models).unwrap_or_default().into_iter().filter(is_new);
    let configured = configured.into_iter().map(|model| (model, Origin::Configured));
    for (model, origin) in configured.chain(saved.map(|model| (model, Origin::Persisted))) {
        let source = model.model.clone();
        if let Err(error) = registry.keep(model, origin) {
            tracing::error!("model {source} is not loaded: {error}");
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
