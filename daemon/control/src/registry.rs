//! The models the daemon knows, by name.
//!
//! Owns: which names are taken, and request ids. Must never: change a model's state itself; that is
//! its supervisor's business.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use minisgl_proto::admin::{
    AdminError, AdminErrorCode, HealthReport, LoadEvent, LoadRequest, ModelState, ModelStatus,
};
use minisgl_proto::{Generate, ModelInfo, RequestId, Submit, TokenEvent, Unavailable};
use tokio::sync::{mpsc, oneshot};

use crate::checks::check_load;
use crate::config::RegistryConfig;
use crate::gpus::{GpuMetrics, Meter};
use crate::metrics::Metrics;
use crate::model::Model;
use crate::placement::{Placement, Seat};
use crate::streams::{AbortGuard, Refused};
use crate::supervisor::{Event, Supervisor};
use crate::text::Text;
use crate::{remember, resolve};

/// Events of a model that may wait for its supervisor.
const EVENTS_MAX: usize = 64;
/// Lines of a load's answer that may wait for a slow client; progress beyond it is dropped.
const LOAD_EVENTS_MAX: usize = 256;
/// How long a worker may live on after SIGKILL, and a supervisor may stand still, whose ticks are two seconds
/// apart at most.
const HUNG: Duration = Duration::from_secs(30);
/// Why a load cannot be remembered.
const NO_MEMORY: &str = "this daemon remembers no models: it has no state folder; set [state] dir, or have systemd \
                         make one (StateDirectory=)";
/// Models at once, at most.
const MODELS_MAX: usize = 64;

/// The models of this daemon. Clones are the same registry.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    /// For the next loads; each model keeps that of its own.
    config: RwLock<Arc<RegistryConfig>>,
    metrics: Metrics,
    /// In the order they were loaded.
    models: Mutex<Vec<Arc<Model>>>,
    placement: Placement,
    meter: Meter,
    next_id: AtomicU64,
    closing: AtomicBool,
    /// Models that the daemon means to load and has not tried.
    expected: AtomicUsize,
}

/// A running generation.
#[derive(Debug)]
pub struct Generation {
    /// Its id, for logs.
    pub id: RequestId,
    /// Its events; the last one carries `finish`. A channel that closes without it means that the
    /// reader fell further behind than the buffer allows.
    pub events: mpsc::Receiver<TokenEvent>,
    /// Aborts when dropped, unless the request has ended.
    pub guard: AbortGuard,
}

/// A model that is going to be loaded; see [`Registry::expect`].
pub struct Expected(Arc<Inner>);

impl Drop for Expected {
    fn drop(&mut self) {
        self.0.expected.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A ready model. Stays valid when the model goes away; `submit` then refuses.
#[derive(Clone)]
pub struct ModelHandle {
    registry: Arc<Inner>,
    model: Arc<Model>,
    info: Arc<ModelInfo>,
}

impl ModelHandle {
    /// What it is.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Its text process; `None` for a model that was loaded without one.
    pub fn text(&self) -> Option<&Text> {
        self.model.text()
    }

    /// Starts a generation. Never blocks.
    ///
    /// # Errors
    /// `NotReady` or `Busy`; nothing was started.
    pub fn submit(&self, request: Generate) -> Result<Generation, Unavailable> {
        let name = || self.model.name.clone();
        let view = self.model.view();
        if view.state != ModelState::Ready {
            return Err(not_ready(&self.model));
        }
        let id = RequestId(self.registry.next_id.fetch_add(1, Ordering::Relaxed));
        let Generate { prompt, sampling, stop, priority } = request;
        let submit = Submit { id, prompt, sampling, stop, priority };
        match self.model.streams.submit(submit) {
            Ok((events, guard)) => Ok(Generation { id, events, guard }),
            Err(Refused::Full(limit)) => Err(Unavailable::Busy { name: name(), limit }),
            Err(Refused::Shut) => Err(not_ready(&self.model)),
        }
    }
}

fn not_ready(model: &Model) -> Unavailable {
    let view = model.view();
    let state = match view.state {
        ModelState::Loading => "it is being loaded",
        ModelState::Ready | ModelState::Restarting => "its worker is being restarted",
        ModelState::Stalled => "its worker makes no progress",
        ModelState::Failed => "its worker failed and was given up",
        ModelState::Unloading => "it is being unloaded",
    };
    // A request that a worker took with it hears how it died. One that comes later cannot have been
    // the cause and is told to wait; the cause is in `minisglctl ps`.
    Unavailable::NotReady { name: model.name.clone(), reason: state.to_string() }
}

impl Registry {
    /// An empty registry whose workers, and the machine's GPUs, are seen in `metrics`.
    ///
    /// # Errors
    /// A name of its metrics is taken.
    pub fn new(
        config: RegistryConfig,
        metrics: &prometheus::Registry,
    ) -> Result<Self, prometheus::Error> {
        metrics.register(Box::new(GpuMetrics::new(config.gpus.clone())?))?;
        Ok(Registry(Arc::new(Inner {
            meter: Meter::new(config.gpus.clone()),
            config: RwLock::new(Arc::new(config)),
            metrics: Metrics::new(metrics)?,
            models: Mutex::default(),
            placement: Placement::default(),
            next_id: AtomicU64::new(1),
            closing: AtomicBool::new(false),
            expected: AtomicUsize::new(0),
        })))
    }

    /// What is loaded from now on, and unloaded, goes by `config`. Models that are there keep theirs.
    pub fn reconfigure(&self, config: RegistryConfig) {
        let mut current = self.0.config.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(RegistryConfig {
            memory: current.memory.clone(),
            gpus: current.gpus.clone(),
            ..config
        });
    }

    fn config(&self) -> Arc<RegistryConfig> {
        Arc::clone(&self.0.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Model>>> {
        self.0.models.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, name: &str) -> Result<Arc<Model>, AdminError> {
        let found = self.lock().iter().find(|model| model.name == name).cloned();
        found.ok_or_else(|| AdminError {
            code: AdminErrorCode::NotFound,
            message: format!("model \"{name}\" is not loaded; {}", self.hint(name)),
        })
    }

    fn hint(&self, name: &str) -> String {
        let names: Vec<String> = self.lock().iter().map(|m| format!("\"{}\"", m.name)).collect();
        if names.is_empty() {
            format!("no model is; load it with: minisglctl load {name}")
        } else {
            format!("loaded: {}", names.join(", "))
        }
    }

    /// Begins to load a model; the events end with `Ready` or `Failed`. The load goes on when nobody
    /// reads them. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// `Invalid`: the name or the options cannot be. `Conflict`: the name or a GPU is taken, or the
    /// daemon shuts down.
    pub async fn load(
        &self,
        request: LoadRequest,
    ) -> Result<mpsc::Receiver<LoadEvent>, AdminError> {
        let name = check_load(&request)?;
        if request.persist && self.config().memory.is_none() {
            return Err(AdminError {
                code: AdminErrorCode::Invalid,
                message: NO_MEMORY.to_string(),
            });
        }
        let remembered = request.persist.then(|| request.clone());
        // A model that was given up makes way for a new try.
        let given_up = self.find(&name).is_ok_and(|m| m.view().state == ModelState::Failed);
        if given_up {
            let config = self.config();
            let model = self.find(&name)?;
            unload(&model, true, config.drain).await;
        }
        let (events, inbox) = mpsc::channel(EVENTS_MAX);
        let (watcher, progress) = mpsc::channel(LOAD_EVENTS_MAX);
        let LoadRequest { model: source, mut options, .. } = request;
        // Who has which GPUs is for the daemon to say.
        options.gpus_taken.clear();
        let config = self.config();
        let (buffer, placement) = (config.stream_buffer, self.0.placement.clone());
        let model = Arc::new(Model::new(name, source, options, buffer, events, placement));
        let seat = self.insert(&model)?;
        tracing::info!(model = model.name, source = model.source, "loading");
        let supervisor = Supervisor::new(
            Arc::clone(&model),
            Arc::clone(&config),
            self.0.metrics.clone(),
            seat,
            inbox,
            watcher,
        );
        let (registry, entry) = (self.clone(), Arc::clone(&model));
        tokio::spawn(supervisor.run(move || {
            registry.lock().retain(|other| !Arc::ptr_eq(other, &entry));
        }));
        resolve::start(&config, &model);
        match (remembered, &config.memory) {
            (Some(request), Some(memory)) => {
                Ok(remember::when_ready(progress, Arc::clone(memory), request, model))
            }
            _ => Ok(progress),
        }
    }

    fn insert(&self, model: &Arc<Model>) -> Result<Seat, AdminError> {
        let conflict = |message| AdminError { code: AdminErrorCode::Conflict, message };
        let mut models = self.lock();
        if self.0.closing.load(Ordering::SeqCst) {
            return Err(conflict("the daemon is shutting down".to_string()));
        }
        if let Some(taken) = models.iter().find(|other| other.name == model.name) {
            let state = format!("{:?}", taken.view().state).to_lowercase();
            return Err(conflict(format!(
                "the name \"{}\" is taken by a model that is {state}; unload it first, or choose \
                 another with --name",
                model.name
            )));
        }
        if models.len() >= MODELS_MAX {
            return Err(conflict(format!("{MODELS_MAX} models are loaded, which is the limit")));
        }
        let gpus_here = self.config().gpus.0.may_exist();
        let seat = self.0.placement.claim(&model.name, &model.options, gpus_here);
        let seat = seat.map_err(|taken| conflict(taken.to_string()))?;
        models.push(Arc::clone(model));
        Ok(seat)
    }

    /// Unloads a model: without `force` after its running requests, up to the drain time; and forgets it, if it
    /// was to be remembered. Returns its status as it was last, when it is gone.
    ///
    /// # Errors
    /// `NotFound`: there is none of that name, though one may have been remembered. `Failed`: it is remembered
    /// and could not be forgotten.
    pub async fn unload(&self, name: &str, force: bool) -> Result<ModelStatus, AdminError> {
        let forgotten = remember::forget(self.config().memory.clone(), name).await?;
        let model = self.find(name).map_err(|error| match forgotten {
            true => AdminError {
                message: format!("model \"{name}\" was not loaded; it is no longer remembered"),
                ..error
            },
            false => error,
        })?;
        model.remembered.store(false, Ordering::SeqCst);
        Ok(unload(&model, force, self.config().drain).await)
    }

    /// One model.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn status(&self, name: &str) -> Result<ModelStatus, AdminError> {
        Ok(self.find(name)?.status())
    }

    /// Every model, in the order they were loaded.
    pub fn list(&self) -> Vec<ModelStatus> {
        let models = self.lock().clone();
        models.iter().map(|model| model.status()).collect()
    }

    /// As [`Registry::status`], and how much GPU memory its worker holds, which the driver is asked for.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn status_with_memory(&self, name: &str) -> Result<ModelStatus, AdminError> {
        let mut status = [self.status(name)?];
        self.0.meter.fill(&mut status).await;
        let [status] = status;
        Ok(status)
    }

    /// As [`Registry::list`], and how much GPU memory each worker holds, which the driver is asked for.
    pub async fn list_with_memory(&self) -> Vec<ModelStatus> {
        let mut models = self.list();
        self.0.meter.fill(&mut models).await;
        models
    }

    /// Unix time at which each model's load began, in nanoseconds, in the order of [`Registry::list`].
    pub fn created(&self) -> Vec<(String, u64)> {
        self.lock().iter().map(|model| (model.name.clone(), model.created_ns)).collect()
    }

    /// Empties a model's prefix cache; returns the pages that became free.
    ///
    /// # Errors
    /// `NotFound`; `Conflict`: it is not ready; `Failed`: its worker died.
    pub async fn flush(&self, name: &str) -> Result<u64, AdminError> {
        let model = self.find(name)?;
        let (reply, answer) = oneshot::channel();
        let gone = || AdminError {
            code: AdminErrorCode::Failed,
            message: format!("model \"{name}\" went away before its cache was flushed"),
        };
        model.events.send(Event::Flush(reply)).await.map_err(|_| gone())?;
        match tokio::time::timeout(self.config().stall, answer).await {
            Ok(pages) => pages.map_err(|_| gone())?,
            Err(_) => Err(AdminError {
                code: AdminErrorCode::Failed,
                message: format!(
                    "the worker of model \"{name}\" did not answer; see minisglctl ps"
                ),
            }),
        }
    }

    /// Keeps [`Registry::health`] from being ready until the answer is dropped: a model is going to be
    /// loaded, and was not tried yet.
    pub fn expect(&self) -> Expected {
        self.0.expected.fetch_add(1, Ordering::SeqCst);
        Expected(Arc::clone(&self.0))
    }

    /// Models that were [expected](Registry::expect) and not tried yet.
    pub fn expected(&self) -> usize {
        self.0.expected.load(Ordering::SeqCst)
    }

    /// What only a new daemon can repair, if there is such a thing: a worker that lives on after SIGKILL, or a
    /// model that nobody looks after any more. A stalled worker is not one; it is killed and replaced.
    pub fn hung(&self) -> Option<String> {
        let models = self.lock().clone();
        models.iter().find_map(|model| model.hung(Instant::now(), HUNG))
    }

    /// Whether the service as a whole should get traffic.
    pub fn health(&self) -> HealthReport {
        let models: Vec<(String, ModelState)> =
            self.lock().iter().map(|m| (m.name.clone(), m.view().state)).collect();
        let of = |state| models.iter().filter(|(_, s)| *s == state).count();
        let ready = of(ModelState::Ready);
        // A model on its way out is no fault.
        let ill = models.len() - ready - of(ModelState::Unloading);
        let expected = self.expected();
        let mut summary = if models.is_empty() {
            "no model is loaded".to_string()
        } else {
            let describe = |(name, state): &(String, ModelState)| {
                format!("{name} is {}", format!("{state:?}").to_lowercase())
            };
            models.iter().map(describe).collect::<Vec<_>>().join(", ")
        };
        if expected > 0 {
            summary.push_str(&format!(", {expected} more to load"));
        }
        HealthReport { ready: ready > 0 && ill == 0 && expected == 0, summary, models }
    }

    /// The ready model of this name.
    ///
    /// # Errors
    /// `NotFound` or `NotReady`.
    pub fn model(&self, name: &str) -> Result<ModelHandle, Unavailable> {
        let model = self
            .find(name)
            .map_err(|_| Unavailable::NotFound { name: name.to_string(), hint: self.hint(name) })?;
        let view = model.view();
        match view.info {
            Some(info) if view.state == ModelState::Ready => {
                Ok(ModelHandle { registry: Arc::clone(&self.0), model, info })
            }
            _ => Err(not_ready(&model)),
        }
    }

    /// Starts a generation with the model of this name. Never blocks.
    ///
    /// # Errors
    /// As [`Registry::model`] and [`ModelHandle::submit`].
    pub fn submit(&self, name: &str, request: Generate) -> Result<Generation, Unavailable> {
        self.model(name)?.submit(request)
    }

    /// Takes no more loads, and unloads every model, waiting up to `drain` for running requests.
    pub async fn shutdown(&self, drain: Duration) {
        let models = {
            let models = self.lock();
            self.0.closing.store(true, Ordering::SeqCst);
            models.clone()
        };
        let unloads = models.iter().map(|model| unload(model, drain.is_zero(), drain));
        futures_util::future::join_all(unloads).await;
    }
}

async fn unload(model: &Model, force: bool, drain: Duration) -> ModelStatus {
    let (reply, answer) = oneshot::channel();
    // A model that is gone already drops the event; its status is still there.
    let _ = model.events.send(Event::Unload { force, drain, reply }).await;
    answer.await.unwrap_or_else(|_| model.status())
}
