//! SGLang's own benchmark of servers, unmodified, against a real daemon: every request is answered, every token counted.

use std::path::Path;
use std::process::Command;

use minisgl_tests::{Daemon, model_options, paths};
use serde_json::Value;

const REQUESTS: u64 = 6;
const PROMPT: u64 = 32;
const GENERATED: u64 = 8;

fn run(backend: &str) {
    let python = paths::venv_program("venv-sglang-client", "python");
    let wheel = paths::venvs().join("sglang-client");
    assert!(wheel.exists(), "no {}; `cargo xtask test` makes it", wheel.display());
    let daemon = Daemon::with_smollm2(model_options());
    let report = daemon.dir().join("report.jsonl");
    let status = Command::new(python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("python/bench/sglang_serving.py"))
        .arg(wheel)
        .args(["--backend", backend, "--base-url", &format!("http://{}", daemon.listen)])
        .args(["--model", "smollm2", "--dataset-name", "random-ids", "--random-range-ratio", "1.0"])
        .args(["--random-input-len", &PROMPT.to_string()])
        .args(["--random-output-len", &GENERATED.to_string()])
        .args(["--num-prompts", &REQUESTS.to_string(), "--request-rate", "1000", "--tokenizer"])
        .arg(paths::smollm2())
        .arg("--output-file")
        .arg(&report)
        .current_dir(daemon.dir())
        .env("HF_HUB_OFFLINE", "1")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .status()
        .expect("Python starts");
    assert!(status.success(), "{backend}: {status}");
    let report = std::fs::read_to_string(report).expect("a report");
    let report: Value = serde_json::from_str(report.trim()).expect("one line of JSON");
    assert_eq!(report["completed"], REQUESTS, "{report}");
    assert_eq!(report["total_input_tokens"], REQUESTS * PROMPT, "{report}");
    assert_eq!(report["total_output_tokens"], REQUESTS * GENERATED, "{report}");
    daemon.assert_all_pages_back("smollm2");
}

#[test]
fn sglangs_benchmark_counts_its_own_route() {
    run("sglang");
}

#[test]
fn sglangs_benchmark_counts_completions() {
    run("sglang-oai");
}

#[test]
fn sglangs_benchmark_counts_chats() {
    run("sglang-oai-chat");
}
