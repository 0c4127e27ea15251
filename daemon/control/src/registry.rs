//! The models the daemon knows, by name.
//!
//! Owns: which names are taken, and request ids. Must never: change a model's state itself; that is
//! its supervisor's business.

mod handle;
mod reconcile;
mod report;
mod saving;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use minisgl_proto::admin::{
    AdminError, AdminErrorCode, LoadEvent, LoadRequest, ModelState, ModelStatus, Origin,
    RestartRequest,
};
use minisgl_proto::{Generate, Unavailable};
use tokio::sync::{mpsc, oneshot};

use crate::checks::{check_load, check_options};
use crate::config::{HubConfig, RegistryConfig, WorkerCommand};
use crate::event::{Event, Watch};
use crate::gpus::{GpuMetrics, Meter};
use crate::metrics::Metrics;
use crate::model::{Model, SessionLimits};
use crate::placement::{Placement, Reservation};
use crate::saved::SavedModels;
use crate::spec::Spec;
use crate::supervisor::{Parts, Supervisor};

use self::handle::not_ready;
pub use self::handle::{Generation, ModelHandle};
pub use self::report::Listed;

/// Events of a model that may wait for its supervisor.
const EVENTS_MAX: usize = 64;
/// Lines of a load's answer that may wait for a slow client; progress beyond it is dropped.
const LOAD_EVENTS_MAX: usize = 256;
/// Why a load cannot be saved.
const NOTHING_SAVED: &str = "this daemon saves no models: it has no state folder; set [state] dir, or have systemd \
                             make one (StateDirectory=)";
/// Models at once, at most.
const MODELS_MAX: usize = 64;

/// The models of this daemon. Clones are the same registry.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    /// For the next loads; each model keeps that of its own.
    config: RwLock<Arc<RegistryConfig>>,
    /// The models that are there again after a restart of the daemon; without it none is.
    saved: Option<Arc<SavedModels>>,
    /// Held while a model is saved or forgotten, so that the one sees what the other did.
    saving: tokio::sync::Mutex<()>,
    /// Held while models are made those of a configuration.
    reconciling: tokio::sync::Mutex<()>,
    metrics: Metrics,
    /// In the order they were loaded.
    models: Mutex<Vec<Arc<Model>>>,
    placement: Placement,
    meter: Meter,
    next_id: AtomicU64,
    next_generation: AtomicU64,
    closing: AtomicBool,
}

fn invalid(message: String) -> AdminError {
    AdminError { code: AdminErrorCode::Invalid, message }
}

fn conflict(message: String) -> AdminError {
    AdminError { code: AdminErrorCode::Conflict, message }
}

fn failed(message: String) -> AdminError {
    AdminError { code: AdminErrorCode::Failed, message }
}

impl Registry {
    /// An empty registry whose workers, and the machine's GPUs, are seen in `metrics`. What is loaded with `persist`
    /// goes to `saved`.
    ///
    /// # Errors
    /// A name of its metrics is taken.
    pub fn new(
        config: RegistryConfig,
        saved: Option<Arc<SavedModels>>,
        metrics: &prometheus::Registry,
    ) -> Result<Self, prometheus::Error> {
        metrics.register(Box::new(GpuMetrics::new(config.gpus.clone())?))?;
        Ok(Registry(Arc::new(Inner {
            meter: Meter::new(config.gpus.clone()),
            config: RwLock::new(Arc::new(config)),
            saved,
            saving: tokio::sync::Mutex::default(),
            reconciling: tokio::sync::Mutex::default(),
            metrics: Metrics::new(metrics)?,
            models: Mutex::default(),
            placement: Placement::default(),
            next_id: AtomicU64::new(1),
            next_generation: AtomicU64::new(1),
            closing: AtomicBool::new(false),
        })))
    }

    /// What is loaded from now on, and unloaded, goes by `config`. Models that are there keep theirs.
    pub fn reconfigure(&self, config: RegistryConfig) {
        let mut current = self.0.config.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(RegistryConfig { gpus: current.gpus.clone(), ..config });
    }

    fn config(&self) -> Arc<RegistryConfig> {
        Arc::clone(&self.0.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where models come from now.
    pub(crate) fn hub(&self) -> HubConfig {
        self.config().hub.clone()
    }

    /// How children are started now.
    pub(crate) fn worker(&self) -> WorkerCommand {
        self.config().worker.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Model>>> {
        self.0.models.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, name: &str) -> Result<Arc<Model>, AdminError> {
        let is_named = |model: &&Arc<Model>| model.spec.names().any(|own| own == name);
        let found = self.lock().iter().find(is_named).cloned();
        found.ok_or_else(|| AdminError {
            code: AdminErrorCode::NotFound,
            message: format!("model \"{name}\" is not loaded; {}", self.hint(name)),
        })
    }

    fn hint(&self, name: &str) -> String {
        let names: Vec<String> =
            self.lock().iter().map(|m| format!("\"{}\"", m.spec.name)).collect();
        if names.is_empty() {
            format!("no model is; load it with: minisglctl load {name}")
        } else {
            format!("loaded: {}", names.join(", "))
        }
    }

    /// Begins to load a model because somebody asks for it; the events end with `Ready` or `Failed`. The load goes
    /// on when nobody reads them. When it fails the model leaves, unless the daemon was to keep it before. Must be
    /// called in a tokio runtime.
    ///
    /// # Errors
    /// `Invalid`: a name or the options cannot be. `Conflict`: a name or a GPU is taken, or the
    /// daemon shuts down.
    pub async fn load(&self, request: LoadRequest) -> Result<Watch, AdminError> {
        let name = check_load(&request)?;
        let persist = request.persist;
        if persist && self.0.saved.is_none() {
            return Err(invalid(NOTHING_SAVED.to_string()));
        }
        let mut origin = Origin::Loaded;
        // A model that failed makes way for a new try.
        if let Ok(model) = self.find(&name)
            && model.state() == ModelState::Failed
            && model.spec.name == name
        {
            if model.spec.source == request.model {
                origin = model.status().origin;
            }
            unload(&model, true, self.config().drain).await;
        }
        let spec = Spec::new(name, request, origin);
        let (watcher, watch) = mpsc::channel(LOAD_EVENTS_MAX);
        let gpus_here = self.config().gpus.0.may_exist();
        let reserve = |placement: &Placement| {
            let reservation = placement.reserve(&spec.name, &spec.options, gpus_here);
            reservation.map(Some).map_err(|taken| conflict(taken.to_string()))
        };
        let model = self.start(spec.clone(), Some(watcher), reserve)?;
        let is_saved = || persist.then(|| self.0.saved.clone()).flatten();
        Ok(match is_saved() {
            Some(saved) => self.save_when_ready(watch, saved, model, spec.options),
            None => watch,
        })
    }

    /// Keeps a model that the configuration names or that is saved: it is listed from now on, and tried again for as
    /// long as it fails for reasons that may pass. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// As [`Registry::load`], but for a GPU that is taken.
    pub fn keep(&self, request: LoadRequest, origin: Origin) -> Result<(), AdminError> {
        let name = check_load(&request)?;
        let spec = Spec::new(name, request, origin);
        let gpus_here = self.config().gpus.0.may_exist();
        let (name, options) = (spec.name.clone(), spec.options.clone());
        // One whose GPUs are taken asks for them again.
        self.start(spec, None, |placement| Ok(placement.reserve(&name, &options, gpus_here).ok()))?;
        Ok(())
    }

    fn start(
        &self,
        spec: Spec,
        watcher: Option<mpsc::Sender<LoadEvent>>,
        reserve: impl FnOnce(&Placement) -> Result<Option<Reservation>, AdminError>,
    ) -> Result<Arc<Model>, AdminError> {
        let config = self.config();
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let placement = self.0.placement.clone();
        let generation = self.0.next_generation.fetch_add(1, Ordering::Relaxed);
        let limits =
            SessionLimits { buffer: config.stream_buffer, bytes_max: config.park_bytes_max };
        let model = Arc::new(Model::new(spec, generation, limits, sender, placement.clone()));
        let reservation = {
            let mut models = self.lock();
            self.check_names(&models, &model.spec)?;
            let reservation = reserve(&placement)?;
            models.push(Arc::clone(&model));
            reservation
        };
        tracing::info!(model = model.spec.name, source = model.spec.source, "loading");
        let supervisor = Supervisor::new(Parts {
            model: Arc::clone(&model),
            config,
            metrics: self.0.metrics.clone(),
            placement,
            reservation,
            events,
            watcher,
        });
        let (registry, entry) = (self.clone(), Arc::clone(&model));
        tokio::spawn(supervisor.run(move || {
            registry.lock().retain(|other| !Arc::ptr_eq(other, &entry));
        }));
        Ok(model)
    }

    /// Whether there is room for a model of these names.
    fn check_names(&self, models: &[Arc<Model>], spec: &Spec) -> Result<(), AdminError> {
        if self.0.closing.load(Ordering::SeqCst) {
            return Err(conflict("the daemon is shutting down".to_string()));
        }
        for name in spec.names() {
            let Some(other) = models.iter().find(|m| m.spec.names().any(|own| own == name)) else {
                continue;
            };
            let state = format!("{:?}", other.state()).to_lowercase();
            let of = match other.spec.name == name {
                true => "a model".to_string(),
                false => format!("model \"{}\", as an alias,", other.spec.name),
            };
            return Err(conflict(format!(
                "the name \"{name}\" is taken by {of} that is {state}; unload it first, or choose \
                 another with --name"
            )));
        }
        if models.len() >= MODELS_MAX {
            return Err(conflict(format!("{MODELS_MAX} models are loaded, which is the limit")));
        }
        Ok(())
    }

    /// Has a model served by another worker, loaded with other options if the request has some; its requests wait.
    /// The events end with `Ready` or `Failed`. When the new options do not load, it is loaded as before.
    ///
    /// # Errors
    /// `NotFound`; `Invalid`: the options cannot be; `Conflict`: it is being loaded or unloaded.
    pub async fn restart(&self, request: RestartRequest) -> Result<Watch, AdminError> {
        let RestartRequest { name, mut options } = request;
        if let Some(options) = &mut options {
            options.gpus_taken.clear();
            check_options(options)?;
        }
        let model = self.find(&name)?;
        let gone = || failed(format!("model \"{name}\" went away before it was restarted"));
        let (reply, answer) = oneshot::channel();
        let event = Event::Restart { options: options.clone(), reply };
        model.events.send(event).await.map_err(|_| gone())?;
        let watch = answer.await.map_err(|_| gone())??;
        let is_persisted = model.persisted.load(Ordering::SeqCst);
        Ok(match (options, self.0.saved.clone()) {
            (Some(options), Some(saved)) if is_persisted => {
                self.save_when_ready(watch, saved, model, options)
            }
            _ => watch,
        })
    }

    /// Unloads a model: without `force` after its running requests, up to the drain time; and forgets it, if it
    /// was saved. Returns its status as it was last, when it is gone.
    ///
    /// # Errors
    /// `NotFound`: there is none of that name, though one may have been saved. `Failed`: it is saved
    /// and could not be forgotten, or its worker cannot be ended.
    pub async fn unload(&self, name: &str, force: bool) -> Result<ModelStatus, AdminError> {
        let found = self.find(name);
        if let Ok(model) = &found {
            model.unwanted.store(true, Ordering::SeqCst);
        }
        let own = found.as_ref().map_or(name, |model| &model.spec.name).to_string();
        let forgotten = self.forget(&own).await;
        let model = found.map_err(|error| match forgotten {
            Ok(true) => AdminError {
                message: format!("model \"{name}\" was not loaded; it is no longer saved"),
                ..error
            },
            _ => error,
        })?;
        if let Err(error) = forgotten {
            model.unwanted.store(false, Ordering::SeqCst);
            return Err(error);
        }
        model.persisted.store(false, Ordering::SeqCst);
        let status = unload(&model, force, self.config().drain).await;
        match status.reason {
            Some(reason) if status.state == ModelState::Failed && status.pid.is_some() => {
                Err(failed(format!("model \"{own}\" cannot be unloaded: {reason}")))
            }
            _ => Ok(status),
        }
    }

    /// Ends the requests of this number or of this id of the client's. Returns how many.
    pub fn cancel(&self, id: &str) -> usize {
        let models = self.lock().clone();
        models.iter().map(|model| model.sessions.cancel(id)).sum()
    }

    /// Ends the requests that came with the API key of this name, or with none, and have this id of the client's, if one
    /// is told. Returns how many.
    pub fn abort_of(&self, key: Option<&str>, id: Option<&str>) -> usize {
        let models = self.lock().clone();
        models.iter().map(|model| model.sessions.abort_of(key, id)).sum()
    }

    /// Empties a model's prefix cache; returns the pages that became free.
    ///
    /// # Errors
    /// `NotFound`; `Conflict`: it is not ready; `Failed`: its worker died.
    pub async fn flush(&self, name: &str) -> Result<u64, AdminError> {
        let model = self.find(name)?;
        let (reply, answer) = oneshot::channel();
        let gone = || failed(format!("model \"{name}\" went away before its cache was flushed"));
        model.events.send(Event::Flush(reply)).await.map_err(|_| gone())?;
        match tokio::time::timeout(self.config().stall, answer).await {
            Ok(pages) => pages.map_err(|_| gone())?,
            Err(_) => Err(failed(format!(
                "the worker of model \"{name}\" did not answer; see minisglctl ps"
            ))),
        }
    }

    /// The model of this name, if it takes requests: it is ready, or was and will be again.
    ///
    /// # Errors
    /// `NotFound` or `NotReady`.
    pub fn model(&self, name: &str) -> Result<ModelHandle, Unavailable> {
        let model = self
            .find(name)
            .map_err(|_| Unavailable::NotFound { name: name.to_string(), hint: self.hint(name) })?;
        self.handle(model)
    }

    /// The only model there is, if there is one alone.
    pub fn only_model(&self) -> Option<Result<ModelHandle, Unavailable>> {
        let model = match &self.lock()[..] {
            [model] => Arc::clone(model),
            _ => return None,
        };
        Some(self.handle(model))
    }

    fn handle(&self, model: Arc<Model>) -> Result<ModelHandle, Unavailable> {
        use ModelState::{Ready, Restarting, Stalled};
        match model.state_and_info() {
            (Ready | Restarting | Stalled, Some(info)) => {
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
