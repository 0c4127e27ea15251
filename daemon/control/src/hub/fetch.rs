//! One file of a repo, from the hub to its place in the cache.
//!
//! Bytes gather in `blobs/ETAG.incomplete`, are hashed, and become `blobs/ETAG` when all are there and right; a
//! link in the snapshot comes last. A cut download leaves the incomplete file, and the next attempt, now or of
//! another day, goes on from there.
//!
//! Owns: those files, under the lock that the hub's own tools take. Must never: leave a wrong blob.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::Meter;
use super::client::{Hub, Metadata};
use super::error::HubError;
use crate::config::HubLimits;
use crate::layout::RepoId;

/// Bytes that are read and hashed at once.
const PIECE_BYTES: usize = 1 << 20;
/// Between two looks at a lock that another program holds.
const LOCK_LOOK: Duration = Duration::from_millis(100);

/// Where files come from and go to.
pub(super) struct Fetch<'a> {
    pub(super) hub: &'a Hub,
    pub(super) cache: &'a Path,
    pub(super) repo: &'a RepoId,
    pub(super) commit: &'a str,
}

impl Fetch<'_> {
    /// The folder of links to this commit's files.
    pub(super) fn snapshot(&self) -> PathBuf {
        self.repo.folder(self.cache).join("snapshots").join(self.commit)
    }

    /// Notes which commit the revision is.
    pub(super) fn note_revision(&self) -> Result<(), HubError> {
        let path = self.repo.folder(self.cache).join("refs").join(&self.repo.revision);
        let write = || {
            make_folder_of(&path)?;
            let mut new = path.clone().into_os_string();
            new.push(".incomplete");
            std::fs::write(&new, self.commit)?;
            std::fs::rename(&new, &path)
        };
        write().map_err(|error| HubError::disk("the revision was not noted in the cache", error))
    }

    /// Fetches a file unless it is there, going on after cuts as long as every attempt brings bytes.
    pub(super) async fn one(&self, file: &str, meter: &mut Meter<'_>) -> Result<(), HubError> {
        let pointer = self.snapshot().join(file);
        if pointer.is_file() {
            return Ok(());
        }
        let mut patience = Patience::new(&self.hub.limits);
        let metadata = loop {
            match self.hub.metadata(self.repo, self.commit, file).await {
                Ok(metadata) => break metadata,
                Err(error) => patience.wait(error, meter).await?,
            }
        };
        let blob = self.repo.folder(self.cache).join("blobs").join(&metadata.etag);
        let disk = |error| HubError::disk(file, error);
        let _lock = self.lock(&metadata.etag, file, meter).await?;
        let there = std::fs::metadata(&blob).is_ok_and(|blob| blob.len() == metadata.size);
        if !there {
            make_folder_of(&blob).map_err(disk)?;
            let part = blob.with_extension("incomplete");
            self.fill(&part, file, &metadata, meter).await?;
            std::fs::rename(&part, &blob).map_err(disk)?;
        }
        link(&blob, &pointer, &self.repo.folder(self.cache)).map_err(disk)
    }

    /// Makes `part` the file's whole and right content.
    async fn fill(
        &self,
        part: &Path,
        file: &str,
        metadata: &Metadata,
        meter: &mut Meter<'_>,
    ) -> Result<(), HubError> {
        let mut patience = Patience::new(&self.hub.limits);
        let mut partial = Partial::open(part, file, metadata, meter).await?;
        let mut was_wrong = false;
        loop {
            let before = partial.bytes;
            let came = self.go_on(&mut partial, file, metadata, meter).await;
            if partial.bytes > before {
                patience.reset();
            }
            if let Err(error) = came {
                patience.wait(error, meter).await?;
                continue;
            }
            let Some((hash, got)) = partial.wrong(metadata) else {
                // A blob that lost its last bytes with the power would be taken for whole.
                return partial.out.sync_data().map_err(|error| HubError::disk(file, error));
            };
            if was_wrong {
                let _ = std::fs::remove_file(part);
                let (file, wanted) = (file.to_string(), metadata.etag.clone());
                return Err(HubError::Content { file, hash, got, wanted });
            }
            tracing::warn!(
                file,
                hash,
                got,
                wanted = metadata.etag,
                "what came is wrong; once more"
            );
            was_wrong = true;
            partial.restart().map_err(|error| HubError::disk(file, error))?;
        }
    }

    /// One attempt at the bytes that are missing.
    async fn go_on(
        &self,
        partial: &mut Partial,
        file: &str,
        metadata: &Metadata,
        meter: &mut Meter<'_>,
    ) -> Result<(), HubError> {
        if partial.bytes == metadata.size {
            return Ok(());
        }
        let asked = self.hub.bytes(self.repo, self.commit, file, partial.bytes).await;
        let mut response = match asked {
            Err(HubError::Status { status: StatusCode::RANGE_NOT_SATISFIABLE, .. })
                if partial.bytes > 0 =>
            {
                // It will not go on from here: all of it again.
                partial.restart().map_err(|error| HubError::disk(file, error))?;
                self.hub.bytes(self.repo, self.commit, file, 0).await?
            }
            other => other?,
        };
        let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
        let start = range.and_then(|range| {
            range.strip_prefix("bytes ")?.split('-').next()?.trim().parse::<u64>().ok()
        });
        let goes_on =
            response.status() == StatusCode::PARTIAL_CONTENT && start == Some(partial.bytes);
        if partial.bytes > 0 && !goes_on {
            // A server or proxy that ignores ranges sends the start again.
            partial.restart().map_err(|error| HubError::disk(file, error))?;
        }
        while let Some(bytes) = self.hub.chunk(&mut response, file).await? {
            if partial.bytes + bytes.len() as u64 > metadata.size {
                let _ = partial.restart();
                let size = metadata.size;
                let why = format!("more than the {size} bytes that it has came");
                return Err(HubError::Network { what: file.to_string(), why });
            }
            partial.push(&bytes).map_err(|error| HubError::disk(file, error))?;
            meter.at(file, partial.bytes);
        }
        if partial.bytes < metadata.size {
            let why = format!("cut after {} of {} bytes", partial.bytes, metadata.size);
            return Err(HubError::Network { what: file.to_string(), why });
        }
        Ok(())
    }

    /// The right to write a blob, which the hub's own tools ask for in the same way.
    async fn lock(&self, etag: &str, file: &str, meter: &mut Meter<'_>) -> Result<File, HubError> {
        let folder = self.cache.join(".locks").join(self.repo.folder_name());
        let path = folder.join(format!("{etag}.lock"));
        let open = || {
            std::fs::create_dir_all(&folder)?;
            OpenOptions::new().create(true).truncate(false).write(true).open(&path)
        };
        let lock = open().map_err(|error| HubError::disk(path.display().to_string(), error))?;
        let since = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                Err(TryLockError::WouldBlock) if since.elapsed() < self.hub.limits.response => {
                    meter.note(format!("{file}: another program downloads it"));
                    tokio::time::sleep(LOCK_LOOK).await;
                }
                Err(TryLockError::WouldBlock) => {
                    let lock = path.display().to_string();
                    return Err(HubError::Locked { file: file.to_string(), lock });
                }
                Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {
                    return Ok(lock); // a file system without locks
                }
                Err(TryLockError::Error(error)) => {
                    return Err(HubError::disk(path.display().to_string(), error));
                }
            }
        }
    }
}

/// A file that is on its way, and the hash of what is there.
struct Partial {
    out: File,
    bytes: u64,
    hash: Hash,
    size: u64,
}

impl Partial {
    /// Opens what an earlier attempt left, or begins.
    async fn open(
        path: &Path,
        file: &str,
        metadata: &Metadata,
        meter: &mut Meter<'_>,
    ) -> Result<Partial, HubError> {
        let disk = |error| HubError::disk(file, error);
        let open =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let out = open.map_err(disk)?;
        let there = out.metadata().map_err(disk)?.len();
        let hash = Hash::of(metadata);
        let mut partial = Partial { out, bytes: 0, hash, size: metadata.size };
        if there > metadata.size {
            partial.restart().map_err(disk)?;
            return Ok(partial);
        }
        let mut piece = vec![0; PIECE_BYTES];
        while partial.bytes < there {
            let read = partial.out.read(&mut piece).map_err(disk)?;
            if read == 0 {
                break;
            }
            partial.hash.update(&piece[..read]);
            partial.bytes += read as u64;
            meter.at(file, partial.bytes);
            // A file has many gigabytes: between two pieces the download can be cancelled.
            tokio::task::yield_now().await;
        }
        Ok(partial)
    }

    /// Forgets what is there.
    fn restart(&mut self) -> std::io::Result<()> {
        self.out.set_len(0)?;
        self.out.seek(SeekFrom::Start(0))?;
        self.bytes = 0;
        self.hash.restart(self.size);
        Ok(())
    }

    fn push(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.out.write_all(bytes)?;
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// The name and the value of the hash of what came, if it is not the announced one.
    fn wrong(&mut self, metadata: &Metadata) -> Option<(&'static str, String)> {
        let name = self.hash.name();
        self.hash.finish().filter(|got| *got != metadata.etag).map(|got| (name, got))
    }
}

/// What a file's ETag is the hash of.
enum Hash {
    /// The content, of a file in Git LFS.
    Sha256(Sha256),
    /// The Git blob, of any other file.
    Git(Sha1),
    /// Something of a mirror's own.
    Unknown,
}

impl Hash {
    fn of(metadata: &Metadata) -> Hash {
        let is_hex =
            metadata.etag.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c));
        let mut hash = match metadata.etag.len() {
            64 if is_hex => Hash::Sha256(Sha256::new()),
            40 if is_hex => Hash::Git(Sha1::new()),
            _ => Hash::Unknown,
        };
        hash.restart(metadata.size);
        hash
    }

    fn restart(&mut self, size: u64) {
        match self {
            Hash::Sha256(hash) => *hash = Sha256::new(),
            Hash::Git(hash) => *hash = Sha1::new().chain_update(format!("blob {size}\0")),
            Hash::Unknown => {}
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hash::Sha256(hash) => hash.update(bytes),
            Hash::Git(hash) => hash.update(bytes),
            Hash::Unknown => {}
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Hash::Sha256(_) => "SHA-256",
            Hash::Git(_) => "Git SHA-1",
            Hash::Unknown => "hash",
        }
    }

    /// In hexadecimal digits. The hash is spent then.
    fn finish(&mut self) -> Option<String> {
        let hex = |bytes: &[u8]| {
            bytes.iter().fold(String::new(), |mut hex, byte| {
                let _ = write!(hex, "{byte:02x}");
                hex
            })
        };
        match self {
            Hash::Sha256(hash) => Some(hex(&hash.finalize_reset())),
            Hash::Git(hash) => Some(hex(&hash.finalize_reset())),
            Hash::Unknown => None,
        }
    }
}

/// Links a snapshot's file to its blob, by a relative path as the hub's own tools do.
fn link(blob: &Path, pointer: &Path, repo: &Path) -> std::io::Result<()> {
    make_folder_of(pointer)?;
    let outside = || std::io::Error::other("it lies outside of the repo's folder");
    let up = pointer.strip_prefix(repo).map_err(|_| outside())?.components().count() - 1;
    let target: PathBuf = std::iter::repeat_n("..", up).collect();
    let target = target.join(blob.strip_prefix(repo).map_err(|_| outside())?);
    match std::fs::remove_file(pointer) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => std::os::unix::fs::symlink(target, pointer)?,
    }
    // A folder of the cache that is a link itself could lead elsewhere.
    match pointer.canonicalize()? == blob.canonicalize()? {
        true => Ok(()),
        false => Err(std::io::Error::other(format!("{} is not where it is", pointer.display()))),
    }
}

fn make_folder_of(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), std::fs::create_dir_all)
}

/// How often is tried what brought nothing, and after which pauses.
pub(super) struct Patience {
    limits: HubLimits,
    fruitless: u32,
}

impl Patience {
    pub(super) fn new(limits: &HubLimits) -> Self {
        Patience { limits: *limits, fruitless: 0 }
    }

    /// Something came.
    fn reset(&mut self) {
        self.fruitless = 0;
    }

    /// Waits until it is time for the next attempt.
    ///
    /// # Errors
    /// The error itself, when no attempt is left or none can help.
    pub(super) async fn wait(
        &mut self,
        error: HubError,
        meter: &mut Meter<'_>,
    ) -> Result<(), HubError> {
        self.fruitless += 1;
        let limits = &self.limits;
        if !error.is_passing() || self.fruitless >= limits.attempts {
            return Err(error);
        }
        let doubled = limits.pause.saturating_mul(1 << (self.fruitless - 1).min(16));
        let asked = error.retry_after().unwrap_or_default();
        if asked > limits.pause_max {
            return Err(error); // too long to sit here; whoever asked may come back then
        }
        let pause = doubled.min(limits.pause_max).max(asked);
        let seconds = pause.as_secs_f32();
        tracing::warn!(%error, seconds, "the hub is asked again");
        meter.note(format!("{error}; asked again in {seconds:.1} s"));
        tokio::time::sleep(pause).await;
        Ok(())
    }
}
