//! Tokens a second of a whole model with dummy weights: prefill, and decode of one stream and more.
//!
//! `cargo bench -p minisgl-engine --bench model [-- FOLDER]`, where FOLDER holds a `config.json`; by
//! default the shape of SmolLM2-135M. On a machine that does other things too, the seconds of CPU
//! that a step takes, over all threads, say more than the seconds that pass.

use std::path::{Path, PathBuf};
use std::time::Instant;

use minisgl_engine::Engine;
use minisgl_proto::{LoadOptions, SamplingParams};
use minisgl_sched::{Executor, Grown, Install, Plan, Row, SAMPLED_LAST, Want};

const SMOLLM2_135M: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "vocab_size": 49152, "hidden_size": 576,
    "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "rms_norm_eps": 1e-5, "max_position_embeddings": 8192,
    "rope_theta": 100000, "tie_word_embeddings": true, "eos_token_id": 2
}"#;

const CHUNK: u32 = 512;
const PAGE_SIZE: u32 = 16;
const WARM: u32 = 4;
const STEPS: u32 = 40;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    // Cargo adds flags of its own.
    let given = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let own = tempfile::tempdir()?;
    std::fs::write(own.path().join("config.json"), SMOLLM2_135M)?;
    let dir = given.map_or(own.path().to_owned(), PathBuf::from);
    for tp in [1, 3] {
        println!("tp {tp}");
        if let Err(error) = measure(&dir, tp) {
            println!("  {error}");
        }
    }
    Ok(())
}

fn measure(dir: &Path, tp: u32) -> Result<(), Failure> {
    let options = LoadOptions {
        tp,
        dummy_weights: true,
        page_size: PAGE_SIZE,
        kv_tokens: Some(16 * 2048),
        chunk_tokens: Some(CHUNK),
        max_running: 64,
        ..LoadOptions::default()
    };
    let start = Instant::now();
    let (mut engine, info) = Engine::load(dir, &options, &mut |_| ())?;
    let megabytes = info.weight_bytes / 1_000_000;
    println!("  load: {:.2} s, {megabytes} MB of weights", start.elapsed().as_secs_f64());
    let mut step = 0;
    for length in [512, 2048] {
        let before = cpu_seconds()?;
        let seconds = prefill(&mut engine, &mut step, length)?;
        let cpu = cpu_seconds()? - before;
        let count = f64::from(length);
        println!(
            "  prefill of {length}: {:.0} tokens/s, {:.2} ms of CPU a token",
            count / seconds,
            cpu * 1e3 / count
        );
    }
    for (streams, cached) in [(1, 0), (1, 1024), (2, 0), (4, 0), (8, 0), (8, 1024), (16, 0)] {
        let before = cpu_seconds()?;
        let seconds = decode(&mut engine, &mut step, streams, cached)?;
        let cpu = (cpu_seconds()? - before) / f64::from(WARM + STEPS);
        println!(
            "  decode, {streams} streams over {cached} tokens: {:.1} tokens/s, {:.1} ms a step, \
             {:.1} ms of CPU",
            f64::from(streams) / seconds,
            seconds * 1e3,
            cpu * 1e3
        );
    }
    Ok(())
}

/// Seconds of CPU that this process has used, all threads together.
fn cpu_seconds() -> Result<f64, Failure> {
    const TICKS_A_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    // User and system time are the 14th and 15th field; the name is the second.
    let ticks = after_name.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    Ok(ticks.sum::<Result<u64, _>>()? as f64 / TICKS_A_SECOND)
}

fn install(slot: u32) -> Install {
    Install {
        slot,
        counts: None,
        sampling: SamplingParams::default(),
        history: Vec::new(),
        prompt_len: 1,
        banned: Vec::new(),
        banned_below: 0,
    }
}

/// Seconds for a prompt of `length`.
fn prefill(engine: &mut Engine, step: &mut u64, length: u32) -> Result<f64, Failure> {
    let start = Instant::now();
    for first in (0..length).step_by(CHUNK as usize) {
        let len = (length - first).min(CHUNK);
        let row = Row { slot: 0, start: first, len, tokens_at: 0, want: Want::Last };
        let pages = (first + len).div_ceil(PAGE_SIZE);
        engine.launch(Plan {
            step: *step,
            installs: vec![install(0)],
            grown: vec![Grown { slot: 0, group: 0, at: 0, len: pages }],
            pages: (0..pages).collect(),
            rows: vec![row],
            tokens: (0..len as i32).collect(),
            ..Plan::default()
        })?;
        *step += 1;
        engine.wait()?;
    }
    Ok(start.elapsed().as_secs_f64())
}

/// Seconds of the median step of `streams` rows over `cached` tokens each, overlapped as the
/// scheduler does it.
fn decode(engine: &mut Engine, step: &mut u64, streams: u32, cached: u32) -> Result<f64, Failure> {
    let mut last = Instant::now();
    let mut seconds = Vec::new();
    for i in 0..WARM + STEPS {
        let mut plan = Plan { step: *step, ..Plan::default() };
        for slot in 0..streams {
            if i == 0 {
                plan.installs.push(install(slot));
            }
            plan.rows.push(Row {
                slot,
                start: cached + i,
                len: 1,
                tokens_at: slot,
                want: Want::Last,
            });
            plan.tokens.push(if i == 0 { 1 } else { SAMPLED_LAST });
            let pages = (cached + i + 1).div_ceil(PAGE_SIZE);
            let at = if i == 0 { 0 } else { (cached + i).div_ceil(PAGE_SIZE) };
            if pages > at {
                plan.grown.push(Grown { slot, group: 0, at, len: pages - at });
                plan.pages.extend(slot * 100 + at..slot * 100 + pages);
            }
        }
        engine.launch(plan)?;
        *step += 1;
        if i > 0 {
            engine.wait()?;
        }
        if i > WARM {
            seconds.push(last.elapsed().as_secs_f64());
        }
        last = Instant::now();
    }
    engine.wait()?;
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}
