//! SGLang's benchmark of servers, out of its wheel: the client's files alone, without an engine and torch.
//!
//! It is other people's: fetched into `target`, never kept.
//!
//! Owns: the package's version. Must never: write outside of `target`.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::model::folder;
use crate::{corpus, paths, python, sh};

/// Whatever wheel suits the machine: only its Python is read.
const SGLANG: &str = "sglang==0.5.23";

const SGLANG_FILES: [&str; 2] = ["sglang/benchmark", "sglang/srt/utils/network.py"];

/// Fetches it, and what it needs, if need be.
///
/// # Errors
/// No Python, or no network.
pub fn fetch() -> Result<()> {
    python::SGLANG_CLIENT.programs()?;
    let dir = paths::target().join("sglang-client");
    if !folder::is_whole(&dir, SGLANG) {
        eprintln!("downloading {SGLANG} from PyPI");
        folder::publish(&dir, SGLANG, unpack)?;
    }
    Ok(())
}

fn unpack(dir: &Path) -> Result<()> {
    let work = folder::Scratch::beside(&dir.join("package"))?;
    let python = python::SGLANG_CLIENT.python()?;
    let archive = corpus::download(&python, &work.0, &["--only-binary", ":all:", SGLANG], "whl")?;
    let extract = "import sys, zipfile; wheel = zipfile.ZipFile(sys.argv[1]); \
        wheel.extractall(sys.argv[2], [n for n in wheel.namelist() if n.startswith(tuple(sys.argv[3:]))])";
    let mut unzip = Command::new(python);
    unzip.args(["-c", extract]).arg(archive).arg(dir).args(SGLANG_FILES);
    sh::run(&mut unzip, python::REMEDY)
}
