//! Lets `http` see the models of `control`: one trait over the other room's types.

use std::sync::Arc;

use minisgl_control::{ModelHandle, Registry};
use minisgl_http::backend::{Backend, Generate, Generation, Model, ModelEntry, Unavailable};
use minisgl_proto::ModelInfo;
use minisgl_proto::admin::ModelState;

/// The registry, as `http` sees it.
pub struct RegistryBackend(pub Registry);

impl RegistryBackend {
    fn created_ns(&self, name: &str) -> u64 {
        self.0.created().iter().find(|(n, _)| n == name).map_or(0, |(_, ns)| *ns)
    }
}

impl Backend for RegistryBackend {
    fn models(&self) -> Arc<[ModelEntry]> {
        let entry = |status: minisgl_proto::admin::ModelStatus| {
            let created_ns = self.created_ns(&status.name);
            ModelEntry {
                created_s: created_ns / 1_000_000_000,
                generation: created_ns,
                ready: status.state == ModelState::Ready,
                max_len: status.info.as_ref().map(|info| info.max_len),
                name: status.name,
            }
        };
        self.0.list().into_iter().map(entry).collect()
    }

    fn model(&self, name: Option<&str>) -> Result<Arc<dyn Model>, Unavailable> {
        let name = match name {
            Some(name) => name.to_string(),
            None => {
                let mut names: Vec<String> =
                    self.0.created().into_iter().map(|(name, _)| name).collect();
                if names.len() != 1 {
                    let hint = format!("loaded are: [{}]", names.join(", "));
                    return Err(Unavailable::NotFound { name: String::new(), hint });
                }
                names.remove(0)
            }
        };
        let handle = self.0.model(&name)?;
        let generation = self.created_ns(&name);
        Ok(Arc::new(HandleModel { handle, name, generation }))
    }

    fn health(&self) -> (bool, String) {
        let report = self.0.health();
        (report.ready, report.summary)
    }
}

struct HandleModel {
    handle: ModelHandle,
    name: String,
    generation: u64,
}

impl Model for HandleModel {
    fn name(&self) -> &str {
        &self.name
    }

    fn generation(&self) -> u64 {
        self.generation
    }

    fn info(&self) -> &ModelInfo {
        self.handle.info()
    }

    fn submit(&self, request: Generate) -> Result<Generation, Unavailable> {
        let generation = self.handle.submit(request)?;
        Ok(Generation {
            id: generation.id,
            events: generation.events,
            guard: Box::new(generation.guard),
        })
    }
}
