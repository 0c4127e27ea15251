//! Whole models on a GPU: held to the CPU, and to themselves run in other ways. Without a GPU nothing
//! runs and nothing is claimed. They want `--test-threads 1` and see to it themselves: while one thread of a process
//! records a graph, a call of another that concerns the whole context fails and spoils the recording.
//!
//! `MINISGL_SHAPES_DIR`, a folder of folders with `config.json` alone, adds a table of decode speeds over dummy
//! weights: `cargo test --features cuda --test cuda -- --nocapture`.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;
mod fidelity;
mod pages;
mod room;
mod tokens;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use common::driver::{Drive, allowed, generate, load, score, tokens};
use common::{
    Random, assert_broken, break_model, break_tensor, config, write_coded_model, write_model,
};
use minisgl_proto::{Attn, AttnBackend, Device, LoadOptions, Quantize, Sampled, SamplingParams};
use safetensors::Dtype;
use serde_json::{Value, json};

/// Bounds on differences of log-probabilities between bf16 and f32, in nat.
const MEAN_ERROR_MAX: f64 = 0.03;
const P99_ERROR_MAX: f64 = 0.12;

/// The same where activations are e4m3 as well, in steps of more rows than 8: each value is off by up to a sixteenth.
const CODED_MEAN_ERROR_MAX: f64 = 0.15;
const CODED_P99_ERROR_MAX: f64 = 0.6;
/// The same for mixtures of experts: where two experts are nearly as likely, rounding decides which a token goes to.
const MIXTURE_ERROR_MAX: (f64, f64) = (0.06, 0.6);

const VOCAB: usize = 515;

/// The GPU to oneself, until dropped; `None` without one.
fn gpu() -> Option<MutexGuard<'static, ()>> {
    static GPU: Mutex<()> = Mutex::new(());
    if !minisgl_kernels::testing::has_gpu() {
        return None;
    }
    // A test that failed leaves nothing behind.
    Some(GPU.lock().unwrap_or_else(PoisonError::into_inner))
}

fn on(device: Device) -> LoadOptions {
    LoadOptions { device, ..LoadOptions::default() }
}

/// A tiny model of each architecture, of sizes that the GPU has kernels for, a vocabulary aside. Windows are shorter than
/// most prompts.
fn models() -> Vec<(tempfile::TempDir, Value)> {
    let part = json!({"partial_rotary_factor": 0.75, "rope_scaling": null});
    let windows = json!({"use_sliding_window": true, "sliding_window": 33, "max_window_layers": 1});
    let shapes = [
        ("LlamaForCausalLM", 6, 2, 64, json!({})),
        ("MistralForCausalLM", 4, 4, 128, json!({})),
        ("Qwen2ForCausalLM", 5, 1, 64, json!({})),
        ("Qwen3ForCausalLM", 8, 2, 128, json!({})),
        ("Qwen2ForCausalLM", 6, 2, 128, windows),
        ("Gemma3ForCausalLM", 4, 1, 256, json!({})),
        ("LlamaForCausalLM", 4, 2, 64, json!({"attention_bias": true})),
        ("Phi3ForCausalLM", 4, 2, 96, part),
    ];
    let model = |(architecture, heads, kv_heads, head_dim, changes): (_, _, _, _, Value)| {
        let mut config: Value = config(architecture, heads, kv_heads, head_dim);
        for (key, value) in changes.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        config["hidden_size"] = json!(208);
        config["intermediate_size"] = json!(336);
        config["vocab_size"] = json!(VOCAB);
        let dir = tempfile::tempdir().unwrap();
        write_model(dir.path(), &config, Dtype::BF16, 7);
        (dir, config)
    };
    shapes.map(model).into()
}

/// The same of mixtures of experts: of all layers, of all but one beside a shared expert, and of few; gpt-oss' with weights of
/// bf16 and of MXFP4.
fn mixtures() -> Vec<(tempfile::TempDir, Value)> {
    let mxfp4 = json!({
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router",
                                   "model.embed_tokens", "lm_head"],
    });
    let shapes = [
        ("Qwen3MoeForCausalLM", json!({"moe_intermediate_size": 48, "num_experts": 12})),
        (
            "Qwen2MoeForCausalLM",
            json!({"moe_intermediate_size": 32, "shared_expert_intermediate_size": 80}),
        ),
        ("MixtralForCausalLM", json!({"sliding_window": null})),
        ("GptOssForCausalLM", json!({"intermediate_size": 80, "sliding_window": 24})),
        (
            "GptOssForCausalLM",
            json!({"hidden_size": 256, "intermediate_size": 128, "quantization_config": mxfp4}),
        ),
    ];
    let model = |(architecture, more): (&str, Value)| {
        let mut config: Value = config(architecture, 4, 2, 64);
        config["hidden_size"] = json!(208);
        config["intermediate_size"] = json!(336);
        config["vocab_size"] = json!(VOCAB);
        for (key, value) in more.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        let dir = tempfile::tempdir().unwrap();
        match config.get("quantization_config") {
            Some(_) => write_coded_model(dir.path(), &config, 7),
            None => drop(write_model(dir.path(), &config, Dtype::BF16, 7)),
        }
        (dir, config)
    };
    shapes.map(model).into()
}

fn prompts(seed: u64) -> Vec<Vec<u32>> {
    let mut random = Random(seed);
    [1, 2, 15, 16, 17, 70, 33, 200].iter().map(|&len| random.tokens(len, VOCAB)).collect()
}

fn run(dir: &Path, options: LoadOptions, drive: &Drive, prompts: &[Vec<u32>]) -> Vec<Vec<Sampled>> {
    let (mut engine, info) = load(dir, options);
    generate(&mut engine, &info, &mut 0, prompts, drive)
}

/// Absolute differences of log-probabilities: tokens that both report, and the expected token.
fn differences(got: &[Vec<Sampled>], expected: &[Vec<Sampled>]) -> Vec<f64> {
    let mut all = Vec::new();
    for (got, expected) in got.iter().flatten().zip(expected.iter().flatten()) {
        for top in &expected.top {
            let own = got.top.iter().find(|own| own.token == top.token);
            all.extend(own.map(|own| f64::from((own.logprob - top.logprob).abs())));
        }
        assert_eq!(got.top.len(), expected.top.len());
    }
    all
}

fn assert_close(what: &str, got: &[Vec<Sampled>], expected: &[Vec<Sampled>]) {
    assert_within(what, got, expected, (MEAN_ERROR_MAX, P99_ERROR_MAX));
}

fn assert_within(
    what: &str,
    got: &[Vec<Sampled>],
    expected: &[Vec<Sampled>],
    (mean_max, p99_max): (f64, f64),
) {
    let mut all = differences(got, expected);
    let reported: usize = expected.iter().flatten().map(|sampled| sampled.top.len()).sum();
    assert!(all.len() * 10 > reported * 9, "{what}: other tokens are likely");
    all.sort_by(f64::total_cmp);
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    let (p99, worst) = (all[all.len() * 99 / 100], all[all.len() - 1]);
    println!(
        "{what}: {} log-probabilities, mean {mean:.5}, p99 {p99:.5}, worst {worst:.5}",
        all.len()
    );
    assert!(mean <= mean_max && p99 <= p99_max, "{what}: mean {mean}, p99 {p99}");
}
