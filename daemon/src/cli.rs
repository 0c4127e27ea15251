//! The command line of `minisgld`. Flags override the configuration file.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::bench::BenchArgs;
use crate::confine::AttemptArgs;

/// Serves large language models over an OpenAI-compatible API.
#[derive(Debug, Parser)]
#[command(name = "minisgld", version, max_term_width = 100)]
pub struct Cli {
    /// What to do; `serve` when absent.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What `minisgld` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon: the OpenAI API on a TCP port, the admin API on a Unix socket.
    Serve(ServeArgs),
    /// Read the configuration as `serve` would, say what is wrong with it, and start nothing.
    CheckConfig(ServeArgs),
    /// Have the running daemon read its configuration again; fails, and says why, if the daemon refuses it.
    Reload(ServeArgs),
    /// Measure the speed of a model, without a daemon: scheduler and engine in this process.
    Bench(BenchArgs),
    /// Print a completion script for a shell.
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Write the manual pages of this program into a folder; for packages.
    #[command(hide = true)]
    Man {
        /// The folder, which is there
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// Print what this machine has, as JSON; people ask `minisglctl doctor`.
    #[command(hide = true)]
    Probe(ServeArgs),
    /// Confine this process as a worker is, try what a worker must not be able to do, and print what came of it.
    #[command(hide = true)]
    Confined(AttemptArgs),
    /// Say what loading a model would come to: a question as JSON on standard input, the answer on standard
    /// output; people ask `minisglctl load --dry-run`.
    #[command(hide = true)]
    Fit,
    /// Answer the daemon that started this process as a worker would, and compute nothing. For `bench front`.
    #[command(hide = true)]
    EchoWorker {
        /// As for `worker`, and without effect.
        #[arg(long)]
        log: String,
        /// The same.
        #[arg(long)]
        confine_gpu: bool,
    },
    /// Read one model's tokenizer and templates for the daemon that started this process. Not for people.
    #[command(hide = true)]
    Text {
        /// What to log, as for `serve`.
        #[arg(long, default_value = "info")]
        log: String,
    },
    /// Serve one model to the daemon that started this process. Not for people.
    #[command(hide = true)]
    Worker {
        /// What to log, as for `serve`.
        #[arg(long, default_value = "info")]
        log: String,
        /// Confine it also where it may use a GPU.
        #[arg(long)]
        confine_gpu: bool,
    },
}

/// Flags of `serve`.
#[derive(Clone, Debug, Default, Args)]
pub struct ServeArgs {
    /// Configuration file [default: /etc/minisgld/minisgld.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address of the OpenAI API [default: 127.0.0.1:8000]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<String>,
    /// Unix socket of the admin API [default: $RUNTIME_DIRECTORY/admin.sock under systemd,
    /// /run/minisgld/admin.sock for root, else
    /// $XDG_RUNTIME_DIR/minisgld/admin.sock, or without it /tmp/minisgld-UID/admin.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Folder of NVIDIA's libraries, looked into before all others: the libraries themselves, a CUDA
    /// toolkit or a Python environment
    #[arg(long, value_name = "DIR", env = "MINISGL_CUDA_LIBRARIES")]
    pub cuda_libraries: Option<PathBuf>,
    /// What to log: error, warn, info, debug, trace, or per-module directives [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<String>,
    /// Subcommand of this program that serves a model. For `bench front`.
    #[arg(long, value_name = "SUBCOMMAND", hide = true)]
    pub worker: Option<String>,
}
