//! The package under test, and one with a higher version to upgrade to.
//!
//! Owns: how the two differ. Must never: change what the maintainer scripts do.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::remove;
use crate::sh;

/// Higher than any that will be released.
const UPGRADE_VERSION: &str = "999.0.0-1";

/// What the higher version's configuration has at its end: a file that operator and package have both changed.
const UPGRADE_CONFIG: &str = "# Of the version after.\n";

/// File names, in the folder that was given.
pub struct Packages {
    pub package: String,
    pub upgrade: String,
    pub upgrade_version: String,
}

/// Lays both into `dir`.
///
/// # Errors
/// dpkg-deb does not like the package.
pub fn prepare(deb: &Path, dir: &Path) -> Result<Packages> {
    remove(dir)?;
    fs::create_dir_all(dir)?;
    let name = |version: &str| format!("minisgld_{version}.deb");
    let (package, upgrade) = (name("built"), name(UPGRADE_VERSION));
    fs::copy(deb, dir.join(&package)).with_context(|| format!("copying {}", deb.display()))?;

    let tree = dir.join("tree");
    let remedy = "the package cannot be taken apart and put together again";
    sh::run(Command::new("dpkg-deb").arg("--raw-extract").arg(deb).arg(&tree), remedy)?;
    let control = tree.join("DEBIAN/control");
    let text = fs::read_to_string(&control)?;
    let lines = text.lines().map(|line| match line.strip_prefix("Version: ") {
        Some(_) => format!("Version: {UPGRADE_VERSION}\n"),
        None => format!("{line}\n"),
    });
    let changed: String = lines.collect();
    ensure!(changed.contains(UPGRADE_VERSION), "the package has no version:\n{text}");
    fs::write(&control, changed)?;
    let config = tree.join("etc/minisgld/minisgld.toml");
    let text = fs::read_to_string(&config)?;
    fs::write(&config, text + UPGRADE_CONFIG)?;
    let mut build = Command::new("dpkg-deb");
    build.args(["--root-owner-group", "-Zgzip", "-z1", "--build"]).arg(&tree);
    sh::capture(build.arg(dir.join(&upgrade)), remedy)?;
    remove(&tree)?;
    Ok(Packages { package, upgrade, upgrade_version: UPGRADE_VERSION.to_owned() })
}
