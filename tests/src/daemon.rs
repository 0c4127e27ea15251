//! A daemon of one's own: private socket, free port, ended when dropped.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use minisgl_proto::admin::{
    AdminError, AdminErrorCode, FlushReply, LoadEvent, LoadRequest, ModelState, ModelStatus,
    RequestStatus, VersionInfo,
};
use minisgl_proto::{Device, LoadOptions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::{Events, Response, Server};
use crate::paths;

// What never happens is told after that long; how long what happens may take on a busy machine is nobody's promise.
const START_MAX: Duration = Duration::from_secs(120);
const STOP_MAX: Duration = Duration::from_secs(120);
const SETTLE_MAX: Duration = Duration::from_secs(120);

/// A running `minisgld serve`.
pub struct Daemon {
    child: Child,
    dir: TempDir,
    /// The OpenAI API.
    pub api: Server,
    /// The admin API.
    pub admin: Server,
    /// Address of the OpenAI API.
    pub listen: SocketAddr,
}

/// Options that suit two cores and many tests beside each other, on the device that is tested. They say how
/// many tokens are kept, so that several models may be on one GPU.
pub fn model_options() -> LoadOptions {
    let device = device();
    let tp = number("MINISGL_TEST_TP").unwrap_or(1) as u32;
    LoadOptions { device, tp, threads: 2, kv_tokens: Some(16_384), ..LoadOptions::default() }
}

/// A number in the environment that changes what is tested.
///
/// # Panics
/// It is none.
pub fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} is {value:?}, not a number")))
}

/// The device under test: `MINISGL_TEST_DEVICE`, `cpu` if that is not set, or `cuda`.
pub fn device() -> Device {
    match std::env::var("MINISGL_TEST_DEVICE").as_deref() {
        Ok("cuda") => Device::Cuda,
        Ok("cpu") | Err(_) => Device::Cpu,
        Ok(other) => panic!("MINISGL_TEST_DEVICE is {other:?}: cpu and cuda are known"),
    }
}

/// Whether the device under test computes in f32, in an order that nothing changes. On one that does not,
/// what differs is how a text came about: batch, chunk and prefix round elsewhere, and ties may fall otherwise.
pub fn is_exact() -> bool {
    device() == Device::Cpu
}

impl Daemon {
    /// Starts a daemon with the default configuration and no model.
    pub fn start() -> Self {
        Daemon::start_with(&[])
    }

    /// The same with environment variables.
    pub fn start_with(environment: &[(&str, &str)]) -> Self {
        Daemon::start_as(environment, "")
    }

    /// The same with a configuration file of this text.
    pub fn start_configured(configuration: &str) -> Self {
        Daemon::start_as(&[], configuration)
    }

    /// The same with both.
    pub fn start_as(environment: &[(&str, &str)], configuration: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("minisgl").tempdir().expect("a temporary folder");
        let config = dir.path().join("minisgld.toml");
        std::fs::write(&config, configuration).expect("a temporary folder is writable");
        let log = File::create(dir.path().join("log")).expect("a temporary folder is writable");
        let socket = dir.path().join("admin.sock");
        let child = Command::new(paths::binary("minisgld"))
            .arg("serve")
            // The kernel chooses a port; the daemon says which.
            .args(["--listen", "127.0.0.1:0", "--socket"])
            .arg(&socket)
            .arg("--config")
            .arg(config)
            .env("HF_HUB_OFFLINE", "1")
            .env_remove("RUST_LOG")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .expect("minisgld starts");
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let (api, admin) = (Server::Tcp(nowhere), Server::Unix(socket));
        let mut daemon = Daemon { child, dir, api, admin, listen: nowhere };
        let deadline = Instant::now() + START_MAX;
        daemon.listen = loop {
            if let Some(listen) = listens_on(&daemon.admin) {
                break listen;
            }
            let ended = daemon.child.try_wait().expect("a child can be waited for");
            assert!(ended.is_none(), "minisgld ended ({ended:?}):\n{}", daemon.log());
            assert!(Instant::now() < deadline, "minisgld does not listen:\n{}", daemon.log());
            std::thread::sleep(Duration::from_millis(10));
        };
        daemon.api = Server::Tcp(daemon.listen);
        daemon
    }

    /// Starts a daemon and loads SmolLM2 as `smollm2`.
    pub fn with_smollm2(options: LoadOptions) -> Self {
        let daemon = Daemon::start();
        daemon.load("smollm2", &paths::smollm2(), options);
        daemon
    }

    /// Loads a model; it has to work.
    pub fn load(&self, name: &str, dir: &Path, options: LoadOptions) -> ModelStatus {
        self.try_load(name, dir, options).unwrap_or_else(|error| {
            panic!("loading {} failed: {error:?}\n{}", dir.display(), self.log())
        })
    }

    /// Loads a model, through the admin API; the answer's last line.
    pub fn try_load(
        &self,
        name: &str,
        dir: &Path,
        options: LoadOptions,
    ) -> Result<ModelStatus, AdminError> {
        let model = dir.to_str().expect("a path in UTF-8").to_owned();
        let request = LoadRequest {
            model,
            name: Some(name.to_owned()),
            options,
            persist: false,
            aliases: Vec::new(),
        };
        let body = serde_json::to_value(&request).expect("plain data");
        let lines = self.admin.lines("/admin/v1/load", &body).expect("the admin API answers");
        let mut last = String::new();
        for line in lines.filter(|line| !line.is_empty()) {
            last = line;
        }
        if let Ok(refused) = serde_json::from_str::<AdminError>(&last) {
            return Err(refused);
        }
        match serde_json::from_str(&last) {
            Ok(LoadEvent::Ready(status)) => Ok(*status),
            Ok(LoadEvent::Failed(error)) => Err(error),
            other => panic!("a load ended with {last:?} ({other:?})\n{}", self.log()),
        }
    }

    /// Unloads a model.
    pub fn unload(&self, name: &str, force: bool) {
        let body = json!({"name": name, "force": force});
        self.admin_call("POST", "/admin/v1/unload", &body).ok();
    }

    /// Forgets every cached page.
    pub fn flush(&self, name: &str) -> FlushReply {
        let reply = self.admin_call("POST", "/admin/v1/flush", &json!({"name": name})).ok();
        serde_json::from_value(reply).expect("a FlushReply")
    }

    /// What the daemon knows of a model.
    pub fn status(&self, name: &str) -> ModelStatus {
        let path = format!("/admin/v1/models/{}", name.replace('/', "%2F"));
        let reply = self.admin_call("GET", &path, &Value::Null).ok();
        serde_json::from_value(reply).expect("a ModelStatus")
    }

    /// Every request that has not ended.
    pub fn requests(&self) -> Vec<RequestStatus> {
        let reply = self.admin_call("GET", "/admin/v1/requests", &Value::Null).ok();
        serde_json::from_value(reply).expect("a list of RequestStatus")
    }

    /// The status once `done` says so; a failure after a minute.
    pub fn wait_for(
        &self,
        name: &str,
        what: &str,
        done: impl Fn(&ModelStatus) -> bool,
    ) -> ModelStatus {
        let deadline = Instant::now() + SETTLE_MAX;
        loop {
            let status = self.status(name);
            if done(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "{name}: not {what}: {status:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until nothing runs or waits, then checks that every page is free or cached.
    pub fn assert_all_pages_back(&self, name: &str) {
        let status = self.wait_for(name, "idle", |status| {
            let idle = status.stats.is_some_and(|s| s.running == 0 && s.waiting == 0);
            status.state == ModelState::Ready && status.in_flight == 0 && idle
        });
        let stats = status.stats.expect("an idle model has counters");
        assert_eq!(stats.pages_owned, 0, "{stats:?}");
        assert_eq!(stats.pages_free + stats.pages_cached, stats.pages_total, "{stats:?}");
    }

    /// Runs `minisglctl` against this daemon.
    pub fn ctl(&self, args: &[&str]) -> Output {
        let Server::Unix(socket) = &self.admin else {
            unreachable!("the admin API is on a socket")
        };
        Command::new(paths::binary("minisglctl"))
            .arg("--socket")
            .arg(socket)
            .args(args)
            .stdin(Stdio::null())
            .output()
            .expect("minisglctl starts")
    }

    /// Posts to the OpenAI API.
    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.api.call("POST", path, body).unwrap_or_else(|e| panic!("{path}: {e}\n{}", self.log()))
    }

    /// Gets from the OpenAI API.
    pub fn get(&self, path: &str) -> Response {
        self.api.call("GET", path, &Value::Null).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    /// Streams from the OpenAI API.
    pub fn events(&self, path: &str, body: &Value) -> Events {
        self.api.events(path, body).unwrap_or_else(|e| panic!("{path}: {e}\n{}", self.log()))
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A folder that lives as long as the daemon.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().to_path_buf()
    }

    /// The last lines that the daemon and its workers wrote.
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("--- log ---\n{}", lines[lines.len().saturating_sub(40)..].join("\n"))
    }

    fn admin_call(&self, method: &str, path: &str, body: &Value) -> Response {
        self.admin
            .call(method, path, body)
            .unwrap_or_else(|e| panic!("{path}: {e}\n{}", self.log()))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let deadline = Instant::now() + STOP_MAX;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                assert!(std::thread::panicking(), "minisgld does not end on SIGTERM");
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Where the OpenAI API is, once the daemon with this admin API listens on both.
pub fn listens_on(admin: &Server) -> Option<SocketAddr> {
    let answer = admin.call("GET", "/admin/v1/version", &Value::Null).ok()?;
    let version: VersionInfo = serde_json::from_slice(&answer.body).ok()?;
    version.listen.parse().ok()
}

/// Whether an admin refusal is of this kind and its text has all of `words`.
pub fn assert_refused(error: &AdminError, code: AdminErrorCode, words: &[&str]) {
    assert_eq!(error.code, code, "{error:?}");
    for word in words {
        assert!(error.message.contains(word), "{word:?} is not in {:?}", error.message);
    }
}
