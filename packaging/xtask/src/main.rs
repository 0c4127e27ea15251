//! `cargo xtask`: the chores around the build. What a person or CI types; nothing ships from here.
//!
//! Owns: fetching models for tests, running every test, the demo. Must never: be needed at run time
//! by the daemon or `minisglctl`.

#![forbid(unsafe_code)]

mod bench;
mod build;
mod demo;
mod model;
mod paths;
mod python;
mod sh;
mod test;
mod toolchain;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Chores around the build of minisgld")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Fetch a model that tests and the demo use, into target/models (cached)
    Model {
        /// Which one
        what: model::Model,
    },
    /// Run every test: what CI runs
    Test,
    /// From a clone to a streamed answer: fetch a model, build, serve it, ask it something
    Demo {
        /// Leave the daemon running
        #[arg(long)]
        keep: bool,
    },
    /// Fetch NVIDIA's CUDA compiler into target/toolchain (cached)
    Toolchain,
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Model { what } => {
            println!("{}", model::fetch(what)?.display());
            Ok(())
        }
        Task::Toolchain => {
            println!("{}", toolchain::fetch()?.display());
            Ok(())
        }
        Task::Test => test::run(),
        Task::Demo { keep } => demo::run(keep),
    }
}
