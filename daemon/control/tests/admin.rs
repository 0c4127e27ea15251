//! The admin API over a real Unix socket.

#![allow(clippy::unwrap_used)] // a test's way to fail

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request;
use common::fake::{ENDLESS, LOAD_FAILS, LOAD_WAITS};
use common::{Daemon, config_with_gpus, read, token};
use minisgl_control::access::{self, Access, Caller, Peer};
use minisgl_control::admin::{DaemonInfo, router};
use minisgl_control::socket::{bind, serve_unix};
use minisgl_control::{Doctor, WorkerCommand};
use minisgl_proto::Finish;
use minisgl_proto::admin::{
    AdminError, AdminErrorCode, CancelReply, FlushReply, HealthReport, LoadEvent, LogLines,
    ModelState, ModelStatus, RequestState, RequestStatus, VersionInfo,
};
use minisgl_proto::doctor::{DoctorReport, DriverReport, HubReport, MachineReport, Verdict};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tower::ServiceExt;

#[test]
#[ignore = "the worker process of the other tests"]
fn fake_worker() {
    common::fake::run();
}

struct Server {
    daemon: Daemon,
    socket: PathBuf,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
    _folder: tempfile::TempDir,
}

fn info() -> DaemonInfo {
    DaemonInfo {
        started: Instant::now(),
        listen: "127.0.0.1:8000".to_string(),
        doctor: Arc::new(doctor("exit 0", common::PATIENCE)),
        access: Access::default(),
    }
}

/// A doctor whose child is a line of shell.
fn doctor(line: &str, patience: Duration) -> Doctor {
    let args = vec!["-c".into(), line.into()];
    let env = vec![("REPORT".into(), serde_json::to_string(&report()).unwrap().into())];
    Doctor::new(WorkerCommand { program: "/bin/sh".into(), args, env }, patience)
}

fn report() -> DoctorReport {
    DoctorReport {
        version: "1".to_string(),
        machine: MachineReport {
            verdict: Verdict::NoDriver,
            problem: Some("no driver".to_string()),
            driver: DriverReport::default(),
            gpus: Vec::new(),
            links: Vec::new(),
            libraries: Vec::new(),
            libraries_folder: None,
        },
        config: None,
        config_error: None,
        hub: HubReport {
            cache: None,
            models: 0,
            free_bytes: None,
            endpoint: "https://hub".to_string(),
            offline: true,
            token: None,
            error: None,
        },
    }
}

#[tokio::test]
async fn the_doctor_passes_on_what_its_child_prints() {
    let daemon = Daemon::new();
    let ask = async |doctor: Doctor| {
        let info = DaemonInfo { doctor: Arc::new(doctor), ..info() };
        let call = Request::get("/admin/v1/doctor").extension(caller(0));
        let call = call.body(Body::empty()).unwrap();
        let answer = router(daemon.registry.clone(), info).oneshot(call).await.unwrap();
        let status = answer.status().as_u16();
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    };
    let patience = common::PATIENCE;
    let (status, body) = ask(doctor("printf '%s' \"$REPORT\"", patience)).await;
    assert_eq!((status, decode::<DoctorReport>(&body)), (200, report()));

    let broken = [
        ("echo no >&2; exit 3", "no"),
        ("kill -SEGV $$", "signal"),
        ("echo hello", "made no report"),
        ("exec /no/such/program", "/no/such/program"),
    ];
    for (line, word) in broken {
        let (status, body) = ask(doctor(line, patience)).await;
        let error: AdminError = decode(&body);
        assert_eq!((status, error.code), (500, AdminErrorCode::Failed));
        assert!(error.message.contains(word), "{line}: {error}");
    }
    let none = WorkerCommand { program: "/no/such".into(), args: Vec::new(), env: Vec::new() };
    assert!(ask(Doctor::new(none, patience)).await.1.contains("/no/such does not start"));
}

/// Somebody of the daemon's group.
fn caller(uid: u32) -> Caller {
    Caller { peer: Peer { uid, gid: 4242, pid: None }, user: None, is_member: true }
}

#[tokio::test]
async fn who_may_only_look_does_not_run_the_doctor_and_many_askers_run_it_once() {
    let daemon = Daemon::new();
    let dir = tempfile::tempdir().unwrap();
    let runs = dir.path().join("runs");
    let line = format!("echo x >> {}; sleep 0.3; printf '%s' \"$REPORT\"", runs.display());
    let info = DaemonInfo { doctor: Arc::new(doctor(&line, common::PATIENCE)), ..info() };
    let router = router(daemon.registry.clone(), info);
    let ask = async |uid: u32| {
        let call = Request::get("/admin/v1/doctor").extension(caller(uid));
        let answer = router.clone().oneshot(call.body(Body::empty()).unwrap()).await.unwrap();
        answer.status().as_u16()
    };
    assert_eq!(ask(4_242_424).await, 403);
    assert!(!runs.exists());
    let together = tokio::join!(ask(0), ask(0), ask(0), ask(0));
    assert_eq!((together, ask(0).await), ((200, 200, 200, 200), 200));
    assert_eq!(std::fs::read_to_string(runs).unwrap(), "x\n");
}

#[tokio::test]
async fn a_child_of_the_doctor_that_hangs_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let line = format!("echo $$ > {}; exec sleep 600", file.display());
    let began = Instant::now();
    let error = doctor(&line, Duration::from_secs(1)).ask().await.unwrap_err();
    assert!(error.message.contains("no answer in 1 s"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(120), "it slept to the end");
    let pid: u32 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
    while common::is_alive(pid) {
        assert!(began.elapsed() < common::PATIENCE, "process {pid} still runs");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn serve() -> Server {
    let daemon = Daemon::new();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let listener = bind(&socket).await.unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let shutdown = async { drop(stopped.await) };
    let task =
        tokio::spawn(serve_unix(listener, router(daemon.registry.clone(), info()), shutdown));
    Server { daemon, socket, stop: Some(stop), task, _folder: folder }
}

/// Sends a request and leaves the answer unread.
async fn open(socket: &Path, method: &str, path: &str, body: &str) -> UnixStream {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let bytes = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {bytes}\r\n\r\n"
    );
    // A refused body need not be read to its end.
    let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
    stream
}

/// Status and body. A chunked body keeps its chunk sizes, on lines of their own.
async fn call(socket: &Path, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut answer = Vec::new();
    let _ = open(socket, method, path, body).await.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_string())
}

fn decode<T: DeserializeOwned>(body: &str) -> T {
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"))
}

fn load_events(body: &str) -> Vec<LoadEvent> {
    body.lines().filter(|line| line.starts_with('{')).map(decode).collect()
}

#[tokio::test]
async fn the_life_of_a_model() {
    let server = serve().await;
    let socket = server.socket.as_path();
    let (status, body) = call(socket, "GET", "/admin/v1/version", "").await;
    let version: VersionInfo = decode(&body);
    assert_eq!((status, version.listen.as_str()), (200, "127.0.0.1:8000"));

    let load = serde_json::to_string(&server.daemon.request("org/m")).unwrap();
    let (status, body) = call(socket, "POST", "/admin/v1/load", &load).await;
    let events = load_events(&body);
    assert_eq!(status, 200);
    assert!(matches!(events.first(), Some(LoadEvent::Progress(_))), "{events:?}");
    assert!(matches!(events.last(), Some(LoadEvent::Ready(_))), "{events:?}");
    let (status, body) = call(socket, "POST", "/admin/v1/load", &load).await;
    assert_eq!((status, decode::<AdminError>(&body).code), (409, AdminErrorCode::Conflict));

    let (_, body) = call(socket, "GET", "/admin/v1/models", "").await;
    assert_eq!(decode::<Vec<ModelStatus>>(&body).len(), 1);
    let (_, body) = call(socket, "GET", "/admin/v1/models/org%2Fm", "").await;
    assert_eq!(decode::<ModelStatus>(&body).state, ModelState::Ready);
    let (status, body) = call(socket, "GET", "/admin/v1/models/other", "").await;
    let error: AdminError = decode(&body);
    assert_eq!((status, error.code), (404, AdminErrorCode::NotFound));
    assert!(error.message.contains("loaded: \"org/m\""), "{error}");

    let (_, body) = call(socket, "GET", "/admin/v1/health", "").await;
    assert!(decode::<HealthReport>(&body).ready);
    let (_, body) = call(socket, "POST", "/admin/v1/flush", r#"{"name": "org/m"}"#).await;
    assert_eq!(decode::<FlushReply>(&body).pages_freed, 5);
    let (status, body) = call(socket, "POST", "/admin/v1/unload", r#"{"name": "org/m"}"#).await;
    assert_eq!((status, decode::<ModelStatus>(&body).state), (200, ModelState::Unloading));
    let (_, body) = call(socket, "GET", "/admin/v1/health", "").await;
    assert!(!decode::<HealthReport>(&body).ready);
}

#[tokio::test]
async fn requests_are_listed_and_cancelled_and_a_worker_is_replaced() {
    let server = serve().await;
    let socket = server.socket.as_path();
    server.daemon.load("m").await.unwrap();
    let mut stream = server.daemon.submit("m", &[ENDLESS]);
    token(&mut stream).await;
    let (_, body) = call(socket, "GET", "/admin/v1/requests", "").await;
    let requests: Vec<RequestStatus> = decode(&body);
    let [request] = &requests[..] else { panic!("{requests:?}") };
    assert_eq!((request.id, request.request_id.as_str()), (stream.id.0, "a request"));
    assert_eq!((request.model.as_str(), request.state), ("m", RequestState::Running));
    assert_eq!((request.prompt_tokens, request.max_tokens, request.moves), (1, 16, 0));
    assert!(request.generated_tokens > 0 && request.age_s > 0.0, "{request:?}");

    let (status, body) = call(socket, "POST", "/admin/v1/restart", r#"{"name": "m"}"#).await;
    let events = load_events(&body);
    assert!(matches!(events.last(), Some(LoadEvent::Ready(_))), "{status} {body}");
    let (_, body) = call(socket, "GET", "/admin/v1/requests", "").await;
    assert_eq!(decode::<Vec<RequestStatus>>(&body)[0].moves, 1);
    let (_, body) = call(socket, "GET", "/admin/v1/models/m/logs?lines=1", "").await;
    assert_eq!(decode::<LogLines>(&body).lines, ["a worker speaks"]);

    let (_, body) = call(socket, "POST", "/admin/v1/cancel", r#"{"id": "a request"}"#).await;
    assert_eq!(decode::<CancelReply>(&body).cancelled, 1);
    assert_eq!(read(&mut stream).await.1, Some(Finish::Aborted));
    for (method, path, body, expected) in [
        ("POST", "/admin/v1/cancel", r#"{"id": "none"}"#, 404),
        ("POST", "/admin/v1/restart", r#"{"name": "none"}"#, 404),
        ("POST", "/admin/v1/restart", r#"{"name": "m", "options": {"tp": 0}}"#, 400),
        ("GET", "/admin/v1/models/none/logs", "", 404),
        ("GET", "/admin/v1/models/m/logs?lines=many", "", 400),
    ] {
        assert_eq!(call(socket, method, path, body).await.0, expected, "{path} {body}");
    }
}

#[tokio::test]
async fn bad_calls_are_told_what_is_wrong() {
    let server = serve().await;
    let socket = server.socket.as_path();
    let big = format!("{{\"model\": \"{}\"}}", "x".repeat(2 << 20));
    let cases = [
        ("POST", "/admin/v1/load", "{", "the body is wrong: EOF"),
        ("POST", "/admin/v1/load", r#"{"model": 1}"#, "expected a string"),
        ("POST", "/admin/v1/load", r#"{"model": "m", "options": {"tpp": 2}}"#, "tpp"),
        ("POST", "/admin/v1/load", r#"{"model": "m", "options": {"tp": 0}}"#, "tp is 0"),
        ("POST", "/admin/v1/load", r#"{"model": "m", "options": {"gpus": [1, 1]}}"#, "GPU 1 twice"),
        (
            "POST",
            "/admin/v1/load",
            r#"{"model": "m", "options": {"gpus": "1"}}"#,
            "expected a sequence",
        ),
        (
            "POST",
            "/admin/v1/load",
            r#"{"model": "m", "options": {"gpus": [1, 2], "tp": 1}}"#,
            "tp is 1 and gpus is 1,2",
        ),
        ("POST", "/admin/v1/load", big.as_str(), "the limit is 1048576 bytes"),
        ("GET", "/admin/v1/load", "", "no call GET /admin/v1/load"),
        ("GET", "/admin/v9/load", "", "no call GET /admin/v9/load"),
    ];
    for (method, path, body, expected) in cases {
        let (status, answer) = call(socket, method, path, body).await;
        let error: AdminError = decode(&answer);
        assert_eq!((status, error.code), (400, AdminErrorCode::Invalid), "{error}");
        assert!(error.message.contains(expected), "{error}");
    }
    let load = serde_json::to_string(&server.daemon.request(LOAD_FAILS)).unwrap();
    let (_, body) = call(socket, "POST", "/admin/v1/load", &load).await;
    let Some(LoadEvent::Failed(error)) = load_events(&body).pop() else { panic!("{body}") };
    assert_eq!(error.message, "config.json has no hidden_size");
    assert_eq!(error.code, AdminErrorCode::Failed);
    for absent in ["/no/such/folder", "some/missing/folder", "org/unknown"] {
        let load = format!(r#"{{"model": "{absent}", "name": "absent"}}"#);
        let (_, body) = call(socket, "POST", "/admin/v1/load", &load).await;
        let Some(LoadEvent::Failed(error)) = load_events(&body).pop() else { panic!("{body}") };
        assert_eq!(error.code, AdminErrorCode::NotFound, "{error}");
        assert!(error.message.contains(absent), "{error}");
    }
}

#[tokio::test]
async fn models_on_gpus_come_with_the_memory_that_they_hold() {
    let (config, gpus) = config_with_gpus(2);
    let daemon = Daemon::with(config);
    let pid = daemon.load("m").await.unwrap().pid.unwrap();
    gpus.memory.lock().unwrap().insert(pid, 1 << 33);
    let ask = async |path: &str| {
        let call = Request::get(path).body(Body::empty()).unwrap();
        let answer = router(daemon.registry.clone(), info()).oneshot(call).await.unwrap();
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        serde_json::from_slice::<serde_json::Value>(&body).unwrap()
    };
    let (all, one) = (ask("/admin/v1/models").await, ask("/admin/v1/models/m").await);
    for model in [&all[0], &one] {
        assert_eq!(model["gpus"], serde_json::json!([0]), "{model}");
        assert_eq!(model["gpu_memory_bytes"], 1_u64 << 33, "{model}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_does_not_stop_its_load() {
    let server = serve().await;
    let load = serde_json::to_string(&server.daemon.request(LOAD_WAITS)).unwrap();
    let mut stream = open(&server.socket, "POST", "/admin/v1/load", &load).await;
    stream.read_u8().await.unwrap();
    drop(stream);
    server.daemon.until(LOAD_WAITS, |status| status.pid.is_some()).await;
    std::fs::write(server.daemon.model_dir(LOAD_WAITS).join("go"), "").unwrap();
    server.daemon.until_state(LOAD_WAITS, ModelState::Ready).await;
}

#[tokio::test]
async fn operators_and_listed_users_change_models_members_read_and_others_do_nothing() {
    let daemon = Daemon::new();
    daemon.load("m").await.unwrap();
    let mut generation = daemon.submit("m", &[ENDLESS]);
    token(&mut generation).await;
    let own = nix::unistd::geteuid().as_raw();
    let rules = Access::new(vec!["ann".to_string()]);
    let info = DaemonInfo { access: rules.clone(), ..info() };
    let router = access::guard(router(daemon.registry.clone(), info), rules);
    let ask = async |caller: Option<&Caller>, method: &str, path: &str| {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(caller) = caller {
            request = request.extension(caller.clone());
        }
        let request = request.body(Body::from(r#"{"name": "m"}"#)).unwrap();
        let answer = router.clone().oneshot(request).await.unwrap();
        let status = answer.status().as_u16();
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    };
    let caller = |uid: u32, user: &str, is_member: bool| Caller {
        peer: Peer { uid, gid: 4242, pid: Some(7) },
        user: Some(user.to_string()),
        is_member,
    };
    let member = caller(own + 4242, "bob", true);
    let stranger = caller(own + 4243, "eve", false);
    let changes =
        ["unload", "load", "flush", "restart", "cancel"].map(|c| format!("/admin/v1/{c}"));
    let changes = changes.iter().map(String::as_str);
    for path in changes {
        for caller in [None, Some(&member), Some(&stranger)] {
            let (status, body) = ask(caller, "POST", path).await;
            let error: AdminError = decode(&body);
            assert_eq!((status, error.code), (403, AdminErrorCode::Forbidden), "{path}");
        }
    }
    let (_, body) = ask(Some(&member), "POST", "/admin/v1/unload").await;
    assert!(body.contains("user bob") && body.contains("unload models"), "{body}");
    assert!(body.contains("admin_users"), "{body}");
    for (caller, expected) in [(Some(&member), 200), (Some(&stranger), 403), (None, 403)] {
        for path in ["/admin/v1/models", "/admin/v1/version", "/admin/v1/health"] {
            assert_eq!(ask(caller, "GET", path).await.0, expected, "{path}");
        }
    }
    token(&mut generation).await;
    let listed = caller(own + 4244, "ann", false);
    for caller in [caller(0, "root", false), caller(own, "me", false), listed] {
        assert_eq!(ask(Some(&caller), "POST", "/admin/v1/flush").await.0, 200);
    }
}

#[tokio::test]
async fn the_socket_file_leaves_with_the_server() {
    let mut server = serve().await;
    server.stop.take().unwrap().send(()).unwrap();
    server.task.await.unwrap();
    assert!(!server.socket.exists());
}
