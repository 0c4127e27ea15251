//! What the handlers share: the backend, the limits, the models' text sides.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::Request;
use prometheus::Registry;

use crate::backend::{Backend, Model, Unavailable};
use crate::body::{self, BodyBudget, Share};
use crate::choices::{Choices, Job};
use crate::error::ApiError;
use crate::fields::Route;
use crate::json::{self, Fields};
use crate::keys::Owner;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::pool::Pool;
use crate::random::Random;
use crate::record::KeyName;
use crate::record::Record;
use crate::settings::Settings;
use crate::store::Store;
use crate::tokenizer::{TextModel, TextModels};

/// Characters of a prompt in the log, at most.
const PROMPT_CHARS_MAX: usize = 8192;
/// Bytes of the name of a model; none that is loaded has more.
const NAME_BYTES_MAX: usize = 200;

/// State of the router.
pub struct Front {
    /// The models.
    pub backend: Arc<dyn Backend>,
    /// The limits.
    pub settings: Settings,
    /// Those that change while requests are served.
    pub limits: Limits,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Seeds and ids.
    pub random: Random,
    /// Tokenizers and templates.
    pub texts: TextModels,
    /// Where bodies are parsed and conversations put in form.
    pub pool: Pool,
    /// Responses that are kept for later requests.
    pub responses: Arc<Store>,
    budget: BodyBudget,
    /// Of the models that were asked something, the last loaded.
    newest: AtomicU64,
}

/// A request whose body is there.
pub struct Incoming {
    body: Vec<u8>,
    share: Share,
    /// Its record.
    pub record: Arc<Record>,
    /// Name of the API key it came with.
    pub key: Option<String>,
    /// Whose it is.
    pub owner: Owner,
}

/// The one field of a body that nothing else is read of.
#[derive(serde::Deserialize)]
struct Named {
    model: Option<String>,
}

/// A model that was asked for.
pub struct Found {
    /// Its name.
    pub name: String,
    /// Itself.
    pub model: Arc<dyn Model>,
    /// Its text side.
    pub text: Arc<TextModel>,
}

impl Front {
    /// A front to this backend, whose metrics go to `registry`.
    ///
    /// # Errors
    /// The registry already has metrics of these names.
    pub fn new(
        backend: Arc<dyn Backend>,
        settings: Settings,
        registry: &Registry,
    ) -> Result<Arc<Front>, prometheus::Error> {
        let bytes_max = settings.bodies_bytes_max.max(settings.body_bytes_max);
        Ok(Arc::new(Front {
            backend,
            metrics: Arc::new(Metrics::new(registry)?),
            random: Random::default(),
            texts: TextModels::default(),
            pool: Pool::new(settings.tokenizer_threads),
            responses: Arc::default(),
            budget: BodyBudget::new(bytes_max, settings.retry_after_s),
            newest: AtomicU64::new(0),
            limits: Limits::new(settings.body_bytes_max, settings.connections_max),
            settings,
        }))
    }

    /// Receives a request's body, and the record that goes with it.
    ///
    /// # Errors
    /// See [`body::receive`].
    pub async fn receive(&self, request: Request<Body>) -> Result<Incoming, ApiError> {
        let (parts, body) = request.into_parts();
        let record = parts.extensions.get::<Arc<Record>>().cloned();
        let record = record.ok_or_else(|| ApiError::internal("the request has no record"))?;
        let key = parts.extensions.get::<KeyName>().map(|KeyName(name)| name.to_string());
        let owner = Owner::of(&parts.extensions);
        let bytes_max = self.limits.body_bytes_max();
        let received = body::receive(&parts.headers, body, bytes_max, &self.settings, &self.budget);
        let (body, share) = received.await?;
        Ok(Incoming { body, share, record, key, owner })
    }

    /// Receives a body of so few bytes that it may be read at once.
    ///
    /// # Errors
    /// 413: it has more. As for `receive`.
    pub async fn small_body(
        &self,
        request: Request<Body>,
        bytes_max: usize,
    ) -> Result<Vec<u8>, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes_max = bytes_max.min(self.limits.body_bytes_max());
        let received = body::receive(&parts.headers, body, bytes_max, &self.settings, &self.budget);
        Ok(received.await?.0)
    }

    /// The model that a body names, whatever else is in it.
    ///
    /// # Errors
    /// 429: too much waits.
    pub async fn model_of(&self, incoming: Incoming) -> Result<Option<String>, ApiError> {
        let Incoming { body, share, .. } = incoming;
        let bytes = share.bytes();
        let work = move || {
            let _share = share;
            serde_json::from_slice::<Named>(&body).ok()?.model
        };
        self.pool.run(bytes, work).await
    }

    /// Reads a body, once and on the pool, and makes something of its fields there. The share of the budget is
    /// held by the work itself, and comes back with what is made.
    ///
    /// # Errors
    /// See [`json::read`]; 429: too much waits; 503: its fields take more than the budget has.
    pub async fn read<F: Fields, T: Send + 'static>(
        &self,
        incoming: Incoming,
        route: Route,
        make: impl FnOnce(F) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<(T, Share), ApiError> {
        let Incoming { body, mut share, .. } = incoming;
        let work = move || {
            let (fields, bytes) = json::read::<F>(&body, route)?;
            drop(body);
            share.grow(bytes)?;
            let (made, bytes) = json::counted(|| make(fields));
            share.grow(bytes)?;
            Ok((made?, share))
        };
        self.pool.run(0, work).await?
    }

    /// Does slow work on so many bytes that no body brought, on the pool and within the budget of bodies.
    ///
    /// # Errors
    /// As for `read`, and those of the work, which tells how many bytes more it holds.
    pub async fn work<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&mut Share) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let mut share = self.budget.share();
        share.grow(bytes)?;
        self.pool.run(bytes, move || work(&mut share)).await?
    }

    /// The model of this name. Without a name, the only model there is.
    ///
    /// # Errors
    /// 404 or 503 from the backend, 400 when a name is needed, 500 when its tokenizer is broken.
    pub async fn find(&self, name: Option<&str>, record: &Record) -> Result<Found, ApiError> {
        let name = name.filter(|name| !name.is_empty());
        let model = self.model(name)?;
        let name = model.name().to_string();
        record.model(&name);
        let generation = model.generation();
        // Where nobody scrapes, the models that are gone must not pile up.
        if self.newest.fetch_max(generation, Ordering::Relaxed) < generation {
            self.prune();
        }
        let text = self.texts.get(generation, model.text(), |other| self.is_current(other)).await?;
        Ok(Found { name, model, text })
    }

    /// The model of this name, as the backend knows it.
    ///
    /// # Errors
    /// As for `find`.
    pub fn model(&self, name: Option<&str>) -> Result<Arc<dyn Model>, ApiError> {
        bounded(name.unwrap_or_default())?;
        self.backend.model(name).map_err(|refusal| match (name, &refusal) {
            (None, Unavailable::NotFound { hint, .. }) => {
                ApiError::field("model", format!("model is missing; {hint}"))
            }
            _ => ApiError::from_unavailable(&refusal, self.settings.retry_after_s),
        })
    }

    fn is_current(&self, generation: u64) -> bool {
        self.backend.models().iter().any(|entry| entry.generation == generation)
    }

    /// Lets go of the tokenizers and the metrics of models that are gone.
    pub fn prune(&self) {
        let entries = self.backend.models();
        self.texts.prune(|generation| self.is_current(generation));
        self.metrics.prune(|model| entries.iter().any(|entry| entry.name == model));
        for entry in entries.iter().filter(|entry| entry.ready) {
            self.metrics.introduce(&entry.name);
        }
    }

    /// Submits a job.
    ///
    /// # Errors
    /// It does not fit or is refused.
    pub async fn begin(&self, job: Job, record: Arc<Record>) -> Result<Choices, ApiError> {
        let choices = job.prompts.len() * job.wanted.n as usize;
        if choices > self.settings.choices_max {
            return Err(ApiError::field(
                "n",
                format!(
                    "{} prompts with n = {} are {choices} generations; one request can start at \
                     most {}",
                    job.prompts.len(),
                    job.wanted.n,
                    self.settings.choices_max
                ),
            ));
        }
        let info = job.model.info();
        let limit = u64::from(info.max_running) + u64::from(info.max_waiting);
        if choices as u64 > limit {
            return Err(ApiError::field(
                "n",
                format!(
                    "{} prompts with n = {} are {choices} generations; the model takes at most \
                     {limit} at once (max_running {} and max_waiting {})",
                    job.prompts.len(),
                    job.wanted.n,
                    info.max_running,
                    info.max_waiting
                ),
            ));
        }
        if self.settings.log_prompts {
            self.log_prompts(&job, &record).await?;
        }
        let seed = if job.wanted.seeded { job.wanted.sampling.seed } else { self.random.next() };
        let wait_s = self.metrics.queue_s(job.model.name());
        Choices::start(job, seed, record, self.settings.retry_after_s.max(wait_s))
    }

    /// Writes what the model is about to read, special tokens and all, to the log.
    async fn log_prompts(&self, job: &Job, record: &Record) -> Result<(), ApiError> {
        for prompt in &job.prompts {
            let prompt = job.text.decode(vec![prompt.clone()], false).await?.concat();
            let shown: String = prompt.chars().take(PROMPT_CHARS_MAX).collect();
            let model = job.model.name();
            tracing::info!(request_id = %record.id, model, bytes = prompt.len(), prompt = shown, "prompt");
        }
        Ok(())
    }
}

/// Whether this can be the name of a model.
///
/// # Errors
/// 404: it is too long.
pub fn bounded(name: &str) -> Result<(), ApiError> {
    if name.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    let message = format!("the name of a model has at most {NAME_BYTES_MAX} bytes; see /v1/models");
    let mut error = ApiError::field("model", message).with_code("model_not_found");
    error.status = axum::http::StatusCode::NOT_FOUND;
    Err(error)
}

/// Unix time in seconds.
pub fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
