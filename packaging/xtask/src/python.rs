//! The official `openai` client, in a virtual environment under `target`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::{paths, sh};

/// What the Python tests import. Pinned: a new release of the client is looked at, not stumbled over.
pub const PACKAGES: [&str; 1] = ["openai==3.54.0"];

/// For whoever has no pip or network.
pub const REMEDY: &str = "Python 3 with venv and pip and access to PyPI are needed to test with the \
    official client (Debian: apt install python3-venv)";

/// The environment's interpreter; made if need be.
pub fn venv() -> Result<PathBuf> {
    let dir = paths::target().join("venv");
    let python = dir.join("bin/python");
    let stamp = dir.join("packages");
    let wanted = PACKAGES.join("\n");
    if std::fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(python);
    }
    sh::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&dir), REMEDY)?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    sh::run(Command::new(&python).args(pip).args(PACKAGES), REMEDY)?;
    std::fs::write(stamp, wanted)?;
    Ok(python)
}
