//! Where binaries, models and fixtures are. What is missing is a failure that names the remedy.

use std::path::{Path, PathBuf};

/// A release binary, from `MINISGL_BIN_DIR` or the build folder.
pub fn binary(name: &str) -> PathBuf {
    let folders = match std::env::var_os("MINISGL_BIN_DIR") {
        Some(dir) => vec![PathBuf::from(dir)],
        None => vec![target().join("release"), target().join("debug")],
    };
    let found = folders.iter().map(|dir| dir.join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("no {name} in {folders:?}; `cargo xtask test` builds it"))
}

/// The folder of SmolLM2-135M-Instruct.
pub fn smollm2() -> PathBuf {
    model("SmolLM2-135M-Instruct", "model.safetensors")
}

/// A folder with a tokenizer and a template: `qwen3` or `llama3_1`.
pub fn tokenizer(name: &str) -> PathBuf {
    model(&format!("tokenizers/{name}"), "tokenizer.json")
}

fn model(name: &str, file: &str) -> PathBuf {
    let models = match std::env::var_os("MINISGL_MODELS_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => target().join("models"),
    };
    let dir = models.join(name);
    let there = dir.join(file).exists();
    assert!(there, "no {file} in {}; `cargo xtask test` fetches it", dir.display());
    dir
}

/// A file or folder of `tests/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// A model folder under `parent` for dummy weights: a shape of `fixtures/dummy` with SmolLM2's tokenizer.
pub fn dummy_folder(shape: &str, parent: &Path) -> PathBuf {
    dummy_folder_with(shape, &smollm2(), parent)
}

/// The same with another tokenizer.
pub fn dummy_folder_with(shape: &str, tokenizer: &Path, parent: &Path) -> PathBuf {
    let dir = parent.join(shape);
    let copy = |from: PathBuf, name: &str| {
        let copied =
            std::fs::create_dir_all(&dir).and_then(|()| std::fs::copy(&from, dir.join(name)));
        copied.unwrap_or_else(|error| panic!("{} cannot be copied: {error}", from.display()));
    };
    copy(fixture("dummy").join(shape).join("config.json"), "config.json");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        copy(tokenizer.join(file), file);
    }
    dir
}

/// The build folder.
pub fn target() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// Where virtual environments of Python are, one for each pin of others.
pub fn venvs() -> PathBuf {
    std::env::var_os("MINISGL_VENVS_DIR").map_or_else(target, PathBuf::from)
}

/// A program of one of them.
pub fn venv_program(venv: &str, program: &str) -> PathBuf {
    let path = venvs().join(venv).join("bin").join(program);
    assert!(path.exists(), "no {}; `cargo xtask test` makes it", path.display());
    path
}
