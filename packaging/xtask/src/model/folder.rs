//! Folders that appear whole or not at all, and tell later whether they are still whole.
//!
//! A folder is filled under a temporary name beside its place and renamed. Its `manifest.json` names
//! what made it and the size of each file; that is what a later run checks, in microseconds.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

const MANIFEST: &str = "manifest.json";

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Manifest {
    /// Hash of the source and version of the conversion.
    made_from: String,
    /// Path in the folder to size in bytes.
    files: BTreeMap<String, u64>,
}

/// Whether `dir` is whole and was made from `made_from`.
pub fn is_whole(dir: &Path, made_from: &str) -> bool {
    let read = || -> Result<bool> {
        let manifest: Manifest = serde_json::from_slice(&fs::read(dir.join(MANIFEST))?)?;
        Ok(manifest.made_from == made_from && manifest.files == sizes(dir)?)
    };
    read().unwrap_or(false)
}

/// Lets `fill` write into a new folder, then moves it to `dir`, replacing what is there.
pub fn publish(dir: &Path, made_from: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let scratch = Scratch::beside(dir)?;
    fill(&scratch.0)?;
    let manifest = Manifest { made_from: made_from.to_owned(), files: sizes(&scratch.0)? };
    fs::write(scratch.0.join(MANIFEST), serde_json::to_vec_pretty(&manifest)?)?;
    if is_whole(dir, made_from) {
        return Ok(()); // Another run was faster.
    }
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("removing the old {}", dir.display()))?;
    }
    fs::rename(&scratch.0, dir).with_context(|| format!("moving the new {}", dir.display()))
}

/// Checks the SHA-256 of a file, in hexadecimal.
pub fn verify_sha256(path: &Path, expected: &str) -> Result<()> {
    let mut file = fs::File::open(path).with_context(|| path.display().to_string())?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hash.update(&buffer[..count]),
        }
    }
    let found = format!("{:x}", hash.finalize());
    let name = path.display();
    ensure!(
        found == expected,
        "{name} has SHA-256 {found}, {expected} is pinned: not what we know"
    );
    Ok(())
}

/// A folder that is removed again unless it was renamed.
pub struct Scratch(pub PathBuf);

impl Scratch {
    /// An empty folder in the one that holds `path`.
    pub fn beside(path: &Path) -> Result<Self> {
        let name = path.file_name().context("a folder has a name")?.to_string_lossy();
        let scratch = path.with_file_name(format!(".{name}.{}", std::process::id()));
        if scratch.exists() {
            fs::remove_dir_all(&scratch)?;
        }
        fs::create_dir_all(&scratch).with_context(|| format!("making {}", scratch.display()))?;
        Ok(Scratch(scratch))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Size of every file under `dir` but the manifest.
fn sizes(dir: &Path) -> Result<BTreeMap<String, u64>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(dir)?.to_string_lossy().into_owned();
                files.insert(name, path.metadata()?.len());
            }
        }
    }
    files.remove(MANIFEST);
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_whole_until_touched() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("model");
        assert!(!is_whole(&dir, "v1"));
        publish(&dir, "v1", |dir| Ok(fs::write(dir.join("a"), "abc")?)).unwrap();
        assert!(is_whole(&dir, "v1"));
        assert!(!is_whole(&dir, "v2"));
        fs::write(dir.join("a"), "ab").unwrap();
        assert!(!is_whole(&dir, "v1"));
        publish(&dir, "v1", |dir| Ok(fs::write(dir.join("a"), "abc")?)).unwrap();
        assert!(is_whole(&dir, "v1"));
        fs::write(dir.join("b"), "").unwrap();
        assert!(!is_whole(&dir, "v1"));
    }

    #[test]
    fn a_failed_fill_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("model");
        let failed = publish(&dir, "v1", |dir| {
            fs::write(dir.join("a"), "abc")?;
            anyhow::bail!("no")
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_wrong_hash_is_named() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x");
        fs::write(&path, "abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        verify_sha256(&path, abc).unwrap();
        assert!(
            verify_sha256(&path, &abc.replace('b', "c"))
                .unwrap_err()
                .to_string()
                .contains("pinned")
        );
    }
}
