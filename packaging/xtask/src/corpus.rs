//! Real chat templates and what transformers makes of them: `corpus.json`, which daemon/text/tests/corpus.rs reads.
//!
//! | package | templates |
//! |---|---|
//! | llama-cpp-python (MIT) | those that llama.cpp carries beside its source, some seventy |
//! | axolotl (Apache 2.0) | some forty that it trains with |
//! | @huggingface/ollama-utils (MIT) | those of GGUF files of Ollama's library, some ninety |
//!
//! The templates are other people's: fetched into `target`, never kept. Those that two have count once.
//!
//! Owns: these packages' versions. Must never: write outside of `target`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::model::{folder, npm};
use crate::{paths, python, sh};

/// The source distribution with llama.cpp's templates, and where they are in it.
const LLAMA_CPP: (&str, &str) = ("llama-cpp-python==0.3.36", "*/models/templates/*.jinja");
/// The wheel with axolotl's.
const AXOLOTL: &str = "axolotl==0.19.0";
/// The package with Ollama's, which `make_corpus.py` takes out of its source; what `npm pack` writes, and its hash.
const OLLAMA: (&str, &str, &str) = (
    "@huggingface/ollama-utils@0.0.18",
    "huggingface-ollama-utils-0.0.18.tgz",
    "3d8beba35ea5d634970e29090ab45234e54a3db8d9263cf72e0031c1cc44f8d5",
);
/// The file in it.
const OLLAMA_TEMPLATES: &str = "package/src/chat-template-automap.ts";

/// Where the corpus is; made if need be.
///
/// # Errors
/// No Python, no npm, or no network.
pub fn make() -> Result<PathBuf> {
    let dir = paths::target().join("corpus");
    let (corpus, stamp) = (dir.join("corpus.json"), dir.join("packages"));
    let python = python::TEMPLATES.python()?;
    let wanted = [LLAMA_CPP.0, AXOLOTL, OLLAMA.0].join("\n");
    if !std::fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        fetch(&python, &dir)?;
        std::fs::write(&stamp, wanted)?;
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
    let source = ["--no-build-isolation", "--no-binary", ":all:", LLAMA_CPP.0];
    let archive = download(python, dir, &source, "gz")?;
    let mut tar = Command::new("tar");
    tar.arg("-xzf").arg(&archive).arg("-C").arg(dir).args(["--wildcards", LLAMA_CPP.1]);
    sh::run(&mut tar, "tar unpacks it")?;
    std::fs::remove_file(archive)?;

    let wheel = download(python, dir, &["--only-binary", ":all:", AXOLOTL], "whl")?;
    let mut unzip = Command::new(python);
    unzip.args(["-m", "zipfile", "-e"]).arg(&wheel).arg(dir.join("axolotl"));
    sh::run(&mut unzip, "Python unpacks it")?;
    std::fs::remove_file(wheel)?;

    let mut pack = npm::npm()?;
    pack.args(["pack", "--silent", "--pack-destination"]).arg(dir).arg(OLLAMA.0);
    sh::capture(&mut pack, npm::REMEDY)?;
    let archive = dir.join(OLLAMA.1);
    folder::verify_sha256(&archive, OLLAMA.2)?;
    let mut tar = Command::new("tar");
    tar.arg("-xzf").arg(&archive).arg("-C").arg(dir).arg(OLLAMA_TEMPLATES);
    sh::run(&mut tar, "tar unpacks it")?;
    Ok(std::fs::remove_file(archive)?)
}

/// A package as pip finds it, in `dir`; it has this extension.
///
/// # Errors
/// No network.
pub fn download(python: &Path, dir: &Path, what: &[&str], extension: &str) -> Result<PathBuf> {
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]);
    sh::run(pip.args(what).arg("--dest").arg(dir), python::REMEDY)?;
    let found = std::fs::read_dir(dir)?.filter_map(|entry| Some(entry.ok()?.path()));
    let is_it = |path: &PathBuf| path.extension().is_some_and(|end| end == extension);
    found.into_iter().find(is_it).with_context(|| format!("pip left nothing in {}", dir.display()))
}
