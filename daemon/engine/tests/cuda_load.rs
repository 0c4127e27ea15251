//! Loading onto a GPU: how fast, how much host memory it takes, and that nothing is allocated later. Without
//! a GPU nothing runs and nothing is claimed.
//!
//! `MINISGL_SHAPES_DIR`, a folder of folders with `config.json` alone, adds loads of the shape of Qwen3-8B, from
//! nothing and, if `MINISGL_SCRATCH_DIR` names a folder with 8 GB to spare, from files:
//! `cargo test --features cuda --test cuda_load -- --nocapture --test-threads 1`.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use common::driver::{Drive, generate, tokens};
use common::{Random, config, write_model};
use cudarc::driver::CudaContext;
use minisgl_engine::config::ModelConfig;
use minisgl_engine::weights::TensorSpec;
use minisgl_engine::{Engine, EngineInfo};
use minisgl_proto::worker::{LoadProgress, LoadStage};
use minisgl_proto::{Device, LoadOptions};
use safetensors::Dtype;
use serde_json::{Value, json};

/// Of the whole process, pinned memory aside.
const HOST_BYTES_MAX: u64 = 600 << 20;

fn no_gpu() -> bool {
    !minisgl_kernels::testing::has_gpu()
}

fn on_gpu() -> LoadOptions {
    LoadOptions { device: Device::Cuda, ..LoadOptions::default() }
}

fn free_bytes() -> u64 {
    let context = CudaContext::new(0).unwrap();
    context.synchronize().unwrap();
    context.mem_get_info().unwrap().0 as u64
}

/// A line of `/proc/self/status`, in bytes.
fn status_bytes(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let kib = line.trim_start_matches(':').trim().trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() * 1024
}

fn tiny() -> Value {
    let mut config = config("Qwen3ForCausalLM", 8, 2, 128);
    config["hidden_size"] = json!(208);
    config["intermediate_size"] = json!(328);
    config["vocab_size"] = json!(515);
    config
}

/// Loads, and prints when each stage ended.
fn timed(what: &str, dir: &Path, options: &LoadOptions) -> (Engine, EngineInfo) {
    let start = Instant::now();
    // When each stage ended, in seconds, and the host memory then, in MB.
    let mut stages: Vec<(LoadStage, f64, u64)> = Vec::new();
    let mut report = |progress: LoadProgress| {
        let now =
            (progress.stage, start.elapsed().as_secs_f64(), status_bytes("VmRSS") / 1_000_000);
        match stages.last_mut() {
            Some(last) if last.0 == progress.stage => *last = now,
            _ => stages.push(now),
        }
    };
    let (engine, info) = Engine::load(dir, options, &mut report).unwrap();
    println!(
        "{what}: ready in {:.2} s; {:.2} GB of weights in {:.3} s, {:.1} GB/s; stages ended at {stages:.2?}",
        start.elapsed().as_secs_f64(),
        info.read_bytes as f64 / 1e9,
        info.read_s,
        info.read_bytes as f64 / 1e9 / info.read_s,
    );
    println!(
        "  {} tokens of KV, {:.2} GB; GPU free {:.2} GB; host {:.0} MB now, {:.0} MB at most, {:.0} MB anonymous",
        info.kv_tokens,
        info.kv_bytes as f64 / 1e9,
        free_bytes() as f64 / 1e9,
        status_bytes("VmRSS") as f64 / 1e6,
        status_bytes("VmHWM") as f64 / 1e6,
        status_bytes("RssAnon") as f64 / 1e6,
    );
    (engine, info)
}

/// Made on the GPU or sent there from files that hold what the host makes: the same tokens and
/// log-probabilities, to the bit.
#[test]
fn dummy_weights_are_the_hosts() {
    if no_gpu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (config, _) = write_model(dir.path(), &tiny(), Dtype::BF16, 1);
    let dummies = LoadOptions { dummy_weights: true, kv_tokens: Some(4096), ..on_gpu() };
    let tensors = minisgl_engine::model::tensors(&config);
    let source = minisgl_engine::weights::open(dir.path(), &tensors, &dummies).unwrap();
    let raw: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .cloned()
        .map(|TensorSpec { name, shape, .. }| {
            let part = source.part(&name, &shape, &minisgl_engine::weights::Part::All).unwrap();
            let mut values = vec![half::bf16::ZERO; part.len()];
            part.read_bf16(0, &mut values);
            (name, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
        })
        .collect();
    let views = raw.iter().map(|(name, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(Dtype::BF16, shape.clone(), bytes);
        (name.as_str(), view.unwrap())
    });
    safetensors::serialize_to_file(views, None, &dir.path().join("model.safetensors")).unwrap();
    let run = |options: &LoadOptions| {
        let (mut engine, info) = Engine::load(dir.path(), options, &mut |_| ()).unwrap();
        let mut random = Random(5);
        let prompts: Vec<_> = [3, 40, 17].map(|len| random.tokens(len, 515)).into();
        generate(&mut engine, &info, &mut 0, &prompts, &Drive::default())
    };
    let made = run(&dummies);
    let read = run(&LoadOptions { dummy_weights: false, ..dummies });
    assert_eq!(made, read);
    assert!(tokens(&made).iter().flatten().any(|&token| token != tokens(&made)[0][0]));
}

/// By ratio, pages fill their share of the memory and no more, the last of them are used, and steps
/// allocate nothing but what the driver keeps code in.
#[test]
fn pages_leave_what_was_not_asked_for() {
    if no_gpu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut config = tiny();
    config["max_position_embeddings"] = json!(8192);
    // So many pages as fit into the memory, not as many as requests can use.
    config["num_hidden_layers"] = json!(40);
    write_model(dir.path(), &config, Dtype::BF16, 1);
    // The context itself, and what libraries keep, is there before and after.
    drop(Engine::load(dir.path(), &LoadOptions { kv_tokens: Some(64), ..on_gpu() }, &mut |_| ()));
    for (ratio, chunk) in [(0.5_f32, 512), (0.9, 8192), (1.0, 8192)] {
        let before = free_bytes();
        let options = LoadOptions {
            memory_ratio: Some(ratio),
            chunk_tokens: Some(chunk),
            max_running: 4096,
            ..on_gpu()
        };
        let (mut engine, info) = timed(&format!("share {ratio}"), dir.path(), &options);
        let left = free_bytes();
        let share = (before as f64 * (1.0 - f64::from(ratio))) as u64;
        let spare = 256 << 20;
        assert!(left >= share.max(spare) - (64 << 20), "{left} bytes left of {before}");
        assert!(left <= share.max(spare) + (512 << 20), "{left} bytes left of {before}");
        assert_eq!(info.chunk_tokens, chunk);

        let mut random = Random(7);
        let prompts: Vec<_> = (0..300).map(|_| random.tokens(90, 515)).collect();
        let drive = Drive { chunk: chunk as usize, new_tokens: 4, ..Drive::default() };
        let drawn = generate(&mut engine, &info, &mut 0, &prompts, &drive);
        assert_eq!(drawn.len(), 300);
        // The driver loads the code of a kernel when it first runs: 2 MiB at a time, of what is spared.
        let taken = left.saturating_sub(free_bytes());
        assert!(taken <= 8 << 20, "steps allocated {taken} bytes");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    if no_gpu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), &tiny(), Dtype::BF16, 1);
    let options = LoadOptions { kv_tokens: Some(1 << 40), ..on_gpu() };
    let refused = Engine::load(dir.path(), &options, &mut |_| ()).err().expect("refused");
    let refused = refused.to_string();
    assert!(refused.contains("no memory for the KV cache"), "{refused}");
}

/// Writes `config`'s tensors as four files with an index; the values are of no interest.
fn write_shards(dir: &Path, config: &ModelConfig) -> u64 {
    let tensors = minisgl_engine::model::tensors(config);
    let pattern: Vec<u8> = (0..1_u32 << 20).flat_map(|i| [(i * 37) as u8, 0x3c]).collect();
    let (mut map, mut total) = (serde_json::Map::new(), 0);
    for (shard, tensors) in tensors.chunks(tensors.len().div_ceil(4)).enumerate() {
        let name = format!("model-{shard}.safetensors");
        let (mut header, mut at) = (serde_json::Map::new(), 0);
        for TensorSpec { name: tensor, shape, .. } in tensors {
            let bytes = 2 * shape.iter().product::<usize>();
            let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, at + bytes]});
            header.insert(tensor.clone(), entry);
            map.insert(tensor.clone(), json!(name));
            at += bytes;
        }
        total += at as u64;
        let header = Value::from(header).to_string();
        let mut file = BufWriter::new(File::create(dir.join(name)).unwrap());
        file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        file.write_all(header.as_bytes()).unwrap();
        while at > 0 {
            let part = at.min(pattern.len());
            file.write_all(&pattern[..part]).unwrap();
            at -= part;
        }
    }
    let index = json!({"weight_map": map}).to_string();
    std::fs::write(dir.join("model.safetensors.index.json"), index).unwrap();
    total
}

/// The shape of Qwen3-8B: from nothing as it is, from files with a third of its layers.
#[test]
fn a_large_model_loads_fast_and_leaves_the_host_small() {
    let Some(shapes) = std::env::var_os("MINISGL_SHAPES_DIR").map(PathBuf::from) else { return };
    if no_gpu() {
        return;
    }
    let shape = shapes.join("Qwen3-8B");
    let host = |what: &str| {
        println!("host memory {what}: {:.0} MB", status_bytes("VmRSS") as f64 / 1e6);
    };
    host("at first");
    let context = CudaContext::new(0).unwrap();
    host("with the driver's context");
    drop(minisgl_engine::ops::cuda::Gpu::open(0).unwrap());
    host("with kernels and libraries, opened and closed");
    drop(context);
    for round in ["first", "again"] {
        let options = LoadOptions { dummy_weights: true, ..on_gpu() };
        let (_engine, info) = timed(&format!("Qwen3-8B dummies, {round}"), &shape, &options);
        assert_eq!(info.weight_bytes / 1_000_000_000, 16);
        assert!(status_bytes("VmRSS") < HOST_BYTES_MAX);
    }
    let Some(scratch) = std::env::var_os("MINISGL_SCRATCH_DIR").map(PathBuf::from) else { return };
    let text = std::fs::read_to_string(shape.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["num_hidden_layers"] = json!(12);
    let dir = tempfile::tempdir_in(scratch).unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let start = Instant::now();
    let bytes = write_shards(dir.path(), &ModelConfig::from_dir(dir.path()).unwrap());
    println!("wrote {:.2} GB in {:.1} s", bytes as f64 / 1e9, start.elapsed().as_secs_f64());
    for round in ["first", "again"] {
        let (_engine, info) = timed(&format!("from files, {round}"), dir.path(), &on_gpu());
        assert_eq!(info.read_bytes, bytes);
        assert!(status_bytes("VmRSS") < HOST_BYTES_MAX);
    }
    // Only root may; else the files stay in the page cache.
    let dropped = std::process::Command::new("sync").status().is_ok()
        && std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok();
    if dropped {
        timed("from files, not in the page cache", dir.path(), &on_gpu());
    }
}
