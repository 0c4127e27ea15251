//! What the daemon chooses for its registry.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use crate::command::WorkerCommand;
use crate::gpus::Gpus;
use crate::text::Text;

/// Settings of a [`crate::Registry`].
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// How a worker process is started.
    pub worker: WorkerCommand,
    /// Where models come from that are not a folder.
    pub hub: HubConfig,
    /// Looks at a model's folder before a worker is started for it.
    pub inspector: Inspector,
    /// The GPUs that models may be on.
    pub gpus: Gpus,
    /// A worker that owes an answer and sends no frame for this long is stalled.
    pub stall: Duration,
    /// One that stays silent for this long is killed.
    pub stall_kill: Duration,
    /// A worker that loads and sends no frame for this long is killed.
    pub load_silence: Duration,
    /// What happens after a worker died.
    pub restart: RestartPolicy,
    /// What happens after a model failed: it did not load, or was given up.
    pub retry: Backoff,
    /// Events a request may lie behind its worker; one more and the request is cut off.
    pub stream_buffer: usize,
    /// How long an unload waits for running requests.
    pub drain: Duration,
    /// How long a request waits for a worker at most, in all between two of its tokens.
    pub park: Duration,
    /// Bytes that the requests of one model keep, so that another worker can go on with them; those for which no
    /// room is left fail with their worker.
    pub park_bytes_max: usize,
    /// How long a worker may take to exit after SIGTERM before SIGKILL.
    pub term_grace: Duration,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        RegistryConfig {
            worker: WorkerCommand::current_exe(),
            hub: HubConfig::default(),
            inspector: Inspector::default(),
            gpus: Gpus::default(),
            stall: Duration::from_secs(60),
            stall_kill: Duration::from_secs(300),
            load_silence: Duration::from_secs(1800),
            restart: RestartPolicy::default(),
            retry: Backoff { initial: Duration::from_secs(10), max: Duration::from_secs(300) },
            stream_buffer: 8192,
            drain: Duration::from_secs(30),
            park: Duration::from_secs(120),
            park_bytes_max: 256 << 20,
            term_grace: Duration::from_secs(3),
        }
    }
}

/// Says of a model's folder what this crate cannot tell: its text side.
#[derive(Clone)]
pub struct Inspector(pub Arc<Inspect>);

/// The text side of the model in a folder, which was loaded with a dialect or without; or why the folder is refused. May
/// block.
pub type Inspect = dyn Fn(&Path, Option<String>) -> Result<Option<Text>, String> + Send + Sync;

impl Default for Inspector {
    /// Finds nothing to say.
    fn default() -> Self {
        Inspector(Arc::new(|_, _| Ok(None)))
    }
}

impl fmt::Debug for Inspector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Inspector")
    }
}

/// Pauses that double.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// After the first failure.
    pub initial: Duration,
    /// Longest pause.
    pub max: Duration,
}

impl Backoff {
    /// The pause after `failures` (at least 1) failures in a row.
    pub fn pause(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        self.initial.saturating_mul(1 << doublings).min(self.max)
    }
}

/// When and how often a dead worker is replaced.
#[derive(Clone, Copy, Debug)]
pub struct RestartPolicy {
    /// Pauses before the replacements.
    pub backoff: Backoff,
    /// Failures in a row after which the model is given up.
    pub give_up: u32,
    /// A worker that served this long, or brought any request forward, starts the count anew.
    pub stable: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        RestartPolicy {
            backoff: Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(30) },
            give_up: 5,
            stable: Duration::from_secs(60),
        }
    }
}

/// The Hugging Face cache and hub. `None` takes what the environment says, as the hub's own tools
/// do: `HF_HUB_CACHE`, `HF_HOME`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_TOKEN`, `HF_TOKEN_PATH`.
#[derive(Clone, Debug, Default)]
pub struct HubConfig {
    /// The folder that holds `models--org--name`.
    pub cache_dir: Option<PathBuf>,
    /// Base URL of the hub.
    pub endpoint: Option<String>,
    /// File with an access token, read at every download.
    pub token_file: Option<PathBuf>,
    /// Never download.
    pub offline: bool,
    /// How long the hub may take.
    pub limits: HubLimits,
}

/// How long a hub may take, and how often it is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HubLimits {
    /// Until there is a connection, with its address found and TLS agreed on.
    pub connect: Duration,
    /// Until an answer begins.
    pub response: Duration,
    /// Between two pieces of an answer.
    pub idle: Duration,
    /// Attempts in a row that may bring nothing.
    pub attempts: u32,
    /// Before the second attempt; doubles.
    pub pause: Duration,
    /// Longest pause. A hub that wants a longer one ends the download, and the load may be tried again then.
    pub pause_max: Duration,
}

impl Default for HubLimits {
    fn default() -> Self {
        HubLimits {
            connect: Duration::from_secs(10),
            response: Duration::from_secs(30),
            idle: Duration::from_secs(30),
            attempts: 6,
            pause: Duration::from_millis(500),
            pause_max: Duration::from_secs(60),
        }
    }
}

impl HubConfig {
    /// The cache folder in force; `None` when neither configuration nor environment has one.
    pub fn cache(&self) -> Option<PathBuf> {
        self.cache_dir
            .clone()
            .or_else(|| env_path("HF_HUB_CACHE"))
            .or_else(|| Some(env_home()?.join("hub")))
    }

    /// The hub's address in force, without a slash at its end.
    pub fn endpoint(&self) -> String {
        let endpoint = self.endpoint.clone().or_else(|| std::env::var("HF_ENDPOINT").ok());
        let endpoint = endpoint.unwrap_or_else(|| "https://huggingface.co".to_string());
        endpoint.trim_end_matches('/').to_string()
    }

    /// Where the access token comes from: the configured file, `HF_TOKEN`, or the hub tools' own
    /// file (`HF_TOKEN_PATH`, by default `$HF_HOME/token`) if it exists.
    pub(crate) fn token_source(&self) -> Option<TokenSource> {
        self.token_source_in(|variable| std::env::var_os(variable))
    }

    /// Where the access token comes from, in words that do not tell it.
    pub fn token_place(&self) -> Option<String> {
        self.token_source().map(|source| match source {
            TokenSource::File(path) => path.display().to_string(),
            TokenSource::Environment(_) => "HF_TOKEN".to_string(),
        })
    }

    fn token_source_in(&self, env: impl Fn(&str) -> Option<OsString>) -> Option<TokenSource> {
        if let Some(path) = &self.token_file {
            return Some(TokenSource::File(path.clone()));
        }
        if let Some(token) = env("HF_TOKEN").and_then(|token| token.into_string().ok())
            && !token.trim().is_empty()
        {
            return Some(TokenSource::Environment(token));
        }
        let path = |variable| env(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = || path("HF_HOME").or_else(|| Some(path("HOME")?.join(".cache/huggingface")));
        let own = path("HF_TOKEN_PATH").or_else(|| Some(home()?.join("token")));
        own.filter(|path| path.exists()).map(TokenSource::File)
    }

    /// Whether downloads are off.
    pub fn is_offline(&self) -> bool {
        let set = |value: String| matches!(value.as_str(), "1" | "ON" | "YES" | "TRUE" | "true");
        self.offline || std::env::var("HF_HUB_OFFLINE").is_ok_and(set)
    }
}

/// Where an access token is.
pub(crate) enum TokenSource {
    /// In this file.
    File(PathBuf),
    /// In `HF_TOKEN`: the token itself. There is no `Debug`, so that no log shows it.
    Environment(String),
}

fn env_path(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// `$HF_HOME`, by default `~/.cache/huggingface`.
fn env_home() -> Option<PathBuf> {
    env_path("HF_HOME").or_else(|| Some(env_path("HOME")?.join(".cache/huggingface")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_where_the_hubs_tools_look() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "hf_file").unwrap();
        let home = dir.path().to_str().unwrap();
        let find = |config: &HubConfig, variables: &[(&str, &str)]| {
            let get =
                |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into());
            match config.token_source_in(get) {
                Some(TokenSource::File(path)) => format!("file {}", path.display()),
                Some(TokenSource::Environment(token)) => token,
                None => "none".to_string(),
            }
        };
        let own = format!("file {}", file.display());
        let none = HubConfig::default();
        assert_eq!(find(&none, &[("HF_TOKEN", "hf_env"), ("HF_HOME", home)]), "hf_env");
        assert_eq!(find(&none, &[("HF_TOKEN", " "), ("HF_HOME", home)]), own);
        let path = file.to_str().unwrap();
        assert_eq!(find(&none, &[("HF_HOME", "/no/such"), ("HF_TOKEN_PATH", path)]), own);
        assert_eq!(find(&none, &[("HOME", "/no/such")]), "none");
        let set = HubConfig { token_file: Some("/set".into()), ..HubConfig::default() };
        assert_eq!(find(&set, &[("HF_TOKEN", "hf_env")]), "file /set");
    }

    #[test]
    fn no_step_is_longer_than_a_silent_worker_is_waited_for() {
        let config = RegistryConfig::default();
        let step = Duration::from_secs(minisgl_proto::limits::STEP_PATIENCE_MAX_S);
        // The worker says why it ends before it is killed, and has some seconds for it.
        assert!(config.stall_kill >= step + Duration::from_secs(30), "{config:?}");
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let policy = Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(1) };
        let pauses: Vec<u128> = (1..=6).map(|n| policy.pause(n).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(policy.pause(u32::MAX), policy.max);
    }
}
