//! A handle to a model, through which requests are submitted.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use minisgl_proto::admin::ModelState;
use minisgl_proto::{Generate, ModelInfo, RequestId, StepStats, TokenEvent, Unavailable};
use tokio::sync::mpsc;

use super::Inner;
use crate::model::Model;
use crate::sessions::{AbortGuard, Refused};
use crate::text::Text;

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

/// A model that takes requests: it is ready, or will be again. Stays valid when the model goes away; `submit` then
/// refuses.
#[derive(Clone)]
pub struct ModelHandle {
    pub(super) registry: Arc<Inner>,
    pub(super) model: Arc<Model>,
    pub(super) info: Arc<ModelInfo>,
}

impl ModelHandle {
    /// Its name, which is not an alias.
    pub fn name(&self) -> &str {
        &self.model.spec.name
    }

    /// Another number for each load, also of the same name; later loads have higher ones.
    pub fn generation(&self) -> u64 {
        self.model.generation
    }

    /// Its text process; `None` for a model that is loaded without one.
    pub fn text(&self) -> Option<Text> {
        self.model.text()
    }

    /// What it is.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Counters of its worker after the last step; `None` before its first.
    pub fn stats(&self) -> Option<StepStats> {
        self.model.stats()
    }

    /// Starts a generation. Never blocks. It outlives the worker that begins it.
    ///
    /// # Errors
    /// `NotReady` or `Busy`; nothing was started.
    pub fn submit(&self, request: Generate) -> Result<Generation, Unavailable> {
        let name = || self.model.spec.name.clone();
        let id = RequestId(self.registry.next_id.fetch_add(1, Ordering::Relaxed));
        let request_id = request.request_id.clone();
        match self.model.sessions.submit(id, request) {
            Ok((events, guard)) => {
                tracing::debug!(request = %id, request_id, model = name(), "submitted");
                Ok(Generation { id, events, guard })
            }
            Err(Refused::Full(limit)) => Err(Unavailable::Busy { name: name(), limit }),
            Err(Refused::NoRoom) => Err(Unavailable::NotReady {
                name: name(),
                reason: "its worker is being restarted, and as many requests wait for it as may"
                    .to_string(),
            }),
            Err(Refused::Closed) => Err(not_ready(&self.model)),
        }
    }
}

pub(super) fn not_ready(model: &Model) -> Unavailable {
    let reason = match model.state() {
        ModelState::Loading => "it is being loaded",
        ModelState::Ready | ModelState::Restarting => "its worker is being restarted",
        ModelState::Stalled => "its worker makes no progress",
        ModelState::Failed => "it failed; the log and minisglctl ps say why",
        ModelState::Unloading => "it is being unloaded",
    };
    Unavailable::NotReady { name: model.spec.name.clone(), reason: reason.to_string() }
}
