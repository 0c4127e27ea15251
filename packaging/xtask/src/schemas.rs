//! The test suite of JSON Schema, which daemon/grammar/tests/suite reads: in the source distribution of Python's jsonschema (MIT), as
//! a folder of it.
//!
//! It is other people's: fetched into `target`, never kept.
//!
//! Owns: the package's version. Must never: write outside of `target`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::model::folder;
use crate::{corpus, paths, python, sh};

/// The package, and the hash of its source distribution.
const PACKAGE: (&str, &str) =
    ("jsonschema==4.26.0", "0c26707e2efad8aa1bfc5b7ce170f3fccc2e4918ff85989ba9ffa9facb2be326");

/// The files in it, of one draft.
const FILES: &str = "jsonschema-4.26.0/json/tests/draft2020-12";

/// The folder with the suite's files, fetched if need be.
///
/// # Errors
/// No Python, or no network.
pub fn suite() -> Result<PathBuf> {
    let dir = paths::target().join("schema-suite");
    if !folder::is_whole(&dir, PACKAGE.1) {
        eprintln!("downloading {} from PyPI", PACKAGE.0);
        folder::publish(&dir, PACKAGE.1, unpack)?;
    }
    Ok(dir.join(FILES))
}

fn unpack(dir: &Path) -> Result<()> {
    let work = folder::Scratch::beside(&dir.join("package"))?;
    let python = python::TEMPLATES.python()?;
    let source = ["--no-binary", "jsonschema", PACKAGE.0];
    let archive = corpus::download(&python, &work.0, &source, "gz")?;
    folder::verify_sha256(&archive, PACKAGE.1)?;
    let mut tar = Command::new("tar");
    sh::run(tar.arg("-xzf").arg(&archive).arg("-C").arg(dir).arg(FILES), "install tar")
}
