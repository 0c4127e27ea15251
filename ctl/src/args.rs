//! The command line.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use minisgl_proto::socket::{self, Place};
use minisgl_proto::{Attn, BadGpus, CacheMode, Device, GpuList, KvDtype, LoadOptions};

use crate::error::EXIT_CODES;

/// Talks to minisgld, the LLM-serving daemon of this machine.
#[derive(Debug, Parser)]
#[command(name = "minisglctl", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    /// The daemon's socket [default: $XDG_RUNTIME_DIR/minisgld/admin.sock (without it
    /// /tmp/minisgld-UID/admin.sock) if it exists, else /run/minisgld/admin.sock; for root the last]
    #[arg(long, global = true, env = "MINISGL_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// The socket in force: the one given, else the first of the daemon's places that has one.
    pub fn socket(&self) -> PathBuf {
        let own = || {
            let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
            let uid = nix::unistd::geteuid().as_raw();
            choose(socket::places(uid, runtime_dir.as_deref()), has_socket)
        };
        self.socket.clone().unwrap_or_else(own)
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
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List every model: name, state, source, size
    List(OutputArgs),
    /// Show how every model does: requests, KV pages, cache, restarts
    Ps(OutputArgs),
    /// Show everything about a model
    Show {
        /// The model's name
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Empty a model's prefix cache
    Flush {
        /// The model's name
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Print the daemon's metrics in the Prometheus text format
    Metrics(OutputArgs),
    /// Say whether the daemon is ready; the exit code is 0 only then
    Health(OutputArgs),
    /// Watch models, throughput, latencies, caches and GPUs live; q quits
    Top(TopArgs),
    /// Chat with a model; reads one prompt from standard input when that is no terminal
    Chat(ChatArgs),
    /// Run a file of requests in the OpenAI batch format; run it again to resume
    Batch(BatchArgs),
    /// Say what this machine has to run models on: driver, GPUs, libraries, models, and what to
    /// install; the exit code is 0 only when a GPU is ready. Works without a daemon too
    Doctor(DoctorArgs),
    /// Print the versions of this program and of the daemon
    Version(OutputArgs),
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

/// How results are written.
#[derive(Clone, Copy, Debug, Args)]
pub struct OutputArgs {
    /// How results are written
    #[arg(short = 'o', long = "output", value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

/// For people or for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For programs
    Json,
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
    /// Tensor-parallel ranks [default: one a GPU of --gpus, or 1]
    #[arg(long, value_name = "N")]
    pub tp: Option<u32>,
    /// The driver's numbers of the GPUs, one a rank [default: those that suit best and that no other
    /// model has]
    #[arg(long, value_name = "N,N")]
    pub gpus: Option<GpuList>,
    /// What to run on: auto, cpu or cuda
    #[arg(long, value_parser = lowercase::<Device>)]
    pub device: Option<Device>,
    /// Compute threads over all ranks; 0 means one a core
    #[arg(long, value_name = "N")]
    pub threads: Option<u32>,
    /// Tokens a KV page
    #[arg(long, value_name = "TOKENS")]
    pub page_size: Option<u32>,
    /// Tokens of KV cache [default: from --memory-ratio]
    #[arg(long, value_name = "TOKENS")]
    pub kv_tokens: Option<u64>,
    /// Share of the free memory for weights and KV pages, in (0, 1] [default: 0.5, on a GPU 0.9]
    #[arg(long, value_name = "SHARE")]
    pub memory_ratio: Option<f32>,
    /// Element type of the KV cache: auto, f32, bf16, fp16 or fp8
    #[arg(long, value_parser = lowercase::<KvDtype>)]
    pub kv_dtype: Option<KvDtype>,
    /// Requests running at once, at most
    #[arg(long, value_name = "N")]
    pub max_running: Option<u32>,
    /// Requests waiting, at most
    #[arg(long, value_name = "N")]
    pub max_waiting: Option<u32>,
    /// Tokens a step feeds at most: the chunk of chunked prefill [default: 512, on a GPU 8192]
    #[arg(long, value_name = "TOKENS")]
    pub chunk_tokens: Option<u32>,
    /// Prompt plus generated tokens at most [default: the model's context]
    #[arg(long, value_name = "TOKENS")]
    pub max_len: Option<u32>,
    /// Prefix cache: radix or naive
    #[arg(long, value_parser = lowercase::<CacheMode>)]
    pub cache: Option<CacheMode>,
    /// Attention kernels of a GPU for prefill and decode: two of auto, fi and fa, or one for both
    #[arg(long, value_name = "PREFILL,DECODE")]
    pub attn: Option<Attn>,
    /// Seeded random weights; needs only config.json
    #[arg(long)]
    pub dummy_weights: bool,
    /// Schedule each step after the one before, not during it
    #[arg(long)]
    pub no_overlap: bool,
    /// Load it again whenever the daemon starts, until it is unloaded
    #[arg(long)]
    pub persist: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

impl LoadArgs {
    /// The options as given, the daemon's defaults for the rest.
    ///
    /// # Errors
    /// `--gpus` does not go with `--tp` or `--device`.
    pub fn options(&self) -> Result<LoadOptions, BadGpus> {
        let default = LoadOptions::default();
        let options = LoadOptions {
            tp: default.tp,
            device: self.device.unwrap_or(default.device),
            gpus: default.gpus,
            gpus_taken: default.gpus_taken,
            threads: self.threads.unwrap_or(default.threads),
            page_size: self.page_size.unwrap_or(default.page_size),
            kv_tokens: self.kv_tokens.or(default.kv_tokens),
            memory_ratio: self.memory_ratio.or(default.memory_ratio),
            kv_dtype: self.kv_dtype.unwrap_or(default.kv_dtype),
            max_running: self.max_running.unwrap_or(default.max_running),
            max_waiting: self.max_waiting.unwrap_or(default.max_waiting),
            chunk_tokens: self.chunk_tokens.or(default.chunk_tokens),
            max_len: self.max_len.or(default.max_len),
            cache: self.cache.unwrap_or(default.cache),
            attn: self.attn.unwrap_or(default.attn),
            dummy_weights: self.dummy_weights,
            overlap: !self.no_overlap,
        };
        options.with_ranks(self.tp, self.gpus.as_ref())
    }
}

/// Reads an enum by the name it has in JSON, so that both have the same words.
fn lowercase<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::from(text)).map_err(|error| error.to_string())
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
    #[command(flatten)]
    pub output: OutputArgs,
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
#[derive(Clone, Copy, Debug, Args)]
pub struct DoctorArgs {
    /// Seconds that looking may take; the driver of many idle GPUs starts slowly
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=600))]
    pub timeout: u64,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `batch`.
#[derive(Debug, Args)]
pub struct BatchArgs {
    /// Requests, one JSON object a line: custom_id, method, url, body
    #[arg(value_name = "IN.jsonl")]
    pub input: PathBuf,
    /// Where answers are appended, in the order they come; requests with an answer here are skipped
    #[arg(short = 'o', long = "out", value_name = "OUT.jsonl")]
    pub out: PathBuf,
    /// Requests at once
    #[arg(short, long, value_name = "N", default_value_t = 16,
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub concurrency: u32,
    /// Attempts a request gets after a 429, a 5xx or a lost connection
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub retries: u32,
    /// Write the summary as JSON
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use minisgl_proto::AttnBackend;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_option_means_the_daemons_default() {
        let cli = Cli::parse_from(["minisglctl", "load", "org/name"]);
        let Command::Load(load) = cli.command else { panic!("{cli:?}") };
        assert_eq!(load.options(), Ok(LoadOptions::default()));
    }

    #[test]
    fn enums_have_the_names_of_the_api() {
        let line = "minisglctl load m --device cpu --kv-dtype bf16 --cache naive --attn fa,fi --no-overlap";
        let cli = Cli::parse_from(line.split(' '));
        let Command::Load(load) = cli.command else { panic!("{cli:?}") };
        let options = load.options().unwrap();
        assert_eq!(options.device, Device::Cpu);
        assert_eq!(options.kv_dtype, KvDtype::Bf16);
        assert_eq!(options.cache, CacheMode::Naive);
        assert_eq!(options.attn, Attn { prefill: AttnBackend::Fa, decode: AttnBackend::Fi });
        assert!(!options.overlap);
        assert!(Cli::try_parse_from(["minisglctl", "load", "m", "--attn", "fa,fb"]).is_err());
        assert!(Cli::try_parse_from(["minisglctl", "load", "m", "--device", "tpu"]).is_err());
    }

    #[test]
    fn ranks_are_as_many_as_gpus_unless_given() {
        let options = |flags: &str| {
            let line = format!("minisglctl load m {flags}");
            let cli = Cli::parse_from(line.split_whitespace());
            let Command::Load(load) = cli.command else { panic!("{cli:?}") };
            load.options().map(|options| (options.gpus, options.tp))
        };
        assert_eq!(options("--gpus 2,3"), Ok((vec![2, 3], 2)));
        assert_eq!(options("--gpus 7 --tp 1"), Ok((vec![7], 1)));
        assert_eq!(options("--tp 2"), Ok((vec![], 2)));
        assert!(options("--gpus 2,3 --tp 1").is_err());
        assert!(options("--gpus 2 --device cpu").is_err());
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
