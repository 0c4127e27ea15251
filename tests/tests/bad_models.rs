//! A model that cannot be loaded is refused with the file and the reason; the daemon stays up.

#![allow(clippy::unwrap_used)] // Helpers outside of #[test] functions are tests too.

use std::fs;
use std::path::{Path, PathBuf};

use minisgl_proto::LoadOptions;
use minisgl_proto::admin::AdminErrorCode;
use minisgl_tests::{Daemon, model_options, paths};

/// A copy of the model's folder, large files linked.
fn copy(daemon: &Daemon, name: &str) -> PathBuf {
    let dir = daemon.dir().join(name);
    fs::create_dir_all(&dir).unwrap();
    for entry in fs::read_dir(paths::smollm2()).unwrap() {
        let from = entry.unwrap().path();
        let to = dir.join(from.file_name().unwrap());
        if from.extension().is_some_and(|extension| extension == "safetensors") {
            std::os::unix::fs::symlink(fs::canonicalize(&from).unwrap(), to).unwrap();
        } else {
            fs::copy(from, to).unwrap();
        }
    }
    dir
}

fn refused(daemon: &Daemon, dir: &Path, words: &[&str]) {
    let error = daemon.try_load("bad", dir, model_options()).unwrap_err();
    for word in words {
        assert!(error.message.contains(word), "{word:?} is not in {:?}", error.message);
    }
    let gone = daemon.post("/generate", &serde_json::json!({"model": "bad", "input_ids": [1]}));
    assert!(matches!(gone.status, 404 | 503), "{}", gone.text());
}

/// Replaces the weights by their first `keep` bytes.
fn truncate(dir: &Path, keep: usize) {
    let path = dir.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, &bytes[..keep]).unwrap();
}

/// Rewrites the header of the weights, whose data stay as they are.
fn edit_header(dir: &Path, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let path = dir.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let text = String::from_utf8(bytes[8..8 + header].to_vec()).unwrap();
    assert!(text.contains(from));
    bytes[8..8 + header].copy_from_slice(text.replacen(from, to, 1).as_bytes());
    fs::write(&path, bytes).unwrap();
}

#[test]
fn each_is_refused_by_name() {
    let daemon = Daemon::start();

    refused(&daemon, &daemon.dir().join("nowhere"), &["nowhere"]);

    let dir = copy(&daemon, "no-config");
    fs::remove_file(dir.join("config.json")).unwrap();
    refused(&daemon, &dir, &["config.json"]);

    let dir = copy(&daemon, "broken-config");
    fs::write(dir.join("config.json"), "{\"hidden_size\": 576,").unwrap();
    refused(&daemon, &dir, &["config.json"]);

    let dir = copy(&daemon, "other-architecture");
    edit(&dir.join("config.json"), "LlamaForCausalLM", "MambaForCausalLM");
    refused(&daemon, &dir, &["MambaForCausalLM"]);

    let dir = copy(&daemon, "no-weights");
    fs::remove_file(dir.join("model.safetensors")).unwrap();
    refused(&daemon, &dir, &["safetensors"]);

    let dir = copy(&daemon, "cut-in-the-data");
    truncate(&dir, 100_000_000);
    refused(&daemon, &dir, &["model.safetensors"]);

    let dir = copy(&daemon, "cut-in-the-header");
    truncate(&dir, 1000);
    refused(&daemon, &dir, &["model.safetensors"]);

    let dir = copy(&daemon, "wrong-type");
    edit_header(&dir, "\"BF16\"", "\"I16\" ");
    refused(&daemon, &dir, &["I16"]);

    let dir = copy(&daemon, "missing-tensor");
    edit_header(&dir, "model.layers.7.mlp.up_proj.weight", "model.layers.7.mlp.no_proj.weight");
    refused(&daemon, &dir, &["layers.7.mlp"]);

    let dir = copy(&daemon, "misshapen");
    edit(&dir.join("config.json"), "\"intermediate_size\": 1536", "\"intermediate_size\": 1024");
    refused(&daemon, &dir, &["1536", "1024"]);

    let dir = copy(&daemon, "no-tokenizer");
    fs::remove_file(dir.join("tokenizer.json")).unwrap();
    refused(&daemon, &dir, &["tokenizer.json"]);

    let dir = copy(&daemon, "broken-tokenizer");
    fs::write(dir.join("tokenizer.json"), "{}").unwrap();
    refused(&daemon, &dir, &["tokenizer.json"]);

    // After all this the daemon serves as if nothing had been.
    daemon.load("good", &paths::smollm2(), model_options());
    minisgl_tests::greedy(&daemon, "good", &[1, 2, 3], 4);
}

#[test]
fn bad_options_are_refused() {
    let daemon = Daemon::start();
    let wrong = [
        (LoadOptions { page_size: 0, ..model_options() }, "page_size"),
        (LoadOptions { memory_ratio: Some(1.5), ..model_options() }, "memory_ratio"),
        (LoadOptions { chunk_tokens: Some(0), ..model_options() }, "chunk_tokens"),
        (LoadOptions { tp: 0, ..model_options() }, "tp"),
    ];
    for (options, word) in wrong {
        let error = daemon.try_load("bad", &paths::smollm2(), options).unwrap_err();
        let said = error.message.replace('-', "_");
        assert!(said.contains(word), "{word:?} is not in {error:?}");
    }
}

#[test]
fn a_name_is_taken_once() {
    let daemon = Daemon::with_smollm2(model_options());
    let error = daemon.try_load("smollm2", &paths::smollm2(), model_options()).unwrap_err();
    assert_eq!(error.code, AdminErrorCode::Conflict);
    assert!(error.message.contains("smollm2"), "{error:?}");
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from} is not in {}", path.display());
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}
