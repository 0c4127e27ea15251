//! `minisgld`: serves large language models over an OpenAI-compatible API.
//!
//! Owns: the command line, the configuration, and the wiring of the rooms; it is the only crate that
//! sees them all. Must never: hold logic that a room could hold.
//!
//! ```text
//!   main ── serve ──> control (registry, admin socket) ─┐ spawns `minisgld worker`
//!     |       └─────> http (OpenAI routes) ── bridge ───┘
//!     ├──── worker ─> engine <── sched
//!     └──── bench ──> the same, without a daemon
//! ```

#![forbid(unsafe_code)]

mod bench;
mod bridge;
mod cli;
mod config;
mod confine;
mod fit;
mod leave;
mod listen;
mod logging;
mod metrics;
mod notify;
mod probe;
mod reload;
mod serve;
mod text;
mod wiring;
mod worker;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser};

use crate::cli::{Cli, Command, ServeArgs};

/// Gives freed memory back to the system: reading a tokenizer takes four times what it leaves, and glibc's
/// arenas keep most of that. Its settings are in `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let result = match Cli::parse().command.unwrap_or(Command::Serve(ServeArgs::default())) {
        Command::Serve(args) => {
            confine::hide();
            serve::run(&args)
        }
        Command::CheckConfig(args) => serve::check_config(&args),
        Command::Reload(args) => reload::ask(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Probe(args) => probe::run(&args),
        Command::Fit => fit::run(),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "minisgld", &mut script);
            std::io::stdout().write_all(&script).context("cannot write the script")
        }
        Command::Man { dir } => clap_mangen::generate_to(Cli::command(), &dir)
            .with_context(|| format!("cannot write manual pages into {}", dir.display())),
        Command::Confined(args) => confine::attempt(&args),
        Command::EchoWorker { .. } => bench::echo::run(),
        Command::Text { log } => return text::run(&log),
        Command::Worker { log, confine_gpu } => return worker::run(&log, confine_gpu),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("minisgld: {error:#}");
            ExitCode::FAILURE
        }
    }
}
