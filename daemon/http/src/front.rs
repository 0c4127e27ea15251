//! What the handlers share: the backend, the limits, the models' text sides.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::http::Request;
use prometheus::Registry;

use crate::backend::{Backend, Model};
use crate::body::{self, BodyBudget};
use crate::choices::{Choices, Job};
use crate::error::ApiError;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::random::Random;
use crate::record::Record;
use crate::settings::Settings;
use crate::tokenizer::{TextModel, TextModels};

/// Characters of a prompt in the log, at most.
const PROMPT_CHARS_MAX: usize = 8192;

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
    budget: BodyBudget,
    /// Of the models that were asked something, the last loaded.
    newest: AtomicU64,
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
        Ok(Arc::new(Front {
            backend,
            metrics: Arc::new(Metrics::new(registry)?),
            random: Random::default(),
            texts: TextModels::default(),
            budget: BodyBudget::default(),
            newest: AtomicU64::new(0),
            limits: Limits::new(settings.body_bytes_max, settings.connections_max),
            settings,
        }))
    }

    /// Receives a request's body, and the record that goes with it.
    ///
    /// # Errors
    /// See [`body::receive`].
    pub async fn receive(&self, request: Request<Body>) -> Result<(Bytes, Arc<Record>), ApiError> {
        let (parts, body) = request.into_parts();
        let record = parts.extensions.get::<Arc<Record>>().cloned();
        let record = record.ok_or_else(|| ApiError::internal("the request has no record"))?;
        let settings =
            Settings { body_bytes_max: self.limits.body_bytes_max(), ..self.settings.clone() };
        let bytes = body::receive(&parts.headers, body, &settings, &self.budget).await?;
        Ok((bytes, record))
    }

    /// The ready model of this name. Without a name, the only model there is.
    ///
    /// # Errors
    /// 404 or 503 from the backend, 400 when a name is needed, 500 when its tokenizer is broken.
    pub async fn find(&self, name: Option<String>, record: &Record) -> Result<Found, ApiError> {
        let entries = self.backend.models();
        let name = match name.filter(|name| !name.is_empty()) {
            Some(name) => name,
            None => match &entries[..] {
                [only] => only.name.clone(),
                _ => {
                    let names: Vec<_> = entries.iter().map(|entry| entry.name.as_str()).collect();
                    return Err(ApiError::field(
                        "model",
                        format!("model is missing; loaded are: [{}]", names.join(", ")),
                    ));
                }
            },
        };
        let model = self
            .backend
            .model(&name)
            .map_err(|refusal| ApiError::from_unavailable(&refusal, self.settings.retry_after_s))?;
        record.model(&name);
        let generation = entries.iter().find(|e| e.name == name).map_or(0, |e| e.generation);
        // Where nobody scrapes, the models that are gone must not pile up.
        if self.newest.fetch_max(generation, Ordering::Relaxed) < generation {
            self.prune();
        }
        let text = self.texts.get(generation, model.text(), |other| self.is_current(other)).await?;
        Ok(Found { name, model, text })
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

    /// Submits a job and waits for its first text.
    ///
    /// # Errors
    /// It does not fit, is refused, or fails at once.
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
        let mut choices = Choices::start(job, seed, record, self.settings.retry_after_s)?;
        choices.begin().await?;
        Ok(choices)
    }

    /// Writes what the model is about to read, special tokens and all, to the log.
    async fn log_prompts(&self, job: &Job, record: &Record) -> Result<(), ApiError> {
        for prompt in &job.prompts {
            let prompt = job.text.decode(vec![prompt.clone()], false).await?.concat();
            let shown: String = prompt.chars().take(PROMPT_CHARS_MAX).collect();
            let model = &job.model.info().name;
            tracing::info!(request_id = %record.id, model, bytes = prompt.len(), prompt = shown, "prompt");
        }
        Ok(())
    }
}

/// Unix time in seconds.
pub fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
