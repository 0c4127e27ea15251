//! What of models is on disk: the repos in the Hugging Face cache.
//!
//! | file | what it holds |
//! |---|---|
//! | `scan` | what is there, of which size, used by whom |
//! | `remove` | a repo or a revision leaves |
//! | `routes` | the calls of the admin API |
//!
//! Owns: reading and emptying the cache. Must never: follow a link out of it, or take a file from a model that
//! is loaded or from a download.

mod remove;
mod routes;
mod scan;

use std::path::Path;

use minisgl_proto::admin::{ModelState, ModelStatus};

pub(crate) use self::routes::router;
use crate::layout::RepoId;

/// The names of the models that use the repo, or that revision's `snapshot` of it.
fn users(models: &[ModelStatus], repo: &Path, id: &str, snapshot: Option<&Path>) -> Vec<String> {
    let canonical = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let (repo, snapshot) = (canonical(repo), snapshot.map(canonical));
    let uses = |model: &&ModelStatus| {
        if model.state == ModelState::Failed {
            return false;
        }
        let at = match &model.info {
            Some(info) => Some(info.dir.clone()),
            None => Path::new(&model.source).is_absolute().then(|| model.source.clone().into()),
        };
        match at {
            Some(dir) => {
                let dir = canonical(&dir);
                dir.starts_with(snapshot.as_ref().unwrap_or(&repo))
            }
            // It is being found or downloaded: it may be any revision.
            None => RepoId::parse(&model.source).is_ok_and(|source| source.id == id),
        }
    };
    models.iter().filter(uses).map(|model| model.name.clone()).collect()
}
