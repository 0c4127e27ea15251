//! Downloads from the Hugging Face hub into its local cache.
//!
//! The files land as the hub's own tools put them (`blobs`, `snapshots`, `refs`, `.locks`), so those tools and
//! this daemon share them. The revision is pinned to a commit first, and its branch is noted in `refs` only when
//! every file has come: a snapshot is never a mixture, and never half one.
//!
//! | file | what it holds |
//! |---|---|
//! | `client` | one request: connections, limits, the token |
//! | `fetch` | one file: going on after cuts, its hash, its place in the cache |
//! | `error` | what can go wrong, and whether trying again can help |
//!
//! Owns: which files a model needs. Must never: take a file name from the hub as a path unchecked.

mod client;
mod error;
mod fetch;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use minisgl_proto::LoadStage;
use minisgl_proto::worker::LoadProgress;

use self::client::{Hub, Sibling};
pub(crate) use self::error::HubError;
pub use self::error::Retry;
use self::fetch::{Fetch, Patience};
use crate::config::HubConfig;
use crate::layout::{INDEX, RepoId, SINGLE, cached, only_other_weights, weight_files};

/// Progress is reported at most this often.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// Fetches what `repo` has and a model needs, and returns its snapshot. Reads and writes files in place: run it
/// on a thread of its own. It can be dropped at any moment; what came so far is gone on with by the next.
///
/// # Errors
/// Why not.
pub(crate) async fn download(
    config: &HubConfig,
    cache: &Path,
    repo: &RepoId,
    dummy_weights: bool,
    report: &mut (dyn FnMut(LoadProgress) + Send),
) -> Result<PathBuf, HubError> {
    let hub = Hub::new(config)?;
    let mut meter = Meter::new(report);
    let mut patience = Patience::new(&hub.limits);
    let info = loop {
        match hub.info(repo).await {
            Ok(info) => break info,
            Err(error) => patience.wait(error, &mut meter).await?,
        }
    };
    let fetch = Fetch { hub: &hub, cache, repo, commit: &info.sha };
    let small: Vec<Sibling> =
        info.siblings.iter().filter(|file| is_small(&file.name)).cloned().collect();
    all(&fetch, &small, &mut meter).await?;
    if !dummy_weights {
        let mut weights =
            weights_of(&info.siblings, &fetch.snapshot()).map_err(HubError::Unusable)?;
        // The biggest files last would hide a full disk longest.
        weights.sort_by_key(|file| std::cmp::Reverse(file.size));
        all(&fetch, &weights, &mut meter).await?;
    }
    fetch.note_revision()?;
    cached(cache, repo, dummy_weights)
        .map_err(|why| HubError::Unusable(format!("after the download {why}")))
}

async fn all(fetch: &Fetch<'_>, files: &[Sibling], meter: &mut Meter<'_>) -> Result<(), HubError> {
    meter.begin(files.iter().filter_map(|file| file.size).sum());
    for file in files {
        fetch.one(&file.name, meter).await?;
        meter.file_done(file.size);
    }
    Ok(())
}

/// Configuration, tokenizer, template and index.
fn is_small(file: &str) -> bool {
    matches!(
        file,
        "config.json"
            | "generation_config.json"
            | "chat_template.jinja"
            | INDEX
            | "special_tokens_map.json"
            | "added_tokens.json"
    ) || (file.starts_with("tokenizer") && file.ends_with(".json") && !file.contains('/'))
        || file
            .strip_prefix("additional_chat_templates/")
            .is_some_and(|name| name.ends_with(".jinja") && crate::layout::is_safe_part(name))
}

fn weights_of(siblings: &[Sibling], snapshot: &Path) -> Result<Vec<Sibling>, String> {
    let find = |name: &str| siblings.iter().find(|file| file.name == name).cloned();
    if let Some(single) = find(SINGLE) {
        return Ok(vec![single]);
    }
    if find(INDEX).is_none() {
        let names = siblings.iter().map(|file| file.name.as_str());
        let instead = only_other_weights(names).unwrap_or_default();
        return Err(format!("the repo has no {SINGLE} and no {INDEX}{instead}"));
    }
    let files = weight_files(snapshot)?;
    let listed = |file: String| {
        find(&file).ok_or_else(|| format!("{INDEX} names {file}, which the repo does not have"))
    };
    files.into_iter().map(listed).collect()
}

/// Adds up bytes over files and reports them, not too often.
struct Meter<'a> {
    /// Bytes of the files before this one.
    before: u64,
    /// Bytes of this one.
    now: u64,
    total: u64,
    detail: String,
    last: Option<Instant>,
    report: &'a mut (dyn FnMut(LoadProgress) + Send),
}

impl<'a> Meter<'a> {
    fn new(report: &'a mut (dyn FnMut(LoadProgress) + Send)) -> Self {
        Meter { before: 0, now: 0, total: 0, detail: String::new(), last: None, report }
    }

    /// Files of `total` bytes follow.
    fn begin(&mut self, total: u64) {
        (self.before, self.now, self.total) = (0, 0, total);
        self.tell(true);
    }

    /// `bytes` of the file are there.
    fn at(&mut self, file: &str, bytes: u64) {
        self.now = bytes;
        if self.detail != file {
            file.clone_into(&mut self.detail);
        }
        self.tell(false);
    }

    /// What goes on beside bytes that come.
    fn note(&mut self, detail: String) {
        self.detail = detail;
        self.tell(true);
    }

    fn file_done(&mut self, bytes: Option<u64>) {
        self.before += bytes.unwrap_or(self.now);
        self.now = 0;
        self.tell(true);
    }

    fn tell(&mut self, always: bool) {
        if !always && self.last.is_some_and(|last| last.elapsed() < REPORT_EVERY) {
            return;
        }
        self.last = Some(Instant::now());
        (self.report)(LoadProgress {
            stage: LoadStage::Download,
            done: self.before + self.now,
            total: self.total,
            detail: self.detail.clone(),
        });
    }
}
