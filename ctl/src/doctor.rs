//! `doctor`: what this machine has for running models, and what a load of one would come to. The daemon is asked; where
//! none answers, the `minisgld` beside this program, or in `PATH`, is run for it.
//!
//! Must never: look at the machine itself; that is `minisgld probe`'s.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use minisgl_proto::admin::{LoadRequest, VersionInfo};
use minisgl_proto::disk::{FitAnswer, FitQuestion, FitReport};
use minisgl_proto::doctor::{DoctorReport, Verdict};
use minisgl_proto::{LoadOptions, VERSION};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::args::{DoctorArgs, Format};
use crate::client::Client;
use crate::commands;
use crate::doctor_view;
use crate::error::CtlError;
use crate::output::{print, print_json};

/// Letters of a failed probe's words that are shown.
const WORDS_MAX: usize = 2000;

/// `doctor`. Good only when models load onto a GPU.
pub async fn run(client: &Client, args: &DoctorArgs, format: Format) -> Result<(), CtlError> {
    let patience = Duration::from_secs(args.timeout);
    if let Some(model) = &args.model {
        let report = of_model(client, model, args, patience).await?;
        return commands::say_fit(report, format);
    }
    let daemon: Result<VersionInfo, CtlError> = client.get("/admin/v1/version").await;
    let mut by = "the daemon".to_string();
    let asked = match &daemon {
        Ok(_) => client.get_within("/admin/v1/doctor", patience).await,
        Err(_) => Err(CtlError::Failed(String::new())),
    };
    let report: Result<DoctorReport, CtlError> = match (&daemon, asked) {
        (_, Ok(report)) => Ok(report),
        // A daemon that could not find out has said why; one that is older does not know the question.
        (Ok(_), Err(error @ (CtlError::Failed(_) | CtlError::Unreachable { .. }))) => Err(error),
        _ => match find_minisgld() {
            Some(program) => {
                by = program.display().to_string();
                probe(&program, patience).await
            }
            None => Err(CtlError::Failed(
                "no daemon answers, and there is no `minisgld` beside this program or in PATH to \
                 look at the machine"
                    .to_string(),
            )),
        },
    };
    let unreachable = daemon.as_ref().err().map(ToString::to_string);
    match format {
        Format::Json => print_json(&json!({
            "client": VERSION,
            "socket": client.socket(),
            "daemon": daemon.as_ref().ok(),
            "daemon_error": unreachable,
            "asked": report.is_ok().then_some(&by),
            "report": report.as_ref().ok(),
        }))?,
        Format::Table => {
            let found = report.as_ref().map(|report| (by.as_str(), report)).ok();
            print(&doctor_view::text(client.socket(), daemon.as_ref(), found))?;
        }
    }
    let machine = report?.machine;
    match machine.verdict {
        Verdict::Ready => Ok(()),
        verdict => Err(CtlError::NoGpu {
            code: exit_code(verdict),
            why: machine.problem.unwrap_or_else(|| "no GPU can be used".to_string()),
        }),
    }
}

/// What a load of `model` would come to.
async fn of_model(
    client: &Client,
    model: &str,
    args: &DoctorArgs,
    patience: Duration,
) -> Result<FitReport, CtlError> {
    let usage = |error: minisgl_proto::BadGpus| CtlError::Usage(error.to_string());
    let options = args.options.over(LoadOptions::default()).map_err(usage)?;
    let folder = std::fs::canonicalize(model).ok().filter(|path| path.is_dir());
    let shown = folder.as_ref().map_or(model.to_owned(), |path| path.display().to_string());
    let request = LoadRequest {
        model: shown,
        name: None,
        options: options.clone(),
        persist: false,
        aliases: Vec::new(),
    };
    match client.post("/admin/v1/fit", &request).await {
        Err(unreachable @ CtlError::Unreachable { .. }) => {
            let (Some(dir), Some(program)) = (folder, find_minisgld()) else {
                return Err(unreachable);
            };
            let question = FitQuestion { dir, options };
            let question = serde_json::to_vec(&question).map_err(|error| {
                CtlError::Failed(format!("the question does not encode: {error}"))
            })?;
            let answer: FitAnswer = run_child(&program, "fit", question, patience).await?;
            let FitAnswer { fit, problem } = answer;
            let fits = problem.is_none() && fit.is_some();
            let notes =
                vec!["no daemon answers: what its models hold is not known here".to_owned()];
            Ok(FitReport { name: model.to_owned(), fits, problem, fit, notes })
        }
        said => said,
    }
}

/// See `EXIT_CODES`.
fn exit_code(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Ready => 0,
        Verdict::NoBackend => 10,
        Verdict::NoDriver => 11,
        Verdict::NoGpu => 12,
        Verdict::NoLibrary => 13,
    }
}

/// Beside this program, else the first in `PATH`.
fn find_minisgld() -> Option<PathBuf> {
    let own = std::env::current_exe().ok();
    let beside = own.and_then(|own| Some(own.parent()?.to_path_buf()));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = beside.into_iter().chain(std::env::split_paths(&path));
    folders.map(|folder| folder.join("minisgld")).find(|program| program.is_file())
}

async fn probe(program: &Path, patience: Duration) -> Result<DoctorReport, CtlError> {
    run_child(program, "probe", Vec::new(), patience).await
}

/// What `minisgld COMMAND` prints, given `question` on its standard input.
async fn run_child<T: DeserializeOwned>(
    program: &Path,
    command: &str,
    question: Vec<u8>,
    patience: Duration,
) -> Result<T, CtlError> {
    let shown = program.display();
    let work = async {
        let mut child = Command::new(program)
            .arg(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not ask may be gone already.
            let _ = stdin.write_all(&question).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(patience, work).await.map_err(|_| {
        CtlError::Failed(format!(
            "`{shown} {command}` gave no answer in {} s: NVIDIA's driver may hang; try nvidia-smi and dmesg",
            patience.as_secs()
        ))
    })?;
    let output = output.map_err(|error: std::io::Error| {
        CtlError::Failed(format!("{shown} does not start: {error}"))
    })?;
    let said = String::from_utf8_lossy(&output.stderr);
    let said: String = said.trim().chars().take(WORDS_MAX).collect();
    if !output.status.success() {
        return Err(CtlError::Failed(format!(
            "`{shown} {command}` failed ({}): {said}",
            output.status
        )));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| {
        CtlError::Failed(format!(
            "`{shown} {command}` made no report ({error}); is it of version {VERSION}?"
        ))
    })
}
