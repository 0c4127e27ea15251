//! Every op on a GPU against a naive reference on the CPU, then a table of times.
//!
//! `gpu [FILTER] [--small] [--bench[=NAME]]`: `--small` keeps the shapes small enough for a
//! sanitizer, `--bench` times the ops afterwards, those with NAME (or FILTER) in their names. Inputs are fresh
//! every run; the seed is printed and `MINISGL_TEST_SEED` repeats it. Without a GPU nothing runs and nothing is
//! claimed, unless `MINISGL_REQUIRE_GPU` says how many there must be.

#![allow(clippy::unwrap_used)] // All of this is a test: what fails panics.

mod attention;
mod attention_batch;
mod attention_bench;
mod attention_poison;
mod bench;
mod bring;
mod copy_runs;
mod decode;
mod decode_batch;
mod decode_bench;
mod dummy;
mod embedding;
mod experts;
mod experts_bench;
mod experts_fp8_bench;
mod experts_layer;
mod experts_mxfp4_bench;
mod fp8;
mod fp8_bench;
mod gate_mul;
mod gemm;
mod greedy;
mod pages;
mod peers;
mod reference;
mod refusal;
mod rmsnorm;
mod rope;
mod sampler;
mod seen;
mod skinny;
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use minisgl_kernels::Device;
use support::Gpu;

/// Name and body; a test that fails panics.
type Test = (&'static str, fn(&mut Gpu));

const TESTS: &[Test] = &[
    ("embedding", embedding::embedding),
    ("copy_runs", copy_runs::copy_runs),
    ("bring", bring::bring),
    ("gate_mul", gate_mul::gate_mul),
    ("rmsnorm", rmsnorm::rmsnorm),
    ("add_norm", rmsnorm::add_norm),
    ("qk_rope_page", rope::qk_rope_page),
    ("dummy", dummy::dummy),
    ("sampler_greedy", greedy::greedy),
    ("sampler_special_values", greedy::special_values),
    ("sampler_settings", sampler::settings),
    ("sampler_vocabularies", sampler::vocabularies),
    ("sampler_scratch", sampler::scratch),
    ("sampler_history", sampler::history),
    ("gemm", gemm::gemm),
    ("gemm_tuned", gemm::tuned),
    ("skinny", skinny::skinny),
    ("skinny_models", skinny::models),
    ("fp8_skinny", fp8::skinny),
    ("fp8_gemv", fp8::gemv),
    ("fp8_medium", fp8::medium),
    ("fp8_narrow", fp8::narrow),
    ("fp8_broad", fp8::broad),
    ("fp8_quantise", fp8::quantise),
    ("fp8_gemm", fp8::gemm),
    ("fp8_refusals", fp8::refusals),
    ("attention", attention::attention),
    ("attention_fa", attention::attention_fa),
    ("attention_fa_again", attention::attention_fa_again),
    ("attention_windows", attention::attention_windows),
    ("attention_split", attention::attention_split),
    ("attention_graph", attention::attention_graph),
    ("attention_limits", attention::attention_limits),
    ("attention_refusals", attention::attention_refusals),
    ("attention_poison", attention_poison::attention),
    ("attention_poison_keys_of_96", attention_poison::keys_of_96_are_numbers),
    ("decode", decode::decode),
    ("decode_fused", decode::decode_fused),
    ("decode_windows", decode::decode_windows),
    ("decode_graph", decode::decode_graph),
    ("decode_refusals", decode::decode_refusals),
    ("peers_all_reduce", peers::all_reduce),
    ("peers_in_a_row", peers::all_reduce_in_a_row),
    ("peers_sent", peers::sent),
    ("peers_sample", sampler::ranks),
    ("peers_gather", peers::gather),
    ("peers_gives_up", peers::gives_up),
    ("experts_router", experts::router),
    ("experts_router_special_values", experts::router_special_values),
    ("experts_few", experts::few),
    ("experts_few_alone", experts::few_alone),
    ("experts_many", experts::many),
    ("experts_shared", experts::shared),
    ("experts_graph", experts::graph),
    ("experts_refusals", experts::refusals),
    ("experts_fp8_packing", experts::fp8::packing),
    ("experts_fp8_few", experts::fp8::few),
    ("experts_fp8_few_alone", experts::fp8::few_alone),
    ("experts_fp8_many", experts::fp8::many),
    ("experts_fp8_graph", experts::fp8::graph),
    ("experts_fp8_refusals", experts::fp8::refusals),
    ("experts_mxfp4_packing", experts::mxfp4::packing),
    ("experts_mxfp4_few", experts::mxfp4::few),
    ("experts_mxfp4_few_alone", experts::mxfp4::few_alone),
    ("experts_mxfp4_many", experts::mxfp4::many),
    ("experts_mxfp4_graph", experts::mxfp4::graph),
    ("experts_mxfp4_refusals", experts::mxfp4::refusals),
    ("refusals", refusal::refusals),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let filter = args.iter().find(|arg| !arg.starts_with('-')).map_or("", |arg| arg.as_str());
    if !minisgl_kernels::testing::has_gpu() {
        println!("{} GPU tests not run", TESTS.len());
        return ExitCode::SUCCESS;
    }
    if has(peers::GIVE_UP) {
        peers::give_up();
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
    let seed = std::env::var("MINISGL_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or(now);
    let device = Device::open(0).unwrap();
    let ((major, minor), name) = (device.capability(), device.name().to_owned());
    println!("{name}, sm_{major}{minor}, MINISGL_TEST_SEED={seed}");

    let mut gpu = Gpu::new(device, seed, has("--small"));
    let mut failed = Vec::new();
    let chosen = TESTS.iter().filter(|(name, _)| name.contains(filter));
    for &(name, test) in chosen.clone() {
        gpu.restart(seed);
        let began = std::time::Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            test(&mut gpu);
            gpu.device.synchronize().unwrap();
        }));
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!("test {name} ... {word} ({:.1} s)", began.elapsed().as_secs_f32());
        if outcome.is_err() {
            failed.push(name);
        }
    }
    if let Some(only) = args.iter().find_map(|arg| arg.strip_prefix("--bench")) {
        bench::run(&mut gpu, if only.is_empty() { filter } else { only.trim_start_matches('=') });
    }
    println!("{} passed, {} failed {failed:?}", chosen.count() - failed.len(), failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
