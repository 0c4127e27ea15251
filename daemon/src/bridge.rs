//! Lets `http` see the models of `control`: one trait over the other room's types.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use minisgl_control::{Listed, ModelHandle, Registry, Text};
use minisgl_http::backend::{
    Backend, Generate, Generation, Model, ModelEntry, TextService, Unavailable,
};
use minisgl_proto::admin::ModelState;
use minisgl_proto::text::{TextAnswer, TextFault, TextInfo, TextJob};
use minisgl_proto::{ModelInfo, StepStats};

/// The registry, as `http` sees it.
pub struct RegistryBackend(pub Registry);

impl Backend for RegistryBackend {
    fn models(&self) -> Arc<[ModelEntry]> {
        let entry = |listed: Listed| ModelEntry {
            name: listed.name,
            created_s: listed.created_s,
            generation: listed.generation,
            ready: matches!(
                listed.state,
                ModelState::Ready | ModelState::Stalled | ModelState::Restarting
            ),
            source: listed.source,
            max_len: listed.max_len,
        };
        self.0.listed().into_iter().map(entry).collect()
    }

    fn model(&self, name: Option<&str>) -> Result<Arc<dyn Model>, Unavailable> {
        let handle = match name {
            Some(name) => self.0.model(name)?,
            None => self.0.only_model().unwrap_or_else(|| {
                let names: Vec<String> = self.0.listed().into_iter().map(|one| one.name).collect();
                let hint = format!("loaded are: [{}]", names.join(", "));
                Err(Unavailable::NotFound { name: String::new(), hint })
            })?,
        };
        Ok(Arc::new(HandleModel(handle)))
    }

    fn health(&self) -> (bool, String) {
        let report = self.0.health();
        (report.ready, report.summary)
    }

    fn flush(&self, name: &str) -> BoxFuture<'static, Result<u64, String>> {
        let (registry, name) = (self.0.clone(), name.to_owned());
        Box::pin(async move { registry.flush(&name).await.map_err(|error| error.message) })
    }

    fn abort(&self, key: Option<&str>, request_id: Option<&str>) -> usize {
        self.0.abort_of(key, request_id)
    }
}

struct HandleModel(ModelHandle);

impl Model for HandleModel {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn generation(&self) -> u64 {
        self.0.generation()
    }

    fn info(&self) -> &ModelInfo {
        self.0.info()
    }

    fn stats(&self) -> Option<StepStats> {
        self.0.stats()
    }

    fn text(&self) -> Arc<dyn TextService> {
        Arc::new(HandleText(self.0.text()))
    }

    fn submit(&self, request: Generate) -> Result<Generation, Unavailable> {
        let generation = self.0.submit(request)?;
        Ok(Generation {
            id: generation.id,
            events: generation.events,
            guard: Box::new(generation.guard),
        })
    }
}

/// A model's text process; `None` is a model that was loaded without one.
struct HandleText(Option<Text>);

impl TextService for HandleText {
    fn info(&self) -> Arc<TextInfo> {
        self.0.as_ref().map_or_else(Arc::default, |text| Arc::clone(text.info()))
    }

    fn run(&self, job: TextJob) -> BoxFuture<'static, Result<TextAnswer, TextFault>> {
        let answer = match &self.0 {
            Some(text) => text.run(job),
            None => Err(TextFault::NoTokenizer),
        };
        Box::pin(async move { answer?.await })
    }
}
