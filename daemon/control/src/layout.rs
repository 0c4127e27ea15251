//! What a model's files are called and where they lie: repo ids, the Hugging Face cache, a model's folder.
//!
//! ```text
//!   CACHE/models--org--name/refs/main              the commit of a branch
//!                           snapshots/COMMIT/FILE  a link to ../../blobs/ETAG
//!                           blobs/ETAG             a file's bytes
//!   CACHE/.locks/models--org--name/ETAG.lock       held while a blob is written
//! ```
//!
//! Owns: what counts as a path, a repo id and a complete model. Must never: read weights, or ask the network.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Name of the one file of weights that are not sharded.
pub(crate) const SINGLE: &str = "model.safetensors";
/// Name of the index of weights that are.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// How a folder of the cache begins that holds a model.
pub(crate) const REPO_PREFIX: &str = "models--";
/// Bytes of an index at most.
const INDEX_BYTES_MAX: u64 = 64 << 20;
/// The first line of what Git LFS leaves in place of a file that it did not fetch.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// What is neither a folder nor a repo id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is neither a folder nor a repo id (org/name or org/name@revision): {why}")]
pub struct BadRepoId {
    /// As asked for.
    pub given: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// A repo of the hub at a revision.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
    /// It is no repo id.
    pub fn parse(given: &str) -> Result<Self, BadRepoId> {
        let bad = |why| BadRepoId { given: given.to_string(), why };
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

    /// The repo's folder in a cache.
    pub(crate) fn folder(&self, cache: &Path) -> PathBuf {
        cache.join(self.folder_name())
    }

    /// The name of that folder.
    pub(crate) fn folder_name(&self) -> String {
        format!("{REPO_PREFIX}{}", self.id.replace('/', "--"))
    }
}

impl std::fmt::Display for RepoId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.id, self.revision)
    }
}

/// Whether `part` can stand between two slashes of a path or a URL and mean itself.
pub(crate) fn is_safe_part(part: &str) -> bool {
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
pub(crate) fn expand(given: &str, home: Option<OsString>) -> PathBuf {
    match (given.strip_prefix('~'), home.filter(|home| !home.is_empty())) {
        (Some(""), Some(home)) => home.into(),
        (Some(rest), Some(home)) if rest.starts_with('/') => {
            Path::new(&home).join(rest.trim_start_matches('/'))
        }
        _ => given.into(),
    }
}

/// The snapshot of `repo` in the cache, if it is complete; else why not.
pub(crate) fn cached(cache: &Path, repo: &RepoId, dummy_weights: bool) -> Result<PathBuf, String> {
    let folder = repo.folder(cache);
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

/// What a model's folder lacks, each with its remedy where there is one. Dummy weights need `config.json` alone.
pub(crate) fn missing_files(dir: &Path, dummy_weights: bool) -> Vec<String> {
    let mut needed = vec!["config.json".to_string()];
    if !dummy_weights {
        needed.push("tokenizer.json".to_string());
        match weight_files(dir) {
            Ok(files) => needed.extend(files),
            Err(why) => return vec![why],
        }
    }
    let mut wrong = Vec::new();
    let mut pointers = Vec::new();
    for file in needed {
        if !dir.join(&file).is_file() {
            let instead = if file == SINGLE { other_weights(dir) } else { None };
            wrong.push(format!("{file} is missing{}", instead.unwrap_or_default()));
        } else if is_pointer(&dir.join(&file)) {
            pointers.push(file);
        }
    }
    if !pointers.is_empty() {
        wrong.push(format!(
            "not fetched by Git LFS, which left a pointer in place of each: {}; run `git lfs install && git lfs pull` \
             in the folder",
            pointers.join(", ")
        ));
    }
    wrong
}

/// Whether the file is what Git LFS leaves where it was not asked to fetch.
fn is_pointer(path: &Path) -> bool {
    let mut start = [0; POINTER.len()];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && start == POINTER
}

/// What to do where a folder has weights in another form alone.
fn other_weights(dir: &Path) -> Option<String> {
    let names: Vec<String> = std::fs::read_dir(dir)
        .ok()?
        .filter_map(|entry| entry.ok())
        .filter(|entry| entry.path().is_file()) // a link may lead nowhere
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    only_other_weights(names.iter().map(String::as_str))
}

/// What to say of files that have weights, but none in safetensors.
pub(crate) fn only_other_weights<'a>(
    mut files: impl Iterator<Item = &'a str> + Clone,
) -> Option<String> {
    let has = |endings: &[&str]| {
        let mut files = files.clone();
        files.any(|file| endings.iter().any(|ending| file.ends_with(ending)))
    };
    if has(&[".gguf"]) {
        return Some(
            "; the weights are GGUF, which is not read: take the repo in safetensors that they were made from"
                .to_string(),
        );
    }
    if has(&[".bin", ".pth", ".pt"]) {
        return Some(
            "; the weights are PyTorch pickles (.bin, .pth), which are not read: take a revision in safetensors, or \
             convert them with transformers: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR)"
                .to_string(),
        );
    }
    let other = files.find(|file| file.ends_with(".safetensors") && !file.contains('/'))?;
    Some(format!(
        "; there is {other}, but weights in several files need {INDEX} beside them, and one file is to be named {SINGLE}"
    ))
}

/// The weight files a folder should have: the single one, or those its index names.
pub(crate) fn weight_files(dir: &Path) -> Result<Vec<String>, String> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index = dir.join(INDEX);
    if dir.join(SINGLE).is_file() || !index.is_file() {
        return Ok(vec![SINGLE.to_string()]);
    }
    if is_pointer(&index) {
        return Err(format!("{INDEX} is a Git LFS pointer: run `git lfs pull` in the folder"));
    }
    let unreadable = |error| format!("{INDEX} is unreadable: {error}");
    let file = std::fs::File::open(index).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(INDEX_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > INDEX_BYTES_MAX {
        return Err(format!("{INDEX} has over {INDEX_BYTES_MAX} bytes, which is the limit"));
    }
    let Index { weight_map } = serde_json::from_slice(&bytes)
        .map_err(|error| format!("{INDEX} is no index of weights: {error}"))?;
    let files: BTreeSet<String> = weight_map.into_values().collect();
    match files.iter().find(|file| !is_safe_part(file)) {
        Some(file) => Err(format!("{INDEX} names {file:?}, which is no file beside it")),
        None if files.is_empty() => Err(format!("{INDEX} names no file of weights")),
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
    fn git_lfs_pointers_are_named_with_their_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 269060552\n";
        write("config.json", "{}");
        write("tokenizer.json", pointer);
        write(SINGLE, pointer);
        let wrong = missing_files(dir.path(), false);
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        for part in ["tokenizer.json, model.safetensors", "Git LFS", "git lfs pull"] {
            assert!(wrong[0].contains(part), "{part} is not in: {wrong:?}");
        }
        std::fs::remove_file(dir.path().join(SINGLE)).unwrap();
        write(INDEX, pointer);
        assert!(missing_files(dir.path(), false)[0].contains("git lfs pull"));
    }

    #[test]
    fn weights_of_another_form_are_named_with_their_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str| std::fs::write(dir.path().join(name), "{}").unwrap();
        write("config.json");
        write("tokenizer.json");
        let told = |part: &str| {
            let wrong = missing_files(dir.path(), false).join("\n");
            assert!(wrong.contains(part), "{part} is not in: {wrong}");
        };
        write("weights.safetensors");
        told("there is weights.safetensors");
        write("pytorch_model.bin");
        told("save_pretrained");
        write("model-Q4_K_M.gguf");
        told("GGUF, which is not read");
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
