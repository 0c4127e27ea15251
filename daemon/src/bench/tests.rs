//! Whole benchmarks over a tiny model on the CPU, and the floors' arithmetic.

use clap::Parser;
use minisgl_engine::config::ModelConfig;
use minisgl_engine::shard::Shard;
use minisgl_sched::StepProfile;

use super::args::{FloorArgs, What};
use super::floor::{Costs, Floor, Hardware};
use super::report::{Phases, Report};
use super::session::Run;
use super::timed::StepRecord;
use crate::cli::{Cli, Command};

/// One layer; the head is a matrix of its own.
const CONFIG: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "vocab_size": 67, "hidden_size": 16,
    "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256, "rope_theta": 1000.0, "tie_word_embeddings": false,
    "eos_token_id": 2, "torch_dtype": "float32", "hidden_act": "silu"
}"#;

/// Some of its tokens: JSON's own, and the end of an output.
const TOKENIZER: &str = r#"{
    "added_tokens": [{"id": 2, "content": "<|end|>", "special": true}],
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"[": 0, "]": 1, ",": 3, "true": 4, "false": 5}, "merges": []}
}"#;

/// Three prompts and outputs.
const WORKLOAD: &str = r#"{"prompt_lens": [40, 9, 21], "output_lens": [5, 12, 30]}"#;

/// `minisgld bench` with `line`, over the tiny model; `{dir}` in `line` is its folder.
fn bench(line: &str) -> anyhow::Result<Report> {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("config.json"), CONFIG)?;
    std::fs::write(dir.path().join("lens.json"), WORKLOAD)?;
    std::fs::write(dir.path().join("tokenizer.json"), TOKENIZER)?;
    std::fs::write(dir.path().join("wrong"), r#"{"type": "list"}"#)?;
    for (name, items) in [("long", 100), ("short", 1)] {
        let schema = format!(
            r#"{{"type": "array", "minItems": {items}, "maxItems": {items}, "items": {{"type": "boolean"}}}}"#
        );
        std::fs::write(dir.path().join(name), schema)?;
    }
    let dir = dir.path().display().to_string();
    let line = format!(
        "minisgld bench {line} --model {dir} --dummy-weights --device cpu --threads 1 --page-size 4"
    );
    let line = line.replace("{dir}", &dir);
    let cli = Cli::try_parse_from(line.split_whitespace())?;
    let Some(Command::Bench(args)) = cli.command else { panic!("{line}") };
    let What::Model(bench) = &args.what else { panic!("{line}") };
    super::measure(bench)
}

fn refusal(line: &str) -> String {
    format!("{:#}", bench(line).expect_err(line))
}

#[test]
fn offline_generates_every_token_that_was_asked_for() {
    let report = bench(
        "offline --workload {dir}/lens.json --kv-tokens 400 --chunk-tokens 16 --read-bandwidth 8 \
         --matmul 0.1",
    )
    .unwrap();
    let [result] = &report.results[..] else { panic!("{report:?}") };
    let phases = &result.phases;
    assert_eq!(phases.all.prefill_tokens, 70);
    assert_eq!(phases.preemptions, 0);
    assert_eq!(phases.all.steps, phases.prefill.steps + phases.decode.steps);
    // Each request decodes one token less than it generates.
    let decoded = phases.all.decode_rows_mean * phases.all.steps as f64;
    assert_eq!(decoded.round(), 44.0);
    let output = &result.figures[0];
    assert!(output.reached.unwrap() > 0.0 && output.reached.unwrap() < 1.0);
    assert!((output.floor.unwrap() * output.reached.unwrap() / output.value - 1.0).abs() < 1e-9);
    assert!(phases.first_token_mean_s > 0.0);
    assert!(phases.schedule_s > 0.0 && phases.launch_s > 0.0 && phases.wait_s > 0.0);
    // The CPU runs a step where a GPU enqueues it, and measures nothing else.
    assert!(phases.enqueue_s.unwrap() > 0.0);
    assert_eq!(phases.decode_idle, None);

    let text = report.text();
    for part in ["70 prompt and 47 output tokens", "output", "tok/s, floor", "0 preemptions"] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["results"][0]["figures"][0]["name"], "output");
    assert_eq!(json["results"][0]["phases"]["all"]["prefill_tokens"], 70);
    assert!(json["host_memory"]["rss_peak_bytes"].as_u64().unwrap() > 1 << 20);
}

#[test]
fn offline_without_rates_prints_no_floor() {
    let report = bench("offline --workload {dir}/lens.json --requests 1 --kv-tokens 64").unwrap();
    assert!(report.results[0].figures.iter().all(|figure| figure.floor.is_none()));
    assert!(report.text().contains("no floors: give --read-bandwidth and --matmul"));
}

#[test]
fn latency_measures_each_batch() {
    let report = bench(
        "latency --batch 1,3 --prompt 20 --output 9 --runs 2 --kv-tokens 200 --read-bandwidth 8 \
         --matmul 0.1",
    )
    .unwrap();
    let [one, three] = &report.results[..] else { panic!("{report:?}") };
    for (result, rows) in [(one, 1.0), (three, 3.0)] {
        assert_eq!(result.phases.decode.steps, 8);
        assert_eq!(result.phases.decode.decode_rows_mean, rows);
        assert_eq!(result.phases.prefill.steps, 1);
    }
    // The floor of a step at batch 3 is above that at batch 1, by the keys and values of two rows.
    let floor = |result: &super::report::RunReport| result.figures[0].floor.unwrap();
    assert!(floor(three) > floor(one));
    assert!(report.text().contains("ms/token"));
}

#[test]
fn with_a_schema_each_run_comes_twice() {
    let line =
        "latency --batch 1,3 --prompt 20 --output 9 --runs 2 --kv-tokens 200 --schema {dir}/long";
    let report = bench(line).unwrap();
    let names: Vec<bool> =
        report.results.iter().map(|result| result.name.contains("held to --schema")).collect();
    assert_eq!(names, [false, true, false, true]);
    for (result, rows) in report.results.iter().zip([1.0, 1.0, 3.0, 3.0]) {
        assert_eq!((result.phases.decode.steps, result.phases.decode.decode_rows_mean), (8, rows));
    }
    let report =
        bench("offline --workload {dir}/lens.json --kv-tokens 400 --schema {dir}/long").unwrap();
    assert_eq!(report.results.len(), 2);
    assert!(report.results[1].name.contains("held to --schema"), "{report:?}");
}

#[test]
fn a_schema_that_cannot_be_measured_is_refused() {
    let error = refusal("offline --workload {dir}/lens.json --kv-tokens 400 --schema {dir}/none");
    assert!(error.contains("--schema: cannot read"), "{error}");
    let error = refusal("offline --workload {dir}/lens.json --kv-tokens 400 --schema {dir}/wrong");
    assert!(error.contains("wrong: the JSON schema"), "{error}");
    let error = refusal("offline --workload {dir}/lens.json --kv-tokens 400 --schema {dir}/short");
    assert!(error.contains("minItems"), "outputs end early: {error}");
}

#[test]
fn prefill_counts_prompt_tokens() {
    let report =
        bench("prefill --tokens 50 --count 3 --kv-tokens 64 --chunk-tokens 20 --json").unwrap();
    let phases = &report.results[0].phases;
    assert_eq!((phases.all.prefill_tokens, phases.prefill.steps), (150, 9));
}

#[test]
fn what_does_not_fit_is_refused_with_a_remedy() {
    let error = refusal("prefill --tokens 65 --kv-tokens 64");
    assert!(error.contains("a request has 66 tokens") && error.contains("--kv-tokens"), "{error}");
    let error = refusal("prefill --tokens 300 --kv-tokens 1000");
    assert!(error.contains("that is its context") && error.contains("--tokens"), "{error}");
    let error = refusal("latency --batch 3 --prompt 20 --output 9 --kv-tokens 64");
    assert!(error.contains("--batch 3 needs 24 KV pages of 4 tokens, there are 16"), "{error}");
    let error = refusal("latency --batch 3 --max-running 2 --prompt 8 --output 9 --kv-tokens 64");
    assert!(error.contains("--batch 3 is more than --max-running 2"), "{error}");
    let error = refusal("offline --workload {dir}/none.json --kv-tokens 64");
    assert!(error.contains("--workload: cannot read"), "{error}");
    let error = refusal("offline --workload {dir}/lens.json --requests 4 --kv-tokens 64");
    assert!(error.contains("--requests is 4, the workload has 3"), "{error}");
    let error = refusal("offline --requests 1 --kv-tokens 64 --read-bandwidth 8");
    assert!(error.contains("add --matmul"), "{error}");
    let error = refusal("latency --batch 0");
    assert!(error.contains("--batch"), "{error}");
    let error = refusal("offline --temperature=-1 --kv-tokens 64");
    assert!(error.contains("--temperature"), "{error}");
}

#[test]
fn rates_are_known_for_some_gpus() {
    let none = FloorArgs::default();
    let h100 = Hardware::choose(&none, "NVIDIA H100 80GB HBM3").unwrap().unwrap();
    assert_eq!((h100.read_bytes_per_s, h100.matmul_flop_per_s), (3.14e12, 800e12));
    for h200 in ["NVIDIA H200", "2 x NVIDIA H200", "NVIDIA H200 NVL"] {
        assert!(Hardware::choose(&none, h200).unwrap().is_some(), "{h200}");
    }
    for other in ["NVIDIA GH200 480GB", "NVIDIA H200X", "2 x NVIDIA GH200 144G HBM3e"] {
        assert_eq!(Hardware::choose(&none, other).unwrap(), None, "{other}");
    }
    // Its memory is another.
    assert_eq!(Hardware::choose(&none, "NVIDIA H100 PCIe").unwrap(), None);
    let given = FloorArgs { read_bandwidth: Some(2_000.0), matmul: None };
    let mixed = Hardware::choose(&given, "NVIDIA H200").unwrap().unwrap();
    assert_eq!((mixed.read_bytes_per_s, mixed.matmul_flop_per_s), (2e12, 822e12));
    let wrong = FloorArgs { read_bandwidth: Some(0.0), matmul: Some(1.0) };
    assert!(Hardware::choose(&wrong, "cpu").unwrap_err().to_string().contains("--read-bandwidth"));
}

#[test]
fn a_run_is_split_into_prefill_and_decode() {
    let step = |prefill_rows, decode_rows, wall_s, device_s| StepRecord {
        prefill_rows,
        prefill_tokens: 10 * prefill_rows,
        decode_rows,
        wall_s,
        profile: StepProfile { enqueue_s: Some(0.002), device_s },
        ..StepRecord::default()
    };
    let mut run = Run {
        steps: vec![
            step(2, 1, 0.5, None),
            step(0, 3, 0.010, Some(0.009)),
            step(0, 2, 0.030, Some(0.029)),
        ],
        seconds: 0.54,
        first_token_s: vec![0.5, 0.1],
        schedule_s: 0.003,
        preemptions: 4,
    };
    let costs = Costs {
        weight_bytes: 1e9,
        experts: Vec::new(),
        kv_token_bytes: 1e3,
        layer_flop: 1e9,
        layer_speed: 1.0,
        head_flop: 1e9,
        attention_flop: 1e3,
    };
    let phases = Phases::of(&run, &costs, None);
    assert_eq!((phases.all.steps, phases.prefill.steps, phases.decode.steps), (3, 1, 2));
    assert_eq!((phases.decode.decode_rows_mean, phases.prefill.prefill_tokens), (2.5, 20));
    assert_eq!((phases.decode_step_max_s, phases.preemptions), (0.030, 4));
    assert_eq!((phases.first_token_mean_s, phases.first_token_max_s), (0.3, 0.5));
    let near = |value: Option<f64>, expected: f64| (value.unwrap() - expected).abs() < 1e-6;
    assert!(near(Some(phases.decode.seconds), 0.04));
    // 38 of 40 ms.
    assert!(near(phases.decode_idle, 0.05), "{phases:?}");
    assert!(near(phases.enqueue_s, 0.006));
    run.steps[2].profile = StepProfile::default();
    let phases = Phases::of(&run, &costs, None);
    assert_eq!((phases.decode_idle, phases.enqueue_s), (None, None), "one was not measured");
    let both = run.clone().then(run);
    assert_eq!((both.steps.len(), both.preemptions, both.seconds), (6, 8, 1.08));
}

/// Qwen3-0.6B, by hand.
#[test]
fn floors_add_up() {
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"architectures": ["Qwen3ForCausalLM"], "vocab_size": 151936,
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 40960, "rope_theta": 1000000,
        "tie_word_embeddings": true, "hidden_act": "silu"}"#;
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    let config = ModelConfig::from_dir(dir.path()).unwrap();
    let parameters = minisgl_engine::model::parameters(&config);
    let costs = Costs::of(&config, 2 * parameters, 114_688.0);
    let table = 151_936 * 1_024;
    // The table is the head: read once a step.
    assert_eq!(costs.weight_bytes, 2.0 * parameters as f64);
    assert_eq!(costs.kv_token_bytes, 114_688.0);
    assert_eq!(costs.layer_flop, 2.0 * (parameters - table) as f64);
    assert_eq!(costs.head_flop, 2.0 * table as f64);
    assert_eq!(costs.attention_flop, (4 * 16 * 128 * 28) as f64);
    let untied = ModelConfig { tie_word_embeddings: false, ..config };
    let apart = Costs::of(&untied, 2 * minisgl_engine::model::parameters(&untied), 114_688.0);
    assert!((apart.weight_bytes / costs.weight_bytes - 1.0).abs() < 1e-9);
    assert_eq!(apart.layer_flop, costs.layer_flop);
    // Of codes a byte each is read, and a scale for each output; the head stays what it is.
    let coded = untied.quantised_to_fp8().unwrap();
    let stored = minisgl_engine::model::bytes_of(&coded, &Shard::whole(&coded));
    let outputs: u64 = 28 * (4096 + 1024 + 2 * 3072 + 1024);
    let norms: u64 = 28 * (2 * 1024 + 2 * 128) + 1024;
    let projections = parameters - table - norms;
    assert_eq!(stored, projections + 4 * outputs + 2 * (norms + 2 * table));
    let costs_coded = Costs::of(&coded, stored, 114_688.0);
    assert!((costs_coded.weight_bytes / (stored as f64 - 2.0 * table as f64) - 1.0).abs() < 1e-9);
    assert_eq!((costs_coded.layer_flop, costs_coded.layer_speed), (costs.layer_flop, 2.0));

    let decode = StepRecord { decode_rows: 2, kv_read_tokens: 700.0, ..StepRecord::default() };
    let prefill = StepRecord {
        prefill_rows: 1,
        prefill_tokens: 10,
        prefill_sampled: 1,
        kv_read_tokens: 5.0,
        prefill_pairs: 105.0,
        ..StepRecord::default()
    };
    let hardware = Hardware { read_bytes_per_s: 1e12, matmul_flop_per_s: 1e14 };
    let floor = Floor::of(&[decode, prefill], &costs, &hardware);
    let near = |value: f64, expected: f64| assert!((value / expected - 1.0).abs() < 1e-12);
    near(floor.weights_s, 2.0 * costs.weight_bytes / 1e12);
    near(floor.kv_s, 705.0 * 114_688.0 / 1e12);
    let flop = 10.0 * costs.layer_flop + costs.head_flop + 105.0 * costs.attention_flop;
    near(floor.prefill_s, flop / 1e14);
    near(floor.seconds(), floor.weights_s + floor.kv_s + floor.prefill_s);
}

/// Qwen3-30B-A3B: 3.3 of 30.5 billion parameters work on a token.
#[test]
fn a_floor_has_the_experts_that_are_chosen() {
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 151936,
        "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
        "max_position_embeddings": 40960, "moe_intermediate_size": 768, "num_experts": 128,
        "num_experts_per_tok": 8}"#;
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    let config = ModelConfig::from_dir(dir.path()).unwrap();
    let parameters = minisgl_engine::model::parameters(&config) as f64;
    let costs = Costs::of(&config, 2 * parameters as u64, 98_304.0);
    let (expert, table) = (3.0 * 768.0 * 2048.0, 151_936.0 * 2048.0);
    let near = |value: f64, expected: f64| {
        assert!((value / expected - 1.0).abs() < 1e-12, "{value}, not {expected}");
    };
    let others = parameters - table - 48.0 * 128.0 * expert;
    near(costs.weight_bytes, 2.0 * others);
    near(costs.layer_flop, 2.0 * (others - table + 48.0 * 8.0 * expert));
    let hardware = Hardware { read_bytes_per_s: 1e12, matmul_flop_per_s: 1e14 };
    let weights_s = |decode_rows, prefill_tokens| {
        let step = StepRecord { decode_rows, prefill_tokens, ..StepRecord::default() };
        Floor::of(&[step], &costs, &hardware).weights_s
    };
    let read = |experts: f64| 2.0 * (others + 48.0 * experts * expert) / 1e12;
    near(weights_s(1, 0), read(8.0));
    // The second token finds a sixteenth of its experts among those of the first.
    near(weights_s(2, 0), read(8.0 + 7.5));
    near(weights_s(1, 1), read(8.0 + 7.5));
    near(weights_s(0, 8192), read(128.0));
}
