//! What is shipped for Prometheus and Grafana, against a real Prometheus server that scrapes a daemon.

#![allow(clippy::unwrap_used)] // Helpers outside of #[test] functions are tests too.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use minisgl_proto::LoadOptions;
use minisgl_proto::admin::ModelState;
use minisgl_tests::prometheus::{Prometheus, promtool};
use minisgl_tests::{Daemon, dummy_folder, model_options, paths};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(120);

fn dashboard() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/grafana/minisgld.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Title and expression of every query of every panel.
fn panel_queries() -> Vec<(String, String)> {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    let queries = panels.iter().filter(|panel| panel["type"] != "row").flat_map(|panel| {
        let title = panel["title"].as_str().unwrap();
        let targets = panel["targets"].as_array().unwrap().iter();
        targets.map(|target| (title.to_string(), target["expr"].as_str().unwrap().to_string()))
    });
    queries.collect()
}

/// An expression as Grafana sends it with everything chosen.
fn with_variables(expression: &str) -> String {
    let chosen = [("$__rate_interval", "30s"), ("$instance", ".*"), ("$model", ".*")];
    let filled =
        chosen.iter().fold(expression.to_string(), |text, (from, to)| text.replace(from, to));
    assert!(!filled.contains('$'), "an unknown variable: {expression}");
    filled
}

/// An alert's expression without the comparison at its end, which is empty while all is well.
fn without_threshold(expression: &str) -> String {
    let (left, right) = expression.rsplit_once([' ']).unwrap();
    right.parse::<f64>().unwrap_or_else(|_| panic!("no threshold ends {expression}"));
    let left = left.strip_suffix(" >").or(left.strip_suffix(" ==")).or(left.strip_suffix(" <"));
    left.unwrap_or_else(|| panic!("no comparison ends {expression}")).to_string()
}

#[track_caller]
fn assert_good(output: &Output) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
}

#[test]
fn promtool_finds_no_fault() {
    assert_good(&promtool(&["check", "config", "prometheus.yml"], ""));
    assert_good(&promtool(&["check", "rules", "minisgld.rules.yml"], ""));
    assert_good(&promtool(&["test", "rules", "minisgld.rules.test.yml"], ""));
}

/// An alert without a test would pass `promtool test rules`.
#[test]
fn every_alert_has_a_test_in_which_it_fires() {
    let read =
        |name| std::fs::read_to_string(minisgl_tests::prometheus::folder().join(name)).unwrap();
    let (rules, tests) = (read("minisgld.rules.yml"), read("minisgld.rules.test.yml"));
    let alerts: Vec<&str> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 8, "{alerts:?}");
    for alert in alerts {
        let fires = format!("alertname: {alert}\n        exp_alerts:\n");
        assert!(tests.contains(&fires), "{alert} fires in no test");
    }
}

#[test]
fn the_dashboard_is_sound() {
    let dashboard = dashboard();
    let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id is taken");
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{title} is too wide");
        for cell in (at("x")..at("x") + at("w")).flat_map(|x| (0..at("h")).map(move |y| (x, y))) {
            assert!(cells.insert((cell.0, at("y") + cell.1)), "{title} lies over another panel");
        }
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
            for target in panel["targets"].as_array().unwrap() {
                assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            }
        }
    }
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<&Value> = variables.iter().map(|variable| &variable["name"]).collect();
    assert_eq!(names, ["datasource", "instance", "model"]);
}

/// A daemon that believes to see two GPUs, with a small model, one whose worker is going to be killed and one that
/// is going to leave.
fn daemon(folder: &Path) -> Daemon {
    let library = folder.join("libnvidia-ml.so.1");
    let source = paths::fixture("nvml.c");
    let compiled =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).status();
    assert!(compiled.expect("a C compiler").success());
    let daemon = Daemon::start_with(&[("LD_LIBRARY_PATH", folder.to_str().unwrap())]);
    let dummy = LoadOptions { dummy_weights: true, ..model_options() };
    let narrow = LoadOptions { max_running: 1, max_waiting: 1, ..dummy.clone() };
    daemon.load("narrow", &dummy_folder("qwen3", folder), narrow);
    daemon.load("leaving", &dummy_folder("qwen2", folder), dummy.clone());
    daemon.load("mortal", &dummy_folder("qwen2", folder), dummy);
    daemon
}

fn completion(model: &str, tokens: u32) -> Value {
    json!({"model": model, "prompt": [500, 501, 502, 503], "max_tokens": tokens, "ignore_eos": true})
}

/// A stream that goes on until it is dropped.
fn endless(daemon: &Daemon, model: &str) -> minisgl_tests::Events {
    let mut body = completion(model, 3000);
    body["stream"] = json!(true);
    let mut stream = daemon.events("/v1/completions", &body);
    assert!(stream.next_event().unwrap().is_some());
    stream
}

/// One request too many, a worker that dies, and a request to a model that is leaving.
fn misfortune(daemon: &Daemon, prometheus: &Prometheus) {
    let running = endless(daemon, "narrow");
    std::thread::scope(|scope| {
        scope.spawn(|| daemon.post("/v1/completions", &completion("narrow", 1)).ok());
        daemon.wait_for("narrow", "full", |status| status.in_flight == 2);
        let refused = daemon.post("/v1/completions", &completion("narrow", 1));
        assert_eq!(refused.status, 429, "{}", refused.text());
        drop(running);
    });
    let pid = daemon.status("mortal").pid.unwrap();
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
    daemon.wait_for("mortal", "replaced", |status| status.restarts == 1 && status.pid.is_some());
    let running = endless(daemon, "leaving");
    std::thread::scope(|scope| {
        scope.spawn(|| daemon.unload("leaving", false));
        daemon.wait_for("leaving", "leaving", |model| model.state == ModelState::Unloading);
        let refused = daemon.post("/v1/completions", &completion("leaving", 1));
        assert_eq!(refused.status, 503, "{}", refused.text());
        // Its lines go with it; a rate needs two of them.
        let seen = "count_over_time(minisgl_requests_total{outcome=\"unavailable\"}[5m]) >= 2";
        let began = Instant::now();
        while prometheus.query(seen).is_empty() {
            assert!(began.elapsed() < PATIENCE, "nobody hears of the refusal");
            std::thread::sleep(Duration::from_millis(200));
        }
        drop(running);
    });
}

#[test]
fn every_panel_and_every_alert_has_data_in_a_real_prometheus() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = daemon(folder.path());
    let prometheus = Prometheus::start(daemon.listen);
    misfortune(&daemon, &prometheus);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Latencies are of the last half minute, so somebody has to ask all the time.
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                daemon.post("/v1/completions", &completion("mortal", 20));
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            check_queries(&prometheus);
            check_values(&prometheus);
        }));
        done.store(true, Ordering::SeqCst);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    check_exposition(&daemon.get("/metrics").text());
}

fn check_queries(prometheus: &Prometheus) {
    let panels = panel_queries();
    let alerts = prometheus.alerts();
    assert!(panels.len() > 30 && alerts.len() >= 8, "{panels:?} {alerts:?}");
    let panels = panels.into_iter().map(|(title, query)| (title, with_variables(&query)));
    let alerts = alerts.into_iter().map(|(name, query)| (name, without_threshold(&query)));
    for (name, query) in panels.chain(alerts) {
        let began = Instant::now();
        while prometheus.query(&query).is_empty() {
            assert!(began.elapsed() < PATIENCE, "{name} has no data: {query}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// Values that are known, under names that others rely on.
fn check_values(prometheus: &Prometheus) {
    let one = |query: &str| match &prometheus.query(query)[..] {
        [(_, value)] => *value,
        other => panic!("{query}: {other:?}"),
    };
    assert_eq!(one("up{job=\"minisgld\"}"), 1.0);
    assert_eq!(one("minisgl_worker_restarts_total{model=\"mortal\"}"), 1.0);
    assert_eq!(one("count(minisgl_gpu_info)"), 2.0);
    assert_eq!(one("minisgl_gpu_memory_used_bytes{gpu=\"1\"}"), 73.0 * f64::from(1 << 30));
    assert_eq!(one("minisgl_gpu_power_watts{gpu=\"0\"}"), 612.345);
    assert_eq!(one("minisgl_gpu_utilization_ratio{gpu=\"0\"}"), 0.97);
    for name in [
        "sglang:num_running_reqs",
        "sglang:num_queue_reqs",
        "sglang:token_usage",
        "sglang:gen_throughput",
        "sglang:cache_hit_rate",
        "sglang:time_to_first_token_seconds_count",
        "sglang:e2e_request_latency_seconds_count",
    ] {
        let lines = prometheus.query(name);
        let models: Vec<_> = lines.iter().map(|(labels, _)| &labels["model_name"]).collect();
        assert_eq!(models, ["mortal", "narrow"], "{name}");
    }
    let began = Instant::now();
    while !(1.0..100_000.0).contains(&one("sglang:gen_throughput{model_name=\"mortal\"}")) {
        assert!(began.elapsed() < PATIENCE, "no throughput");
        std::thread::sleep(Duration::from_millis(200));
    }
    let first_tokens = one("sglang:time_to_first_token_seconds_count{model_name=\"mortal\"}");
    assert!(first_tokens >= 1.0, "{first_tokens}");
}

/// No fault in our own families. SGLang's are named as they are: with a colon, which promtool notes.
fn check_exposition(metrics: &str) {
    let is_ours = |line: &&str| !line.contains("sglang:");
    let ours: String = metrics.lines().filter(is_ours).map(|line| format!("{line}\n")).collect();
    assert!(ours.contains("minisgl_build_info{"), "{ours}");
    assert_good(&promtool(&["check", "metrics"], &ours));
    let all = promtool(&["check", "metrics"], metrics);
    let notes = String::from_utf8_lossy(&all.stderr).into_owned();
    let is_known = |note: &str| note.ends_with("metric names should not contain ':'");
    assert!(notes.lines().all(is_known), "{notes}");
    assert_eq!(notes.lines().count(), 12, "{notes}");
}
