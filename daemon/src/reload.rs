//! SIGHUP and `minisgld reload`: reads the configuration again and applies what can change while requests are served.
//!
//! ```text
//!   RELOADING=1 ──> read, check ──> apply what is live ──> log what is not ──> READY=1
//!                        └─ bad: nothing changes, the log has file and line ─┘
//! ```
//!
//! Owns: which key of the configuration is live. Must never: apply half of a configuration that is refused.

mod client;

use anyhow::bail;
use minisgl_control::Registry;
use minisgl_control::access::{self, Access};
use minisgl_http::{Keys, Limits, Tls};
use minisgl_proto::reload::ReloadReply;

use crate::cli::ServeArgs;
use crate::config::{
    AdminConfig, Config, GpuConfig, HttpConfig, HubConfig, LogConfig, ModelConfig, StateConfig,
    WorkersConfig,
};
use crate::logging::LevelHandle;
use crate::notify::Notifier;
use crate::wiring::registry_config;

pub use self::client::ask;

/// What a reload changes.
pub struct Live {
    /// Who is let in over the network.
    pub keys: Keys,
    /// How connections are encrypted.
    pub tls: Tls,
    /// Who may use the admin socket.
    pub access: Access,
    /// Limits of the API.
    pub limits: Limits,
    /// Models that are loaded from now on.
    pub registry: Registry,
    /// The log's level.
    pub level: LevelHandle,
}

/// What a reload came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Keys that changed and are in force.
    applied: Vec<&'static str>,
    /// Keys that changed and wait for a restart.
    restart: Vec<&'static str>,
}

impl Live {
    /// Reads the configuration again, tells the log what came of it, and the service manager that it goes on.
    ///
    /// # Errors
    /// The configuration is invalid, or would open the API; nothing has changed.
    pub async fn reload(
        &self,
        notifier: Option<&Notifier>,
        args: &ServeArgs,
        running: &mut Config,
    ) -> anyhow::Result<Outcome> {
        if let Some(notifier) = notifier {
            notifier.reloading().await;
        }
        let reloaded = tokio::task::block_in_place(|| self.read(args, running));
        match &reloaded {
            Ok(outcome) => outcome.log(),
            Err(error) => {
                tracing::error!("the configuration is not reloaded and stays as it was: {error:#}");
            }
        }
        if let Some(notifier) = notifier {
            notifier.reloaded().await;
        }
        reloaded
    }

    /// Reads the configuration again, and what of it can be live replaces that of `running`.
    fn read(&self, args: &ServeArgs, running: &mut Config) -> anyhow::Result<Outcome> {
        let new = Config::load(args)?;
        refuse_to_open(running, &new)?;
        let outcome = compare(running, &new);
        let merged = merge(running, new);
        // An old address with the new keys may be what neither configuration asks for.
        merged.check_mixture()?;
        self.level.set(&merged.log)?;
        self.apply(&merged);
        if running.model != merged.model {
            let registry = self.registry.clone();
            let wanted = merged.model.iter().map(ModelConfig::request).collect();
            tokio::spawn(async move { registry.reconcile(wanted).await });
        }
        *running = merged;
        Ok(outcome)
    }

    fn apply(&self, config: &Config) {
        self.keys.set(config.key_rule());
        self.tls.set(config.certificate.clone());
        self.access.set_admin_users(config.admin.admin_users.clone());
        warn_of_unknown_users(config);
        self.limits.set(config.http.body_bytes_max, config.http.connections_max);
        self.registry.reconfigure(registry_config(config));
    }
}

/// Keys that were asked for are asked for until a restart: a reload is no place to open the API by accident.
fn refuse_to_open(running: &Config, new: &Config) -> anyhow::Result<()> {
    if !running.keys.is_empty() && new.keys.is_empty() {
        bail!(
            "there would be no API keys any more, and everybody would be served who reaches the address; name a file \
             with keys in [http] api_keys_file, or restart the daemon if this is meant"
        );
    }
    Ok(())
}

/// Users of `admin_users` that do not exist are misspelt, most likely.
pub fn warn_of_unknown_users(config: &Config) {
    for user in access::unknown_users(&config.admin.admin_users) {
        tracing::warn!("[admin] admin_users has \"{user}\", and there is no such user");
    }
}

/// What the service manager's status line says of a reload.
pub fn note(reloaded: &anyhow::Result<Outcome>) -> Option<String> {
    match reloaded {
        Ok(outcome) => outcome.note(),
        Err(_) => Some("the configuration was not reloaded, the log says why".to_owned()),
    }
}

/// What whoever asked for a reload is told.
pub fn reply(reloaded: anyhow::Result<Outcome>) -> Result<ReloadReply, String> {
    let own = |keys: Vec<&str>| keys.into_iter().map(str::to_owned).collect();
    match reloaded {
        Ok(Outcome { applied, restart }) => {
            Ok(ReloadReply { changed: own(applied), restart: own(restart) })
        }
        Err(error) => Err(format!("{error:#}")),
    }
}

impl Outcome {
    /// Says it in the log.
    fn log(&self) {
        let list = |keys: &[&str]| if keys.is_empty() { "nothing".into() } else { keys.join(", ") };
        tracing::info!("configuration reloaded; changed: {}", list(&self.applied));
        if !self.restart.is_empty() {
            tracing::warn!("changed, and needs a restart: {}", list(&self.restart));
        }
    }

    /// The same for the status line; nothing where all is in force.
    fn note(&self) -> Option<String> {
        let keys = self.restart.join(", ");
        (!keys.is_empty()).then(|| format!("restart to apply {keys}"))
    }
}

/// What differs. Every key is named here: one that is added has to be put into one of the lists.
fn compare(old: &Config, new: &Config) -> Outcome {
    let mut outcome = Outcome::default();
    let mut live = |key, changed: bool| outcome.applied.extend(changed.then_some(key));
    let Config { http, admin, hub, gpu, workers, log, state, model, keys, certificate } = new;
    let HttpConfig {
        listen,
        allow_public_without_keys: _, // looked at when the address or the keys change
        api_keys_file,
        metrics_without_key,
        hosts,
        cors_origins,
        tls_cert: _, // the certificate itself counts
        tls_key: _,
        body_bytes_max,
        connections_max,
        max_tokens_over_room,
        ping_s,
        reasoning_fields,
        client_priority,
        client_flush,
        ollama,
    } = http;
    live("[http] API keys", old.keys != *keys || old.http.api_keys_file != *api_keys_file);
    live("[http] metrics_without_key", old.http.metrics_without_key != *metrics_without_key);
    live("[http] hosts", old.http.hosts != *hosts);
    live("[http] cors_origins", old.http.cors_origins != *cors_origins);
    live("[http] TLS certificate", old.certificate != *certificate);
    live("[http] body_bytes_max", old.http.body_bytes_max != *body_bytes_max);
    live("[http] connections_max", old.http.connections_max != *connections_max);
    let AdminConfig { socket, admin_users } = admin;
    live("[admin] admin_users", old.admin.admin_users != *admin_users);
    let HubConfig { .. } = hub;
    live("[hub], for the next loads", old.hub != *hub);
    let GpuConfig { .. } = gpu;
    live("[gpu], for the next loads", old.gpu != *gpu);
    let WorkersConfig { drain_s, .. } = workers;
    live("[workers] drain_s", old.workers.drain_s != *drain_s);
    let rest = WorkersConfig { drain_s: old.workers.drain_s, ..workers.clone() };
    live("[workers], for the next loads", old.workers != rest);
    live("[[model]]", old.model != *model);
    let LogConfig { level, format, prompts } = log;
    live("[log] level", old.log.level != *level);

    let mut later = |key, changed: bool| outcome.restart.extend(changed.then_some(key));
    later("[http] listen", old.http.listen != *listen);
    later("[http] max_tokens_over_room", old.http.max_tokens_over_room != *max_tokens_over_room);
    later("[http] ping_s", old.http.ping_s != *ping_s);
    later("[http] reasoning_fields", old.http.reasoning_fields != *reasoning_fields);
    later("[http] client_priority", old.http.client_priority != *client_priority);
    later("[http] client_flush", old.http.client_flush != *client_flush);
    later("[http] ollama", old.http.ollama != *ollama);
    later("[admin] socket", old.admin.socket != *socket);
    later("[log] format", old.log.format != *format);
    later("[log] prompts", old.log.prompts != *prompts);
    later("[state]", old.state != *state);
    outcome
}

/// `new`, but for what stays as it was at the start.
fn merge(old: &Config, new: Config) -> Config {
    Config {
        http: HttpConfig {
            listen: old.http.listen,
            max_tokens_over_room: old.http.max_tokens_over_room,
            ping_s: old.http.ping_s,
            reasoning_fields: old.http.reasoning_fields,
            client_priority: old.http.client_priority,
            client_flush: old.http.client_flush,
            ollama: old.http.ollama,
            ..new.http
        },
        admin: AdminConfig { socket: old.admin.socket.clone(), ..new.admin },
        log: LogConfig { format: old.log.format, prompts: old.log.prompts, ..new.log },
        state: StateConfig { ..old.state.clone() },
        ..new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn each_key_is_live_or_waits_for_a_restart_and_is_said_until_then() {
        let old = Config::default();
        let new = config(
            "[http]\nlisten = \"127.0.0.1:1\"\nbody_bytes_max = 5\n[log]\nlevel = \"debug\"\nformat = \"json\"\n\
             [workers]\ndrain_s = 5.0\n[admin]\nadmin_users = [\"ann\"]\n[[model]]\nmodel = \"a/b\"\n",
        );
        let outcome = compare(&old, &new);
        let applied = [
            "[http] body_bytes_max",
            "[admin] admin_users",
            "[workers] drain_s",
            "[[model]]",
            "[log] level",
        ];
        assert_eq!(outcome.applied, applied);
        assert_eq!(outcome.restart, ["[http] listen", "[log] format"]);
        let note = "restart to apply [http] listen, [log] format";
        assert_eq!(outcome.note().as_deref(), Some(note));

        let merged = merge(&old, new.clone());
        assert_eq!(merged.http.listen, old.http.listen);
        assert_eq!((merged.http.body_bytes_max, merged.log.level.as_str()), (5, "debug"));
        assert_eq!((merged.log.format, merged.model.len()), (old.log.format, 1));
        let again = compare(&merged, &new);
        assert_eq!((again.applied.len(), again.restart), (0, outcome.restart));
        assert_eq!(compare(&old, &old), Outcome::default());
    }

    #[test]
    fn keys_do_not_vanish_in_a_reload() {
        let list = |text| minisgl_http::KeyList::parse(text).unwrap();
        let with = |keys| Config { keys, ..Config::default() };
        let (one, other) = (with(list("sk-0123456789abcdef")), with(list("sk-fedcba9876543210")));
        let none = Config::default();
        let error = refuse_to_open(&one, &none).unwrap_err().to_string();
        assert!(error.contains("no API keys any more"), "{error}");
        for (old, new) in [(&one, &other), (&none, &one), (&none, &none)] {
            assert!(refuse_to_open(old, new).is_ok());
        }
    }

    #[test]
    fn stall_times_and_the_drain_time_are_told_apart() {
        let old = Config::default();
        let stall = compare(&old, &config("[workers]\nstall_s = 5.0\n"));
        assert_eq!(stall.applied, ["[workers], for the next loads"]);
        let drain = compare(&old, &config("[workers]\ndrain_s = 5.0\n"));
        assert_eq!(drain.applied, ["[workers] drain_s"]);
    }
}
