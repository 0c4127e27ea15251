//! From what was asked for to a folder with `config.json`, tokenizer and weights.
//!
//! In this order: a folder; the local Hugging Face cache, if its snapshot is complete; the hub. When
//! none has the model, the error says what was tried and why each was no use.
//!
//! Owns: that order, and the word on whether to try again. Must never: block the caller's thread.

use std::path::{Path, PathBuf};

use minisgl_proto::admin::{AdminError, AdminErrorCode};
use minisgl_proto::worker::LoadProgress;
use minisgl_proto::{LoadOptions, LoadStage};
use tokio::sync::{mpsc, oneshot};

use crate::config::{HubConfig, RegistryConfig};
use crate::downloads;
pub use crate::hub::Retry;
use crate::layout::{RepoId, cached, expand, is_path, missing_files};
use crate::text::Text;

/// Why there is no folder to load from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ResolveError {
    /// Whether there is no such thing, or it was there and of no use.
    pub code: AdminErrorCode,
    /// Names each place that was tried, and why not.
    pub message: String,
    /// Whether asking again can help.
    pub retry: Retry,
}

impl ResolveError {
    fn not_found(message: String) -> Self {
        ResolveError { code: AdminErrorCode::NotFound, message, retry: Retry::Never }
    }

    fn failed(message: String) -> Self {
        ResolveError { code: AdminErrorCode::Failed, message, retry: Retry::Never }
    }

    /// The folder is there and no complete model.
    pub(crate) fn incomplete(dir: &Path, wrong: &[String]) -> Self {
        let dir = dir.display();
        Self::failed(format!("the folder {dir} is not a complete model: {}", wrong.join(", ")))
    }
}

impl From<ResolveError> for AdminError {
    fn from(error: ResolveError) -> Self {
        AdminError { code: error.code, message: error.message }
    }
}

/// Progress that may wait to be heard; what comes beyond it is left out.
const PROGRESS_MAX: usize = 64;

/// What looking for a model brings.
#[derive(Debug)]
pub(crate) enum Finding {
    /// How far it is.
    Progress(LoadProgress),
    /// The process that reads its tokenizer and templates.
    Text(Option<Text>),
    /// Its folder, or why there is none.
    Done(Result<PathBuf, ResolveError>),
}

/// Finds a model's folder. Ends, and ends a download that nobody else waits for, when the receiver is dropped.
pub(crate) fn start(
    config: &RegistryConfig,
    source: &str,
    options: &LoadOptions,
) -> mpsc::Receiver<Finding> {
    let (findings, inbox) = mpsc::channel(PROGRESS_MAX);
    let (dummy_weights, dialect) = (options.dummy_weights, options.dialect.clone());
    let (hub, inspector, source) =
        (config.hub.clone(), config.inspector.clone(), source.to_string());
    tokio::spawn(async move {
        let mut report = |progress| drop(findings.try_send(Finding::Progress(progress)));
        let find = async {
            let dir = resolve(&hub, &source, dummy_weights, &mut report).await?;
            let inspect = move || match (inspector.0)(&dir, dialect) {
                Ok(text) => Ok((dir, text)),
                Err(why) => Err(ResolveError::incomplete(&dir, &[why])),
            };
            on_a_thread("inspect", inspect).await?
        };
        let found = tokio::select! {
            found = find => found,
            () = findings.closed() => return,
        };
        let found = match found {
            Ok((dir, text)) => {
                let _ = findings.send(Finding::Text(text)).await;
                Ok(dir)
            }
            Err(error) => Err(error),
        };
        let _ = findings.send(Finding::Done(found)).await;
    });
    inbox
}

/// The folder of `model`. Dropping this gives a download up, unless somebody else waits for it.
///
/// # Errors
/// It names every place that was tried.
pub async fn resolve(
    config: &HubConfig,
    model: &str,
    dummy_weights: bool,
    report: &mut (dyn FnMut(LoadProgress) + Send),
) -> Result<PathBuf, ResolveError> {
    let mut resolving = |detail: String| {
        report(LoadProgress { stage: LoadStage::Resolve, done: 0, total: 0, detail });
    };
    resolving(model.to_string());
    let (hub, given) = (config.clone(), model.to_string());
    let looked = on_a_thread("resolve", move || look(&hub, &given, dummy_weights)).await?;
    let (repo, cache, mut tried) = match looked? {
        Looked::Found(dir) => return Ok(dir),
        Looked::Absent { repo, cache, tried } => (repo, cache, tried),
    };
    let had = |tried: Vec<String>| {
        format!("model \"{repo}\" could not be had; tried {}", tried.join("; "))
    };
    let endpoint = config.endpoint();
    if config.is_offline() {
        tried.push(format!("not the hub {endpoint} (downloads are switched off)"));
        return Err(ResolveError::not_found(had(tried)));
    }
    resolving(format!("{repo} at {endpoint}"));
    let came = downloads::download(config, &cache, &repo, dummy_weights, report).await;
    came.map_err(|error| {
        tried.push(format!("the hub {endpoint} ({error})"));
        match error.is_absent() {
            true => ResolveError::not_found(had(tried)),
            false => ResolveError { retry: error.retry(), ..ResolveError::failed(had(tried)) },
        }
    })
}

/// The folder of the newest commit of `repo`, of which what is missing is downloaded. Dropping this gives the
/// download up, unless somebody else waits for it.
///
/// # Errors
/// Why the hub did not give it.
pub(crate) async fn pull(
    config: &HubConfig,
    cache: &Path,
    repo: &RepoId,
    report: &mut (dyn FnMut(LoadProgress) + Send),
) -> Result<PathBuf, ResolveError> {
    let endpoint = config.endpoint();
    if config.is_offline() {
        return Err(ResolveError::failed(format!(
            "downloads are switched off; \"{repo}\" was not asked for at {endpoint}"
        )));
    }
    let came = downloads::download(config, cache, repo, false, report).await;
    came.map_err(|error| {
        let message = format!("\"{repo}\" was not downloaded from {endpoint}: {error}");
        match error.is_absent() {
            true => ResolveError::not_found(message),
            false => ResolveError { retry: error.retry(), ..ResolveError::failed(message) },
        }
    })
}

/// What this machine has.
enum Looked {
    Found(PathBuf),
    Absent { repo: RepoId, cache: PathBuf, tried: Vec<String> },
}

/// Looks for `model` on this machine.
fn look(config: &HubConfig, model: &str, dummy_weights: bool) -> Result<Looked, ResolveError> {
    if is_path(model) {
        let dir = expand(model, std::env::var_os("HOME"));
        if !dir.is_dir() {
            let why = format!(
                "there is no folder {}; give a folder with config.json, or a repo id as org/name",
                dir.display()
            );
            // A file system may be mounted late.
            return Err(ResolveError { retry: Retry::Backoff, ..ResolveError::not_found(why) });
        }
        let dir = dir.canonicalize().unwrap_or(dir);
        let missing = missing_files(&dir, dummy_weights);
        return match missing.is_empty() {
            true => Ok(Looked::Found(dir)),
            false => Err(ResolveError::incomplete(&dir, &missing)),
        };
    }
    let repo = RepoId::parse(model).map_err(|error| ResolveError::not_found(error.to_string()))?;
    let Some(cache) = config.cache() else {
        return Err(ResolveError::not_found(format!(
            "model \"{repo}\" could not be had; tried nothing: no cache folder is configured and HOME is not set"
        )));
    };
    match cached(&cache, &repo, dummy_weights) {
        Ok(dir) => Ok(Looked::Found(dir)),
        Err(why) => {
            let tried = vec![format!("the cache {} ({why})", cache.display())];
            Ok(Looked::Absent { repo, cache, tried })
        }
    }
}

/// Runs what may wait for a disk. The thread is detached: a disk that hangs holds up neither the runtime, nor an
/// unload, nor the end of the daemon, as a task of the runtime's blocking pool would.
pub(crate) async fn on_a_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ResolveError> {
    let (sender, receiver) = oneshot::channel();
    let thread = std::thread::Builder::new().name(name.to_string());
    let retried = |message| ResolveError { retry: Retry::Backoff, ..ResolveError::failed(message) };
    thread
        .spawn(move || drop(sender.send(work())))
        .map_err(|error| retried(format!("no thread could be started ({error})")))?;
    receiver.await.map_err(|_| ResolveError::failed(format!("`{name}` panicked; see the log")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_error_says_what_was_tried() {
        let cache = tempfile::tempdir().unwrap();
        let config = HubConfig {
            cache_dir: Some(cache.path().to_path_buf()),
            endpoint: Some("http://127.0.0.1:9".to_string()),
            offline: true,
            ..HubConfig::default()
        };
        let find = async |model: &str| {
            let error = resolve(&config, model, false, &mut |_| ()).await.unwrap_err();
            // A folder may be on a file system that is mounted late.
            let retry = if model == "/no/such" { Retry::Backoff } else { Retry::Never };
            assert_eq!(error.retry, retry, "{model}");
            (error.code, error.message)
        };
        let (_, error) = find("org/name").await;
        assert!(error.contains("it has no such repo"), "{error}");
        assert!(error.contains("downloads are switched off"), "{error}");
        let (_, error) = find("/no/such").await;
        assert!(error.contains("there is no folder /no/such"), "{error}");
        assert!(find("a//b").await.1.contains("neither a folder nor a repo id"));
        let (code, error) = find(cache.path().to_str().unwrap()).await;
        assert!(error.contains("not a complete model"), "{error}");
        assert_eq!(code, AdminErrorCode::Failed);
        for absent in ["org/name", "/no/such", "some/missing/folder"] {
            assert_eq!(find(absent).await.0, AdminErrorCode::NotFound, "{absent}");
        }
    }

    #[tokio::test]
    async fn a_panic_on_the_thread_is_an_error() {
        let error = on_a_thread("work", || panic!("as it must")).await.unwrap_err();
        assert!(error.message.contains("panicked"), "{error}");
    }
}
