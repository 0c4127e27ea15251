//! Whole tiny models: against a naive forward pass, and against themselves run in other ways.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::driver::{Drive, allowed, generate, load, score, tokens};
use common::{Random, assert_broken, break_model, config, oracle, write_model};
use minisgl_engine::scheme::{Code, Element};
use minisgl_proto::{KvDtype, LoadOptions, Quantize, Sampled, SamplingParams};
use safetensors::Dtype;
use serde_json::{Value, json};

const ARCHITECTURES: [&str; 10] = [
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3MoeForCausalLM",
    "MixtralForCausalLM",
    "GptOssForCausalLM",
    "Gemma3ForCausalLM",
    "Phi3ForCausalLM",
];

fn prompts(seed: u64) -> Vec<Vec<u32>> {
    let mut random = Random(seed);
    [1, 2, 15, 16, 17, 70, 33].iter().map(|&len| random.tokens(len, 67)).collect()
}

fn run(
    dir: &std::path::Path,
    options: LoadOptions,
    prompts: &[Vec<u32>],
    drive: &Drive,
) -> Vec<Vec<Sampled>> {
    let (mut engine, info) = load(dir, options);
    generate(&mut engine, &info, &mut 0, prompts, drive)
}

/// What E4M3 leaves of an output's weights: the nearest of all codes times the scale, ties to the even code.
fn through_e4m3(row: &mut [f32]) {
    let codes = Code::E4m3.values();
    let scale = row.iter().fold(0.0_f32, |most, value| most.max(value.abs())) / 448.0;
    for value in row {
        let wanted = value.abs() / scale;
        let distance = |code: &usize| (codes[*code] - wanted).abs();
        let nearer =
            |a: &usize, b: &usize| distance(a).total_cmp(&distance(b)).then((a % 2).cmp(&(b % 2)));
        let nearest = (0..0x7f).min_by(nearer).unwrap();
        *value = (codes[nearest] * scale).copysign(*value);
    }
}

fn against_oracle(config: &Value, dtype: Dtype, options: LoadOptions, tolerance: f64) {
    held_to_oracle(config, dtype, options, tolerance, (&prompts(3), &Drive::default()));
}

/// Teacher-forces the engine's own tokens through the naive forward pass.
fn held_to_oracle(
    config: &Value,
    dtype: Dtype,
    options: LoadOptions,
    tolerance: f64,
    (prompts, drive): (&[Vec<u32>], &Drive),
) {
    let dir = tempfile::tempdir().unwrap();
    let (config, mut weights) = write_model(dir.path(), config, dtype, 7);
    if options.quantize == Quantize::Fp8 {
        let coded = minisgl_engine::model::tensors(&config.clone().quantised_to_fp8().unwrap());
        for spec in coded.iter().filter(|spec| spec.element == Element::E4m3) {
            let values = weights.get_mut(&spec.name).unwrap();
            values.chunks_exact_mut(spec.shape[1]).for_each(through_e4m3);
        }
    }
    let outputs = run(dir.path(), options, prompts, drive);
    for (prompt, output) in prompts.iter().zip(&outputs) {
        let mut sequence = prompt.clone();
        sequence.extend(output.iter().map(|sampled| sampled.token));
        let expected = oracle::log_probabilities(&config, &weights, &sequence);
        for (i, sampled) in output.iter().enumerate() {
            let expected = &expected[prompt.len() - 1 + i];
            let best = expected.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let of_token = expected[sampled.token as usize];
            assert!(best - of_token < 2.0 * tolerance, "token {i} is not the most likely one");
            assert!((of_token - f64::from(sampled.logprob.unwrap())).abs() < tolerance);
            assert_eq!(sampled.top.len(), 50);
            for top in &sampled.top {
                let difference = (expected[top.token as usize] - f64::from(top.logprob)).abs();
                assert!(
                    difference < tolerance,
                    "{:?}: {top:?} is {difference} off",
                    config.architecture
                );
            }
        }
    }
}

#[test]
fn every_architecture_matches_the_naive_forward_pass() {
    for architecture in ARCHITECTURES {
        let config = config(architecture, 6, 2, 10);
        against_oracle(&config, Dtype::BF16, LoadOptions::default(), 2e-4);
    }
}

/// Of layers that see a window a request keeps the pages of a window, and the driver gives it the same ones again and again:
/// what they held before is not to be seen.
#[test]
fn pages_behind_a_window_serve_other_tokens() {
    for (architecture, groups, page_size, tp) in [
        ("GptOssForCausalLM", 1, 16, 1),
        ("Gemma3ForCausalLM", 1, 4, 2),
        ("Qwen2ForCausalLM", 2, 8, 1),
    ] {
        let mut config = config(architecture, 6, 2, 10);
        config["max_position_embeddings"] = json!(700);
        config["num_hidden_layers"] = json!(if groups == 1 { 2 } else { 3 });
        if architecture == "Qwen2ForCausalLM" {
            config["use_sliding_window"] = json!(true);
            config["sliding_window"] = json!(37);
            config["max_window_layers"] = json!(1);
        }
        let options = LoadOptions { page_size, tp, ..LoadOptions::default() };
        let mut random = Random(9);
        let prompts: Vec<_> = [1, 300, 33, 420].iter().map(|&len| random.tokens(len, 67)).collect();
        let drive = Drive { chunk: 48, ..Drive::default() };
        held_to_oracle(&config, Dtype::BF16, options.clone(), 2e-4, (&prompts, &drive));
        let dir = tempfile::tempdir().unwrap();
        write_model(dir.path(), &config, Dtype::BF16, 7);
        let windows = load(dir.path(), options).1.groups.windows();
        let pages = (windows.keep + 48).div_ceil(page_size as usize) + 1;
        assert!(windows.groups == groups && pages * page_size as usize <= 310, "{windows:?}");
    }
}

#[test]
fn every_weight_type_and_scaling_matches() {
    for dtype in [Dtype::F16, Dtype::F32] {
        against_oracle(&config("LlamaForCausalLM", 5, 1, 24), dtype, LoadOptions::default(), 2e-4);
    }
    for scaling in [
        json!({"rope_type": "linear", "factor": 4.0}),
        json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 64}),
    ] {
        let mut config = config("LlamaForCausalLM", 8, 1, 16);
        config["rope_scaling"] = scaling;
        against_oracle(&config, Dtype::BF16, LoadOptions::default(), 2e-4);
    }
}

/// Quantised at load, a model is what its dequantised weights are, in every type, on any number of ranks.
#[test]
fn weights_quantised_at_load_are_the_dequantised_ones() {
    let fp8 = |tp| LoadOptions { quantize: Quantize::Fp8, tp, ..LoadOptions::default() };
    for architecture in [
        "LlamaForCausalLM",
        "Qwen2ForCausalLM",
        "Gemma3ForCausalLM",
        "Phi3ForCausalLM",
        "Qwen2MoeForCausalLM",
        "MixtralForCausalLM",
    ] {
        against_oracle(&config(architecture, 6, 2, 10), Dtype::BF16, fp8(1), 2e-4);
    }
    against_oracle(&config("Qwen3MoeForCausalLM", 6, 2, 10), Dtype::BF16, fp8(2), 2e-4);
    for (dtype, tp) in [(Dtype::F16, 1), (Dtype::F32, 2)] {
        against_oracle(&config("Qwen3ForCausalLM", 6, 2, 10), dtype, fp8(tp), 2e-4);
    }
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), &config("LlamaForCausalLM", 6, 2, 10), Dtype::BF16, 7);
    let plain = load(dir.path(), LoadOptions::default()).1;
    let mut reported = Vec::new();
    let mut tell = |progress: minisgl_proto::worker::LoadProgress| reported.push(progress);
    let (_, info) = minisgl_engine::Engine::load(dir.path(), &fp8(1), &mut tell).unwrap();
    assert_eq!((&*plain.dtype, &*info.dtype), ("bf16", "fp8"));
    assert!(info.weight_bytes < plain.weight_bytes * 3 / 4, "{info:?}");
    // All of the file is read, whatever becomes of it.
    assert_eq!((info.parameters, info.read_bytes), (plain.parameters, plain.read_bytes));
    let dummies = LoadOptions { dummy_weights: true, ..fp8(1) };
    assert_eq!(load(dir.path(), dummies).1.dtype, "fp8");
}

#[test]
fn bf16_pages_are_close() {
    let options = LoadOptions { kv_dtype: KvDtype::Bf16, ..LoadOptions::default() };
    against_oracle(&config("LlamaForCausalLM", 6, 2, 16), Dtype::BF16, options, 0.2);
}

/// On one rank results are the same bits, however they came about.
#[test]
fn batch_chunk_page_and_overlap_change_no_bit() {
    for architecture in ARCHITECTURES {
        let dir = tempfile::tempdir().unwrap();
        write_model(dir.path(), &config(architecture, 6, 2, 10), Dtype::BF16, 11);
        let prompts = prompts(5);
        let drive = Drive::default();
        let crowd = run(dir.path(), LoadOptions::default(), &prompts, &drive);
        for page_size in [1, 7, 64] {
            let options = LoadOptions { page_size, ..LoadOptions::default() };
            assert_eq!(run(dir.path(), options, &prompts, &drive), crowd, "page size {page_size}");
        }
        for (chunk, overlap) in [(7, true), (16, false), (160, true)] {
            let drive = Drive { chunk, overlap, seed: 9, ..drive.clone() };
            assert_eq!(
                run(dir.path(), LoadOptions::default(), &prompts, &drive),
                crowd,
                "{drive:?}"
            );
        }
        let (mut engine, info) = load(dir.path(), LoadOptions::default());
        let mut step = 0;
        for (prompt, expected) in prompts.iter().zip(&crowd) {
            let alone =
                generate(&mut engine, &info, &mut step, std::slice::from_ref(prompt), &drive);
            assert_eq!(&alone[0], expected, "alone");
        }
        let one =
            run(dir.path(), LoadOptions::default(), &prompts[2..3], &Drive { chunk: 1, ..drive });
        assert_eq!(one[0], crowd[2], "token by token");
    }
}

/// Whole prompts, of which the naive forward pass knows every position; in chunks, with and without a token after.
#[test]
fn prompts_get_the_log_probabilities_of_the_naive_forward_pass() {
    for architecture in ARCHITECTURES {
        let dir = tempfile::tempdir().unwrap();
        let model = config(architecture, 6, 2, 10);
        let (config, weights) = write_model(dir.path(), &model, Dtype::BF16, 7);
        let prompts = prompts(3);
        for (chunk, new_tokens, from) in [(64, 3, 0), (7, 0, 0), (160, 0, 9), (1, 1, 16)] {
            let sampling = SamplingParams {
                prompt_logprobs: Some(5),
                prompt_logprobs_from: from,
                ..SamplingParams::default()
            };
            let drive = Drive { chunk, new_tokens, sampling, ..Drive::default() };
            let (mut engine, info) = load(dir.path(), LoadOptions::default());
            let scores = score(&mut engine, &info, &mut 0, &prompts, &drive);
            for (prompt, scores) in prompts.iter().zip(&scores) {
                let expected = oracle::log_probabilities(&config, &weights, prompt);
                let first = from.max(1) as usize;
                assert_eq!(scores.len(), prompt.len().saturating_sub(first));
                for (position, score) in (first..).zip(scores) {
                    let expected = &expected[position - 1];
                    assert_eq!(score.token, prompt[position]);
                    let off = expected[score.token as usize] - f64::from(score.logprob.unwrap());
                    assert!(off.abs() < 2e-4, "{architecture}, position {position}: {off} off");
                    let mut best: Vec<f64> = expected.clone();
                    best.sort_by(|a, b| b.total_cmp(a));
                    assert_eq!(score.top.len(), 5);
                    for (top, best) in score.top.iter().zip(best) {
                        assert!((f64::from(top.logprob) - best).abs() < 2e-4);
                        assert!((expected[top.token as usize] - best).abs() < 2e-4);
                    }
                }
            }
        }
    }
}

/// What is generated is the same bits with and without a score of the prompt, on any number of ranks.
#[test]
fn scores_change_no_token_and_ranks_agree_on_them() {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), &config("Qwen3ForCausalLM", 8, 4, 8), Dtype::BF16, 13);
    let prompts = prompts(17);
    let sampling = SamplingParams { prompt_logprobs: Some(3), ..SamplingParams::default() };
    let scored = Drive { sampling, chunk: 50, ..Drive::default() };
    let plain = Drive { chunk: 50, ..Drive::default() };
    let expected = run(dir.path(), LoadOptions::default(), &prompts, &plain);
    assert_eq!(run(dir.path(), LoadOptions::default(), &prompts, &scored), expected);
    let scores = |tp| {
        let (mut engine, info) = load(dir.path(), LoadOptions { tp, ..LoadOptions::default() });
        score(&mut engine, &info, &mut 0, &prompts, &scored)
    };
    let alone = scores(1);
    for tp in [2, 4] {
        for (sharded, alone) in scores(tp).iter().flatten().zip(alone.iter().flatten()) {
            assert_eq!(sharded.token, alone.token);
            let off = (sharded.logprob.unwrap() - alone.logprob.unwrap()).abs();
            assert!(off < 1e-3, "tp {tp}: {off} apart");
        }
    }
}

#[test]
fn ranks_agree() {
    for (architecture, heads, kv_heads, degrees) in [
        ("LlamaForCausalLM", 9, 3, &[3, 9][..]),
        ("MistralForCausalLM", 4, 4, &[2, 4][..]),
        ("Qwen2ForCausalLM", 8, 2, &[2, 4, 8][..]),
        ("Qwen3ForCausalLM", 8, 4, &[2, 4, 8][..]),
        ("Phi3ForCausalLM", 8, 2, &[2, 4, 8][..]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        write_model(dir.path(), &config(architecture, heads, kv_heads, 8), Dtype::BF16, 13);
        let prompts = prompts(17);
        let alone = run(dir.path(), LoadOptions::default(), &prompts, &Drive::default());
        for &tp in degrees {
            let options = LoadOptions { tp, ..LoadOptions::default() };
            let sharded = run(dir.path(), options, &prompts, &Drive::default());
            assert_eq!(tokens(&sharded), tokens(&alone), "{architecture}, tp {tp}");
            for (sharded, alone) in sharded.iter().flatten().zip(alone.iter().flatten()) {
                let difference = (sharded.logprob.unwrap() - alone.logprob.unwrap()).abs();
                assert!(difference < 1e-3, "{architecture}, tp {tp}: {difference} apart");
            }
        }
    }
}

/// A checkpoint with a NaN gives no token, alone and over ranks, and the step after it, which was launched already, does
/// no harm.
#[test]
fn a_model_whose_logits_are_nan_gives_no_token() {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), &config("LlamaForCausalLM", 6, 2, 10), Dtype::BF16, 7);
    break_model(dir.path());
    for tp in [1, 2] {
        let options = LoadOptions { tp, ..LoadOptions::default() };
        let (mut engine, info) = load(dir.path(), options);
        let drive = Drive { new_tokens: 1, ..Drive::default() };
        let mut step = 0;
        assert_broken(&generate(&mut engine, &info, &mut step, &prompts(3), &drive), 1);
        let sampling = SamplingParams { prompt_logprobs: Some(3), ..SamplingParams::default() };
        let scored = Drive { sampling, new_tokens: 1, ..drive };
        let prompts = [vec![1, 2, 3, 4, 5, 6, 7]];
        assert_broken(&score(&mut engine, &info, &mut step, &prompts, &scored), 6);
    }
}

/// A request with masks gets the most likely token that each allows; others beside it get what they get without. On one
/// rank and on two, with steps that overlap and without, when masks come while the forward pass runs.
#[test]
fn a_mask_that_comes_late_is_sampled_under() {
    let config = config("Qwen3ForCausalLM", 6, 2, 10);
    let vocab = config["vocab_size"].as_u64().unwrap() as u32;
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), &config, Dtype::F32, 3);
    let prompts = prompts(5);
    let drive = Drive { logprobs: Some(vocab), new_tokens: 6, chunk: 40, ..Drive::default() };
    let drive = Drive { masked: true, ..drive };
    let got = run(dir.path(), LoadOptions::default(), &prompts, &drive);
    let mut changed = 0;
    for (slot, (prompt, output)) in prompts.iter().zip(&got).enumerate() {
        for (at, sampled) in output.iter().enumerate() {
            let allows = |token: u32| allowed(slot, prompt.len() + at, token);
            let best = sampled.top.iter().find(|top| allows(top.token)).unwrap();
            assert_eq!(sampled.token, best.token, "request {slot}, token {at}");
            changed += usize::from(sampled.token != sampled.top[0].token);
        }
    }
    assert!(changed > prompts.len(), "the masks exclude too little: {changed}");
    for (tp, overlap) in [(1, false), (2, true)] {
        let drive = Drive { overlap, ..drive.clone() };
        let options = LoadOptions { tp, ..LoadOptions::default() };
        let again = run(dir.path(), options, &prompts, &drive);
        assert_eq!(tokens(&again), tokens(&got), "tp {tp}, overlap {overlap}");
    }
    let hot = SamplingParams { temperature: 1.0, seed: 4, ..SamplingParams::default() };
    let drive = Drive { sampling: hot, ..drive };
    let drawn = run(dir.path(), LoadOptions::default(), &prompts, &drive);
    for (slot, (prompt, output)) in prompts.iter().zip(&drawn).enumerate() {
        let all = output.iter().enumerate();
        assert!(all.clone().all(|(at, s)| allowed(slot, prompt.len() + at, s.token)));
    }
}
