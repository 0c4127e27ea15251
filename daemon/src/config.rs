//! The configuration file: every key, its default and its limits.
//!
//! Flags override the file, the file overrides the defaults. An unknown key or a bad value is refused
//! with file, line and remedy. `check` has the limits of the values; packaging/minisgld.toml has every key.

mod check;
mod secrets;
#[cfg(test)]
mod shipped;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use minisgl_control::RegistryConfig;
use minisgl_http::{Certificate, KeyList};
use minisgl_proto::LoadOptions;
use minisgl_proto::admin::LoadRequest;
use minisgl_proto::socket::{self, Place};
use serde::Deserialize;

use crate::cli::ServeArgs;
pub use crate::logging::LogConfig;

/// Read when `--config` is absent and the file exists.
pub const CONFIG_PATH: &str = "/etc/minisgld/minisgld.toml";

/// The whole file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `[http]`
    pub http: HttpConfig,
    /// `[admin]`
    pub admin: AdminConfig,
    /// `[hub]`
    pub hub: HubConfig,
    /// `[gpu]`
    pub gpu: GpuConfig,
    /// `[workers]`
    pub workers: WorkersConfig,
    /// `[log]`
    pub log: LogConfig,
    /// `[state]`
    pub state: StateConfig,
    /// `[[model]]`: listed in this order, loaded side by side.
    pub model: Vec<ModelConfig>,
    /// Keys of the OpenAI API, from their own file.
    #[serde(skip)]
    pub keys: KeyList,
    /// Of the OpenAI API, from its own files.
    #[serde(skip)]
    pub certificate: Option<Certificate>,
}

/// The OpenAI API.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Address and port. Only loopback addresses, unless there are API keys.
    pub listen: SocketAddr,
    /// Serve whoever can reach a public address.
    pub allow_public_without_keys: bool,
    /// File with API keys, one a line: `KEY` or `NAME:KEY`.
    pub api_keys_file: Option<PathBuf>,
    /// Serve `/metrics` without a key too.
    pub metrics_without_key: bool,
    /// Names of this machine that requests may name in `Host` while there are no API keys, besides its addresses,
    /// `localhost` and its hostname.
    pub hosts: Vec<String>,
    /// Web pages that may use the API from a browser, as in `Origin`.
    pub cors_origins: Vec<String>,
    /// File with the certificate chain in PEM; with it connections are encrypted.
    pub tls_cert: Option<PathBuf>,
    /// File with the certificate's key in PEM; default: the credential `tls_key`.
    pub tls_key: Option<PathBuf>,
    /// Bytes of a request body, at most.
    pub body_bytes_max: usize,
    /// Open connections, at most.
    pub connections_max: usize,
    /// What becomes of a `max_tokens` for which the context has no room.
    pub max_tokens_over_room: OverRoom,
    /// Seconds of silence after which a stream gets a comment; 0 is never.
    pub ping_s: f64,
    /// What thoughts are called in chat completions.
    pub reasoning_fields: ReasoningFields,
    /// Honour the `priority` of requests.
    pub client_priority: bool,
    /// Let clients empty prefix caches.
    pub client_flush: bool,
    /// Serve Ollama's API too, below `/api`.
    pub ollama: bool,
}

/// What becomes of a `max_tokens` for which the context has no room after the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OverRoom {
    /// It is cut to the room.
    Clamp,
    /// The request is refused.
    Refuse,
}

/// What thoughts are called in messages and deltas of chat completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReasoningFields {
    /// Both names.
    Both,
    /// As in SGLang.
    ReasoningContent,
    /// As in vLLM.
    Reasoning,
}

impl From<ReasoningFields> for minisgl_http::Thoughts {
    fn from(fields: ReasoningFields) -> Self {
        match fields {
            ReasoningFields::Both => Self::Both,
            ReasoningFields::ReasoningContent => Self::ReasoningContent,
            ReasoningFields::Reasoning => Self::Reasoning,
        }
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        HttpConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 8000)),
            allow_public_without_keys: false,
            api_keys_file: None,
            metrics_without_key: false,
            hosts: Vec::new(),
            cors_origins: Vec::new(),
            tls_cert: None,
            tls_key: None,
            body_bytes_max: 32 << 20,
            connections_max: 4096,
            max_tokens_over_room: OverRoom::Clamp,
            ping_s: 15.0,
            reasoning_fields: ReasoningFields::Both,
            client_priority: false,
            client_flush: false,
            ollama: false,
        }
    }
}

/// The admin API.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// Path of the Unix socket.
    pub socket: Option<PathBuf>,
    /// Users who may change models, besides root and the daemon's own.
    pub admin_users: Vec<String>,
}

/// Where models come from.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HubConfig {
    /// Hugging Face cache folder; default: `$HF_HUB_CACHE`, `$HF_HOME/hub`, `~/.cache/huggingface/hub`.
    pub cache_dir: Option<PathBuf>,
    /// Hub to download from; default: the public one, or `$HF_ENDPOINT`.
    pub endpoint: Option<String>,
    /// File that holds the access token.
    pub token_file: Option<PathBuf>,
    /// Never download.
    pub offline: bool,
}

/// NVIDIA GPUs.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GpuConfig {
    /// Folder of NVIDIA's libraries, looked into before all others.
    pub libraries: Option<PathBuf>,
}

/// How worker processes are watched.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkersConfig {
    /// Seconds without any sign of a worker with requests in flight before it counts as stalled.
    pub stall_s: f64,
    /// Seconds after which a stalled worker is killed and replaced; above `stall_s`.
    pub stall_kill_s: f64,
    /// Seconds without progress after which a worker that loads is killed.
    pub load_s_max: f64,
    /// Seconds that running requests get to finish on unload and shutdown.
    pub drain_s: f64,
    /// Tokens that a client may fall behind before its request is aborted.
    pub stream_buffer_tokens: usize,
    /// Failures in a row with the last of which a model is given up: starts that fail, and deaths of workers that
    /// brought no request forward and served for less than a minute. With 1 nothing is ever restarted.
    pub failures_max: u32,
    /// Seconds that a request waits for another worker, at most.
    pub park_s: f64,
    /// Bytes that the requests of one model keep so that another worker can go on with them.
    pub park_bytes_max: usize,
    /// Confine workers where they may use a GPU; those on the CPU always are.
    pub confine_gpu: bool,
}

impl Default for WorkersConfig {
    fn default() -> Self {
        let registry = RegistryConfig::default();
        WorkersConfig {
            stall_s: registry.stall.as_secs_f64(),
            stall_kill_s: registry.stall_kill.as_secs_f64(),
            load_s_max: registry.load_silence.as_secs_f64(),
            drain_s: registry.drain.as_secs_f64(),
            stream_buffer_tokens: registry.stream_buffer,
            failures_max: registry.restart.give_up,
            park_s: registry.park.as_secs_f64(),
            park_bytes_max: registry.park_bytes_max,
            confine_gpu: true,
        }
    }
}

/// What outlives the daemon.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StateConfig {
    /// Folder of the models that `load --persist` saved; default: `$STATE_DIRECTORY`.
    pub dir: Option<PathBuf>,
}

/// A model to load at start.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Folder or repo id.
    pub model: String,
    /// Name for clients.
    pub name: Option<String>,
    /// As the flags of `minisglctl load`.
    #[serde(default)]
    pub options: LoadOptions,
    /// More names for clients.
    #[serde(default)]
    pub aliases: Vec<String>,
}

impl ModelConfig {
    /// As the registry takes it.
    pub fn request(&self) -> LoadRequest {
        LoadRequest {
            model: self.model.clone(),
            name: self.name.clone(),
            options: self.options.clone(),
            persist: false,
            aliases: self.aliases.clone(),
        }
    }
}

impl Config {
    /// Reads the file that `args` name (or the default one, if it exists) and lays the flags over it.
    ///
    /// # Errors
    /// The file cannot be read, has an unknown key or a bad value; or a flag is bad.
    pub fn load(args: &ServeArgs) -> anyhow::Result<Config> {
        let default = Path::new(CONFIG_PATH);
        let path = args.config.as_deref().or_else(|| default.exists().then_some(default));
        let text = match path {
            Some(path) => std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the configuration {}", path.display()))?,
            None => String::new(),
        };
        let read = toml::from_str::<Config>(&text);
        let mut config = match path {
            Some(path) => read.with_context(|| format!("in {}", path.display()))?,
            None => Config::default(),
        };
        if let Some(listen) = &args.listen {
            config.http.listen = listen.parse().with_context(|| {
                format!("--listen {listen}: not an address and port such as 127.0.0.1:8000")
            })?;
        }
        if let Some(socket) = &args.socket {
            config.admin.socket = Some(socket.clone());
        }
        if let Some(folder) =
            args.cuda_libraries.as_ref().filter(|path| !path.as_os_str().is_empty())
        {
            config.gpu.libraries = Some(folder.clone());
        }
        if let Some(level) = &args.log {
            config.log.level = level.clone();
        }
        let keys = config.http.api_keys_file.as_deref();
        if let Some(place) = secrets::api_keys_place(keys, args.config.is_none()) {
            config.keys = secrets::api_keys(&place)?;
        }
        let (chain, key) = (config.http.tls_cert.as_deref(), config.http.tls_key.as_deref());
        config.certificate = secrets::certificate(chain, key)?;
        config.check().map_err(|fault| match (fault.flag(args), path) {
            (Some(flag), _) => anyhow!("{flag}: {fault}"),
            (None, Some(path)) => anyhow!("in {}: {fault}", fault.place(path, &text)),
            (None, None) => anyhow!("{fault}"),
        })?;
        Ok(config)
    }

    /// Whether values of two files go together.
    ///
    /// # Errors
    /// What does not.
    pub fn check_mixture(&self) -> anyhow::Result<()> {
        self.check().map_err(|fault| anyhow!("with what needs a restart: {fault}"))
    }

    /// The folder for what outlives the daemon: configured, else the service manager's.
    pub fn state_dir(&self) -> Option<PathBuf> {
        let given = || {
            let folders = std::env::var_os("STATE_DIRECTORY")?;
            std::env::split_paths(&folders).next().filter(|path| path.is_absolute())
        };
        self.state.dir.clone().or_else(given)
    }

    /// Where models come from, as the registry takes it.
    pub fn hub_config(&self) -> minisgl_control::HubConfig {
        minisgl_control::HubConfig {
            cache_dir: self.hub.cache_dir.clone(),
            endpoint: self.hub.endpoint.clone(),
            token_file: self.hub.token_file.clone().or_else(secrets::hub_token_place),
            offline: self.hub.offline,
            ..minisgl_control::HubConfig::default()
        }
    }

    /// Who is let in over the network.
    pub fn key_rule(&self) -> minisgl_http::Rule {
        let own = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        minisgl_http::Rule {
            keys: self.keys.clone(),
            open_metrics: self.http.metrics_without_key,
            hosts: self.http.hosts.iter().cloned().chain(own).collect(),
            cors_origins: self.http.cors_origins.clone(),
        }
    }

    /// Limits and habits of the OpenAI API.
    pub fn http_settings(&self) -> minisgl_http::Settings {
        let ping = Duration::from_secs_f64(self.http.ping_s);
        minisgl_http::Settings {
            body_bytes_max: self.http.body_bytes_max,
            connections_max: self.http.connections_max,
            clamp_max_tokens: self.http.max_tokens_over_room == OverRoom::Clamp,
            ping_interval: (!ping.is_zero()).then_some(ping),
            thoughts: self.http.reasoning_fields.into(),
            client_priority: self.http.client_priority,
            client_flush: self.http.client_flush,
            ollama: self.http.ollama,
            log_prompts: self.log.prompts,
            ..minisgl_http::Settings::default()
        }
    }

    /// Path of the admin socket: configured, else in [`Config::socket_place`].
    pub fn socket(&self) -> PathBuf {
        self.admin.socket.clone().unwrap_or_else(|| Config::socket_place().socket())
    }

    /// Where the admin socket is unless a path is configured: in the folder that a service manager made for
    /// it, else in the user's.
    pub fn socket_place() -> Place {
        Config::given_place(std::env::var_os("RUNTIME_DIRECTORY")).unwrap_or_else(Config::own_place)
    }

    /// The first of systemd's `RuntimeDirectory=`.
    fn given_place(folders: Option<OsString>) -> Option<Place> {
        let folder = std::env::split_paths(&folders?).next().filter(|path| path.is_absolute())?;
        Some(Place { folder, mode: 0o755, owner: nix::unistd::geteuid().as_raw() })
    }

    fn own_place() -> Place {
        let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let uid = nix::unistd::geteuid().as_raw();
        socket::places(uid, runtime_dir.as_deref()).swap_remove(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> anyhow::Result<Config> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("minisgld.toml");
        std::fs::write(&path, text)?;
        Config::load(&ServeArgs { config: Some(path), ..ServeArgs::default() })
    }

    fn error(text: &str) -> String {
        format!("{:#}", load(text).expect_err("this configuration is wrong"))
    }

    #[test]
    fn an_empty_file_is_the_default() {
        let config = load("").unwrap();
        assert_eq!(config.http.listen.to_string(), "127.0.0.1:8000");
        assert!(config.model.is_empty());
    }

    #[test]
    fn models_take_the_options_of_load() {
        let config =
            load("[[model]]\nmodel = \"a/b\"\noptions = { tp = 2, page_size = 1 }").unwrap();
        assert_eq!((config.model[0].options.tp, config.model[0].options.page_size), (2, 1));
        assert_eq!(config.model[0].options.max_running, LoadOptions::default().max_running);
        let config = load("[[model]]\nmodel = \"a/b\"\noptions = { gpus = [2, 3] }").unwrap();
        let options = &config.model[0].options;
        assert_eq!((&options.gpus[..], options.tp), (&[2, 3][..], 2));
    }

    #[test]
    fn unknown_keys_and_bad_values_name_file_line_and_key() {
        let text = error("[http]\nlisten = \"127.0.0.1:1\"\nport = 3\n");
        assert!(
            text.contains("minisgld.toml") && text.contains("line 3") && text.contains("port"),
            "{text}"
        );
        let text = error("[workers]\ndrain_s = \"soon\"\n");
        assert!(text.contains("line 2"), "{text}");
        assert!(error("[workers]\nstall_s = 0\n").contains("stall_s"));
        assert!(error("[workers]\nstream_buffer_tokens = 0\n").contains("at least 1"));
        assert!(error("[workers]\nfailures_max = 0\n").contains("failures_max"));
        assert!(error("[workers]\nstall_kill_s = 5\n").contains("not above stall_s"));
        let text = error("[[model]]\nmodel = \"a/b\"\noptions = { gpus = [2, 3], tp = 3 }\n");
        assert!(text.contains("a/b") && text.contains("tp is 3 and gpus is 2,3"), "{text}");
        assert!(error("[log]\nlevel = \"info,=loud=\"\n").contains("info,=loud="));
    }

    #[test]
    fn huge_numbers_are_refused_and_the_largest_allowed_break_nothing() {
        for (line, max) in [
            ("[workers]\nstall_s = 1e300\n", "86400"),
            ("[workers]\ndrain_s = inf\n", "86400"),
            ("[workers]\nload_s_max = nan\n", "86400"),
            ("[workers]\nstall_kill_s = 1e12\n", "86400"),
            ("[workers]\nstream_buffer_tokens = 9223372036854775807\n", "16777216"),
            ("[workers]\nfailures_max = 4294967295\n", "65536"),
            ("[http]\nping_s = 1e300\n", "86400"),
            ("[http]\nconnections_max = 9223372036854775807\n", "1048576"),
            ("[http]\nbody_bytes_max = 9223372036854775807\n", "134217728"),
        ] {
            let text = error(line);
            assert!(text.contains("at most") && text.contains(max), "{line}: {text}");
        }
        let text = "[workers]\nstall_s = 86399\nstall_kill_s = 86400\n\
                    stream_buffer_tokens = 16777216\n[http]\nconnections_max = 1048576\n";
        let config = load(text).unwrap();
        assert!(
            std::time::Duration::from_secs_f64(config.workers.stall_kill_s).as_secs() == 86_400
        );
        tokio::sync::Semaphore::new(config.http.connections_max);
        tokio::sync::mpsc::channel::<u8>(config.workers.stream_buffer_tokens + 1);
    }

    #[test]
    fn the_socket_is_where_the_service_manager_made_room() {
        let place = |folders: &str| {
            let place = Config::given_place(Some(folders.into()));
            place.map(|place| place.socket().display().to_string())
        };
        assert_eq!(place("/run/minisgld").as_deref(), Some("/run/minisgld/admin.sock"));
        assert_eq!(place("/run/a:/run/b").as_deref(), Some("/run/a/admin.sock"));
        assert_eq!((place(""), place("run"), Config::given_place(None)), (None, None, None));
    }

    #[test]
    fn a_public_address_needs_keys_or_a_word() {
        let public = "[http]\nlisten = \"0.0.0.0:8000\"\n";
        assert!(error(public).contains("allow_public_without_keys = true"));
        assert!(load(&format!("{public}allow_public_without_keys = true\n")).is_ok());
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("keys");
        let with_keys = format!("{public}api_keys_file = \"{}\"\n", keys.display());
        assert!(error(&with_keys).contains("cannot read"), "a file that is not there is no word");
        std::fs::write(&keys, "# none\n").unwrap();
        assert!(error(&with_keys).contains("there is no key"), "none is none");
        std::fs::write(&keys, "sk-0123456789abcdef\n").unwrap();
        let config = load(&with_keys).unwrap();
        assert_eq!(config.keys.len(), 1);
        assert!(!format!("{config:?}").contains("sk-"), "{config:?}");
    }

    #[test]
    fn the_folder_of_libraries_must_be_there() {
        let text = error("[gpu]\nlibraries = \"/no/such/folder\"\n");
        assert!(text.contains("[gpu] libraries") && text.contains("/no/such/folder"), "{text}");
        let config = load("[gpu]\nlibraries = \"/usr\"\n").unwrap();
        assert_eq!(config.gpu.libraries.as_deref(), Some(Path::new("/usr")));
        let args = ServeArgs { cuda_libraries: Some("/".into()), ..ServeArgs::default() };
        assert_eq!(Config::load(&args).unwrap().gpu.libraries.as_deref(), Some(Path::new("/")));
    }

    #[test]
    fn flags_override_the_file() {
        let args = ServeArgs { listen: Some("127.0.0.1:9".to_owned()), ..ServeArgs::default() };
        assert_eq!(Config::load(&args).unwrap().http.listen.port(), 9);
        let args = ServeArgs { listen: Some("nine".to_owned()), ..ServeArgs::default() };
        assert!(format!("{:#}", Config::load(&args).unwrap_err()).contains("--listen nine"));
    }
}
