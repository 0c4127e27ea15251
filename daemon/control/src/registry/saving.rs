//! Models that are there again after a restart of the daemon: when they are saved, and forgotten.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use minisgl_proto::LoadOptions;
use minisgl_proto::admin::{AdminError, LoadEvent, LoadRequest, ModelStatus};
use tokio::sync::mpsc;

use super::{Registry, failed};
use crate::event::Watch;
use crate::model::Model;
use crate::saved::SavedModels;

impl Registry {
    /// Passes on the events of a load, and saves it when it is ready, also if nobody listens any more.
    pub(super) fn save_when_ready(
        &self,
        mut events: Watch,
        saved: Arc<SavedModels>,
        model: Arc<Model>,
        options: LoadOptions,
    ) -> Watch {
        let (sender, receiver) = mpsc::channel(events.max_capacity());
        let registry = self.clone();
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                let event = match event {
                    LoadEvent::Ready(status) => {
                        let request = model.spec.to_request(options.clone());
                        let is_saved = registry.save(Arc::clone(&saved), request, &model).await;
                        let (persisted, origin) = match is_saved {
                            true => (true, model.status().origin),
                            false => (status.persisted, status.origin),
                        };
                        LoadEvent::Ready(Box::new(ModelStatus { persisted, origin, ..*status }))
                    }
                    other => other,
                };
                let is_progress = matches!(event, LoadEvent::Progress(_));
                // Progress that a slow caller does not take is left out; room is kept for the end.
                if !is_progress || sender.capacity() > 1 {
                    let _ = sender.try_send(event);
                }
            }
        });
        receiver
    }

    /// Saves a load, unless its model is being unloaded; whether it is saved.
    async fn save(&self, saved: Arc<SavedModels>, request: LoadRequest, model: &Model) -> bool {
        let _turn = self.0.saving.lock().await;
        if model.unwanted.load(Ordering::SeqCst) {
            return false;
        }
        let added = tokio::task::spawn_blocking(move || saved.add(&request)).await;
        match added.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(()) => {
                model.persisted.store(true, Ordering::SeqCst);
                true
            }
            Err(why) => {
                tracing::error!(model = model.spec.name, why, "loaded, but not saved");
                false
            }
        }
    }

    /// Forgets a saved model; whether there was one.
    pub(super) async fn forget(&self, name: &str) -> Result<bool, AdminError> {
        let _turn = self.0.saving.lock().await;
        let saved = self.0.saved.clone().filter(|saved| saved.has(name));
        let Some(saved) = saved else { return Ok(false) };
        let name = name.to_owned();
        let removed = tokio::task::spawn_blocking(move || saved.remove(&name)).await;
        removed.unwrap_or_else(|error| Err(error.to_string())).map_err(failed)
    }
}
