//! What was measured on this machine's GPU, kept for the next load.
//!
//! Owns: where the file is, and that it is whole or not there. Must never: make a load fail; what cannot be
//! kept is measured again.
//!
//! The folder is `$CACHE_DIRECTORY` or `$STATE_DIRECTORY` (systemd gives these to a service that asks for them),
//! else `minisgld` in `$XDG_CACHE_HOME` or `~/.cache`. Without any of them nothing is kept.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A file is not longer than this.
const BYTES_MAX: u64 = 16 << 20;

/// Measurements of one kind of GPU.
pub(super) struct TunedFile {
    /// `None` where nothing can be kept.
    path: Option<PathBuf>,
    /// As it was read or written last.
    known: String,
}

impl TunedFile {
    /// Of the GPU that the driver calls `gpu`.
    pub(super) fn of(gpu: &str) -> TunedFile {
        let folder = tuned_folder();
        let path = folder.map(|folder| folder.join(file_name(gpu)));
        TunedFile { path, known: String::new() }
    }

    /// What was kept; empty if there is nothing.
    pub(super) fn read(&mut self) -> &str {
        self.known = self.path.as_deref().map(read).unwrap_or_default();
        &self.known
    }

    /// Says in one line that what was read is of no use.
    pub(super) fn refused(&self) {
        if let (Some(path), false) = (&self.path, self.known.is_empty()) {
            tracing::info!(
                "{} is damaged, or from another GPU or library: it is measured anew",
                path.display()
            );
        }
    }

    /// Keeps `text`, unless that is what is kept already.
    pub(super) fn write(&mut self, text: String) {
        let Some(path) = &self.path else { return };
        if text == self.known {
            return;
        }
        if let Err(error) = replace(path, &text) {
            tracing::warn!("cannot keep what was measured in {}: {error}", path.display());
        }
        self.known = text;
    }
}

fn read(path: &Path) -> String {
    let text = fs::metadata(path).and_then(|file| match file.len() {
        0..=BYTES_MAX => fs::read_to_string(path),
        len => Err(std::io::Error::other(format!("it has {len} bytes"))),
    });
    text.unwrap_or_else(|error| {
        if error.kind() != ErrorKind::NotFound {
            tracing::info!("{}: {error}: it is measured anew", path.display());
        }
        String::new()
    })
}

/// Whoever reads meanwhile finds the old text or the new one.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // Ranks of one process may write at once.
    static WRITES: AtomicU64 = AtomicU64::new(0);
    let count = WRITES.fetch_add(1, Ordering::Relaxed);
    let fresh = path.with_extension(format!("{}-{count}.tmp", std::process::id()));
    let written = fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, path));
    if written.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    written
}

/// Where what was measured is kept, if anywhere.
pub fn tuned_folder() -> Option<PathBuf> {
    folder(|name| std::env::var_os(name))
}

fn folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name| variable(name).filter(|value| !value.is_empty());
    // systemd lists all folders of a service; the first will do.
    let listed = |name| set(name).and_then(|list| std::env::split_paths(&list).next());
    listed("CACHE_DIRECTORY")
        .or_else(|| listed("STATE_DIRECTORY"))
        .or_else(|| set("XDG_CACHE_HOME").map(|home| Path::new(&home).join("minisgld")))
        .or_else(|| set("HOME").map(|home| Path::new(&home).join(".cache/minisgld")))
}

/// `gemm-NVIDIA-H100-80GB-HBM3.txt`
fn file_name(gpu: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    format!("gemm-{}.txt", gpu.chars().map(plain).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_systemds_or_the_users() {
        let of = |set: &[(&str, &str)]| {
            let value = |name: &str| {
                set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into())
            };
            folder(value).map(|path| path.display().to_string())
        };
        let all = [
            ("HOME", "/home/u"),
            ("XDG_CACHE_HOME", "/cache"),
            ("STATE_DIRECTORY", "/var/lib/minisgld"),
            ("CACHE_DIRECTORY", "/var/cache/minisgld:/var/cache/other"),
        ];
        assert_eq!(of(&all).unwrap(), "/var/cache/minisgld");
        assert_eq!(of(&all[..3]).unwrap(), "/var/lib/minisgld");
        assert_eq!(of(&all[..2]).unwrap(), "/cache/minisgld");
        assert_eq!(of(&all[..1]).unwrap(), "/home/u/.cache/minisgld");
        assert_eq!(of(&[("HOME", "")]), None);
        assert_eq!(file_name("NVIDIA H100 80GB/HBM3"), "gemm-NVIDIA-H100-80GB-HBM3.txt");
    }

    #[test]
    fn what_is_kept_is_read_back_and_what_cannot_be_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/folder/gemm.txt");
        let file = || TunedFile { path: Some(path.clone()), known: String::new() };
        assert_eq!(file().read(), "");
        file().write("one\n".to_owned());
        assert_eq!(file().read(), "one\n");
        // The same text is not written again.
        let mut same = file();
        same.read();
        fs::remove_file(&path).unwrap();
        same.write("one\n".to_owned());
        assert!(!path.exists());
        same.write("two\n".to_owned());
        assert_eq!(file().read(), "two\n");
        assert_eq!(
            fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "nothing else is left"
        );
        fs::write(&path, [0xff; 4]).unwrap();
        assert_eq!(file().read(), "", "no text");
        // A folder where the file should be, and none at all.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        file().write("three\n".to_owned());
        assert_eq!(file().read(), "");
        TunedFile { path: None, known: String::new() }.write("four\n".to_owned());
    }
}
