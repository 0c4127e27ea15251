//! A real Prometheus server beside a daemon, and what it answers to queries.
//!
//! Owns: the server's process and folder. It reads the configuration and the rules that are shipped, with
//! another address and a shorter interval.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::http::Server;

const REMEDY: &str =
    "Prometheus is needed (Debian: apt install --no-install-recommends prometheus)";
const START_MAX: Duration = Duration::from_secs(120);

/// A running `prometheus`.
pub struct Prometheus {
    child: Child,
    dir: TempDir,
    api: Server,
}

/// What is shipped for Prometheus.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/prometheus")
}

/// Runs `promtool` in the folder of what is shipped.
pub fn promtool(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new("promtool")
        .args(arguments)
        .current_dir(folder())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("promtool does not start ({error}): {REMEDY}"));
    let mut stdin = child.stdin.take().expect("it was asked for");
    // Less than a pipe holds, or read as it comes: promtool reads all before it answers.
    stdin.write_all(input.as_bytes()).expect("promtool reads");
    drop(stdin);
    child.wait_with_output().expect("promtool ends")
}

impl Prometheus {
    /// Starts one that scrapes `target` and evaluates the rules every second.
    pub fn start(target: SocketAddr) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let shipped = std::fs::read_to_string(folder().join("prometheus.yml")).expect("shipped");
        let rules = folder().join("minisgld.rules.yml");
        let mut config = shipped.clone();
        for (from, to) in [
            ("127.0.0.1:8000", target.to_string()),
            ("15s", "1s".to_string()),
            ("minisgld.rules.yml", rules.display().to_string()),
        ] {
            assert!(config.contains(from), "no {from} in:\n{shipped}");
            config = config.replace(from, &to);
        }
        let path = dir.path().join("prometheus.yml");
        std::fs::write(&path, config).expect("a temporary folder is writable");
        let log = std::fs::File::create(dir.path().join("log")).expect("writable");
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", path.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            // The kernel chooses a port; the log says which.
            .arg("--web.listen-address=127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("prometheus does not start ({error}): {REMEDY}"));
        let nowhere = Server::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
        let mut prometheus = Prometheus { child, dir, api: nowhere };
        let deadline = Instant::now() + START_MAX;
        while !prometheus.is_ready() {
            if let Some(listen) = listens_on(&prometheus.log()) {
                prometheus.api = Server::Tcp(listen);
            }
            assert!(Instant::now() < deadline, "prometheus is not ready:\n{}", prometheus.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        prometheus
    }

    fn is_ready(&self) -> bool {
        self.api.call("GET", "/-/ready", &Value::Null).is_ok_and(|answer| answer.status == 200)
    }

    /// Labels and value of each line of an instant query's answer, those that are numbers.
    pub fn query(&self, expression: &str) -> Vec<(Value, f64)> {
        let answer = self.get(&format!("/api/v1/query?query={}", encode(expression)));
        let lines = answer["data"]["result"].as_array().cloned().unwrap_or_default();
        let line = |line: &Value| {
            let value =
                line["value"][1].as_str()?.parse().ok().filter(|value: &f64| !value.is_nan());
            Some((line["metric"].clone(), value?))
        };
        lines.iter().filter_map(line).collect()
    }

    /// Name and expression of every alert.
    pub fn alerts(&self) -> Vec<(String, String)> {
        let answer = self.get("/api/v1/rules?type=alert");
        let groups = answer["data"]["groups"].as_array().expect("groups");
        let rules = groups.iter().flat_map(|group| group["rules"].as_array().expect("rules"));
        let text = |rule: &Value, key: &str| rule[key].as_str().expect("text").to_string();
        rules.map(|rule| (text(rule, "name"), text(rule, "query"))).collect()
    }

    fn get(&self, path: &str) -> Value {
        let answer = self.api.call("GET", path, &Value::Null);
        let answer = answer.unwrap_or_else(|error| panic!("{path}: {error}\n{}", self.log()));
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The address in the line of the log that says where the server listens, whatever the form of lines.
fn listens_on(log: &str) -> Option<SocketAddr> {
    let line = log.lines().find(|line| line.contains("Listening on"))?;
    let (_, address) = line.split_once("address=")?;
    address.split([' ', '"']).next()?.parse().ok()
}

fn encode(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}
