//! Whole models on a GPU: held to the CPU, and to themselves run in other ways. Without a GPU nothing
//! runs and nothing is claimed. They want `--test-threads 1` and see to it themselves: while one thread of a process
//! records a graph, a call of another that concerns the whole context fails and spoils the recording.
//!
//! `MINISGL_SHAPES_DIR`, a folder of folders with `config.json` alone, adds a table of decode speeds over dummy
//! weights: `cargo test --features cuda --test cuda -- --nocapture`.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

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

/// Weights of e4m3, as checkpoints have them and made at load: in steps of so few rows that none is quantised as on the CPU, in
/// larger ones as near as e4m3 is, on two ranks where there are two GPUs; the same bits each time.
#[test]
fn models_of_e4m3_are_the_cpus() {
    let Some(_gpu) = gpu() else { return };
    let compressed = |strategy: &str| {
        let weights = json!({"num_bits": 8, "type": "float", "strategy": strategy});
        json!({"quant_method": "compressed-tensors", "format": "float-quantized",
               "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
               "ignore": ["lm_head"]})
    };
    let block = json!({"quant_method": "fp8", "weight_block_size": [128, 128]});
    // The head too.
    let head = json!({"quant_method": "fp8", "weight_block_size": [128, 128],
                      "modules_to_not_convert": ["model.embed_tokens"]});
    let ranks = if minisgl_kernels::Device::count() > 1 { vec![1, 2] } else { vec![1] };
    let (dense, biased) = ("Qwen3ForCausalLM", "Qwen2ForCausalLM");
    let (mixture, shared, large) =
        ("Qwen3MoeForCausalLM", "Qwen2MoeForCausalLM", "MixtralForCausalLM");
    for (name, quantization, architecture) in [
        ("block", Some(block.clone()), dense),
        ("block with the head", Some(head), dense),
        ("channel", Some(compressed("channel")), biased),
        ("tensor", Some(compressed("tensor")), dense),
        ("quantised at load", None, biased),
        ("experts, block", Some(block.clone()), mixture),
        ("experts beside a shared one, block", Some(block), shared),
        ("experts, channel", Some(compressed("channel")), mixture),
        ("experts, tensor", Some(compressed("tensor")), large),
        ("experts, quantised at load", None, shared),
    ] {
        let mut config: Value = config(architecture, 8, 2, 128);
        let experts = [mixture, shared, large].contains(&architecture);
        for (key, value) in [
            ("hidden_size", json!(256)),
            ("intermediate_size", json!(512)),
            ("vocab_size", json!(VOCAB)),
            ("tie_word_embeddings", json!(false)),
            ("sliding_window", Value::Null),
        ] {
            config[key] = value;
        }
        // A token goes to all experts: to which of two that are nearly as likely would hang on how activations are rounded.
        if experts {
            config["moe_intermediate_size"] = json!(256);
            config["shared_expert_intermediate_size"] = json!(256);
            config["num_experts"] = json!(5);
            config["num_local_experts"] = json!(5);
            config["num_experts_per_tok"] = json!(5);
        }
        let dir = tempfile::tempdir().unwrap();
        let quantize = if quantization.is_none() { Quantize::Fp8 } else { Quantize::None };
        match quantization {
            Some(quantization) => {
                config["quantization_config"] = quantization;
                write_coded_model(dir.path(), &config, 7);
            }
            None => drop(write_model(dir.path(), &config, Dtype::BF16, 7)),
        }
        // Of mixtures, and of one dense model, so many that steps of decode rows are many rows, too.
        let mut prompts = prompts(3);
        let mut random = Random(19);
        prompts.extend(
            (0..if experts || name == "block" { 20 } else { 0 }).map(|_| random.tokens(5, VOCAB)),
        );
        let drive = Drive { new_tokens: 12, ..Drive::default() };
        let on = |device| LoadOptions { quantize, ..on(device) };
        let expected = run(dir.path(), on(Device::Cpu), &drive, &prompts);
        for &tp in &ranks {
            for (chunk, bounds) in [
                (8, (MEAN_ERROR_MAX, P99_ERROR_MAX)),
                (40, (CODED_MEAN_ERROR_MAX, CODED_P99_ERROR_MAX)),
                (512, (CODED_MEAN_ERROR_MAX, CODED_P99_ERROR_MAX)),
            ] {
                let count = prompts.len().min(chunk);
                let (prompts, expected) = (&prompts[..count], &expected[..count]);
                let forced = Some(tokens(expected));
                let drive = Drive { forced, chunk, ..drive.clone() };
                let options = || LoadOptions { tp, ..on(Device::Cuda) };
                let got = run(dir.path(), options(), &drive, prompts);
                let what = format!("e4m3, {name}, in chunks of {chunk}, on {tp}");
                assert_within(&what, &got, expected, bounds);
                assert_eq!(run(dir.path(), options(), &drive, prompts), got, "{what}: twice");
            }
        }
    }
}

/// Prefill and decode, fed the CPU's tokens.
#[test]
fn every_architecture_is_the_cpus() {
    let Some(_gpu) = gpu() else { return };
    for (dir, config) in models() {
        let prompts = prompts(3);
        let drive = Drive { new_tokens: 12, ..Drive::default() };
        let expected = run(dir.path(), on(Device::Cpu), &drive, &prompts);
        let drive = Drive { forced: Some(tokens(&expected)), ..drive };
        let name = config["architectures"][0].as_str().unwrap();
        let auto = Attn::default();
        let fi = Attn { prefill: AttnBackend::Fi, decode: AttnBackend::Fi };
        for (what, chunk, page_size, attn) in [
            ("in chunks of 64", 64, 16, auto),
            ("whole", 512, 16, auto),
            ("page size 1", 100, 1, auto),
            ("by fi", 64, 16, fi),
        ] {
            let options = LoadOptions { page_size, attn, ..on(Device::Cuda) };
            let drive = Drive { chunk, ..drive.clone() };
            let got = run(dir.path(), options, &drive, &prompts);
            assert_close(&format!("{name} {what}"), &got, &expected);
        }
    }
}

/// Of layers that see a window a request keeps the pages of a window, which the driver gives it again and again: what they held
/// before is not seen, by any kernel, in steps that are replayed or not.
#[test]
fn pages_behind_a_window_serve_other_tokens() {
    let Some(_gpu) = gpu() else { return };
    let ranks = if minisgl_kernels::Device::count() > 1 { vec![1, 2] } else { vec![1] };
    let windowed = models().into_iter().skip(4).take(2).chain(mixtures().into_iter().skip(3));
    for (dir, mut config) in windowed {
        config["max_position_embeddings"] = json!(2048);
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let name = config["architectures"][0].as_str().unwrap();
        let bounds = match name {
            "GptOssForCausalLM" => MIXTURE_ERROR_MAX,
            _ => (MEAN_ERROR_MAX, P99_ERROR_MAX),
        };
        let mut random = Random(29);
        let prompts: Vec<_> =
            [1, 700, 33, 431].iter().map(|&len| random.tokens(len, VOCAB)).collect();
        let drive = Drive { new_tokens: 40, ..Drive::default() };
        let expected = run(dir.path(), on(Device::Cpu), &drive, &prompts);
        let drive = Drive { forced: Some(tokens(&expected)), ..drive };
        let by = |backend| Attn { prefill: backend, decode: backend };
        for (what, chunk, page_size, attn) in [
            ("in chunks of 64", 64, 16, Attn::default()),
            ("in chunks of 200", 200, 16, Attn::default()),
            ("page size 1", 64, 1, Attn::default()),
            ("by fa", 100, 16, by(AttnBackend::Fa)),
            ("by fi", 64, 16, by(AttnBackend::Fi)),
        ] {
            for &tp in &ranks {
                let options = LoadOptions { page_size, attn, tp, ..on(Device::Cuda) };
                let drive = Drive { chunk, ..drive.clone() };
                let (mut engine, info) = load(dir.path(), options);
                let windows = info.groups.windows();
                assert!(windows.groups > 0 && windows.keep + chunk < 600, "{windows:?}");
                let got = generate(&mut engine, &info, &mut 0, &prompts, &drive);
                assert_within(&format!("{name} {what} on {tp}"), &got, &expected, bounds);
            }
        }
    }
}

/// Prefill and decode of mixtures of experts, fed the CPU's tokens, on one rank and on two; batches that mix prompts and decode rows,
/// few and many rows, and steps that are replayed. The same again gives the same bits.
#[test]
fn mixtures_of_experts_are_the_cpus() {
    let Some(_gpu) = gpu() else { return };
    let ranks = if minisgl_kernels::Device::count() > 1 { vec![1, 2] } else { vec![1] };
    for (dir, config) in mixtures() {
        let name = config["architectures"][0].as_str().unwrap();
        let mut random = Random(17);
        let crowd: Vec<_> = (0..90).map(|_| random.tokens(5, VOCAB)).collect();
        for (prompts, new_tokens) in [(prompts(3), 12), (crowd, 5)] {
            let drive = Drive { new_tokens, ..Drive::default() };
            let expected = run(dir.path(), on(Device::Cpu), &drive, &prompts);
            let drive = Drive { forced: Some(tokens(&expected)), ..drive };
            for (chunk, &tp) in
                [64, 512].into_iter().flat_map(|chunk| ranks.iter().map(move |tp| (chunk, tp)))
            {
                let drive = Drive { chunk, ..drive.clone() };
                let options = || LoadOptions { tp, ..on(Device::Cuda) };
                let got = run(dir.path(), options(), &drive, &prompts);
                let what =
                    format!("{name}, {} prompts in chunks of {chunk} on {tp}", prompts.len());
                assert_within(&what, &got, &expected, MIXTURE_ERROR_MAX);
                assert_eq!(run(dir.path(), options(), &drive, &prompts), got, "{what}: twice");
                let waiting = Drive { overlap: false, ..drive.clone() };
                assert_eq!(run(dir.path(), options(), &waiting, &prompts), got, "{what}: waiting");
            }
        }
    }
}

/// Twice the same is the same bits; overlapped or not too; alone or chunked otherwise is close.
#[test]
fn overlap_changes_no_bit_and_batches_little() {
    let Some(_gpu) = gpu() else { return };
    for (dir, config) in models() {
        let name = config["architectures"][0].as_str().unwrap();
        let prompts = prompts(5);
        let drive = Drive { new_tokens: 10, ..Drive::default() };
        // The driver orders rows by the number of the step: each run starts anew.
        let again =
            |drive: &Drive, prompts: &[Vec<u32>]| run(dir.path(), on(Device::Cuda), drive, prompts);
        let crowd = again(&drive, &prompts);
        assert_eq!(again(&drive, &prompts), crowd, "{name}: twice");
        let waiting = Drive { overlap: false, ..drive.clone() };
        assert_eq!(again(&waiting, &prompts), crowd, "{name}: without overlap");
        let forced = Drive { forced: Some(tokens(&crowd)), ..drive.clone() };
        let whole = again(&Drive { chunk: 500, ..forced.clone() }, &prompts);
        assert_close(&format!("{name} whole against chunked"), &whole, &crowd);
        for (at, prompt) in prompts.iter().enumerate() {
            let own = Drive { forced: Some(vec![tokens(&crowd)[at].clone()]), ..drive.clone() };
            let alone = again(&own, std::slice::from_ref(prompt));
            assert_close(&format!("{name} prompt {at} alone"), &alone, &crowd[at..=at]);
            assert_eq!(again(&own, std::slice::from_ref(prompt)), alone, "alone, twice");
        }
    }
}

/// Decode attention begins before the kernels ahead of it have ended. With one layer as few of them as there can be lie between the
/// page that a step writes, or the table that it changes, and the next step's reads: one row and few, page after page.
#[test]
fn what_is_read_early_was_written() {
    let Some(_gpu) = gpu() else { return };
    for page_size in [1, 16] {
        for (architecture, heads, kv_heads, head_dim) in
            [("Qwen3ForCausalLM", 8, 2, 128), ("LlamaForCausalLM", 4, 2, 64)]
        {
            let mut config: Value = config(architecture, heads, kv_heads, head_dim);
            config["num_hidden_layers"] = json!(1);
            config["hidden_size"] = json!(64);
            config["intermediate_size"] = json!(64);
            config["vocab_size"] = json!(VOCAB);
            let dir = tempfile::tempdir().unwrap();
            write_model(dir.path(), &config, Dtype::BF16, 7);
            let mut random = Random(29);
            for lens in [&[5][..], &[1, 33, 2, 70, 16]] {
                let prompts: Vec<_> = lens.iter().map(|&len| random.tokens(len, VOCAB)).collect();
                let drive = Drive { new_tokens: 120, ..Drive::default() };
                let of = |device| LoadOptions { page_size, ..on(device) };
                let expected = run(dir.path(), of(Device::Cpu), &drive, &prompts);
                let drive = Drive { forced: Some(tokens(&expected)), ..drive };
                let got = run(dir.path(), of(Device::Cuda), &drive, &prompts);
                let what = format!("{architecture}, one layer, pages of {page_size}, {lens:?}");
                assert_close(&what, &got, &expected);
                assert_eq!(
                    run(dir.path(), of(Device::Cuda), &drive, &prompts),
                    got,
                    "{what}: twice"
                );
            }
        }
    }
}

/// Steps of more rows than logits are held of at once, recorded like others: sampled in parts.
#[test]
fn a_crowd_of_many_rows_is_the_cpus() {
    let Some(_gpu) = gpu() else { return };
    let (dir, _) = models().swap_remove(3);
    let mut random = Random(23);
    let prompts: Vec<_> = (0..410).map(|_| random.tokens(3, VOCAB)).collect();
    let drive = Drive { new_tokens: 6, chunk: 2048, ..Drive::default() };
    let of = |device| {
        let (kv_tokens, chunk_tokens) = (Some(1 << 13), Some(2048));
        LoadOptions { max_running: 600, kv_tokens, chunk_tokens, ..on(device) }
    };
    let expected = run(dir.path(), of(Device::Cpu), &drive, &prompts);
    let drive = Drive { forced: Some(tokens(&expected)), ..drive };
    let got = run(dir.path(), of(Device::Cuda), &drive, &prompts);
    assert_close("410 rows", &got, &expected);
    // More masks than are sent at a time.
    let masked = Drive { masked: true, forced: None, ..drive.clone() };
    let expected = run(dir.path(), of(Device::Cpu), &masked, &prompts);
    let masked = Drive { forced: Some(tokens(&expected)), ..masked };
    assert_close(
        "410 rows, 273 masks",
        &run(dir.path(), of(Device::Cuda), &masked, &prompts),
        &expected,
    );
    assert_eq!(run(dir.path(), of(Device::Cuda), &drive, &prompts), got, "twice");
}

/// Masks come between two halves of a step: as on the CPU, with graphs and eagerly, and on two ranks where there are two
/// GPUs. Of rows that have none nothing changes.
#[test]
fn tokens_under_masks_are_the_cpus() {
    let Some(_gpu) = gpu() else { return };
    let (dir, _) = models().swap_remove(3);
    let prompts = prompts(31);
    let drive = Drive { new_tokens: 12, masked: true, ..Drive::default() };
    let expected = run(dir.path(), on(Device::Cpu), &drive, &prompts);
    let drive = Drive { forced: Some(tokens(&expected)), ..drive };
    let ranks = if minisgl_kernels::Device::count() > 1 { 2 } else { 1 };
    for (tp, overlap) in [(1, true), (1, false), (ranks, true)] {
        let drive = Drive { overlap, ..drive.clone() };
        let options = LoadOptions { tp, ..on(Device::Cuda) };
        let got = run(dir.path(), options.clone(), &drive, &prompts);
        for (slot, (prompt, output)) in prompts.iter().zip(&got).enumerate() {
            for (at, sampled) in output.iter().enumerate() {
                let allows = |token: u32| allowed(slot, prompt.len() + at, token);
                let best = sampled.top.iter().find(|top| allows(top.token));
                assert!(best.is_none_or(|best| best.token == sampled.token), "{slot} at {at}");
                assert!(allows(sampled.token), "request {slot}, token {at}");
            }
        }
        assert_close(&format!("tp {tp}, overlap {overlap}"), &got, &expected);
        assert_eq!(run(dir.path(), options, &drive, &prompts), got, "twice");
    }
}

/// Prompts score what they score on the CPU: in chunks, beside requests that decode, with few rows of logits held
/// at once, and on two ranks where there are two GPUs. Tokens are those that come without a score.
#[test]
fn prompts_get_the_cpus_log_probabilities() {
    let Some(_gpu) = gpu() else { return };
    for (dir, config) in models() {
        let name = config["architectures"][0].as_str().unwrap();
        let prompts = prompts(21);
        let sampling = |from| SamplingParams {
            prompt_logprobs: Some(50),
            prompt_logprobs_from: from,
            ..SamplingParams::default()
        };
        let scores = |options: LoadOptions, drive: &Drive| {
            let (mut engine, info) = load(dir.path(), options);
            let first = score(&mut engine, &info, &mut 0, &prompts, drive);
            drop(engine);
            first
        };
        let divides = config["num_key_value_heads"].as_u64().unwrap() % 2 == 0;
        let ranks = if divides && minisgl_kernels::Device::count() > 1 { 2 } else { 1 };
        for (from, chunk, new_tokens, max_running, tp) in
            [(0, 64, 0, 256, 1), (9, 200, 0, 8, 1), (0, 100, 4, 256, 1), (0, 200, 0, 16, ranks)]
        {
            let drive = Drive { sampling: sampling(from), chunk, new_tokens, ..Drive::default() };
            let options = |device| LoadOptions { max_running, ..on(device) };
            let expected = scores(options(Device::Cpu), &drive);
            let on_gpu = || LoadOptions { tp, ..options(Device::Cuda) };
            let got = scores(on_gpu(), &drive);
            let what = format!("{name} from {from} in chunks of {chunk} on {tp}");
            assert_eq!(tokens(&got), tokens(&expected), "{what}");
            assert_close(&what, &got, &expected);
            assert_eq!(scores(on_gpu(), &drive), got, "{what}: twice");
        }
        let plain = Drive { new_tokens: 6, ..Drive::default() };
        let scored = Drive { sampling: sampling(0), ..plain.clone() };
        let run = |drive: &Drive| run(dir.path(), on(Device::Cuda), drive, &prompts);
        assert_eq!(tokens(&run(&scored)), tokens(&run(&plain)), "{name}: scores change no token");
    }
}

/// Every setting of the sampler at once, over and over: a request is reproducible from its seed.
#[test]
fn sampled_requests_repeat_with_their_seed() {
    let Some(_gpu) = gpu() else { return };
    let (dir, _) = models().remove(0);
    let sampling = SamplingParams {
        temperature: 0.9,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.01,
        repetition_penalty: 1.1,
        presence_penalty: 0.3,
        frequency_penalty: 0.2,
        logit_bias: vec![(3, 1.5), (77, -2.0)],
        seed: 11,
        ..SamplingParams::default()
    };
    let drive = Drive { sampling, new_tokens: 20, ..Drive::default() };
    let first = run(dir.path(), on(Device::Cuda), &drive, &prompts(9));
    assert_eq!(run(dir.path(), on(Device::Cuda), &drive, &prompts(9)), first);
    let other = SamplingParams { seed: 12, ..drive.sampling.clone() };
    let other = run(dir.path(), on(Device::Cuda), &Drive { sampling: other, ..drive }, &prompts(9));
    assert_ne!(tokens(&other), tokens(&first));
}

/// A checkpoint with a NaN gives no token: with one request and with more than a product of few rows takes, alone and over
/// ranks, eagerly and in a graph.
#[test]
fn a_model_whose_logits_are_nan_gives_no_token() {
    let Some(_gpu) = gpu() else { return };
    let (dir, _) = models().remove(3);
    break_model(dir.path());
    let ranks = if minisgl_kernels::Device::count() > 1 { vec![1, 2] } else { vec![1] };
    for tp in ranks {
        let options = LoadOptions { tp, kv_tokens: Some(1 << 14), ..on(Device::Cuda) };
        let (mut engine, info) = load(dir.path(), options);
        let mut step = 0;
        for count in [1, 40] {
            let mut random = Random(count);
            let prompts: Vec<_> = (0..count).map(|_| random.tokens(9, VOCAB)).collect();
            for sampling in [
                SamplingParams::default(),
                SamplingParams { temperature: 0.8, top_p: 0.9, ..SamplingParams::default() },
                SamplingParams { presence_penalty: 0.5, ..SamplingParams::default() },
            ] {
                let drive = Drive { chunk: 512, new_tokens: 2, sampling, ..Drive::default() };
                assert_broken(&generate(&mut engine, &info, &mut step, &prompts, &drive), 2);
                let asks = SamplingParams { prompt_logprobs: Some(3), ..drive.sampling.clone() };
                let scored = Drive { new_tokens: 1, sampling: asks, ..drive };
                let all = score(&mut engine, &info, &mut step, &prompts[..1], &scored);
                assert_broken(&all, 8);
            }
        }
    }
}

/// A token whose embedding is NaN, and so are keys and values of all that see it.
const BROKEN: u32 = 3;

/// What a request that is broken leaves in pages, and writes beside others that run with it, reaches none of these: not where they
/// take its pages, nor where it takes theirs.
#[test]
fn a_broken_request_harms_no_other() {
    let Some(_gpu) = gpu() else { return };
    let mixture = mixtures().remove(3);
    for (dir, mut config) in models().into_iter().skip(4).step_by(3).chain([mixture]) {
        config["tie_word_embeddings"] = json!(false);
        config["max_position_embeddings"] = json!(2048);
        let name = config["architectures"][0].as_str().unwrap();
        let bounds = match name {
            "GptOssForCausalLM" => MIXTURE_ERROR_MAX,
            _ => (MEAN_ERROR_MAX, P99_ERROR_MAX),
        };
        let hidden = config["hidden_size"].as_u64().unwrap() as usize;
        write_model(dir.path(), &config, Dtype::BF16, 7);
        let row = BROKEN as usize * hidden;
        break_tensor(dir.path(), "model.embed_tokens.weight", row..row + hidden);
        let mut random = Random(31);
        let mut draw = |len: usize, is_broken: bool| -> Vec<u32> {
            let tokens = random.tokens(len, VOCAB).into_iter().enumerate();
            let token = |(at, token): (usize, u32)| match is_broken && at % 8 == 0 {
                true => BROKEN,
                false => token.max(BROKEN + 1),
            };
            tokens.map(token).collect()
        };
        // In turn: requests at odd places are broken.
        let lens = [701, 300, 17, 433, 350, 96, 430, 33];
        let mixed: Vec<_> =
            lens.iter().enumerate().map(|(i, &len)| draw(len, i % 2 == 1)).collect();
        let every_other = |from: usize| mixed.iter().skip(from).step_by(2).cloned().collect();
        let (good, broken): (Vec<_>, Vec<_>) = (every_other(0), every_other(1));
        let forced: Vec<_> = (0..4).map(|_| draw(40, false)).collect();
        let kv_tokens = Some(4096);
        let drive = Drive { new_tokens: 40, forced: Some(forced.clone()), ..Drive::default() };
        let expected = run(dir.path(), LoadOptions { kv_tokens, ..on(Device::Cpu) }, &drive, &good);
        let by = |backend| Attn { prefill: backend, decode: backend };
        for (what, chunk, page_size, attn) in [
            ("in chunks of 200", 200, 16, Attn::default()),
            ("page size 1", 64, 1, Attn::default()),
            ("by fa", 150, 16, by(AttnBackend::Fa)),
            ("by fi", 150, 16, by(AttnBackend::Fi)),
        ] {
            let options = LoadOptions { page_size, attn, kv_tokens, ..on(Device::Cuda) };
            let (mut engine, info) = load(dir.path(), options);
            let mut step = 0;
            let mut generate = |prompts: &[Vec<u32>], forced: Vec<Vec<u32>>| {
                let drive = Drive { chunk, forced: Some(forced), ..drive.clone() };
                generate(&mut engine, &info, &mut step, prompts, &drive)
            };
            let nans = vec![vec![BROKEN; 40]; 4];
            assert_broken(&generate(&broken, nans.clone()), 40);
            let after = generate(&good, forced.clone());
            assert_within(&format!("{name} {what}, after broken ones"), &after, &expected, bounds);
            let both = forced.iter().zip(&nans).flat_map(|(a, b)| [a.clone(), b.clone()]).collect();
            let all = generate(&mixed, both);
            let of =
                |from: usize| -> Vec<_> { all.iter().skip(from).step_by(2).cloned().collect() };
            assert_broken(&of(1), 40);
            assert_within(&format!("{name} {what}, beside broken ones"), &of(0), &expected, bounds);
        }
    }
}

#[test]
fn what_a_gpu_cannot_do_is_refused() {
    let Some(_gpu) = gpu() else { return };
    let (dir, _) = models().remove(0);
    let refusal = |options: LoadOptions| {
        let loaded = minisgl_engine::Engine::load(dir.path(), &options, &mut |_| ());
        loaded.err().expect("refused").to_string()
    };
    let too_many = 2 * minisgl_kernels::Device::count() as u32;
    let refused = refusal(LoadOptions { tp: too_many, ..on(Device::Cuda) });
    assert!(refused.contains(&format!("tp {too_many} needs {too_many} GPUs")), "{refused}");
    let kv_dtype = minisgl_proto::KvDtype::F32;
    let refused = refusal(LoadOptions { kv_dtype, ..on(Device::Cuda) });
    assert!(refused.contains("option kv_dtype is f32: auto, bf16, fp16 or fp8"), "{refused}");
    let refused = refusal(LoadOptions { kv_tokens: Some(1 << 40), ..on(Device::Cuda) });
    assert!(refused.contains("no memory for the KV cache"), "{refused}");
}

/// By ratio, a GPU's memory is filled with pages and nothing fails at the edge.
#[test]
fn pages_fill_the_share_of_memory_that_was_asked_for() {
    let Some(_gpu) = gpu() else { return };
    let (dir, _) = models().remove(3);
    let options = LoadOptions { memory_ratio: Some(0.9), max_running: 1 << 12, ..on(Device::Cuda) };
    let (_engine, info) = minisgl_engine::Engine::load(dir.path(), &options, &mut |_| ()).unwrap();
    println!("{}: {} bytes of KV pages, {} tokens", info.device, info.kv_bytes, info.kv_tokens);
    assert_eq!(info.dtype, "bf16");
    assert!(info.kv_tokens >= 1 << 20);
}

/// Milliseconds of a decode step over dummy weights of real shapes, as they come from the driver.
#[test]
fn decode_speed() {
    let Some(shapes) = std::env::var_os("MINISGL_SHAPES_DIR").map(PathBuf::from) else { return };
    let Some(_gpu) = gpu() else { return };
    for shape in ["Qwen3-0.6B"] {
        let options = LoadOptions {
            dummy_weights: true,
            kv_tokens: Some(100_000),
            max_len: Some(4096),
            chunk_tokens: Some(8192),
            ..on(Device::Cuda)
        };
        let start = Instant::now();
        let (mut engine, info) = load(&shapes.join(shape), options);
        println!("{shape} on {}: loaded in {:.2} s", info.device, start.elapsed().as_secs_f64());
        let mut random = Random(1);
        let mut step = 0;
        for batch in [1, 32, 256] {
            let prompts: Vec<_> = (0..batch).map(|_| random.tokens(128, 10_000)).collect();
            let mut time = |new_tokens| {
                let drive = Drive { chunk: 8192, new_tokens, logprobs: None, ..Drive::default() };
                let start = Instant::now();
                generate(&mut engine, &info, &mut step, &prompts, &drive);
                start.elapsed().as_secs_f64()
            };
            time(4);
            let (short, long) = (time(1), time(129));
            let seconds = (long - short) / 128.0;
            println!(
                "{shape}, batch {batch}: prefill of {} tokens {:.2} ms, a decode step {:.3} ms, {:.0} tokens/s",
                batch * 128,
                short * 1e3,
                seconds * 1e3,
                batch as f64 / seconds
            );
        }
    }
}
