//! A small Debian in a folder, made once, and the openai client for its Python.
//!
//! Owns: which Debian, and what is in it. Must never: put anything of ours into it; the package does that.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{folder, remove};
use crate::{python, sh};

/// What is in it besides what every Debian has: an init, the bus it speaks on, and a Python for clients.
const PACKAGES: [&str; 5] = ["systemd", "systemd-sysv", "dbus", "python3", "ca-certificates"];

/// The Debian where this is none: its glibc has to be as new as the one that the binaries were linked with.
const DEFAULT_SUITE: &str = "trixie";

const REMEDY: &str = "access to Debian's packages is needed; see debootstrap.log in the folder";

/// The folder, made if need be.
///
/// # Errors
/// debootstrap failed.
pub fn fetch() -> Result<PathBuf> {
    let suite = suite();
    let dir = folder().join(format!("debian-{suite}"));
    // Beside it, so that nothing of ours is in it; written when all is done.
    let stamp = folder().join(format!("debian-{suite}.packages"));
    let wanted = PACKAGES.join(",");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(dir);
    }
    println!("    making a Debian {suite} in {}", dir.display());
    remove(&dir)?;
    fs::create_dir_all(folder())?;
    let mut command = Command::new("debootstrap");
    command.args(["--variant=minbase", &format!("--include={wanted}"), &suite]).arg(&dir);
    sh::capture(&mut command, REMEDY)?;
    // Downloaded packages, and lists of packages to come: the machine has no network.
    for unneeded in ["var/cache/apt/archives", "var/lib/apt/lists"] {
        remove(&dir.join(unneeded))?;
    }
    fs::create_dir_all(dir.join("var/cache/apt/archives/partial"))?;
    fs::create_dir_all(dir.join("var/lib/apt/lists/partial"))?;
    fs::write(stamp, wanted)?;
    Ok(dir)
}

/// This system's release if it is a Debian.
fn suite() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim_matches('"').to_owned())
    };
    let codename = value("VERSION_CODENAME").filter(|_| value("ID").as_deref() == Some("debian"));
    codename.unwrap_or_else(|| DEFAULT_SUITE.to_owned())
}

/// A folder with the openai client, for the Python of `debian`.
///
/// # Errors
/// It cannot be fetched.
pub fn python_packages(debian: &Path) -> Result<PathBuf> {
    let version = fs::read_dir(debian.join("usr/bin"))?.flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let version = name.strip_prefix("python3.")?;
        version.parse::<u32>().is_ok().then(|| format!("3.{version}"))
    });
    let version = version.context("debootstrap installed no Python")?;
    let dir = folder().join("python");
    let stamp = folder().join("python.packages");
    let wanted = format!("{version} {}", python::CLIENT.packages.join(" "));
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(dir);
    }
    remove(&dir)?;
    let mut command = Command::new("python3");
    command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    command.args(["--root-user-action=ignore", "--only-binary=:all:", "--python-version"]);
    command.arg(&version).arg("--target").arg(&dir).args(python::CLIENT.packages);
    // Its word on packages of this system, which it does not touch, is of no interest.
    sh::capture(&mut command, python::REMEDY)?;
    ensure!(dir.join("openai").is_dir(), "pip put no openai into {}", dir.display());
    fs::write(stamp, wanted)?;
    Ok(dir)
}
