//! `minisglctl` from load to unload: what it prints for programs, and its exit codes.

#![allow(clippy::unwrap_used)] // Helpers outside of #[test] functions are tests too.

use std::fs;
use std::process::Output;

use minisgl_proto::admin::ModelStatus;
use minisgl_proto::{Device, LoadOptions};
use minisgl_tests::{Daemon, daemon, model_options, paths};
use serde_json::{Value, json};

fn succeed(daemon: &Daemon, args: &[&str]) -> String {
    let Output { status, stdout, stderr } = daemon.ctl(args);
    let (out, err) = (String::from_utf8(stdout).unwrap(), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{args:?}: {status}\n{out}\n{err}\n{}", daemon.log());
    out
}

fn json_of(daemon: &Daemon, args: &[&str]) -> Value {
    let out = succeed(daemon, args);
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{args:?}: {e}: {out}"))
}

/// The exit code, and the message on standard error.
fn fail(daemon: &Daemon, args: &[&str]) -> (i32, String) {
    let Output { status, stdout: _, stderr } = daemon.ctl(args);
    assert!(!status.success(), "{args:?} succeeded");
    (status.code().unwrap(), String::from_utf8(stderr).unwrap())
}

/// `doctor MODEL`, by the daemon and without one.
#[test]
fn a_model_is_looked_at_before_it_is_loaded() {
    let daemon = Daemon::start();
    let coded = paths::fixture("tiny/gpt_oss_mxfp4");
    let looks = ["doctor", coded.to_str().unwrap(), "--device", "cpu", "-o", "json"];
    let report = json_of(&daemon, &looks);
    assert_eq!((&report["fits"], &report["problem"]), (&json!(true), &Value::Null), "{report}");
    assert_eq!(report["fit"]["architecture"], "GptOssForCausalLM");
    let schemes: Vec<&str> = report["fit"]["schemes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|share| share["scheme"].as_str().unwrap())
        .collect();
    assert!(schemes.contains(&"mxfp4") && schemes.contains(&"plain"), "{schemes:?}");
    assert!(succeed(&daemon, &looks[..4]).contains("in mxfp4"));

    let folder = tempfile::tempdir().unwrap();
    let config = fs::read_to_string(coded.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["quantization_config"] = json!({"quant_method": "awq", "bits": 4});
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let folder = folder.path().to_str().unwrap();
    let (code, said) = fail(&daemon, &["doctor", folder]);
    assert!(code == 5 && said.contains("awq"), "{code}: {said}");

    let alone = |model: &str| {
        let mut ctl = std::process::Command::new(paths::binary("minisglctl"));
        let nowhere = daemon.dir().join("nowhere.sock");
        ctl.arg("--socket").arg(nowhere).args(["doctor", model, "--device", "cpu"]);
        ctl.output().unwrap()
    };
    let Output { status, stdout, .. } = alone(coded.to_str().unwrap());
    let said = String::from_utf8(stdout).unwrap();
    assert!(status.success() && said.contains("GptOssForCausalLM"), "{status}: {said}");
    assert_eq!(alone(folder).status.code(), Some(5));
    assert_eq!(alone("org/repo").status.code(), Some(3), "without a daemon there is no hub");
}

#[test]
fn from_load_to_unload() {
    let daemon = Daemon::start();
    let model = paths::smollm2();
    let model = model.to_str().unwrap();
    assert_eq!(fail(&daemon, &["health"]).0, 6, "a daemon without a model is not ready");

    let device = if daemon::device() == Device::Cuda { "cuda" } else { "cpu" };
    let load = ["load", model, "--name", "smollm2", "--kv-tokens", "4096", "-o", "json"];
    let load = [&load[..], &["--device", device]].concat();
    let status: ModelStatus = serde_json::from_value(json_of(&daemon, &load)).unwrap();
    let info = status.info.unwrap();
    assert_eq!(
        (status.name.as_str(), info.vocab_size, info.parameters),
        ("smollm2", 49152, 134_515_008)
    );
    assert_eq!((info.architecture.as_str(), info.kv_tokens), ("LlamaForCausalLM", 4096));

    succeed(&daemon, &["health"]);
    assert_eq!(json_of(&daemon, &["list", "-o", "json"])[0]["name"], "smollm2");
    assert_eq!(json_of(&daemon, &["ps", "-o", "json"])[0]["state"], "ready");
    assert_eq!(json_of(&daemon, &["show", "smollm2", "-o", "json"])["pid"], status.pid.unwrap());
    for table in ["list", "ps"] {
        assert!(succeed(&daemon, &[table]).contains("smollm2"));
    }
    assert_eq!(json_of(&daemon, &["version", "-o", "json"])["daemon"]["pid"], daemon.pid());

    let ask =
        ["chat", "smollm2", "--prompt", "What is the capital of France?", "--temperature", "0"];
    assert_eq!(succeed(&daemon, &ask).trim(), "The capital of France is Paris.");
    assert!(
        json_of(&daemon, &["flush", "smollm2", "-o", "json"])["pages_freed"].as_u64().unwrap() > 0
    );
    let top = succeed(&daemon, &["top", "--once"]);
    let row =
        top.lines().find(|line| line.starts_with("smollm2 ")).unwrap_or_else(|| panic!("{top}"));
    let cells: Vec<&str> = row.split_whitespace().collect();
    // Name, state, running, waiting, tokens a second, then latencies, which one answer was enough for.
    assert_eq!((cells.len(), &cells[1..4]), (12, &["ready", "0", "0"][..]), "{top}");
    assert!(cells[5..9].iter().all(|time| time.ends_with('s')), "{top}");
    let metrics = succeed(&daemon, &["metrics"]);
    assert!(metrics.contains("minisgl_generated_tokens_total"), "{metrics}");

    succeed(&daemon, &["unload", "smollm2"]);
    assert_eq!(json_of(&daemon, &["list", "-o", "json"]), json!([]));
}

#[test]
fn each_kind_of_failure_has_its_exit_code() {
    let daemon = Daemon::start();
    daemon.load("smollm2", &paths::smollm2(), model_options());
    assert_eq!(fail(&daemon, &["frobnicate"]).0, 2);
    let unreachable = fail(&daemon, &["ps", "--socket", "/nonexistent/admin.sock"]);
    assert_eq!(unreachable.0, 3);
    assert!(unreachable.1.contains("/nonexistent/admin.sock"), "{}", unreachable.1);
    let unknown = fail(&daemon, &["show", "nobody"]);
    assert_eq!(unknown.0, 4);
    assert!(unknown.1.contains("nobody"), "{}", unknown.1);
    let model = paths::smollm2();
    let taken = fail(&daemon, &["load", model.to_str().unwrap(), "--name", "smollm2"]);
    assert_eq!(taken.0, 5, "{}", taken.1);
    for absent in ["/no/such/folder", "some/missing/folder", "no-such-org/no-such-model"] {
        let (code, message) = fail(&daemon, &["load", absent, "--name", "absent"]);
        assert_eq!(code, 4, "{message}");
        assert!(message.contains(absent), "{message}");
    }
    let empty = daemon.dir().join("empty");
    fs::create_dir(&empty).unwrap();
    let failed = fail(&daemon, &["load", empty.to_str().unwrap(), "--name", "empty"]);
    assert_eq!(failed.0, 6, "{}", failed.1);
    assert!(failed.1.contains("config.json"), "{}", failed.1);
}

/// `doctor -o json`, and whether its exit code is the one that belongs to its verdict.
fn doctor(daemon: &Daemon, more: &[&str]) -> Value {
    let args = [&["doctor", "-o", "json"], more].concat();
    let Output { status, stdout, stderr } = daemon.ctl(&args);
    let value: Value = serde_json::from_slice(&stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&stderr)));
    let codes =
        [("ready", 0), ("no_backend", 10), ("no_driver", 11), ("no_gpu", 12), ("no_library", 13)];
    let verdict = value["report"]["machine"]["verdict"].as_str();
    let expected = codes.iter().find(|(name, _)| Some(*name) == verdict).map(|(_, code)| *code);
    assert_eq!(status.code(), expected, "{value:#}");
    value
}

#[test]
fn doctor_says_what_there_is_with_and_without_a_daemon() {
    // A driver that does not load, in the configured folder: the children of the daemon must find it.
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("libcuda.so.1"), "no library").unwrap();
    let path = folder.path().to_str().unwrap();
    let daemon = Daemon::start_with(&[("MINISGL_CUDA_LIBRARIES", path)]);
    let asked = doctor(&daemon, &[]);
    assert_eq!(asked["asked"], "the daemon");
    let machine = &asked["report"]["machine"];
    assert_eq!(machine["libraries_folder"], path);
    assert_eq!(asked["report"]["hub"]["offline"], true, "the daemon's environment, not ours");
    if machine["verdict"] == "no_driver" {
        assert!(machine["problem"].as_str().unwrap().contains(path), "{machine}");
        let options = LoadOptions { device: Device::Cuda, ..model_options() };
        let refused = daemon.try_load("x", &paths::smollm2(), options).unwrap_err();
        assert!(refused.message.contains(path), "{refused}");
    }

    let alone = doctor(&daemon, &["--socket", "/nonexistent/admin.sock"]);
    assert!(alone["asked"].as_str().unwrap().ends_with("/minisgld"), "{alone}");
    assert_eq!(alone["report"]["machine"]["verdict"], machine["verdict"]);
    assert_eq!(alone["report"]["machine"]["driver"]["version"], machine["driver"]["version"]);
}

#[test]
fn a_batch_resumes_where_it_stopped() {
    let daemon = Daemon::with_smollm2(model_options());
    let (input, output) = (daemon.dir().join("in.jsonl"), daemon.dir().join("out.jsonl"));
    let line = |id: usize| {
        let body = json!({
            "model": "smollm2",
            "messages": [{"role": "user", "content": format!("Count to {id}.")}],
            "temperature": 0,
            "max_tokens": 8,
        });
        let url = "/v1/chat/completions";
        json!({"custom_id": format!("r{id}"), "method": "POST", "url": url, "body": body})
            .to_string()
    };
    let lines: Vec<String> = (0..12).map(line).collect();
    let args = ["batch", input.to_str().unwrap(), "-o", output.to_str().unwrap()];

    fs::write(&input, lines[..5].join("\n") + "\n").unwrap();
    succeed(&daemon, &args);
    let first = fs::read_to_string(&output).unwrap();
    // The last answer was being written when the power went.
    fs::write(&output, &first[..first.len() - 20]).unwrap();
    fs::write(&input, lines.join("\n") + "\n").unwrap();
    succeed(&daemon, &args);

    let text = fs::read_to_string(&output).unwrap();
    let answers: Vec<Value> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let mut ids: Vec<_> =
        answers.iter().map(|a| a["custom_id"].as_str().unwrap().to_owned()).collect();
    ids.sort();
    let mut expected: Vec<_> = (0..12).map(|id| format!("r{id}")).collect();
    expected.sort();
    assert_eq!(ids, expected, "{text}");
    for answer in &answers {
        assert_eq!(answer["response"]["status_code"], 200, "{answer}");
        let tokens = &answer["response"]["body"]["usage"]["completion_tokens"];
        assert!((1..=8).contains(&tokens.as_u64().unwrap()), "{answer}");
    }
}
