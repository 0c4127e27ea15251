//! What cannot be loaded or run is refused in words that name the thing; loading reports its way.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{config, write_coded_model, write_model};
use minisgl_engine::Engine;
use minisgl_proto::worker::LoadStage;
use minisgl_proto::{Device, KvDtype, LoadOptions, Quantize};
use minisgl_sched::{Executor, Grown, Plan, Row, SAMPLED_LAST, Want};
use safetensors::Dtype;
use serde_json::json;

fn options() -> LoadOptions {
    LoadOptions { device: Device::Cpu, kv_tokens: Some(256), threads: 1, ..LoadOptions::default() }
}

fn refusal(dir: &std::path::Path, options: LoadOptions) -> String {
    Engine::load(dir, &options, &mut |_| ()).err().expect("refused").to_string()
}

#[test]
fn options_that_cannot_be_served_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), &config("Qwen2ForCausalLM", 8, 4, 8), Dtype::BF16, 1);
    let cases = [
        (
            LoadOptions { tp: 3, ..options() },
            "tensor parallelism 3 does not divide this model (8 heads, 4 KV heads); possible are \
             [1, 2, 4, 8]",
        ),
        (LoadOptions { tp: 16, ..options() }, "possible are [1, 2, 4, 8]"),
        (LoadOptions { tp: 0, ..options() }, "option tp is 0: 1 to 1024"),
        (
            LoadOptions { kv_dtype: KvDtype::Fp8, ..options() },
            "option kv_dtype is fp8: auto, f32 or bf16 on the CPU",
        ),
        (LoadOptions { kv_dtype: KvDtype::Fp16, ..options() }, "option kv_dtype is fp16"),
        (
            LoadOptions { max_len: Some(257), ..options() },
            "option max_len is 257: at most the model's own 256",
        ),
        (
            LoadOptions { max_len: Some(200), kv_tokens: Some(64), ..options() },
            "option max_len is 200: at most the 64 tokens that fit into the KV cache; raise kv_tokens or memory_ratio",
        ),
        (LoadOptions { memory_ratio: Some(f32::NAN), ..options() }, "option memory_ratio is NaN"),
        (LoadOptions { page_size: 0, ..options() }, "option page_size is 0"),
        (LoadOptions { chunk_tokens: Some(0), ..options() }, "option chunk_tokens is 0"),
        (LoadOptions { chunk_tokens: Some(u32::MAX), ..options() }, "is 4294967295: 1 to 65536"),
        (LoadOptions { threads: u32::MAX, ..options() }, "option threads is 4294967295"),
        (LoadOptions { max_running: 0, ..options() }, "option max_running is 0"),
        (LoadOptions { kv_tokens: Some(0), ..options() }, "option kv_tokens is 0: at least 2"),
        (LoadOptions { kv_tokens: Some(1 << 40), ..options() }, "no memory for the KV cache"),
        (LoadOptions { kv_tokens: Some(u64::MAX), ..options() }, "no memory for the KV cache"),
        (LoadOptions { kv_tokens: Some(1), ..options() }, "option kv_tokens is 1: at least 2"),
        (LoadOptions { max_waiting: 0, ..options() }, "option max_waiting is 0: at least 1"),
        (LoadOptions { max_len: Some(1), ..options() }, "option max_len is 1: at least 2"),
    ];
    for (options, expected) in cases {
        let error = refusal(dir.path(), options);
        assert!(error.contains(expected), "{error:?} should contain {expected:?}");
    }
    // The same folder loads when asked for something that it can do.
    assert!(Engine::load(dir.path(), &options(), &mut |_| ()).is_ok());
}

/// What follows the context that LongRoPE begins with would need other rotations from the first token on.
#[test]
fn a_context_that_longrope_stretched_ends_where_it_began() {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), &config("Phi3ForCausalLM", 8, 4, 10), Dtype::BF16, 1);
    let of = |max_len| LoadOptions { max_len, ..options() };
    let wanted = "option max_len is 129: at most the context that the model had before LongRoPE stretched it, 128";
    assert_eq!(refusal(dir.path(), of(Some(129))), wanted);
    let (_engine, info) = Engine::load(dir.path(), &of(None), &mut |_| ()).unwrap();
    assert_eq!(info.max_len, 128);
}

#[test]
fn what_cannot_be_quantised_is_refused() {
    let fp8 = || LoadOptions { quantize: Quantize::Fp8, ..options() };
    let dir = tempfile::tempdir().unwrap();
    let mut coded = config("Qwen3ForCausalLM", 8, 4, 8);
    coded["quantization_config"] = json!({"quant_method": "fp8", "weight_block_size": [128, 128]});
    write_coded_model(dir.path(), &coded, 1);
    let wanted = "option quantize is fp8: none: the checkpoint's weights are fp8 already";
    assert_eq!(refusal(dir.path(), fp8()), wanted);
    assert!(Engine::load(dir.path(), &options(), &mut |_| ()).is_ok());
    let (fit, _) = Engine::fit(dir.path(), &options()).unwrap();
    assert_eq!(Engine::fit(dir.path(), &fp8()).unwrap_err().to_string(), wanted);

    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), &config("GptOssForCausalLM", 8, 4, 8), Dtype::BF16, 1);
    let wanted = "option quantize is fp8: none: experts of gpt-oss cannot be quantised at load";
    assert_eq!(refusal(dir.path(), fp8()), wanted);

    // A fit reckons with what a load makes of the weights.
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), &config("Qwen3ForCausalLM", 8, 4, 8), Dtype::BF16, 1);
    let (as_coded, _) = Engine::fit(dir.path(), &fp8()).unwrap();
    assert!(as_coded.weight_bytes.abs_diff(fit.weight_bytes) * 5 < fit.weight_bytes);
    let (plain, _) = Engine::fit(dir.path(), &options()).unwrap();
    assert!(as_coded.weight_bytes < plain.weight_bytes);
}

#[test]
fn a_gpu_that_cannot_be_used_is_refused_by_name() {
    #[cfg(feature = "cuda")]
    if minisgl_kernels::Device::count() > 0 {
        eprintln!("a CUDA device: not run");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), &config("Qwen2ForCausalLM", 8, 4, 8), Dtype::BF16, 1);
    let error = refusal(dir.path(), LoadOptions { device: Device::Cuda, ..options() });
    let reason = if cfg!(feature = "cuda") { "no NVIDIA driver" } else { "has no CUDA backend" };
    assert!(error.starts_with("device \"cuda\" cannot be used: "), "{error}");
    assert!(error.contains(reason) && error.contains("load with --device cpu"), "{error}");
    // Whatever is there is used.
    let auto = LoadOptions { device: Device::Auto, ..options() };
    let (_, info) = Engine::load(dir.path(), &auto, &mut |_| ()).unwrap();
    assert_eq!(info.device, "cpu");
}

#[test]
fn a_folder_that_is_no_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(refusal(dir.path(), options()).contains("config.json"));
    std::fs::write(dir.path().join("config.json"), config("LlamaForCausalLM", 2, 1, 8).to_string())
        .unwrap();
    assert!(refusal(dir.path(), options()).contains("model.safetensors"));
    let dummies = LoadOptions { dummy_weights: true, ..options() };
    assert!(Engine::load(dir.path(), &dummies, &mut |_| ()).is_ok(), "dummies need no file");
}

#[test]
fn loading_reports_its_stages_and_what_it_made() {
    let dir = tempfile::tempdir().unwrap();
    let (model, weights) =
        write_model(dir.path(), &config("LlamaForCausalLM", 6, 2, 8), Dtype::BF16, 1);
    for tp in [1, 2] {
        let mut seen = Vec::new();
        let options = LoadOptions { tp, page_size: 10, kv_tokens: Some(95), ..options() };
        let (_engine, info) =
            Engine::load(dir.path(), &options, &mut |progress| seen.push(progress)).unwrap();
        let order = [LoadStage::Read, LoadStage::WarmUp, LoadStage::KvPages];
        let mut stages: Vec<_> = seen.iter().map(|progress| progress.stage).collect();
        stages.dedup();
        assert_eq!(stages, order);
        for stage in order {
            let of_stage: Vec<_> = seen.iter().filter(|progress| progress.stage == stage).collect();
            assert!(of_stage.windows(2).all(|pair| pair[0].done <= pair[1].done));
            let last = of_stage.last().unwrap();
            assert_eq!(last.done, last.total, "{stage:?} is finished");
        }
        assert_eq!((info.kv_pages, info.kv_tokens, info.max_len), (10, 100, 100));
        assert_eq!(info.kv_bytes, 100 * 3 * 2 * (2 * 8) * 4);
        assert_eq!(
            info.parameters,
            weights.values().map(|values| values.len() as u64).sum::<u64>()
        );
        assert_eq!((info.tp, info.device.as_str(), info.dtype.as_str()), (tp, "cpu", "bf16"));
        assert_eq!((info.vocab_size, info.eos_token_ids), (67, model.eos_token_ids.clone()));
        assert_eq!(info.architecture, "LlamaForCausalLM");
    }
}

/// The first token of a request.
fn one_token(step: u64) -> Plan {
    Plan {
        step,
        grown: vec![Grown { slot: 0, group: 0, at: 0, len: 1 }],
        pages: vec![3],
        rows: vec![Row { slot: 0, start: 0, len: 1, tokens_at: 0, want: Want::Last }],
        tokens: vec![5],
        ..Plan::default()
    }
}

#[test]
fn misuse_is_an_error_and_final() {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), &config("LlamaForCausalLM", 2, 1, 8), Dtype::F32, 1);
    let plan = one_token;
    let load = || Engine::load(dir.path(), &options(), &mut |_| ()).unwrap().0;

    let mut engine = load();
    let idle = engine.wait().unwrap_err();
    assert_eq!(idle.to_string(), "nothing is in flight to wait for");
    engine.launch(plan(0)).unwrap();
    engine.launch(plan(1)).unwrap();
    assert_eq!((engine.wait().unwrap().step, engine.wait().unwrap().step), (0, 1));

    type Misuse = fn(&mut Plan);
    let cases: [(&str, Misuse); 4] = [
        ("step 7 launched, step 0 is next", |plan| plan.step = 7),
        ("step 0: token id 68 exceeds 67", |plan| plan.tokens[0] = 67),
        ("step 0: page 17 exceeds 16", |plan| plan.pages[0] = 16),
        ("step 0: row 0: slot 0 sampled no token -1", |plan| plan.tokens[0] = SAMPLED_LAST),
    ];
    for (message, misuse) in cases {
        let mut engine = load();
        let mut broken = plan(0);
        misuse(&mut broken);
        let error = engine.launch(broken).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(engine.launch(plan(0)).unwrap_err(), error, "broken for good");
        assert_eq!(engine.wait().unwrap_err(), error);
    }

    let mut engine = load();
    engine.launch(plan(0)).unwrap();
    engine.launch(plan(1)).unwrap();
    let error = engine.launch(plan(2)).unwrap_err();
    assert_eq!(error.to_string(), "step 2: 2 plans are in flight");
}

#[test]
fn a_plan_comes_back_when_every_rank_is_done_with_it() {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), &config("LlamaForCausalLM", 2, 2, 8), Dtype::F32, 1);
    let plan = one_token;
    let options = LoadOptions { tp: 2, ..options() };
    let mut engine = Engine::load(dir.path(), &options, &mut |_| ()).unwrap().0;
    assert_eq!(engine.reclaim(), None, "first steps are the engine's own");
    engine.launch(plan(0)).unwrap();
    assert_eq!(engine.reclaim(), None, "it runs");
    engine.launch(plan(1)).unwrap();
    engine.wait().unwrap();
    engine.wait().unwrap();
    // Ranks meet in collectives: with rank 0 all have taken step 1, and let go of step 0.
    assert_eq!(engine.reclaim(), Some(plan(0)));
    assert_eq!(engine.reclaim(), None, "ranks hold the last one");
    engine.launch(plan(2)).unwrap();
    engine.wait().unwrap();
    assert_eq!(engine.reclaim(), Some(plan(1)));
    // Who never asks holds a few at most, and gets them in order.
    for step in 3..9 {
        engine.launch(plan(step)).unwrap();
        engine.wait().unwrap();
    }
    assert_eq!(engine.reclaim(), Some(plan(6)));
    assert_eq!(engine.reclaim(), Some(plan(7)));
    assert_eq!(engine.reclaim(), None);
}
