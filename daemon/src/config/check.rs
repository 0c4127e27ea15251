//! What the values of the configuration may be, and where in the file a bad one is.
//!
//! Owns: the limits. Must never: change a value.

use std::fmt;
use std::path::Path;

use minisgl_control::check_load;
use toml::de::{DeTable, DeValue};

use super::{Config, HttpConfig};
use crate::cli::ServeArgs;
use crate::logging;

/// More administrators than a machine has.
const ADMIN_USERS_MAX: usize = 1024;
/// Bytes of a user's name (useradd(8) allows 32).
const USER_BYTES_MAX: usize = 256;
/// A day: longer than any wait that helps.
const SECONDS_MAX: f64 = 86_400.0;
/// All bodies together have as much: a larger one would be refused for ever.
const BODY_BYTES_MAX: usize = minisgl_http::BODIES_BYTES_MAX;
/// More than a process has descriptors.
const CONNECTIONS_MAX: usize = 1 << 20;
/// Names and pages that one list may have.
const NAMES_MAX: usize = 64;
/// More than any context.
const STREAM_BUFFER_MAX: usize = 1 << 24;
/// Weeks of restarts.
/// Bytes that requests of a model may keep.
const PARK_BYTES_MAX: usize = 64 << 30;
const FAILURES_MAX: usize = 1 << 16;

/// An invalid value; it prints what is wrong and what would be right.
#[derive(Debug)]
pub(super) struct Fault {
    table: &'static str,
    /// Which of the `[[model]]`s.
    entry: usize,
    /// The keys that may be to blame, the likeliest first.
    keys: &'static [&'static str],
    text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Fault {
    fn new(table: &'static str, keys: &'static [&'static str], text: String) -> Self {
        Fault { table, entry: 0, keys, text }
    }

    /// The flag of `args` that gave the value, if one did.
    pub(super) fn flag(&self, args: &ServeArgs) -> Option<&'static str> {
        let (flag, given) = match (self.table, self.keys) {
            ("http", ["listen", ..]) => ("--listen", args.listen.is_some()),
            ("gpu", ["libraries"]) => ("--cuda-libraries", given_folder(args)),
            ("log", ["level"]) => ("--log", args.log.is_some()),
            _ => return None,
        };
        given.then_some(flag)
    }

    /// The file, and the line if the value is in it rather than a default that something in it contradicts.
    pub(super) fn place(&self, path: &Path, text: &str) -> String {
        match self.line(text) {
            Some(line) => format!("{}, line {line}", path.display()),
            None => path.display().to_string(),
        }
    }

    fn line(&self, text: &str) -> Option<usize> {
        let root = DeTable::parse(text).ok()?;
        let (_, value) = root.get_ref().iter().find(|(key, _)| key.get_ref() == self.table)?;
        let table = match value.get_ref() {
            DeValue::Table(table) => table,
            DeValue::Array(entries) => entries.get(self.entry)?.get_ref().as_table()?,
            _ => return None,
        };
        let at = self.keys.iter().find_map(|wanted| {
            let (key, _) = table.iter().find(|(key, _)| key.get_ref() == wanted)?;
            Some(key.span().start)
        })?;
        Some(1 + text[..at].matches('\n').count())
    }
}

fn given_folder(args: &ServeArgs) -> bool {
    args.cuda_libraries.as_ref().is_some_and(|folder| !folder.as_os_str().is_empty())
}

impl Config {
    /// Whether every value is valid.
    pub(super) fn check(&self) -> Result<(), Fault> {
        let listen = self.http.listen;
        let open = self.keys.is_empty() && !self.http.allow_public_without_keys;
        if !listen.ip().is_loopback() && open {
            let text = format!(
                "refusing to listen on {listen}: it is not a loopback address and there are no API keys; put some \
                 into /etc/minisgld/api_keys (systemd) or a file that [http] api_keys_file names, or set \
                 allow_public_without_keys = true under [http] to serve whoever can reach it"
            );
            return Err(Fault::new("http", &["listen"], text));
        }
        self.check_pages()?;
        let users = &self.admin.admin_users;
        let no_user = |user: &&String| {
            user.is_empty()
                || user.len() > USER_BYTES_MAX
                || user.contains(|c: char| c.is_whitespace())
        };
        if users.len() > ADMIN_USERS_MAX {
            let text = format!(
                "[admin] admin_users has {} entries: must be at most {ADMIN_USERS_MAX}",
                users.len()
            );
            return Err(Fault::new("admin", &["admin_users"], text));
        }
        if let Some(user) = users.iter().find(no_user) {
            let text = format!("[admin] admin_users has {user:?}, which is no user's name");
            return Err(Fault::new("admin", &["admin_users"], text));
        }
        let workers = &self.workers;
        if !(0.0..=SECONDS_MAX).contains(&self.http.ping_s) {
            let text = format!(
                "[http] ping_s = {}: must be 0 (never) or at most {SECONDS_MAX} seconds",
                self.http.ping_s
            );
            return Err(Fault::new("http", &["ping_s"], text));
        }
        let seconds: [(&'static [&'static str], f64); 5] = [
            (&["stall_s"], workers.stall_s),
            (&["stall_kill_s"], workers.stall_kill_s),
            (&["load_s_max"], workers.load_s_max),
            (&["drain_s"], workers.drain_s),
            (&["park_s"], workers.park_s),
        ];
        for (keys, value) in seconds {
            if !(value > 0.0 && value <= SECONDS_MAX) {
                let key = keys[0];
                let text = format!(
                    "[workers] {key} = {value}: must be above 0 and at most {SECONDS_MAX} seconds"
                );
                return Err(Fault::new("workers", keys, text));
            }
        }
        if workers.stall_kill_s <= workers.stall_s {
            let text = format!(
                "[workers] stall_kill_s = {} is not above stall_s = {}: a worker is first stalled, then killed",
                workers.stall_kill_s, workers.stall_s
            );
            return Err(Fault::new("workers", &["stall_kill_s", "stall_s"], text));
        }
        let counts: [(&'static str, &'static [&'static str], usize, usize); 5] = [
            ("http", &["body_bytes_max"], self.http.body_bytes_max, BODY_BYTES_MAX),
            ("http", &["connections_max"], self.http.connections_max, CONNECTIONS_MAX),
            ("workers", &["stream_buffer_tokens"], workers.stream_buffer_tokens, STREAM_BUFFER_MAX),
            ("workers", &["failures_max"], workers.failures_max as usize, FAILURES_MAX),
            ("workers", &["park_bytes_max"], workers.park_bytes_max, PARK_BYTES_MAX),
        ];
        for (table, keys, value, max) in counts {
            if !(1..=max).contains(&value) {
                let key = keys[0];
                let text =
                    format!("[{table}] {key} = {value}: must be at least 1 and at most {max}");
                return Err(Fault::new(table, keys, text));
            }
        }
        if let Some(folder) = self.gpu.libraries.as_ref().filter(|folder| !folder.is_dir()) {
            let text = format!(
                "[gpu] libraries (--cuda-libraries, MINISGL_CUDA_LIBRARIES) is {}, which is no folder; \
                 name the folder that has NVIDIA's libraries",
                folder.display()
            );
            return Err(Fault::new("gpu", &["libraries"], text));
        }
        let mut names: Vec<String> = Vec::new();
        for (entry, model) in self.model.iter().enumerate() {
            let fault = |keys, text| Fault { entry, ..Fault::new("model", keys, text) };
            let checked = check_load(&model.request()).map_err(|error| {
                let text = format!("[[model]] {}: {}", model.model, error.message);
                fault(&["options", "name", "model"], text)
            });
            let name = checked?;
            if names.contains(&name) {
                let text = format!(
                    "[[model]] {}: the name \"{name}\" is that of a model before; choose another with name",
                    model.model
                );
                return Err(fault(&["name", "model"], text));
            }
            names.push(name);
        }
        logging::filter(&self.log.level)
            .map_err(|error| Fault::new("log", &["level"], format!("{error:#}")))?;
        Ok(())
    }

    /// Whether names of this machine and of web pages are valid.
    fn check_pages(&self) -> Result<(), Fault> {
        let HttpConfig { hosts, cors_origins, .. } = &self.http;
        let lists: [(&'static [&'static str], &Vec<String>); 2] =
            [(&["hosts"], hosts), (&["cors_origins"], cors_origins)];
        for (keys, list) in lists {
            if list.len() > NAMES_MAX {
                let (key, entries) = (keys[0], list.len());
                let text =
                    format!("[http] {key} has {entries} entries: must be at most {NAMES_MAX}");
                return Err(Fault::new("http", keys, text));
            }
        }
        if let Some(host) = hosts.iter().find(|host| !minisgl_http::is_host(host)) {
            let text = format!(
                "[http] hosts has {host:?}: must be a name such as gpu-1.lan, without a port"
            );
            return Err(Fault::new("http", &["hosts"], text));
        }
        if let Some(page) = cors_origins.iter().find(|page| !minisgl_http::is_origin(page)) {
            let text = format!(
                "[http] cors_origins has {page:?}: must be \"*\" or as a browser sends it, such as https://ui.example"
            );
            return Err(Fault::new("http", &["cors_origins"], text));
        }
        if self.keys.is_empty() && cors_origins.iter().any(|page| page == "*") {
            let text = "[http] cors_origins has \"*\" and there are no API keys: any web page could use this server; \
                        name the pages, or set API keys"
                .to_owned();
            return Err(Fault::new("http", &["cors_origins"], text));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of a file, from the file's name on.
    fn error(text: &str, args: ServeArgs) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("minisgld.toml");
        std::fs::write(&path, text).unwrap();
        let args = ServeArgs { config: Some(path), ..args };
        let error = format!("{:#}", Config::load(&args).expect_err("this configuration is wrong"));
        error.replace(&format!("{}/", dir.path().display()), "")
    }

    #[test]
    fn a_bad_value_is_named_by_file_and_line() {
        for (text, expected) in [
            ("# x\n[workers]\ndrain_s = 0\n", "in minisgld.toml, line 3: [workers] drain_s = 0: "),
            ("[http]\n\nlisten = \"0.0.0.0:1\"\n", "in minisgld.toml, line 3: refusing to "),
            ("workers = { failures_max = 0 }", "in minisgld.toml, line 1: [workers] failures_max"),
            ("workers.load_s_max = -1.0", "in minisgld.toml, line 1: [workers] load_s_max"),
            ("[log]\nlevel = \"=\"\n", "in minisgld.toml, line 2: [log] level \"=\" is neither"),
            // The default of one contradicts the other: the one that was written is named.
            (
                "[workers]\nstall_s = 400\n",
                "in minisgld.toml, line 2: [workers] stall_kill_s = 300",
            ),
            (
                "[http]\nhosts = [\"gpu-1\", \"a:80\"]\n",
                "in minisgld.toml, line 2: [http] hosts has \"a:80\": must be a name",
            ),
            (
                "[http]\ncors_origins = [\"ui.example\"]\n",
                "in minisgld.toml, line 2: [http] cors_origins has \"ui.example\": must be",
            ),
            (
                "[http]\ncors_origins = [\"*\"]\n",
                "in minisgld.toml, line 2: [http] cors_origins has \"*\" and there are no API keys",
            ),
            ("[http]\nping_s = -1\n", "in minisgld.toml, line 2: [http] ping_s = -1: must be"),
            (
                "[http]\nbody_bytes_max = 134217729\n",
                "in minisgld.toml, line 2: [http] body_bytes_max = 134217729: must be",
            ),
            ("[workers]\nstall_kill_s = 5\n", "in minisgld.toml, line 2: [workers] stall_kill_s"),
            (
                "[admin]\nadmin_users = [\"a b\"]\n",
                "in minisgld.toml, line 2: [admin] admin_users has",
            ),
            (
                "[[model]]\nmodel = \"a\"\n[model.options]\nmax_running = 0\n",
                "in minisgld.toml, line 3: [[model]] a: option max_running is 0",
            ),
            (
                "[[model]]\nmodel = \"a\"\n[[model]]\nmodel = \"b\"\n\n\
                 [model.options]\ngpus = [1]\ntp = 2\n",
                "in minisgld.toml, line 6: [[model]] b: tp is 2 and gpus is 1",
            ),
            (
                "[[model]]\nmodel = \"a\"\noptions = { memory_ratio = 3.0 }\n",
                "in minisgld.toml, line 3: [[model]] a: option memory_ratio is 3",
            ),
            (
                "[[model]]\nmodel = \"a\"\nname = \"x y\"\n",
                "in minisgld.toml, line 3: [[model]] a: \"x y\" is no model name",
            ),
            (
                "[[model]]\nmodel = \"a\"\n[[model]]\nname = \"a\"\nmodel = \"b\"\n",
                "in minisgld.toml, line 4: [[model]] b: the name \"a\" is that of a model before",
            ),
        ] {
            let said = error(text, ServeArgs::default());
            assert!(said.starts_with(expected), "{text}: {said}");
        }
    }

    #[test]
    fn a_flag_is_to_blame_for_its_own_value() {
        let text = "[http]\nlisten = \"127.0.0.1:1\"\n[log]\nlevel = \"info\"\n";
        let listen = ServeArgs { listen: Some("0.0.0.0:1".to_owned()), ..ServeArgs::default() };
        let said = error(text, listen);
        assert!(said.starts_with("--listen: refusing to listen on 0.0.0.0:1"), "{said}");
        let log = ServeArgs { log: Some("=".to_owned()), ..ServeArgs::default() };
        assert!(error(text, log).starts_with("--log: "), "of the flag");
        let folder =
            |path: &str| ServeArgs { cuda_libraries: Some(path.into()), ..ServeArgs::default() };
        let text = "[gpu]\nlibraries = \"/no/such\"\n";
        assert!(error(text, folder("/nor/this")).starts_with("--cuda-libraries: [gpu] libraries"));
        assert!(error(text, folder("")).starts_with("in minisgld.toml, line 2: [gpu] libraries"));
    }
}
