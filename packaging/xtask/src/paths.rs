//! Where things are in the checkout.

use std::path::{Path, PathBuf};

/// Root of the repository.
pub fn root() -> PathBuf {
    // The manifest is packaging/xtask/Cargo.toml: two folders down.
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_path_buf()
}

/// Cargo's build folder.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// Programs of others, each in a folder of its own.
pub fn tools() -> PathBuf {
    target().join("tools")
}

/// Fetched models, one folder each.
pub fn models() -> PathBuf {
    target().join("models")
}
