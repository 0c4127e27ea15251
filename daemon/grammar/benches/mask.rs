//! What a grammar costs: to read a model's tokens, to compile, and to make the mask of each token of an output.
//!
//! `MINISGL_TOKENIZER=.../tokenizer.json cargo bench -p minisgl-grammar`; without it, with tokens of bytes and words made up.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use minisgl_grammar::{Compiler, Limits, Vocabulary};
use minisgl_proto::Grammar;
use serde_json::json;

const VOCAB: usize = 152_064;

fn vocabulary() -> Vocabulary {
    let limits = Limits::default();
    if let Ok(path) = std::env::var("MINISGL_TOKENIZER") {
        let text = std::fs::read_to_string(path).expect("a tokenizer.json");
        return Vocabulary::read(&text, VOCAB, &[151_645], &limits).expect("tokens");
    }
    let bytes = (0..=255_u8).map(|byte| vec![byte]);
    let mut state = 1_u64;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    let mut word = || {
        let letters = (0..1 + next() % 8).map(|_| b"etaoinshrdlu \",:{}0123"[next() % 22]);
        letters.collect::<Vec<u8>>()
    };
    let words: Vec<Vec<u8>> = (0..150_000).map(|_| word()).collect();
    let tokens = bytes.chain([b"\xff<|end|>".to_vec()]).chain(words).collect();
    Vocabulary::new(tokens, VOCAB, &[256], &limits).expect("tokens")
}

/// Ten kilobytes: fifty tools, as an agent sends them.
fn tools() -> Grammar {
    let tool = |n: usize| {
        json!({"type": "object", "additionalProperties": false, "required": ["name", "arguments"], "properties": {
            "name": {"const": format!("tool_{n}")},
            "arguments": {"type": "object", "additionalProperties": false, "required": ["path"], "properties": {
                "path": {"type": "string"}, "line": {"type": "integer", "minimum": 0}, "all": {"type": "boolean"}}}}})
    };
    let schema = json!({"anyOf": (0..50).map(tool).collect::<Vec<_>>()}).to_string();
    Grammar::JsonSchema { schema, lenient: false }
}

fn grammars(c: &mut Criterion) {
    let mut group = c.benchmark_group("grammar");
    group.sample_size(10);
    group.bench_function("tokens of a model", |b| b.iter(|| black_box(vocabulary())));
    let grammar = tools();
    group.bench_function("compile 50 tools", |b| {
        let fresh = || Compiler::new(vocabulary(), Limits::default());
        b.iter_batched_ref(fresh, |c| c.compile(&grammar).map(drop), BatchSize::PerIteration);
    });
    let compiler = Compiler::new(vocabulary(), Limits::default());
    let compiled = compiler.compile(&grammar).expect("a grammar");
    let output: Vec<u32> =
        br#"{"name": "tool_17", "arguments": {"path": "src/a file of some length.rs", "line": 12}}"#
            .iter()
            .map(|&byte| byte_token(byte))
            .collect();
    group.bench_function(format!("masks of {} tokens", output.len()), |b| {
        let mut mask = vec![0_u32; VOCAB.div_ceil(32)];
        b.iter(|| {
            let mut state = compiled.begin();
            for at in 0..output.len() {
                mask.fill(u32::MAX);
                state.narrow(&output[..at], &mut mask).expect("a mask");
            }
        });
    });
    group.finish();
}

/// GPT-2's order of bytes, which Qwen's tokens begin with; made up tokens begin with bytes as they are.
fn byte_token(byte: u8) -> u32 {
    match std::env::var_os("MINISGL_TOKENIZER") {
        Some(_) if byte == b' ' => 220,
        Some(_) => u32::from(byte) - 33,
        None => byte.into(),
    }
}

criterion_group!(benches, grammars);
criterion_main!(benches);
