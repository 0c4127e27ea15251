//! `minisglctl`: the operator's hand on minisgld.
//!
//! | file | what it holds |
//! |---|---|
//! | `args` | the command line |
//! | `client` | HTTP over the Unix socket |
//! | `commands` | the admin calls |
//! | `doctor`, `doctor_view` | what the machine has, asked of the daemon or of `minisgld probe` |
//! | `chat`, `batch`, `batch_file` | the two that speak the OpenAI API |
//! | `top` | the live view of a terminal |
//! | `exposition` | reads the Prometheus text format |
//! | `render`, `progress`, `output` | what people and programs see |
//! | `error` | what can go wrong, and the exit codes |

#![forbid(unsafe_code)]

mod args;
mod batch;
mod batch_file;
mod chat;
mod client;
mod commands;
mod doctor;
mod doctor_view;
mod error;
mod exposition;
mod output;
mod progress;
mod render;
mod top;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::args::{Cli, Command};
use crate::client::Client;
use crate::error::CtlError;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(&cli)),
        Err(error) => Err(CtlError::Failed(format!("no event loop: {error}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !matches!(error, CtlError::BrokenPipe) {
                output::note(&format!("minisglctl: {error}"));
            }
            ExitCode::from(error.exit_code())
        }
    }
}

async fn run(cli: &Cli) -> Result<(), CtlError> {
    let client = Client::new(cli.socket());
    match &cli.command {
        Command::Load(args) => commands::load(&client, args).await,
        Command::Unload { name, force, output } => {
            commands::unload(&client, name, *force, output.format).await
        }
        Command::List(output) => commands::list(&client, output.format).await,
        Command::Ps(output) => commands::ps(&client, output.format).await,
        Command::Show { name, output } => commands::show(&client, name, output.format).await,
        Command::Flush { name, output } => commands::flush(&client, name, output.format).await,
        Command::Metrics(output) => commands::metrics(&client, output.format).await,
        Command::Health(output) => commands::health(&client, output.format).await,
        Command::Top(args) => top::run(&client, args).await,
        Command::Chat(args) => chat::run(&client, args).await,
        Command::Batch(args) => batch::run(&client, args).await,
        Command::Doctor(args) => doctor::run(&client, args).await,
        Command::Version(output) => commands::version(&client, output.format).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "minisglctl", &mut script);
            output::print(&String::from_utf8_lossy(&script))
        }
        Command::Man { dir } => clap_mangen::generate_to(Cli::command(), dir)
            .map_err(|error| CtlError::Failed(format!("no manual in {}: {error}", dir.display()))),
    }
}
