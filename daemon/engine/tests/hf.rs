//! Whole models held to Hugging Face transformers on the same machine: random weights in the shapes of
//! well-known models and whatever real ones are there, on the GPU in bf16, else on the CPU in f32.
//!
//! `MINISGL_HF_DIR` is a folder that `tests/python/hf_reference.py` has filled; without it nothing is
//! compared and nothing is claimed. It prints a table: `cargo test --features cuda --test hf -- --nocapture`.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use common::driver::{Drive, generate, load};
use minisgl_engine::{Engine, EngineInfo};
use minisgl_proto::{Device, LoadOptions, Sampled};
use serde::Deserialize;

/// Whether decode steps are recorded as CUDA graphs; read by the engine.
const NO_GRAPHS: &str = "MINISGL_DISABLE_CUDA_GRAPHS";

/// How many log-probabilities the engine reports: the expected 50 must be among them.
const TOP: u32 = 100;

/// `expected.json`; its writer says what is in it.
#[derive(Deserialize)]
struct Expected {
    torch: String,
    transformers: String,
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    prompt: Vec<u32>,
    fed: Vec<u32>,
    /// Of each position: the prompt's end, then each fed token.
    tokens: Vec<Vec<u32>>,
    f32: Vec<Vec<f32>>,
    bf16: Vec<Vec<f32>>,
    eager: Vec<Vec<f32>>,
}

/// In f32, as the CPU computes, nothing but the order of sums may differ: mean, in nat.
const F32_MEAN_MAX: f64 = 0.0001;

/// bf16 against bf16, in nat.
const BF16_MEAN_MAX: f64 = 0.03;
const BF16_P99_MAX: f64 = 0.12;

/// For a model that amplifies rounding so much that transformers in bf16 is itself further than these bounds
/// from its f32: two independent roundings of one size are `sqrt(2)` times as far from each other as each is
/// from what was rounded.
const TWO_ROUNDINGS: f64 = std::f64::consts::SQRT_2;

/// How much further from f32 than transformers in bf16 the engine may be on average: sums in another order
/// round in other places, so neither is always ahead.
const BF16_EXCESS_MAX: f64 = 1.1;

/// Of the expected tokens that such a model may give no log-probability for, since others are likelier. In a mixture of experts,
/// rounding decides which of two nearly equal experts a token goes to, and the other gives another token.
const MISSING_MAX: f64 = 0.01;

/// Differences of log-probabilities, and what is made of them.
#[derive(Default)]
struct Differences(Vec<f64>);

impl Differences {
    fn add(&mut self, a: f32, b: f32) {
        self.0.push(f64::from((a - b).abs()));
    }

    fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }

    fn p99(&self) -> f64 {
        self.at(self.0.len() * 99 / 100)
    }

    fn worst(&self) -> f64 {
        self.at(self.0.len() - 1)
    }

    fn at(&self, rank: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[rank]
    }
}

impl std::fmt::Display for Differences {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.4} {:.4} {:.4}", self.mean(), self.p99(), self.worst())
    }
}

/// One model: its folder and what transformers says.
struct Case {
    name: String,
    dir: PathBuf,
    expected: Expected,
}

fn cases() -> Vec<Case> {
    let Some(dir) = std::env::var_os("MINISGL_HF_DIR").map(PathBuf::from) else {
        eprintln!("MINISGL_HF_DIR is not set: not run");
        return Vec::new();
    };
    let read = |path: PathBuf| -> Option<Case> {
        let text = std::fs::read(path.join("expected.json")).ok()?;
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        Some(Case { name, dir: path, expected: serde_json::from_slice(&text).unwrap() })
    };
    let mut paths: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths.retain(|path| {
        let whole = path.join("expected.json").exists();
        let divides = whole && divides(path);
        if whole && !divides {
            eprintln!("{} does not divide by {}: not run", path.display(), ranks());
        }
        divides
    });
    let cases: Vec<Case> = paths.into_iter().filter_map(read).collect();
    assert!(!cases.is_empty(), "nothing in {} has an expected.json", dir.display());
    cases
}

#[cfg(feature = "cuda")]
fn device() -> Device {
    if minisgl_kernels::testing::has_gpu() { Device::Cuda } else { Device::Cpu }
}

#[cfg(not(feature = "cuda"))]
fn device() -> Device {
    Device::Cpu
}

/// Ranks: `MINISGL_TEST_TP`, else one.
fn ranks() -> u32 {
    std::env::var("MINISGL_TEST_TP").map_or(1, |ranks| ranks.parse().unwrap())
}

/// Whether a model's heads can be divided among the ranks.
fn divides(dir: &Path) -> bool {
    let text = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["num_attention_heads"].as_u64().unwrap().is_multiple_of(u64::from(ranks()))
}

/// Runs `prompts` through a loaded model, fed what the reference was fed.
struct Run {
    engine: Engine,
    info: EngineInfo,
    step: u64,
}

impl Run {
    fn load(case: &Case, page_size: u32) -> Run {
        let options = LoadOptions {
            device: device(),
            tp: ranks(),
            page_size,
            kv_tokens: Some(4096),
            max_len: Some(1024),
            max_running: 16,
            chunk_tokens: Some(2048),
            ..LoadOptions::default()
        };
        let (engine, info) = load(&case.dir, options);
        Run { engine, info, step: 0 }
    }

    fn outputs(&mut self, prompts: &[Prompt], chunk: usize) -> Vec<Vec<Sampled>> {
        let ids: Vec<_> = prompts.iter().map(|prompt| prompt.prompt.clone()).collect();
        let drive = Drive {
            chunk,
            new_tokens: prompts[0].tokens.len(),
            logprobs: Some(TOP),
            forced: Some(prompts.iter().map(|prompt| prompt.fed.clone()).collect()),
            ..Drive::default()
        };
        generate(&mut self.engine, &self.info, &mut self.step, &ids, &drive)
    }
}

/// How far `outputs` are from what transformers says, over the positions that `wanted` picks.
struct Comparison {
    to_bf16: Differences,
    to_f32: Differences,
    /// What transformers in bf16 is from the same in f32, and from its other attention (for the table).
    bf16_to_f32: Differences,
    bf16_to_eager: Differences,
    /// Expected tokens that were not reported: they count as if they were as likely as the last that was.
    missing: usize,
}

impl Comparison {
    fn is_close(&self) -> bool {
        let Comparison { to_bf16, to_f32, bf16_to_f32, missing, .. } = self;
        if device() == Device::Cpu {
            return *missing == 0 && to_f32.mean() <= F32_MEAN_MAX;
        }
        let amplifies = bf16_to_f32.p99() > BF16_P99_MAX;
        let missing_max = if amplifies { MISSING_MAX * to_f32.0.len() as f64 } else { 0.0 };
        if *missing as f64 > missing_max {
            return false;
        }
        let bound = |plain: f64, its: f64| if its <= plain { plain } else { TWO_ROUNDINGS * its };
        to_bf16.mean() <= bound(BF16_MEAN_MAX, bf16_to_f32.mean())
            && to_bf16.p99() <= bound(BF16_P99_MAX, bf16_to_f32.p99())
            && to_f32.mean() <= BF16_EXCESS_MAX * bf16_to_f32.mean()
    }
}

fn compare(
    prompts: &[Prompt],
    outputs: &[Vec<Sampled>],
    wanted: impl Fn(usize) -> bool,
) -> Comparison {
    let [mut to_bf16, mut to_f32, mut bf16_to_f32, mut bf16_to_eager]: [Differences; 4] =
        Default::default();
    let mut missing = 0;
    for (prompt, outputs) in prompts.iter().zip(outputs) {
        assert_eq!(outputs.len(), prompt.tokens.len());
        for (at, output) in outputs.iter().enumerate().filter(|(at, _)| wanted(*at)) {
            let own: HashMap<u32, f32> =
                output.top.iter().map(|top| (top.token, top.logprob)).collect();
            let least = own.values().copied().fold(f32::INFINITY, f32::min);
            for (i, token) in prompt.tokens[at].iter().enumerate() {
                missing += usize::from(!own.contains_key(token));
                let own = own.get(token).copied().unwrap_or(least);
                let (bf16, f32) = (prompt.bf16[at][i], prompt.f32[at][i]);
                to_bf16.add(own, bf16);
                to_f32.add(own, f32);
                bf16_to_f32.add(bf16, f32);
                bf16_to_eager.add(bf16, prompt.eager[at][i]);
            }
        }
    }
    Comparison { to_bf16, to_f32, bf16_to_f32, bf16_to_eager, missing }
}

/// Checks one way of running a model and prints its row; what is out of bounds is added to `failures`.
fn check(
    case: &Case,
    prompts: &[Prompt],
    how: &str,
    outputs: &[Vec<Sampled>],
    failures: &mut Vec<String>,
) {
    type Part = (&'static str, fn(usize) -> bool);
    let parts: [Part; 2] = [("prefill", |at| at == 0), ("decode", |at| at > 0)];
    for (part, wanted) in parts {
        let found = compare(prompts, outputs, wanted);
        println!(
            "| {} | {how} | {part} | {} | {} | {} | {} | {} | {} |",
            case.name,
            found.to_f32.0.len(),
            found.missing,
            found.to_bf16,
            found.to_f32,
            found.bf16_to_f32,
            found.bf16_to_eager
        );
        if !found.is_close() {
            failures.push(format!("{}, {how}, {part}", case.name));
        }
    }
}

fn concat(parts: Vec<Vec<Vec<Sampled>>>) -> Vec<Vec<Sampled>> {
    parts.into_iter().flatten().collect()
}

/// Prefill and decode, together, in chunks among others' decode steps, and alone; alone twice is the same
/// bits.
#[test]
fn log_probabilities_are_those_of_transformers() {
    let cases = cases();
    let graphs = if std::env::var_os(NO_GRAPHS).is_some() { "eager" } else { "graphs" };
    let device = device();
    let mut failures = Vec::new();
    for case in &cases {
        let Expected { torch, transformers, prompts } = &case.expected;
        println!(
            "{} on {device:?} ({graphs}); torch {torch}, transformers {transformers}",
            case.name
        );
        println!("mean, 99th percentile and worst of absolute differences, in nat, of");
        println!(
            "| model | run | | values | missing | ours - bf16 | ours - f32 | bf16 - f32 | bf16 - its eager |"
        );
        let mut run = Run::load(case, 16);
        let mut held = |how: &str, outputs: &[Vec<Sampled>]| {
            check(case, prompts, &format!("{graphs}, {how}"), outputs, &mut failures);
        };
        let together = run.outputs(prompts, 2048);
        held("together", &together);
        held("in chunks of 96", &run.outputs(prompts, 96));
        let alone = |run: &mut Run| {
            let one = |prompt| run.outputs(std::slice::from_ref(prompt), 2048);
            concat(prompts.iter().map(one).collect())
        };
        let first = alone(&mut run);
        held("alone", &first);
        assert_eq!(alone(&mut run), first, "{}: alone, twice", case.name);
        drop(run);
        held("page size 1", &Run::load(case, 1).outputs(prompts, 2048));
    }
    assert!(failures.is_empty(), "out of bounds:\n{}", failures.join("\n"));
}

/// The same once more without CUDA graphs, in a process of its own: the engine reads the variable.
#[test]
fn so_they_are_without_graphs() {
    if cases().is_empty() || device() == Device::Cpu || std::env::var_os(NO_GRAPHS).is_some() {
        return;
    }
    let name = "log_probabilities_are_those_of_transformers";
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(NO_GRAPHS, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}
