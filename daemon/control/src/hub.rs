//! Downloads from the Hugging Face hub into its local cache.
//!
//! The files land as the hub's own tools would put them (`blobs`, `snapshots`, `refs`), so those
//! tools and this daemon share them. A cut download leaves a part file and goes on from there, now
//! or at the next load. The revision is pinned to a commit first, and its branch is noted in `refs`
//! only when every file has come: a snapshot is never a mixture, and never half one.
//!
//! Owns: which files a model needs. Must never: take a file name from the hub as a path unchecked.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use minisgl_proto::LoadStage;
use minisgl_proto::worker::LoadProgress;
use serde::Deserialize;

use crate::config::{HubConfig, TokenSource};
use crate::resolve::{INDEX, RepoId, SINGLE, cached, weight_files};

/// Attempts a file gets without a byte of progress.
const ATTEMPTS: u32 = 4;
/// Pause before the second attempt; doubles.
const PAUSE: Duration = Duration::from_millis(250);
/// Progress is reported at most this often.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// The hub's answer about a repo.
#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Clone, Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
}

/// Fetches what `repo` has and a model needs, and returns its snapshot.
///
/// # Errors
/// Why not, for people.
pub(crate) fn download(
    config: &HubConfig,
    cache_dir: &Path,
    repo: &RepoId,
    dummy_weights: bool,
    report: &mut dyn FnMut(LoadProgress),
) -> Result<PathBuf, String> {
    let token = token(config)?;
    let api = ApiBuilder::from_cache(Cache::new(cache_dir.to_path_buf()))
        .with_endpoint(config.endpoint())
        .with_progress(false)
        .with_token(token)
        .build()
        .map_err(|error| error.to_string())?;
    let info = info(&api, config, repo)?;
    let commit = Repo::with_revision(repo.id.clone(), RepoType::Model, info.sha.clone());
    let fetch = Fetch { repo: api.repo(commit.clone()), api, cache_dir, commit, config };
    let snapshot = fetch.cache().pointer_path(&info.sha);

    let small: Vec<Sibling> =
        info.siblings.iter().filter(|file| is_small(&file.rfilename)).cloned().collect();
    fetch.all(&small, report)?;
    if !dummy_weights {
        let mut weights = weights_of(&info.siblings, &snapshot)?;
        // The biggest files last would hide a full disk longest.
        weights.sort_by_key(|file| std::cmp::Reverse(file.size));
        fetch.all(&weights, report)?;
    }
    let named = Repo::with_revision(repo.id.clone(), RepoType::Model, repo.revision.clone());
    Cache::new(cache_dir.to_path_buf())
        .repo(named)
        .create_ref(&info.sha)
        .map_err(|error| format!("the revision could not be noted in the cache: {error}"))?;
    cached(cache_dir, repo, dummy_weights).map_err(|why| format!("after the download {why}"))
}

/// The token in force. A file that was asked for must be there.
fn token(config: &HubConfig) -> Result<Option<String>, String> {
    let (text, place) = match config.token_source() {
        None => return Ok(None),
        Some(TokenSource::Environment(token)) => (token, "HF_TOKEN".to_string()),
        Some(TokenSource::File(path)) => {
            let place = format!("the token file {}", path.display());
            let text = std::fs::read_to_string(&path)
                .map_err(|error| format!("{place} is unreadable: {error}"))?;
            (text, place)
        }
    };
    let token = text.trim();
    if token.chars().any(|c| !c.is_ascii_graphic()) {
        return Err(format!("{place} holds more than a token"));
    }
    Ok((!token.is_empty()).then(|| token.to_string()))
}

fn info(api: &Api, config: &HubConfig, repo: &RepoId) -> Result<Info, String> {
    let named = Repo::with_revision(repo.id.clone(), RepoType::Model, repo.revision.clone());
    let request = api.repo(named).info_request().query("blobs", "true");
    let mut response = request.call().map_err(|error| explain(&error.to_string(), config))?;
    let text = response.body_mut().read_to_string();
    let text = text.map_err(|error| explain(&error.to_string(), config))?;
    let info: Info = serde_json::from_str(&text)
        .map_err(|error| format!("its answer about the repo makes no sense: {error}"))?;
    let is_commit =
        (7..=64).contains(&info.sha.len()) && info.sha.chars().all(|c| c.is_ascii_hexdigit());
    if is_commit { Ok(info) } else { Err(format!("it names {:?} as a commit", info.sha)) }
}

/// Configuration, tokenizer, template and index.
fn is_small(file: &str) -> bool {
    matches!(file, "config.json" | "generation_config.json" | "chat_template.jinja" | INDEX)
        || (file.starts_with("tokenizer") && file.ends_with(".json") && !file.contains('/'))
}

fn weights_of(siblings: &[Sibling], snapshot: &Path) -> Result<Vec<Sibling>, String> {
    let find = |name: &str| siblings.iter().find(|file| file.rfilename == name).cloned();
    if let Some(single) = find(SINGLE) {
        return Ok(vec![single]);
    }
    if find(INDEX).is_none() {
        let has = |ending: &str| siblings.iter().any(|file| file.rfilename.ends_with(ending));
        let instead = [".bin", ".pth", ".gguf"].into_iter().find(|ending| has(ending));
        let instead = instead.map_or(String::new(), |ending| format!(", only {ending} files"));
        return Err(format!("the repo has no {SINGLE} and no {INDEX}{instead}"));
    }
    let files = weight_files(snapshot)?;
    let listed = |file: String| {
        find(&file).ok_or_else(|| format!("{INDEX} names {file}, which the repo does not have"))
    };
    files.into_iter().map(listed).collect()
}

struct Fetch<'a> {
    api: Api,
    repo: ApiRepo,
    commit: Repo,
    cache_dir: &'a Path,
    config: &'a HubConfig,
}

impl Fetch<'_> {
    fn cache(&self) -> hf_hub::CacheRepo {
        Cache::new(self.cache_dir.to_path_buf()).repo(self.commit.clone())
    }

    fn all(&self, files: &[Sibling], report: &mut dyn FnMut(LoadProgress)) -> Result<(), String> {
        let total = files.iter().filter_map(|file| file.size).sum();
        let mut meter = Meter { before: 0, now: 0, total, file: String::new(), last: None, report };
        for file in files {
            self.one(&file.rfilename, &mut meter)?;
            meter.before += file.size.unwrap_or(meter.now);
            meter.now = 0;
            meter.tell(true);
        }
        Ok(())
    }

    /// Fetches a file unless it is there, going on after cuts as long as every attempt brings bytes.
    fn one(&self, file: &str, meter: &mut Meter<'_>) -> Result<(), String> {
        let there = self.cache().pointer_path(self.commit.revision()).join(file);
        if there.is_file() {
            return Ok(());
        }
        let url = self.repo.url(file);
        let mut fruitless = 0;
        loop {
            let part = self.part(&url, file)?;
            let before = part.bytes();
            if before >= part.size {
                // Whole but never renamed, or not ours: the hub would refuse to go on from here.
                let _ = std::fs::remove_file(&part.path);
            }
            let error = match self.repo.download_with_progress(file, &mut *meter) {
                Ok(path) => {
                    let bytes = std::fs::metadata(&path).map_or(0, |data| data.len());
                    if bytes == part.size {
                        return Ok(());
                    }
                    // A server or proxy that ignores ranges sends the start twice.
                    let blob = path.canonicalize().unwrap_or_else(|_| path.clone());
                    let _ = std::fs::remove_file(blob);
                    let _ = std::fs::remove_file(path);
                    format!("{file} came with {bytes} bytes instead of {}", part.size)
                }
                Err(ApiError::LockAcquisition(_)) => {
                    return Err(format!("{file} is being downloaded by another program"));
                }
                Err(error) => explain(&error.to_string(), self.config),
            };
            fruitless = if part.bytes() > before { 0 } else { fruitless + 1 };
            if fruitless >= ATTEMPTS || is_final(&error) {
                return Err(format!("{file}: {error}"));
            }
            tracing::warn!(file, error, "a download was cut and goes on");
            std::thread::sleep(PAUSE * 2u32.pow(fruitless));
        }
    }

    /// Where the file's bytes gather, and how many there are to be.
    fn part(&self, url: &str, file: &str) -> Result<Part, String> {
        let mut fruitless = 0;
        let metadata = loop {
            match self.api.metadata(url) {
                Ok(metadata) => break metadata,
                Err(error) => {
                    let error = explain(&error.to_string(), self.config);
                    fruitless += 1;
                    if fruitless >= ATTEMPTS || is_final(&error) {
                        return Err(format!("{file}: {error}"));
                    }
                    std::thread::sleep(PAUSE * 2u32.pow(fruitless));
                }
            }
        };
        let etag = metadata.etag();
        if etag.is_empty() || !etag.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            return Err(format!("{file} has the ETag {etag:?}, which is no file name"));
        }
        let mut path = self.cache().blob_path(etag);
        path.set_extension("part");
        Ok(Part { path, size: metadata.size() as u64 })
    }
}

struct Part {
    path: PathBuf,
    size: u64,
}

impl Part {
    fn bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |data| data.len())
    }
}

/// The library's words, with what to do about them.
fn explain(error: &str, config: &HubConfig) -> String {
    let status = |code: &str| error.contains(&format!("http status: {code}"));
    if status("401") || status("403") {
        let token = match config.token_source() {
            Some(TokenSource::File(path)) => {
                format!("the token in {} is not enough", path.display())
            }
            Some(TokenSource::Environment(_)) => "the token in HF_TOKEN is not enough".to_string(),
            None => "no token was sent; configure a token file".to_string(),
        };
        format!("{error}: the repo is private, gated or not there, and {token}")
    } else if status("404") {
        format!("{error}: it has no such repo, revision or file")
    } else {
        error.to_string()
    }
}

/// Whether the hub says that it has nothing of that name, or nothing for this user.
pub(crate) fn is_absent(error: &str) -> bool {
    ["401", "403", "404"].iter().any(|code| error.contains(&format!("http status: {code}")))
}

/// Whether another attempt would get the same answer.
fn is_final(error: &str) -> bool {
    ["http status: 4", "os error 28", "os error 13", "os error 30"]
        .iter()
        .any(|sign| error.contains(sign))
}

/// Adds up bytes over files and reports them, not too often.
struct Meter<'a> {
    /// Bytes of the files before this one.
    before: u64,
    /// Bytes of this one.
    now: u64,
    total: u64,
    file: String,
    last: Option<Instant>,
    report: &'a mut dyn FnMut(LoadProgress),
}

impl Meter<'_> {
    fn tell(&mut self, always: bool) {
        if !always && self.last.is_some_and(|last| last.elapsed() < REPORT_EVERY) {
            return;
        }
        self.last = Some(Instant::now());
        (self.report)(LoadProgress {
            stage: LoadStage::Download,
            done: self.before + self.now,
            total: self.total,
            detail: self.file.clone(),
        });
    }
}

impl Progress for &mut Meter<'_> {
    fn init(&mut self, _bytes: usize, file: &str) {
        self.file = file.to_string();
        self.now = 0;
        self.tell(false);
    }

    fn update(&mut self, bytes: usize) {
        self.now += bytes as u64;
        self.tell(false);
    }

    fn finish(&mut self) {}
}
