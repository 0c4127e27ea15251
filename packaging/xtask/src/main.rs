//! `cargo xtask`: the chores around the build. What a person or CI types; nothing ships from here.
//!
//! Owns: fetching models for tests and the CUDA compiler, running every test, the demo, the bundle, packages. Must never: be needed at run time
//! by the daemon or `minisglctl`.

#![forbid(unsafe_code)]

mod bench;
mod bench_clients;
mod build;
mod bundle;
mod corpus;
mod demo;
mod model;
mod needs;
mod node;
mod notices;
mod package;
mod paths;
mod python;
mod schemas;
mod sh;
mod system;
mod test;
mod toolchain;
mod tools;

use std::path::PathBuf;
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
    /// Build minisgld and minisglctl, optimised, into target/release
    Build {
        /// Without the CUDA backend, which needs NVIDIA's compiler to be fetched
        #[arg(long)]
        cpu: bool,
    },
    /// Build minisgld and minisglctl and pack them into target/packages
    Package {
        /// Which packages
        #[arg(value_enum, default_value_t = package::Format::All)]
        format: package::Format,
        /// Without the CUDA backend, which needs NVIDIA's compiler to be fetched
        #[arg(long)]
        cpu: bool,
    },
    /// Run every test: what CI runs, with --system after it
    Test {
        /// Instead, the package in a booted Debian, with the release binaries that are there: needs root
        #[arg(long)]
        system: bool,
        /// With --system: this package instead of one of the release binaries
        #[arg(long, requires = "system", value_name = "FILE")]
        deb: Option<PathBuf>,
    },
    /// From a clone to a streamed answer: fetch a model, build, serve it, ask it something
    Demo {
        /// Leave the daemon running
        #[arg(long)]
        keep: bool,
        /// Build without the CUDA backend, which needs NVIDIA's compiler to be fetched
        #[arg(long)]
        cpu: bool,
    },
    /// Fetch NVIDIA's CUDA compiler into target/toolchain (cached)
    Toolchain,
    /// Make a folder of binaries and GPU tests for a GPU machine without Rust or network
    Bundle {
        /// Where [default: target/bundle]
        to: Option<PathBuf>,
    },
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
        Task::Test { system: false, .. } => test::run(),
        Task::Test { system: true, deb } => system::run(deb),
        Task::Build { cpu } => {
            build::release(backend(cpu))?;
            for name in ["minisgld", "minisglctl"] {
                println!("{}", build::binary(name).display());
            }
            Ok(())
        }
        Task::Package { format, cpu } => {
            for package in package::run(format, backend(cpu))? {
                println!("{}", package.display());
            }
            Ok(())
        }
        Task::Demo { keep, cpu } => demo::run(keep, backend(cpu)),
        Task::Bundle { to } => {
            println!("{}", bundle::make(to)?.display());
            Ok(())
        }
    }
}

fn backend(cpu: bool) -> build::Backend {
    if cpu { build::Backend::Cpu } else { build::Backend::Cuda }
}
