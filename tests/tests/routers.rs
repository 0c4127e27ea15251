//! Routers of others, unmodified, before two real daemons: names, contexts, loads, and requests that reach both.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use minisgl_tests::{Daemon, Server, model_options, paths};
use serde_json::{Value, json};

const ANSWER: &str = "The capital of France is Paris.";
/// What never happens is told after that long.
const SETTLE_MAX: Duration = Duration::from_secs(60);

struct Router {
    child: Child,
    api: Server,
    log: PathBuf,
}

impl Router {
    /// Starts `program` of a virtual environment before these daemons, and waits until it knows both.
    fn start(venv: &str, program: &str, workers: &[Daemon]) -> Self {
        let path = paths::venv_program(venv, program);
        let [listen, metrics] = free_ports();
        let log = workers[0].dir().join("router.log");
        let file = File::create(&log).expect("a temporary folder is writable");
        let child = Command::new(path)
            .args(["launch", "--host", "127.0.0.1", "--policy", "round_robin"])
            .args(["--port", &listen.port().to_string()])
            .args(["--prometheus-port", &metrics.port().to_string()])
            .arg("--worker-urls")
            .args(workers.iter().map(|daemon| format!("http://{}", daemon.listen)))
            .current_dir(workers[0].dir())
            .env("HF_HUB_OFFLINE", "1")
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a file"))
            .stderr(file)
            .spawn()
            .expect("the router starts");
        let router = Router { child, api: Server::Tcp(listen), log };
        router.wait_for("both workers", "/workers", |workers| {
            let found = workers["workers"].as_array().map_or(&[][..], Vec::as_slice);
            found.len() == 2 && found.iter().all(|worker| worker["is_healthy"] == true)
        });
        router
    }

    /// What a path answers once `done` says so.
    fn wait_for(&self, what: &str, path: &str, done: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + SETTLE_MAX;
        let mut last = Value::Null;
        while Instant::now() < deadline {
            if let Ok(answer) = self.api.call("GET", path, &Value::Null) {
                last = serde_json::from_slice(&answer.body).unwrap_or_default();
                if done(&last) {
                    return last;
                }
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        panic!("not {what}: {last}\n{}", &log[log.len().saturating_sub(2000)..]);
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(&self.log).unwrap_or_default());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Routers do not say which port a kernel chose. These were free a moment ago.
fn free_ports() -> [SocketAddr; 2] {
    let listeners =
        [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("the kernel has a port"));
    listeners.map(|listener| listener.local_addr().expect("it is bound"))
}

fn daemons() -> [Daemon; 2] {
    [(); 2].map(|()| Daemon::with_smollm2(model_options()))
}

fn chat(more: Value) -> Value {
    let mut body = json!({
        "model": "smollm2", "temperature": 0, "max_tokens": 20,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    });
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

/// How many chats a daemon has answered.
fn chats(daemon: &Daemon) -> u64 {
    let text = daemon.get("/metrics").text();
    let of_chats = text.lines().filter(|line| {
        line.starts_with("minisgl_requests_total{") && line.contains("\"/v1/chat/completions\"")
    });
    of_chats.map(|line| line.rsplit(' ').next().unwrap_or("").parse::<u64>().unwrap_or(0)).sum()
}

/// Requests go through the router and reach both; `running` finds the running requests in what `/get_loads` answers.
fn serve(router: &Router, workers: &[Daemon; 2], running: impl Fn(&Value) -> Option<i64>) {
    let models = router.api.call("GET", "/v1/models", &Value::Null).expect("it answers").ok();
    assert_eq!(models["data"][0]["id"], "smollm2", "{models}");
    for _ in 0..4 {
        let whole = router.api.call("POST", "/v1/chat/completions", &chat(json!({})));
        let whole = whole.expect("it answers").ok();
        assert_eq!(whole["choices"][0]["message"]["content"], ANSWER, "{whole}");
    }
    assert_eq!([chats(&workers[0]), chats(&workers[1])], [2, 2]);
    let stream = router.api.events("/v1/chat/completions", &chat(json!({"stream": true})));
    let events = stream.and_then(minisgl_tests::Events::rest).expect("a stream");
    let deltas = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str());
    assert_eq!(deltas.collect::<String>(), ANSWER);
    // A model that nobody has; SGLang's own route, whose name smg makes up where there is none.
    let nobody = router.api.call("POST", "/v1/chat/completions", &chat(json!({"model": "nobody"})));
    assert!((400..=503).contains(&nobody.expect("it answers").status));
    let text = json!({"model": "smollm2", "text": "Hello", "sampling_params": {"max_new_tokens": 3, "temperature": 0}});
    let text = router.api.call("POST", "/generate", &text).expect("it answers").ok();
    assert_eq!(text["meta_info"]["completion_tokens"], 3, "{text}");

    router.wait_for("idle", "/get_loads", |loads| running(loads) == Some(0));
    let long = json!({
        "model": "smollm2", "prompt": "1 2 3 4 5", "stream": true, "temperature": 0, "max_tokens": 4000, "ignore_eos": true,
    });
    let mut streams =
        [(); 2].map(|()| router.api.events("/v1/completions", &long).expect("a stream"));
    for stream in &mut streams {
        stream.next_event().expect("an event");
    }
    router.wait_for("a load", "/get_loads", |loads| running(loads) > Some(0));
    drop(streams);
    router.wait_for("idle again", "/get_loads", |loads| running(loads) == Some(0));
    for daemon in workers {
        daemon.assert_all_pages_back("smollm2");
    }
}

#[test]
fn sglang_router_knows_names_and_loads_and_reaches_both() {
    let workers = daemons();
    let router = Router::start("venv-sglang-router", "sglang-router", &workers);
    let known = router.wait_for("names", "/workers", |_| true);
    for worker in known["workers"].as_array().expect("a list") {
        assert_eq!(worker["model_id"], "smollm2", "{worker}");
    }
    serve(&router, &workers, |loads| {
        let loads = loads["workers"].as_array().map_or(&[][..], Vec::as_slice);
        // Of a worker that does not tell, it is -1.
        let of_worker = |worker: &Value| worker["load"].as_i64().filter(|load| *load >= 0);
        loads.iter().map(of_worker).sum()
    });
}

#[test]
fn smg_knows_names_contexts_and_loads_and_reaches_both() {
    let workers = daemons();
    let router = Router::start("venv-smg", "smg", &workers);
    let known = router.wait_for("names", "/workers", |_| true);
    for worker in known["workers"].as_array().expect("a list") {
        assert_eq!(
            (&worker["model_id"], &worker["runtime_type"]),
            (&json!("smollm2"), &json!("sglang"))
        );
        assert_eq!(worker["models"][0]["context_length"], 8192, "{worker}");
    }
    serve(&router, &workers, |loads| loads["aggregate"]["total_running_reqs"].as_i64());
}
