//! The downloads that run in this process: one a repo and revision, for all who wait for it.
//!
//! ```text
//!   download() ──┐                      ┌── thread: hub::download
//!   download() ──┼── watch: progress, end ──┘   ends when nobody watches any more
//!   download() ──┘
//! ```
//!
//! There is one table for the process, since there is one cache folder: every part of the daemon finds the download that
//! runs.
//!
//! Owns: the threads of downloads. Must never: let one run on that nobody waits for.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use minisgl_proto::worker::LoadProgress;
use tokio::sync::watch;

use crate::config::HubConfig;
use crate::hub::{self, HubError};
use crate::layout::RepoId;

/// What two who wait must have in common to share a download.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    cache: PathBuf,
    endpoint: String,
    repo: RepoId,
    dummy_weights: bool,
}

/// How far a download is.
#[derive(Clone, Default)]
struct State {
    progress: Option<LoadProgress>,
    end: Option<Result<PathBuf, Arc<HubError>>>,
}

type Table = HashMap<Key, Arc<watch::Sender<State>>>;

static RUNNING: LazyLock<Mutex<Table>> = LazyLock::new(Mutex::default);

fn running() -> MutexGuard<'static, Table> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Joins the download of `repo`, or begins it, and tells how it goes until its end. Dropping this leaves it; the
/// last who leaves ends it.
///
/// # Errors
/// Why it failed, the same for all who waited.
pub(crate) async fn download(
    config: &HubConfig,
    cache: &Path,
    repo: &RepoId,
    dummy_weights: bool,
    report: &mut (dyn FnMut(LoadProgress) + Send),
) -> Result<PathBuf, Arc<HubError>> {
    let key = Key {
        cache: cache.to_path_buf(),
        endpoint: config.endpoint(),
        repo: repo.clone(),
        dummy_weights,
    };
    let mut watcher = join(config, key)?;
    loop {
        let State { progress, end } = watcher.borrow_and_update().clone();
        // The last point of the way may be no older than the end.
        if let Some(progress) = progress {
            report(progress);
        }
        if let Some(end) = end {
            return end;
        }
        watcher.changed().await.map_err(|_| Arc::new(HubError::Lost))?;
    }
}

/// Whether a download writes to this repo's folder now.
pub(crate) fn is_running(cache: &Path, id: &str) -> bool {
    running().keys().any(|key| key.cache == cache && key.repo.id == id)
}

fn join(config: &HubConfig, key: Key) -> Result<watch::Receiver<State>, Arc<HubError>> {
    let mut table = running();
    if let Some(sender) = table.get(&key) {
        return Ok(sender.subscribe());
    }
    let (sender, watcher) = watch::channel(State::default());
    let sender = Arc::new(sender);
    let entry = Entry { key: key.clone(), sender: Arc::clone(&sender) };
    let config = config.clone();
    let thread = std::thread::Builder::new().name("download".to_string());
    // Detached: a disk that hangs delays neither an unload nor the end of the daemon.
    thread
        .spawn(move || run(&config, entry))
        .map_err(|error| Arc::new(HubError::disk("no thread could be started", error)))?;
    table.insert(key, sender);
    Ok(watcher)
}

/// Downloads until it is done or nobody watches.
fn run(config: &HubConfig, entry: Entry) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let end = match runtime {
        Ok(runtime) => runtime.block_on(async {
            let Key { cache, repo, dummy_weights, .. } = &entry.key;
            let mut report = |at| entry.sender.send_modify(|state| state.progress = Some(at));
            let download = hub::download(config, cache, repo, *dummy_weights, &mut report);
            tokio::select! {
                end = download => Some(end.map_err(Arc::new)),
                () = entry.deserted() => None,
            }
        }),
        Err(error) => Some(Err(Arc::new(HubError::disk("no event loop", error)))),
    };
    match end {
        Some(end) => {
            entry.leave();
            entry.sender.send_modify(|state| state.end = Some(end));
        }
        None => {
            tracing::info!(repo = %entry.key.repo, "the download was given up: nobody waits for it")
        }
    }
}

/// A download's place in the table; leaves it also when the thread panics.
struct Entry {
    key: Key,
    sender: Arc<watch::Sender<State>>,
}

impl Entry {
    /// Ends when nobody watches, and nobody can begin to any more.
    async fn deserted(&self) {
        loop {
            self.sender.closed().await;
            let mut table = running();
            if self.sender.receiver_count() == 0 {
                self.leave_from(&mut table);
                return;
            }
        }
    }

    fn leave(&self) {
        self.leave_from(&mut running());
    }

    fn leave_from(&self, table: &mut Table) {
        if table.get(&self.key).is_some_and(|sender| Arc::ptr_eq(sender, &self.sender)) {
            table.remove(&self.key);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.leave();
    }
}
