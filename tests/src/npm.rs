//! Node.js and the packages that `cargo xtask test` puts into `target`. What is missing is a failure that names the remedy.

use std::path::PathBuf;

use crate::paths;

/// The program `node`, from `MINISGL_NODE_DIR` or the build folder.
///
/// # Panics
/// It is not there.
pub fn node() -> PathBuf {
    there(match std::env::var_os("MINISGL_NODE_DIR") {
        Some(dir) => PathBuf::from(dir).join("node"),
        None => paths::target().join("venv-node/bin/node"),
    })
}

/// The `node_modules` of a folder of `tests/node`, from `MINISGL_NPM_DIR` or the build folder.
///
/// # Panics
/// It is not there.
pub fn modules(name: &str) -> PathBuf {
    let dir = match std::env::var_os("MINISGL_NPM_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => paths::target().join("npm"),
    };
    there(dir.join(name).join("node_modules"))
}

fn there(path: PathBuf) -> PathBuf {
    assert!(path.exists(), "no {}; `cargo xtask test` makes it", path.display());
    path
}
