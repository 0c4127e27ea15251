//! The command line.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use minisgl_proto::socket::{self, Place};
use tokio::net::UnixStream;

use crate::error::{CtlError, EXIT_CODES};
use crate::output::note;

mod format;
mod load;

pub use format::{Format, Output, OutputParser};
pub use load::OptionArgs;

/// Between two looks at a socket that is not there yet.
const SOCKET_LOOK: Duration = Duration::from_millis(50);
/// Nobody is told of a shorter wait.
const TOLD_AFTER: Duration = Duration::from_secs(1);
/// Seconds that a daemon may take from its start to its socket.
const STARTING_S: u64 = 5;

/// Talks to minisgld, the LLM-serving daemon of this machine.
#[derive(Debug, Parser)]
#[command(name = "minisglctl", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    /// The daemon's socket [default: $XDG_RUNTIME_DIR/minisgld/admin.sock (without it
    /// /tmp/minisgld-UID/admin.sock) if it exists, else /run/minisgld/admin.sock; for root the last]
    #[arg(long, global = true, env = "MINISGL_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Wait so long for a daemon that is just starting [default: 5 for load, pull and wait, else 0]
    #[arg(long, global = true, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub wait_daemon: Option<u64>,
    /// How results are written: for people or for programs
    #[arg(short = 'o', long, global = true, value_name = "FORMAT", default_value = "table",
          value_parser = OutputParser)]
    pub output: Output,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// How long to wait for a daemon that is not there.
    pub fn patience(&self) -> Duration {
        let default = match self.command {
            Command::Load(_) | Command::Pull { .. } | Command::Wait { .. } => STARTING_S,
            _ => 0,
        };
        Duration::from_secs(self.wait_daemon.unwrap_or(default))
    }

    /// The format of results.
    ///
    /// # Errors
    /// What was given is none.
    pub fn format(&self) -> Result<Format, CtlError> {
        match (&self.output, &self.command) {
            (Output::Format(format), _) => Ok(*format),
            (Output::File(_), Command::Batch(_)) => Ok(Format::Table),
            (Output::File(other), _) => Err(CtlError::Usage(format!(
                "-o is table or json, not {:?}",
                other.display().to_string()
            ))),
        }
    }

    /// Where a batch's answers go: `--out`, or `-o` with something that is no format.
    ///
    /// # Errors
    /// Neither is given, or both.
    pub fn batch_out<'a>(&'a self, args: &'a BatchArgs) -> Result<&'a Path, CtlError> {
        match (&args.out, &self.output) {
            (Some(out), Output::Format(_)) => Ok(out),
            (None, Output::File(out)) => Ok(out),
            (Some(_), Output::File(other)) => Err(CtlError::Usage(format!(
                "-o is table or json beside --out, not {:?}",
                other.display().to_string()
            ))),
            (None, Output::Format(_)) => {
                Err(CtlError::Usage("where do the answers go? give --out OUT.jsonl".to_string()))
            }
        }
    }

    /// The socket in force: the one given, else the first of the daemon's places that has one.
    fn socket(&self) -> PathBuf {
        let own = || {
            let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
            let uid = nix::unistd::geteuid().as_raw();
            choose(socket::places(uid, runtime_dir.as_deref()), has_socket)
        };
        self.socket.clone().unwrap_or_else(own)
    }

    /// The same, once somebody listens there or patience has ended. Where it is can change as long as no daemon
    /// has made one.
    pub async fn find_socket(&self) -> PathBuf {
        if self.patience().is_zero() {
            return self.socket();
        }
        let since = Instant::now();
        let mut told = false;
        loop {
            let socket = self.socket();
            let waits = match UnixStream::connect(&socket).await {
                Ok(_) => false,
                Err(error) => {
                    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
                }
            };
            if !waits || since.elapsed() >= self.patience() {
                return socket;
            }
            if !told && since.elapsed() >= TOLD_AFTER {
                told = true;
                note(&format!("waiting for a daemon on {}", socket.display()));
            }
            tokio::time::sleep(SOCKET_LOOK).await;
        }
    }
}

/// The first place that has a socket, else the last place.
fn choose(places: Vec<Place>, has_socket: impl Fn(&Place) -> bool) -> PathBuf {
    let found = places.iter().find(|place| has_socket(place)).or(places.last());
    found.map(Place::socket).unwrap_or_default()
}

/// Whether a daemon may be there. In a folder that only its owner can have made; the system's may
/// belong to the service's own user.
fn has_socket(place: &Place) -> bool {
    let owner = std::fs::symlink_metadata(&place.folder).map(|folder| folder.uid());
    let trusted = owner.is_ok_and(|uid| uid == place.owner || place.owner == 0);
    trusted && place.socket().exists()
}

/// What there is to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load a model and wait until it serves; interrupting this does not stop the load
    Load(LoadArgs),
    /// Unload a model, after its running requests
    Unload {
        /// The model's name
        name: String,
        /// Abort running requests instead of waiting for them
        #[arg(long)]
        force: bool,
    },
    /// Give a model a new worker, with other load options if any are given; its requests wait, and go on
    Restart {
        /// The model's name
        name: String,
        #[command(flatten)]
        options: OptionArgs,
    },
    /// Wait until a model serves, or is gone; without a name until the whole daemon is ready
    Wait {
        /// The model's name
        #[arg(required_if_eq("until", "gone"))]
        name: Option<String>,
        /// What to wait for
        #[arg(long = "for", value_enum, id = "until", value_name = "WHAT", default_value_t = Until::Ready)]
        until: Until,
        /// Give up after so long; the exit code is then 6 [default: never]
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
    },
    /// Show how every model does: requests, KV pages, cache, restarts
    #[command(visible_alias = "list")]
    Ps {
        /// Show it again every so many seconds, 2 if none are given; Ctrl-C leaves
        #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, require_equals = true,
              default_missing_value = "2", value_parser = clap::value_parser!(u64).range(1..=3600))]
        watch: Option<u64>,
    },
    /// Show everything about a model
    Show {
        /// The model's name
        name: String,
    },
    /// Show what a model's workers wrote, also those that died
    Logs {
        /// The model's name
        name: String,
        /// Only the last lines
        #[arg(short = 'n', long, value_name = "N", default_value_t = 200,
              value_parser = clap::value_parser!(u32).range(1..=10_000))]
        lines: u32,
        /// Go on with what they write from now on; Ctrl-C leaves
        #[arg(short, long)]
        follow: bool,
    },
    /// Show every request that has not ended: whose, of which model, for how long
    Requests {
        /// Only this model's
        model: Option<String>,
    },
    /// End a request
    Cancel {
        /// ID or REQUEST ID of minisglctl requests
        id: String,
    },
    /// Empty a model's prefix cache
    Flush {
        /// The model's name
        name: String,
    },
    /// Download a model, or its newest commit, without loading it; interrupting this stops the download
    Pull {
        /// A repo id of the Hugging Face hub: org/name[@revision]
        #[arg(value_name = "REPO")]
        model: String,
    },
    /// Show what models are on disk, with sizes, and which are in use
    Models,
    /// Remove a model from the disk, or one revision of it; not while it is in use
    Rm {
        /// org/name, or org/name@revision
        #[arg(value_name = "REPO", required = true)]
        models: Vec<String>,
    },
    /// Print the daemon's metrics in the Prometheus text format
    Metrics,
    /// Say whether the daemon is ready; the exit code is 0 only then
    Health,
    /// Watch models, throughput, latencies, caches and GPUs live; q quits
    Top(TopArgs),
    /// Chat with a model; reads one prompt from standard input when that is no terminal
    Chat(ChatArgs),
    /// Run a file of requests in the OpenAI batch format; run it again to resume
    Batch(BatchArgs),
    /// Say what this machine has to run models on: driver, GPUs, libraries, models, and what to
    /// install; the exit code is 0 only when a GPU is ready. Of a MODEL: whether it is supported, in
    /// which scheme its weights are, and whether it fits. Works without a daemon too
    Doctor(DoctorArgs),
    /// Print the versions of this program and of the daemon
    Version,
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Write the manual pages of this program into a folder; for packages
    #[command(hide = true)]
    Man {
        /// The folder, which is there
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

/// What `wait` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Until {
    /// It serves
    Ready,
    /// No model has that name
    Gone,
}

/// `load`.
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// A folder with config.json, or a repo id of the Hugging Face hub: org/name[@revision]
    #[arg(value_name = "PATH_OR_REPO")]
    pub model: String,
    /// Name for clients [default: the repo id, or the folder's last part]
    #[arg(long)]
    pub name: Option<String>,
    /// Another name for clients; may be given more than once
    #[arg(long = "alias", value_name = "NAME")]
    pub aliases: Vec<String>,
    /// Load it again whenever the daemon starts, until it is unloaded
    #[arg(long)]
    pub persist: bool,
    /// Return as soon as the load has begun; see minisglctl wait
    #[arg(short, long)]
    pub detach: bool,
    /// Load nothing: say whether it would fit, on what, and with how many tokens of KV cache
    #[arg(long, conflicts_with_all = ["persist", "detach"])]
    pub dry_run: bool,
    #[command(flatten)]
    pub options: OptionArgs,
}

/// `chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// The model's name [default: the only one that is ready]
    pub model: Option<String>,
    /// Answer this and exit
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// The system message
    #[arg(short, long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Generated tokens of an answer at most
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u32>,
    /// Sampling temperature; 0 is greedy
    #[arg(long, value_name = "T")]
    pub temperature: Option<f32>,
    /// Sample from the most likely tokens that make up this probability
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,
    /// Seed of the sampling
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Tools that the model may call: a JSON list in OpenAI's form, each with a "command"
    #[arg(long, value_name = "FILE")]
    pub tools: Option<std::path::PathBuf>,
}

/// `top`.
#[derive(Clone, Copy, Debug, Args)]
pub struct TopArgs {
    /// Print one frame as text and exit; latencies are then those since each model's load
    #[arg(long)]
    pub once: bool,
    /// Seconds between two looks
    #[arg(short, long, value_name = "SECONDS", default_value_t = 1,
          value_parser = clap::value_parser!(u64).range(1..=60))]
    pub interval: u64,
    /// Columns of the frame that --once prints
    #[arg(long, value_name = "N", default_value_t = 80, requires = "once",
          value_parser = clap::value_parser!(u16).range(40..=1000))]
    pub width: u16,
}

/// `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// A folder with config.json, or a repo id: what a load of it would come to, by the options below;
    /// the exit code is 0 only when it would be served. Without a daemon, a folder alone
    #[arg(value_name = "MODEL")]
    pub model: Option<String>,
    /// Seconds that looking may take; the driver of many idle GPUs starts slowly
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=600))]
    pub timeout: u64,
    #[command(flatten)]
    pub options: OptionArgs,
}

/// `batch`.
#[derive(Debug, Args)]
pub struct BatchArgs {
    /// Requests, one JSON object a line: custom_id, method, url, body
    #[arg(value_name = "IN.jsonl")]
    pub input: PathBuf,
    /// Where answers are appended, in the order they come; requests with an answer here are skipped
    #[arg(long, value_name = "OUT.jsonl")]
    pub out: Option<PathBuf>,
    /// Requests at once
    #[arg(short, long, value_name = "N", default_value_t = 16,
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub concurrency: u32,
    /// Attempts a request gets after a 429, a 5xx or a lost connection
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub retries: u32,
    /// As -o json
    #[arg(long, hide = true)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn who_needs_a_daemon_that_is_starting_waits_and_a_question_does_not() {
        let patience =
            |line: &str| Cli::try_parse_from(line.split(' ')).unwrap().patience().as_secs();
        for line in ["load m", "pull m", "wait m"] {
            assert_eq!(patience(&format!("minisglctl {line}")), STARTING_S, "{line}");
            assert_eq!(patience(&format!("minisglctl {line} --wait-daemon 7")), 7, "{line}");
        }
        for line in ["ps", "models", "unload m", "health"] {
            assert_eq!(patience(&format!("minisglctl {line}")), 0, "{line}");
        }
    }

    #[test]
    fn the_first_place_with_a_socket_is_taken_and_else_the_last() {
        let places = || socket::places(7, Some(std::path::Path::new("/run/user/7")));
        let (own, system) = ("/run/user/7/minisgld/admin.sock", "/run/minisgld/admin.sock");
        let chosen = |there: &[&str]| {
            choose(places(), |place| there.iter().any(|path| place.socket() == PathBuf::from(path)))
        };
        assert_eq!(chosen(&[own, system]), PathBuf::from(own));
        assert_eq!(chosen(&[system]), PathBuf::from(system));
        assert_eq!(chosen(&[]), PathBuf::from(system));
    }

    #[test]
    fn a_socket_in_a_strangers_folder_is_none() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("admin.sock"), "").unwrap();
        let owner = nix::unistd::geteuid().as_raw();
        let place = |owner| Place { folder: dir.path().into(), mode: 0o700, owner };
        assert!(has_socket(&place(owner)));
        assert!(!has_socket(&place(owner + 4242)));
    }
}
