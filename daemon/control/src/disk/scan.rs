//! A look at the cache.
//!
//! Owns: counting. Must never: follow a link, but to tell whether a snapshot's file is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use minisgl_proto::admin::ModelStatus;
use minisgl_proto::disk::{DiskRepo, DiskReport, DiskRevision};

use super::users;
use crate::downloads;
use crate::layout::{REPO_PREFIX, is_safe_part, missing_files};

/// Repos of a cache, and files of a repo, that are looked at.
const ENTRIES_MAX: usize = 100_000;
/// Folders within folders of a repo.
const DEPTH_MAX: usize = 8;

/// Everything in `cache`, and which of `models` use it. May block.
pub(super) fn scan(cache: &Path, models: &[ModelStatus]) -> DiskReport {
    let mut report = DiskReport {
        cache: Some(cache.to_path_buf()),
        free_bytes: free_bytes(cache),
        ..DiskReport::default()
    };
    let entries = match std::fs::read_dir(cache) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return report,
        Err(error) => {
            report.notes.push(format!("{}: {error}", cache.display()));
            return report;
        }
    };
    for entry in entries.flatten().take(ENTRIES_MAX) {
        let Some(id) = entry.file_name().to_str().and_then(id_of) else { continue };
        // A link to a folder elsewhere is not the cache's own.
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        match Repo::look(&entry.path()) {
            Ok(repo) => report.repos.push(repo.report(cache, id, models)),
            Err(error) => report.notes.push(format!("{id}: {error}")),
        }
    }
    report.repos.sort_by(|a, b| a.id.cmp(&b.id));
    report.bytes = report.repos.iter().map(|repo| repo.bytes).sum();
    report
}

/// The repo that a folder of the cache is of.
fn id_of(folder: &str) -> Option<String> {
    let id = folder.strip_prefix(REPO_PREFIX)?.replacen("--", "/", 1);
    id.split('/').all(is_safe_part).then_some(id)
}

/// Bytes that this user may still write where `folder` is, or will be.
fn free_bytes(folder: &Path) -> Option<u64> {
    let there = folder.ancestors().find(|path| path.is_dir())?;
    let disk = nix::sys::statvfs::statvfs(there).ok()?;
    Some(disk.blocks_available() as u64 * disk.fragment_size() as u64)
}

/// A repo's folder.
pub(super) struct Repo {
    pub(super) folder: PathBuf,
    /// By name.
    pub(super) blobs: BTreeMap<String, Metadata>,
    /// By commit.
    pub(super) snapshots: BTreeMap<String, Snapshot>,
    /// The commit of each branch and tag.
    pub(super) refs: BTreeMap<String, String>,
}

/// The files of a commit.
#[derive(Default)]
pub(super) struct Snapshot {
    /// The blobs that it links to.
    pub(super) blobs: BTreeSet<String>,
    files: u64,
    /// Of files that lie in it, where the file system knows no links.
    own_bytes: u64,
}

impl Repo {
    /// Reads the names, links and sizes in a repo's folder.
    pub(super) fn look(folder: &Path) -> io::Result<Repo> {
        let mut blobs = BTreeMap::new();
        for (path, metadata) in files(&folder.join("blobs"))? {
            if let Some(name) = path.to_str().filter(|_| metadata.is_file()) {
                blobs.insert(name.to_string(), metadata);
            }
        }
        let mut snapshots: BTreeMap<String, Snapshot> = BTreeMap::new();
        for commit in folders(&folder.join("snapshots"))? {
            snapshots.insert(commit, Snapshot::default());
        }
        for (commit, snapshot) in &mut snapshots {
            let dir = folder.join("snapshots").join(commit);
            for (path, metadata) in files(&dir)? {
                snapshot.files += 1;
                if metadata.is_symlink() {
                    snapshot.blobs.extend(blob_of(&dir.join(path)));
                } else {
                    snapshot.own_bytes += metadata.len();
                }
            }
        }
        let mut refs = BTreeMap::new();
        for (path, metadata) in files(&folder.join("refs"))? {
            let path = path.to_string_lossy().into_owned();
            // A reference is one commit: 40 letters.
            if !metadata.is_file() || metadata.len() > 100 || path.ends_with(".incomplete") {
                continue;
            }
            let commit = std::fs::read_to_string(folder.join("refs").join(&path))?;
            refs.insert(path, commit.trim().to_string());
        }
        Ok(Repo { folder: folder.to_path_buf(), blobs, snapshots, refs })
    }

    fn bytes_of(&self, snapshot: &Snapshot) -> u64 {
        let linked = snapshot.blobs.iter().filter_map(|blob| self.blobs.get(blob));
        snapshot.own_bytes + linked.map(Metadata::len).sum::<u64>()
    }

    /// Bytes of everything in it.
    pub(super) fn bytes(&self) -> u64 {
        let own: u64 = self.snapshots.values().map(|snapshot| snapshot.own_bytes).sum();
        own + self.blobs.values().map(Metadata::len).sum::<u64>()
    }

    /// Bytes that would be free without `commit`, and the blobs that only it links to.
    pub(super) fn only_of(&self, commit: &str) -> (u64, Vec<String>) {
        let Some(snapshot) = self.snapshots.get(commit) else { return (0, Vec::new()) };
        let others = || self.snapshots.iter().filter(|(other, _)| *other != commit);
        let is_shared = |blob: &&String| others().any(|(_, other)| other.blobs.contains(*blob));
        let own: Vec<String> =
            snapshot.blobs.iter().filter(|blob| !is_shared(blob)).cloned().collect();
        let bytes = own.iter().filter_map(|blob| self.blobs.get(blob)).map(Metadata::len);
        (snapshot.own_bytes + bytes.sum::<u64>(), own)
    }

    fn report(&self, cache: &Path, id: String, models: &[ModelStatus]) -> DiskRepo {
        let is_incomplete = |name: &str| name.ends_with(".incomplete") || name.ends_with(".part");
        let incomplete = self.blobs.iter().filter(|(name, _)| is_incomplete(name));
        let revision = |(commit, snapshot): (&String, &Snapshot)| DiskRevision {
            commit: commit.clone(),
            refs: self
                .refs
                .iter()
                .filter(|(_, at)| *at == commit)
                .map(|(name, _)| name.clone())
                .collect(),
            bytes: self.bytes_of(snapshot),
            files: snapshot.files,
            missing: missing_files(&self.folder.join("snapshots").join(commit), false),
        };
        DiskRepo {
            bytes: self.bytes(),
            incomplete_bytes: incomplete.map(|(_, blob)| blob.len()).sum(),
            last_used: self.blobs.values().filter_map(touched).max_by(f64::total_cmp),
            in_use: users(models, &self.folder, &id, None),
            downloading: downloads::is_running(cache, &id),
            revisions: self.snapshots.iter().map(revision).collect(),
            id,
        }
    }
}

/// The last time that a file was read or written.
fn touched(blob: &Metadata) -> Option<f64> {
    let times = [blob.accessed(), blob.modified()];
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).ok().map(|d| d.as_secs_f64());
    times.into_iter().flatten().filter_map(seconds).max_by(f64::total_cmp)
}

/// The name of the blob that a snapshot's file is a link to, if it is one of this repo's.
fn blob_of(link: &Path) -> Option<String> {
    let target = std::fs::read_link(link).ok()?;
    let name = target.file_name()?.to_str()?.to_string();
    let is_of_blobs = target.parent()?.file_name()? == "blobs" && target.is_relative();
    is_of_blobs.then_some(name)
}

/// The folders in `dir`; none if there is no such folder.
fn folders(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() && names.len() < ENTRIES_MAX {
            names.extend(entry.file_name().into_string().ok());
        }
    }
    Ok(names)
}

/// Every file and link under `dir`, by its path from there.
fn files(dir: &Path) -> io::Result<Vec<(PathBuf, Metadata)>> {
    let mut all = Vec::new();
    let mut waiting = vec![(PathBuf::new(), 0)];
    while let Some((inside, depth)) = waiting.pop() {
        for entry in read_dir(&dir.join(&inside))? {
            let entry = entry?;
            let path = inside.join(entry.file_name());
            // Of the link, not of what it leads to.
            let metadata = match entry.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            if metadata.is_dir() {
                if depth < DEPTH_MAX {
                    waiting.push((path, depth + 1));
                }
            } else if all.len() < ENTRIES_MAX {
                all.push((path, metadata));
            }
        }
    }
    Ok(all)
}

/// What is in a folder that may not be there, or be a link, which is not followed.
fn read_dir(dir: &Path) -> io::Result<Box<dyn Iterator<Item = io::Result<std::fs::DirEntry>>>> {
    match std::fs::symlink_metadata(dir) {
        Ok(there) if there.is_dir() => Ok(Box::new(std::fs::read_dir(dir)?)),
        Ok(_) => Ok(Box::new(std::iter::empty())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Box::new(std::iter::empty())),
        Err(error) => Err(error),
    }
}
