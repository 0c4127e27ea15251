//! From what was asked for to a folder with `config.json`, tokenizer and weights.
//!
//! In this order: a folder; the local Hugging Face cache, if its snapshot is complete; the hub. When
//! none has the model, the error says what was tried and why each was no use.
//!
//! Owns: what counts as a path, a repo id and a complete model. Must never: read weights.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use minisgl_proto::LoadStage;
use minisgl_proto::admin::AdminErrorCode;
use minisgl_proto::worker::LoadProgress;
use serde::Deserialize;

use crate::config::{HubConfig, RegistryConfig};
use crate::hub;
use crate::model::Model;
use crate::supervisor::Event;

/// Why there is no folder to load from.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// It is a path, and nothing is there.
    #[error("there is no folder {}; give a folder with config.json, or a repo id as org/name", .0.display())]
    NoFolder(PathBuf),
    /// The folder lacks files.
    #[error("the folder {} is not a complete model: {}", .dir.display(), .missing.join(", "))]
    Incomplete {
        /// The folder.
        dir: PathBuf,
        /// What is missing, or wrong.
        missing: Vec<String>,
    },
    /// Neither a folder nor a repo id.
    #[error("{given:?} is neither a folder nor a repo id (org/name or org/name@revision): {why}")]
    BadRepoId {
        /// As asked for.
        given: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A repo id that nobody knows.
    #[error("model \"{repo}\" could not be had; tried {}", .tried.join("; "))]
    NotFound {
        /// Repo id and revision.
        repo: String,
        /// Each place, and why not.
        tried: Vec<String>,
    },
    /// A repo that may well be there, and did not come: no network, a full disk, nothing to load in it.
    #[error("model \"{repo}\" could not be had; tried {}", .tried.join("; "))]
    NotFetched {
        /// Repo id and revision.
        repo: String,
        /// Each place, and why not.
        tried: Vec<String>,
    },
}

impl ResolveError {
    /// What kind of refusal it is: whether there is no such thing, or it was there and of no use.
    pub fn code(&self) -> AdminErrorCode {
        match self {
            ResolveError::NoFolder(_)
            | ResolveError::BadRepoId { .. }
            | ResolveError::NotFound { .. } => AdminErrorCode::NotFound,
            ResolveError::Incomplete { .. } | ResolveError::NotFetched { .. } => {
                AdminErrorCode::Failed
            }
        }
    }
}

/// A repo of the hub at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoId {
    /// `org/name`, or the hub's oldest repos' bare `name`.
    pub id: String,
    /// Branch, tag or commit.
    pub revision: String,
}

impl RepoId {
    /// Reads `org/name[@revision]`. What passes is safe as part of a path and of a URL.
    ///
    /// # Errors
    /// `BadRepoId`.
    pub fn parse(given: &str) -> Result<Self, ResolveError> {
        let bad = |why| ResolveError::BadRepoId { given: given.to_string(), why };
        let (id, revision) = given.split_once('@').unwrap_or((given, "main"));
        let parts: Vec<&str> = id.split('/').collect();
        if parts.len() > 2 {
            return Err(bad("it has more than one slash"));
        }
        if !parts.iter().all(|part| is_safe_part(part)) || id.contains("--") {
            return Err(bad(
                "a part is empty, over 96 bytes, begins or ends with '.' or '-', contains '..' or \
                 '--', or has other than letters, digits, '.', '_' and '-'",
            ));
        }
        if revision.split('/').count() > 4 || !revision.split('/').all(is_safe_part) {
            return Err(bad("its revision is no branch, tag or commit"));
        }
        Ok(RepoId { id: id.to_string(), revision: revision.to_string() })
    }
}

impl std::fmt::Display for RepoId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.id, self.revision)
    }
}

fn is_safe_part(part: &str) -> bool {
    let edge = |c| c == Some('.') || c == Some('-');
    (1..=96).contains(&part.len())
        && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        && !part.contains("..")
        && !edge(part.chars().next())
        && !edge(part.chars().next_back())
}

/// Whether this means a folder rather than a repo.
pub(crate) fn is_path(given: &str) -> bool {
    given.starts_with(['/', '.', '~']) || Path::new(given).is_dir()
}

/// The path with a `~` at its start made the home folder, as a shell would.
fn expand(given: &str, home: Option<OsString>) -> PathBuf {
    match (given.strip_prefix('~'), home.filter(|home| !home.is_empty())) {
        (Some(""), Some(home)) => home.into(),
        (Some(rest), Some(home)) if rest.starts_with('/') => {
            Path::new(&home).join(rest.trim_start_matches('/'))
        }
        _ => given.into(),
    }
}

/// Finds the model's folder on a thread of its own, and tells the supervisor. The thread is detached:
/// a download that nobody waits for any more goes on, and the next load finds what it left; it never
/// delays the end of the daemon, as a task of the runtime's blocking pool would.
pub(crate) fn start(config: &RegistryConfig, model: &Arc<Model>) {
    let (hub, inspector) = (config.hub.clone(), config.inspector.clone());
    let entry = Arc::clone(model);
    let thread = std::thread::Builder::new().name("resolve".to_string()).spawn(move || {
        let mut report = |progress| drop(entry.events.try_send(Event::Progress(progress)));
        let dummy = entry.options.dummy_weights;
        let work = std::panic::AssertUnwindSafe(|| {
            let dir = resolve(&hub, &entry.source, dummy, &mut report)?;
            match (inspector.0)(&dir) {
                Ok(text) => {
                    entry.set_text(text);
                    Ok(dir)
                }
                Err(why) => Err(ResolveError::Incomplete { dir, missing: vec![why] }),
            }
        });
        // The hub's library asserts on what it finds on disk; that must not take the load silent.
        let found = std::panic::catch_unwind(work).unwrap_or_else(|_| {
            let tried = vec!["the hub (its library panicked; see the log)".to_string()];
            Err(ResolveError::NotFetched { repo: entry.source.clone(), tried })
        });
        let _ = entry.events.blocking_send(Event::Resolved(found));
    });
    if let Err(error) = thread {
        let tried = vec![format!("nothing: no thread could be started ({error})")];
        let failed = ResolveError::NotFetched { repo: model.source.clone(), tried };
        let _ = model.events.try_send(Event::Resolved(Err(failed)));
    }
}

/// The folder of `model`. Blocks, for as long as a download takes.
///
/// # Errors
/// It names every place that was tried.
pub fn resolve(
    config: &HubConfig,
    model: &str,
    dummy_weights: bool,
    report: &mut dyn FnMut(LoadProgress),
) -> Result<PathBuf, ResolveError> {
    let mut resolving = |detail: String| {
        report(LoadProgress { stage: LoadStage::Resolve, done: 0, total: 0, detail });
    };
    if is_path(model) {
        resolving(model.to_string());
        let dir = expand(model, std::env::var_os("HOME"));
        let dir = dir.as_path();
        if !dir.is_dir() {
            return Err(ResolveError::NoFolder(dir.to_path_buf()));
        }
        let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
        let missing = missing_files(&dir, dummy_weights);
        if missing.is_empty() { Ok(dir) } else { Err(ResolveError::Incomplete { dir, missing }) }
    } else {
        let repo = RepoId::parse(model)?;
        let not_found = |tried| ResolveError::NotFound { repo: repo.to_string(), tried };
        let Some(cache) = config.cache() else {
            return Err(not_found(vec![
                "nothing: no cache folder is configured and HOME is not set".to_string(),
            ]));
        };
        resolving(format!("{repo} in {}", cache.display()));
        let mut tried = match cached(&cache, &repo, dummy_weights) {
            Ok(dir) => return Ok(dir),
            Err(why) => vec![format!("the cache {} ({why})", cache.display())],
        };
        let endpoint = config.endpoint();
        if config.is_offline() {
            tried.push(format!("not the hub {endpoint} (downloads are switched off)"));
            return Err(not_found(tried));
        }
        resolving(format!("{repo} at {endpoint}"));
        hub::download(config, &cache, &repo, dummy_weights, report).map_err(|why| {
            let is_absent = hub::is_absent(&why);
            tried.push(format!("the hub {endpoint} ({why})"));
            match is_absent {
                true => not_found(tried),
                false => ResolveError::NotFetched { repo: repo.to_string(), tried },
            }
        })
    }
}

/// The snapshot of `repo` in the cache, if it is complete; else why not.
pub(crate) fn cached(cache: &Path, repo: &RepoId, dummy_weights: bool) -> Result<PathBuf, String> {
    let folder = cache.join(format!("models--{}", repo.id.replace('/', "--")));
    if !folder.is_dir() {
        return Err("it has no such repo".to_string());
    }
    let reference = folder.join("refs").join(&repo.revision);
    let commit = match std::fs::read_to_string(reference) {
        Ok(commit) if is_safe_part(commit.trim()) => commit.trim().to_string(),
        _ => repo.revision.clone(), // it may be a commit itself
    };
    let snapshot = folder.join("snapshots").join(commit);
    if !snapshot.is_dir() {
        return Err(format!("it has the repo, but not revision {}", repo.revision));
    }
    let missing = missing_files(&snapshot, dummy_weights);
    if missing.is_empty() {
        Ok(snapshot)
    } else {
        Err(format!("its snapshot is incomplete: {}", missing.join(", ")))
    }
}

/// What a model's folder lacks. Dummy weights need `config.json` alone.
pub(crate) fn missing_files(dir: &Path, dummy_weights: bool) -> Vec<String> {
    let mut needed = vec!["config.json".to_string()];
    if !dummy_weights {
        needed.push("tokenizer.json".to_string());
        match weight_files(dir) {
            Ok(files) => needed.extend(files),
            Err(why) => return vec![why],
        }
    }
    needed.retain(|file| !dir.join(file).is_file());
    needed.iter().map(|file| format!("{file} is missing")).collect()
}

/// Name of the one file of weights that are not sharded.
pub(crate) const SINGLE: &str = "model.safetensors";
/// Name of the index of weights that are.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// The weight files a folder should have: the single one, or those its index names.
pub(crate) fn weight_files(dir: &Path) -> Result<Vec<String>, String> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let index = dir.join(INDEX);
    if dir.join(SINGLE).is_file() || !index.is_file() {
        return Ok(vec![SINGLE.to_string()]);
    }
    let bytes = std::fs::read(index).map_err(|error| format!("{INDEX} is unreadable: {error}"))?;
    let Index { weight_map } = serde_json::from_slice(&bytes)
        .map_err(|error| format!("{INDEX} is no index of weights: {error}"))?;
    let files: std::collections::BTreeSet<String> = weight_map.into_values().collect();
    match files.iter().find(|file| !is_safe_part(file)) {
        Some(file) => Err(format!("{INDEX} names {file:?}, which is no file beside it")),
        None => Ok(files.into_iter().collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tilde_is_the_home_folder() {
        let expand = |given, home: &str| expand(given, Some(home.into()));
        assert_eq!(expand("~/a/b", "/home/me"), Path::new("/home/me/a/b"));
        assert_eq!(expand("~//a", "/home/me"), Path::new("/home/me/a"));
        assert_eq!(expand("~", "/home/me"), Path::new("/home/me"));
        for same in ["~you/a", "/a/~/b", "./~"] {
            assert_eq!(expand(same, "/home/me"), Path::new(same));
        }
        assert_eq!(expand("~/a", ""), Path::new("~/a"));
    }

    #[test]
    fn repo_ids() {
        let parse = |given| RepoId::parse(given).map(|repo| repo.to_string());
        assert_eq!(parse("Qwen/Qwen3-32B").unwrap(), "Qwen/Qwen3-32B@main");
        assert_eq!(parse("gpt2").unwrap(), "gpt2@main");
        assert_eq!(parse("a/b@refs/pr/3").unwrap(), "a/b@refs/pr/3");
        for bad in [
            "",
            "/",
            "a/",
            "/b",
            "a/b/c",
            "../b",
            "a/..",
            "a/b@",
            "a/b@../..",
            "a/b@x/../y",
            "a b",
            "a/b\0",
            "a/b?x",
            "a/b#",
            "a%2Fb",
            "-a/b",
            "a--b/c",
            "a/.b",
            "ä/b",
            "a/b@c@d",
        ] {
            assert!(parse(bad).is_err(), "{bad:?} passed");
        }
    }

    #[test]
    fn a_folder_is_checked_file_by_file() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let missing = |dummy| missing_files(dir.path(), dummy);
        assert_eq!(missing(true), ["config.json is missing"]);
        write("config.json", "{}");
        assert!(missing(true).is_empty());
        assert_eq!(missing(false), ["tokenizer.json is missing", "model.safetensors is missing"]);
        write("tokenizer.json", "{}");
        write(INDEX, r#"{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}"#);
        write("a.safetensors", "");
        assert_eq!(missing(false), ["b.safetensors is missing"]);
        write(INDEX, r#"{"weight_map": {"x": "../../etc/passwd"}}"#);
        assert!(missing(false)[0].contains("no file beside it"), "{:?}", missing(false));
        write(SINGLE, "");
        assert!(missing(false).is_empty());
    }

    #[test]
    fn the_error_says_what_was_tried() {
        let cache = tempfile::tempdir().unwrap();
        let config = HubConfig {
            cache_dir: Some(cache.path().to_path_buf()),
            endpoint: Some("http://127.0.0.1:9".to_string()),
            offline: true,
            ..HubConfig::default()
        };
        let find = |model: &str| resolve(&config, model, false, &mut |_| ());
        let error = find("org/name").unwrap_err().to_string();
        assert!(error.contains("it has no such repo"), "{error}");
        assert!(error.contains("downloads are switched off"), "{error}");
        assert_eq!(find("/no/such"), Err(ResolveError::NoFolder("/no/such".into())));
        assert!(matches!(find("a//b"), Err(ResolveError::BadRepoId { .. })));
        let empty = cache.path().to_str().unwrap();
        assert!(matches!(find(empty), Err(ResolveError::Incomplete { .. })));
        for absent in ["org/name", "/no/such", "some/missing/folder"] {
            assert_eq!(find(absent).unwrap_err().code(), AdminErrorCode::NotFound, "{absent}");
        }
        assert_eq!(find(empty).unwrap_err().code(), AdminErrorCode::Failed);
    }

    #[test]
    fn a_complete_snapshot_is_taken_by_branch_and_by_commit() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("models--org--name");
        let snapshot = folder.join("snapshots/abc123");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir_all(folder.join("refs")).unwrap();
        std::fs::write(folder.join("refs/main"), "abc123\n").unwrap();
        for file in ["config.json", "tokenizer.json"] {
            std::fs::write(snapshot.join(file), "{}").unwrap();
        }
        // A cut download leaves a link to a blob that is not there.
        std::os::unix::fs::symlink("../../blobs/none", snapshot.join(SINGLE)).unwrap();
        let find = |given: &str| cached(cache.path(), &RepoId::parse(given).unwrap(), false);
        let error = find("org/name").unwrap_err();
        assert!(error.contains("model.safetensors is missing"), "{error}");
        std::fs::create_dir_all(folder.join("blobs")).unwrap();
        std::fs::write(folder.join("blobs/none"), "").unwrap();
        assert_eq!(find("org/name").unwrap(), snapshot);
        assert_eq!(find("org/name@abc123").unwrap(), snapshot);
        assert!(find("org/name@v2").unwrap_err().contains("not revision v2"));
    }
}
