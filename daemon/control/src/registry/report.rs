//! What the models are and do, for people and programs.

use std::time::{Duration, Instant};

use minisgl_proto::admin::{AdminError, HealthReport, ModelState, ModelStatus, RequestStatus};

use super::Registry;

/// How long a supervisor may stand still, whose ticks are two seconds apart at most.
const STUCK: Duration = Duration::from_secs(30);
/// A model in a list, with what costs nothing to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Name for clients.
    pub name: String,
    /// Its other names.
    pub aliases: Vec<String>,
    /// What was asked for: folder or repo id.
    pub source: String,
    /// Unix time of its load, in seconds.
    pub created_s: u64,
    /// Another number for each load, also of the same name; later loads have higher ones.
    pub generation: u64,
    /// Where it is in its life.
    pub state: ModelState,
    /// Its context length, once known.
    pub max_len: Option<u32>,
}

impl Registry {
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

    /// Every model in short, in the order they were loaded.
    pub fn listed(&self) -> Vec<Listed> {
        let models = self.lock();
        let listed = models.iter().map(|model| {
            let (state, info) = model.state_and_info();
            Listed {
                name: model.spec.name.clone(),
                aliases: model.spec.aliases.clone(),
                source: model.spec.source.clone(),
                created_s: model.created_s,
                generation: model.generation,
                state,
                max_len: info.map(|info| info.max_len),
            }
        });
        listed.collect()
    }

    /// As [`Registry::status`], and how much GPU memory its worker holds, which the driver is asked for.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn status_with_gpu_memory(&self, name: &str) -> Result<ModelStatus, AdminError> {
        let mut status = [self.status(name)?];
        self.0.meter.fill(&mut status).await;
        let [status] = status;
        Ok(status)
    }

    /// As [`Registry::list`], and how much GPU memory each worker holds, which the driver is asked for.
    pub async fn list_with_gpu_memory(&self) -> Vec<ModelStatus> {
        let mut models = self.list();
        self.0.meter.fill(&mut models).await;
        models
    }

    /// The last lines that a model's workers wrote to standard error, `count` at most, oldest first.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn logs(&self, name: &str, count: usize) -> Result<Vec<String>, AdminError> {
        Ok(self.find(name)?.log.last(count))
    }

    /// Every request that has not ended, by model and age.
    pub fn requests(&self) -> Vec<RequestStatus> {
        let models = self.lock().clone();
        models.iter().flat_map(|model| model.sessions.list()).collect()
    }

    /// What only a new daemon can repair, if there is such a thing: a model that nobody looks after any more. A
    /// worker that stalls is not one, nor one that no signal ends.
    pub fn stuck(&self) -> Option<String> {
        let models = self.lock().clone();
        models.iter().find_map(|model| model.stuck(Instant::now(), STUCK))
    }

    /// Whether the service as a whole should get traffic.
    pub fn health(&self) -> HealthReport {
        let models: Vec<(String, ModelState)> =
            self.lock().iter().map(|m| (m.spec.name.clone(), m.state())).collect();
        let of = |state| models.iter().filter(|(_, s)| *s == state).count();
        let ready = of(ModelState::Ready);
        // A model on its way out is no fault.
        let ill = models.len() - ready - of(ModelState::Unloading);
        let summary = if models.is_empty() {
            "no model is loaded".to_string()
        } else {
            let describe = |(name, state): &(String, ModelState)| {
                format!("{name} is {}", format!("{state:?}").to_lowercase())
            };
            models.iter().map(describe).collect::<Vec<_>>().join(", ")
        };
        HealthReport { ready: ready > 0 && ill == 0, summary, models }
    }
}
