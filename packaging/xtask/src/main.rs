//! `cargo xtask`: the chores around the build. What a person or CI types; nothing ships from here.
//!
//! Owns: fetching models for tests, running every test, the demo. Must never: be needed at run time
//! by the daemon or `minisglctl`.

#![forbid(unsafe_code)]

mod model;
mod paths;
mod sh;
mod toolchain;

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
    /// Fetch NVIDIA's CUDA compiler into target/toolchain (cached)
    Toolchain,
}

fn main() -> Result<()> {
    match Cli::parse().task {
        Task::Model { what } => {
            let dir = model::fetch(what)?;
            println!("{}", dir.display());
            Ok(())
        }
        Task::Toolchain => {
            println!("{}", toolchain::fetch()?.display());
            Ok(())
        }
    }
}
