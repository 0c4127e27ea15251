//! A repo, or one revision of it, leaves the cache.
//!
//! ```text
//!   whole repo   renamed out of the way first: from then on nobody finds it, and no half of it can be loaded
//!   revision     its branches, its links, then the blobs that no other revision links to
//! ```
//!
//! Owns: what is deleted, in which order. Must never: delete outside of the repo's own folder.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use minisgl_proto::admin::{AdminError, AdminErrorCode, ModelStatus};
use minisgl_proto::disk::RmReply;

use super::scan::Repo;
use super::users;
use crate::downloads;
use crate::layout::RepoId;

/// How the name of a folder begins that is on its way out; the daemon's process id follows.
const REMOVED_PREFIX: &str = ".removed-";
/// Numbers the folders that are on their way out.
static REMOVED: AtomicU64 = AtomicU64::new(0);

fn refuse(code: AdminErrorCode, message: String) -> AdminError {
    AdminError { code, message }
}

/// Removes what `model` names from `cache`; `models` tells which are loaded, each time anew. May block.
///
/// # Errors
/// `Invalid`: it is no repo id. `NotFound`: it is not in the cache. `Conflict`: it is in use or being
/// downloaded. `Failed`: the system would not.
pub(super) fn remove(
    cache: &Path,
    model: &str,
    models: &dyn Fn() -> Vec<ModelStatus>,
) -> Result<RmReply, AdminError> {
    let repo =
        RepoId::parse(model).map_err(|error| refuse(AdminErrorCode::Invalid, error.to_string()))?;
    let cache = cache.canonicalize().unwrap_or_else(|_| cache.to_path_buf());
    let folder = repo.folder(&cache);
    let here = std::fs::symlink_metadata(&folder).is_ok_and(|there| there.is_dir());
    if !here {
        let hint = match std::fs::symlink_metadata(&folder) {
            Ok(_) => "; there is a link in its place, which is for you to remove",
            Err(_) => "; see: minisglctl models",
        };
        let cache = cache.display();
        let message = format!("\"{}\" is not in the cache {cache}{hint}", repo.id);
        return Err(refuse(AdminErrorCode::NotFound, message));
    }
    let failed = |error: io::Error| {
        let message = format!("\"{model}\" was not removed: {}: {error}", folder.display());
        refuse(AdminErrorCode::Failed, message)
    };
    if downloads::is_running(&cache, &repo.id) || is_locked(&cache, &repo).map_err(failed)? {
        let message = format!("\"{}\" is being downloaded; stop that first", repo.id);
        return Err(refuse(AdminErrorCode::Conflict, message));
    }
    let at = Repo::look(&folder).map_err(failed)?;
    let commit = match model.contains('@') {
        true => Some(commit_of(&at, &repo)?),
        false => None,
    };
    // The last revision takes the folder with it.
    let commit = commit.filter(|_| at.snapshots.len() > 1);
    let snapshot = commit.as_ref().map(|commit| folder.join("snapshots").join(commit));
    let check =
        |there: &Path| in_use(&users(&models(), there, &repo.id, snapshot.as_deref()), model);
    check(&folder)?;
    let freed_bytes = match commit {
        None => {
            let bytes = at.bytes();
            let out = out_of_the_way(&cache, &folder).map_err(failed)?;
            // Somebody may have found it in the meantime.
            if let Err(used) = check(&folder).and_then(|()| check(&out)) {
                std::fs::rename(&out, &folder).map_err(failed)?;
                return Err(used);
            }
            std::fs::remove_dir_all(&out).map_err(failed)?;
            sweep(&cache);
            bytes
        }
        Some(commit) => remove_revision(&at, &commit).map_err(failed)?,
    };
    Ok(RmReply { removed: model.to_string(), freed_bytes })
}

fn in_use(users: &[String], model: &str) -> Result<(), AdminError> {
    let Some(first) = users.first() else { return Ok(()) };
    let names: Vec<String> = users.iter().map(|name| format!("\"{name}\"")).collect();
    let message = format!(
        "\"{model}\" is in use by {}; unload that first: minisglctl unload {first}",
        names.join(", ")
    );
    Err(refuse(AdminErrorCode::Conflict, message))
}

/// The commit that a revision is.
fn commit_of(at: &Repo, repo: &RepoId) -> Result<String, AdminError> {
    let revision = &repo.revision;
    let commit = at.refs.get(revision).unwrap_or(revision);
    if at.snapshots.contains_key(commit) {
        return Ok(commit.clone());
    }
    let there: Vec<&str> = at.snapshots.keys().map(String::as_str).collect();
    let message = format!(
        "\"{}\" has no revision {revision} in the cache; it has: {}",
        repo.id,
        if there.is_empty() { "none".to_string() } else { there.join(", ") }
    );
    Err(refuse(AdminErrorCode::NotFound, message))
}

/// Whether another program writes one of the repo's blobs.
fn is_locked(cache: &Path, repo: &RepoId) -> io::Result<bool> {
    let folder = cache.join(".locks").join(repo.folder_name());
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if !entry.file_type()?.is_file() {
            continue;
        }
        if let Err(TryLockError::WouldBlock) = File::open(entry.path())?.try_lock() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Gives a repo's folder a name under which nobody looks for it.
fn out_of_the_way(cache: &Path, folder: &Path) -> io::Result<PathBuf> {
    let number = REMOVED.fetch_add(1, Ordering::Relaxed);
    let out = cache.join(format!("{REMOVED_PREFIX}{}-{number}", std::process::id()));
    std::fs::rename(folder, &out)?;
    Ok(out)
}

/// Removes what daemons that are gone had begun to remove.
fn sweep(cache: &Path) {
    for entry in std::fs::read_dir(cache).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(REMOVED_PREFIX)) else {
            continue;
        };
        let pid = pid.split('-').next().unwrap_or_default();
        let is_ours = pid == std::process::id().to_string();
        if !is_ours && !Path::new("/proc").join(pid).exists() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn remove_revision(at: &Repo, commit: &str) -> io::Result<u64> {
    let (bytes, blobs) = at.only_of(commit);
    for (name, _) in at.refs.iter().filter(|(_, commit_of)| *commit_of == commit) {
        std::fs::remove_file(at.folder.join("refs").join(name))?;
    }
    std::fs::remove_dir_all(at.folder.join("snapshots").join(commit))?;
    for blob in blobs {
        match std::fs::remove_file(at.folder.join("blobs").join(blob)) {
            // The link led nowhere.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(bytes)
}
