//! Real chat templates and what Jinja2 makes of them: `corpus.json`, which daemon/text/tests/corpus.rs reads.
//!
//! The templates are those that llama.cpp's Python package carries beside its source, some seventy, each of another
//! model. They are other people's: fetched into `target`, never kept.
//!
//! Owns: that package's version. Must never: write outside of `target`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{paths, python, sh};

/// The source distribution with the templates.
const PACKAGE: &str = "llama-cpp-python==0.3.36";
/// Where they are in it.
const TEMPLATES: &str = "*/models/templates/*.jinja";

/// Where the corpus is; made if need be.
///
/// # Errors
/// No Python, or no network.
pub fn make() -> Result<PathBuf> {
    let dir = paths::target().join("corpus");
    let (corpus, stamp) = (dir.join("corpus.json"), dir.join("package"));
    let python = python::JINJA2.python()?;
    if !std::fs::read_to_string(&stamp).is_ok_and(|found| found == PACKAGE) {
        fetch(&python, &dir)?;
        std::fs::write(&stamp, PACKAGE)?;
    }
    // Made anew each time: the conversations change, and some templates write the date.
    let script = paths::root().join("tests/fixtures/make_corpus.py");
    let mut make = Command::new(python);
    make.env("PYTHONDONTWRITEBYTECODE", "1").arg(script).arg(&dir).arg(&corpus);
    sh::run(&mut make, "the script is tests/fixtures/make_corpus.py")?;
    Ok(corpus)
}

fn fetch(python: &Path, dir: &Path) -> Result<()> {
    if dir.exists() {
        std::fs::remove_dir_all(dir)?;
    }
    std::fs::create_dir_all(dir)?;
    let mut pip = Command::new(python);
    let download = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"];
    let source = ["--no-build-isolation", "--no-binary", ":all:", PACKAGE, "--dest"];
    sh::run(pip.args(download).args(source).arg(dir), python::REMEDY)?;
    let archives = std::fs::read_dir(dir)?.filter_map(|entry| Some(entry.ok()?.path()));
    let archive = archives.into_iter().find(|path| path.extension().is_some_and(|end| end == "gz"));
    let archive = archive.with_context(|| format!("pip left no archive in {}", dir.display()))?;
    let mut tar = Command::new("tar");
    tar.arg("-xzf").arg(&archive).arg("-C").arg(dir).args(["--wildcards", TEMPLATES]);
    sh::run(&mut tar, "tar unpacks it")?;
    Ok(std::fs::remove_file(archive)?)
}
