//! npm's packages that tests use, under `target/npm`, and the Node.js that runs them.
//!
//! Owns: where they are. Their versions stand in `tests/node/*/package.json`. Must never: install anything elsewhere,
//! or use the machine's Node.js, whose age nobody knows.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{paths, python, sh};

const REMEDY: &str = "access to npm's registry is needed";

/// What is installed for one group of tests: a folder of `tests/node` with a `package.json`.
#[derive(Clone, Copy, Debug)]
pub struct Packages(&'static str);

/// What people build on the APIs. 70 MB.
pub const CLIENTS: Packages = Packages("clients");

/// Coding agents. 1.5 GB: each carries its own programs.
pub const AGENTS: Packages = Packages("agents");

/// The folder with all of them.
pub fn dir() -> PathBuf {
    paths::target().join("npm")
}

/// Node.js' folder of programs; made if need be.
///
/// # Errors
/// No Python, or no network.
pub fn programs() -> Result<PathBuf> {
    python::NODE.programs().context("Node.js")
}

impl Packages {
    /// Installs them, if need be.
    ///
    /// # Errors
    /// No Python, or no network.
    pub fn install(self) -> Result<()> {
        let source = paths::root().join("tests/node").join(self.0).join("package.json");
        let wanted = fs::read(&source).with_context(|| source.display().to_string())?;
        let (place, programs) = (dir().join(self.0), programs()?);
        let stamp = place.join("installed.json");
        if fs::read(&stamp).is_ok_and(|found| found == wanted) {
            return Ok(());
        }
        if place.exists() {
            fs::remove_dir_all(&place).with_context(|| place.display().to_string())?;
        }
        fs::create_dir_all(&place).with_context(|| place.display().to_string())?;
        fs::write(place.join("package.json"), &wanted)?;
        let mut npm = Command::new(programs.join("npm"));
        npm.current_dir(&place).env("PATH", path(programs)?).arg("install");
        npm.args(["--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"]);
        sh::run(&mut npm, REMEDY)?;
        fs::write(stamp, wanted).context("a stamp")
    }
}

/// npm and what packages run when they are installed find `node` by it.
fn path(programs: PathBuf) -> Result<OsString> {
    let machine = std::env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(programs).chain(std::env::split_paths(&machine));
    std::env::join_paths(all).context("a folder's name with a colon cannot be in a PATH")
}
