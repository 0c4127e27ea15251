//! Every architecture, and every scheme that weights are stored by, held to Hugging Face transformers: random checkpoints
//! that it saved or could have, and what it computed from them in f32 (`tests/fixtures/make_tiny_models.py`). On the CPU, on
//! one rank and on several.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};

use common::driver::{Drive, load, score};
use minisgl_engine::config::{Architecture, ModelConfig};
use minisgl_proto::{LoadOptions, SamplingParams};
use serde::Deserialize;

#[derive(Deserialize)]
struct Expected {
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    tokens: Vec<u32>,
    /// `[tokens][vocab]`: of the token after each.
    logprobs: Vec<Vec<f64>>,
}

/// Nothing but the order of sums differs, in nat.
const TOLERANCE: f64 = 2e-4;

fn folders() -> Vec<PathBuf> {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny");
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(all).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders
}

/// Log-probabilities of the whole vocabulary after each token but the last of each prompt.
fn check(dir: &Path, options: LoadOptions, chunk: usize) {
    let expected = std::fs::read_to_string(dir.join("expected.json")).unwrap();
    let Expected { prompts } = serde_json::from_str(&expected).unwrap();
    let vocab = prompts[0].logprobs[0].len();
    let tokens: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.tokens.clone()).collect();
    let sampling =
        SamplingParams { prompt_logprobs: Some(vocab as u32), ..SamplingParams::default() };
    let drive = Drive { chunk, sampling, ..Drive::default() };
    let (mut engine, info) = load(dir, options);
    let scores = score(&mut engine, &info, &mut 0, &tokens, &drive);
    let (mut compared, mut worst) = (0, 0.0f64);
    for (prompt, scores) in prompts.iter().zip(&scores) {
        assert_eq!(scores.len(), prompt.tokens.len() - 1);
        for (expected, score) in prompt.logprobs.iter().zip(scores) {
            assert_eq!(score.top.len(), vocab);
            for top in &score.top {
                let off = (expected[top.token as usize] - f64::from(top.logprob)).abs();
                assert!(off < TOLERANCE, "{}: {top:?} is {off} off", dir.display());
                worst = worst.max(off);
                compared += 1;
            }
        }
    }
    assert_eq!(compared, (4 + 22 + 39) * vocab);
    println!("{}: {compared} log-probabilities, {worst:.1e} nat apart at most", dir.display());
}

#[test]
fn every_architecture_computes_what_transformers_does() {
    let mut seen = Vec::new();
    for dir in folders() {
        for chunk in [64, 7] {
            check(&dir, LoadOptions::default(), chunk);
        }
        seen.push(ModelConfig::from_dir(&dir).unwrap().architecture);
    }
    for architecture in Architecture::ALL {
        assert!(seen.contains(&architecture), "{architecture:?} has no checkpoint");
    }
}

/// Codes stay codes: what is not in bf16 in the file is not in bf16 or f32 in memory either.
#[test]
fn quantised_weights_take_the_memory_of_their_file() {
    for (name, scheme) in [("qwen3_fp8", "fp8"), ("gpt_oss_mxfp4", "mxfp4")] {
        let dir = folders().into_iter().find(|dir| dir.ends_with(name)).unwrap();
        let (_engine, info) = load(&dir, LoadOptions::default());
        let file = std::fs::metadata(dir.join("model.safetensors")).unwrap().len();
        assert_eq!(info.dtype, scheme);
        // Scales and norms are widened to f32, rows padded to vectors.
        assert!(info.weight_bytes < file * 5 / 4, "{name}: {} of {file}", info.weight_bytes);
    }
}

#[test]
fn ranks_compute_it_together() {
    for dir in folders() {
        for tp in [2, 4] {
            check(&dir, LoadOptions { tp, ..LoadOptions::default() }, 64);
        }
    }
}
