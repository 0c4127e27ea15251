//! The models of a configuration that has changed.
//!
//! Owns: what follows from the difference. Must never: touch a model that a load asked for.

use minisgl_proto::admin::{LoadEvent, LoadRequest, Origin, RestartRequest};

use super::Registry;
use crate::checks::check_load;
use crate::model::Model;
use crate::spec::Spec;

/// What a model of the configuration needs to be as it is wanted.
#[derive(Debug, PartialEq)]
enum Change {
    /// It is as it should be.
    None,
    /// Another worker, loaded with the new options.
    Restart(RestartRequest),
    /// It is another model now, or has other names.
    Replace,
}

impl Change {
    fn of(model: &Model, wanted: &Spec) -> Change {
        let Spec { name, aliases, source, options, origin: _ } = wanted;
        let same = &model.spec.source == source && &model.spec.aliases == aliases;
        match model.view().options == *options {
            _ if !same => Change::Replace,
            true => Change::None,
            false => Change::Restart(RestartRequest {
                name: name.clone(),
                options: Some(options.clone()),
            }),
        }
    }
}

impl Registry {
    /// Makes the models of the configuration those that are `wanted`: what is new is loaded, what is gone is unloaded
    /// after its running requests, what has other options is restarted with them while its requests wait. One after
    /// the other, so that what one gives up is there for the next; the log says how it goes.
    pub async fn reconcile(&self, wanted: Vec<LoadRequest>) {
        let _turn = self.0.reconciling.lock().await;
        let named = |request: LoadRequest| Some((check_load(&request).ok()?, request));
        let wanted: Vec<(String, LoadRequest)> = wanted.into_iter().filter_map(named).collect();
        let there = self.lock().clone();
        let configured = there.iter().filter(|model| model.spec.origin == Origin::Configured);
        for model in configured {
            let name = &model.spec.name;
            let request = wanted.iter().find(|(wanted, _)| wanted == name);
            let spec = request.map(|(name, request)| {
                Spec::new(name.clone(), request.clone(), Origin::Configured)
            });
            match spec.map(|spec| Change::of(model, &spec)) {
                Some(Change::None) => {}
                Some(Change::Restart(request)) => self.restart_configured(request).await,
                Some(Change::Replace) | None => {
                    if let Err(error) = self.unload(name, false).await {
                        tracing::error!(model = name, "not unloaded: {error}");
                    }
                }
            }
        }
        for (name, request) in wanted {
            if self.find(&name).is_ok() {
                continue; // it was there before, or a load of that name goes first
            }
            if let Err(error) = self.keep(request, Origin::Configured) {
                tracing::error!(model = name, "not loaded: {error}");
            }
        }
    }

    async fn restart_configured(&self, request: RestartRequest) {
        let name = request.name.clone();
        match self.restart(request).await {
            Ok(mut events) => {
                while let Some(event) = events.recv().await {
                    if let LoadEvent::Failed(error) = event {
                        tracing::error!(model = name, "its new options are not in force: {error}");
                    }
                }
            }
            Err(error) => tracing::error!(model = name, "not restarted: {error}"),
        }
    }
}
