//! What the operator wants: a model under its names, loaded in a certain way.
//!
//! Owns: the wish. Must never: know how far it is fulfilled; that is [`crate::model::Model`].

use minisgl_proto::LoadOptions;
use minisgl_proto::admin::{LoadRequest, Origin};

/// A wish. It stays one while it cannot be fulfilled.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spec {
    /// Name for clients.
    pub(crate) name: String,
    /// Other names for clients.
    pub(crate) aliases: Vec<String>,
    /// Folder or repo id.
    pub(crate) source: String,
    /// How it is loaded.
    pub(crate) options: LoadOptions,
    /// Why the daemon has it.
    pub(crate) origin: Origin,
}

impl Spec {
    /// What `request` wants under `name`.
    pub(crate) fn new(name: String, request: LoadRequest, origin: Origin) -> Spec {
        let LoadRequest { model: source, mut options, mut aliases, .. } = request;
        // Who has which GPUs is for the daemon to say.
        options.gpus_taken.clear();
        aliases.retain(|alias| *alias != name);
        aliases.sort_unstable();
        aliases.dedup();
        Spec { name, aliases, source, options, origin }
    }

    /// The load that asks for this at every start of the daemon.
    pub(crate) fn to_request(&self, options: LoadOptions) -> LoadRequest {
        LoadRequest {
            model: self.source.clone(),
            name: Some(self.name.clone()),
            options,
            persist: true,
            aliases: self.aliases.clone(),
        }
    }

    /// Whether the daemon keeps trying: nobody stands by who hears that it failed.
    pub(crate) fn is_standing(&self) -> bool {
        self.origin != Origin::Loaded
    }

    /// Its names.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.name.as_str()).chain(self.aliases.iter().map(String::as_str))
    }
}
