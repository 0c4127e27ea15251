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
//! | `render`, `progress` | what people see |
//! | `output` | the one way to the terminal |
//! | `error` | what can go wrong, and the exit codes |

#![forbid(unsafe_code)]
#![allow(rustdoc::broken_intra_doc_links)] // help texts, which clap takes from the comments, are not Markdown
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod batch;
mod batch_file;
mod chat;
mod chat_tools;
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
    let format = cli.format()?;
    let client = Client::new(cli.find_socket().await);
    match &cli.command {
        Command::Load(args) => commands::load(&client, args, format).await,
        Command::Unload { name, force } => commands::unload(&client, name, *force, format).await,
        Command::Restart { name, options } => {
            commands::restart(&client, name, options, format).await
        }
        Command::Wait { name, until, timeout } => {
            commands::wait(&client, name.as_deref(), *until, *timeout, format).await
        }
        Command::Ps { watch } => commands::ps(&client, *watch, format).await,
        Command::Show { name } => commands::show(&client, name, format).await,
        Command::Logs { name, lines, follow } => {
            commands::logs(&client, name, *lines, *follow, format).await
        }
        Command::Requests { model } => commands::requests(&client, model.as_deref(), format).await,
        Command::Cancel { id } => commands::cancel(&client, id, format).await,
        Command::Flush { name } => commands::flush(&client, name, format).await,
        Command::Pull { model } => commands::pull(&client, model, format).await,
        Command::Models => commands::models(&client, format).await,
        Command::Rm { models } => commands::rm(&client, models, format).await,
        Command::Metrics => commands::metrics(&client, format).await,
        Command::Health => commands::health(&client, format).await,
        Command::Top(args) => top::run(&client, args).await,
        Command::Chat(args) => chat::run(&client, args, format).await,
        Command::Batch(args) => batch::run(&client, args, cli.batch_out(args)?, format).await,
        Command::Doctor(args) => doctor::run(&client, args, format).await,
        Command::Version => commands::version(&client, format).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "minisglctl", &mut script);
            output::print(&String::from_utf8_lossy(&script))
        }
        Command::Man { dir } => clap_mangen::generate_to(Cli::command(), dir)
            .map_err(|error| CtlError::Failed(format!("no manual in {}: {error}", dir.display()))),
    }
}
