//! `POST /admin/v1/fit`: what a load would come to, asked of a child process, `minisgld fit`.
//!
//! Of a repo that is not on disk the configuration is downloaded, and nothing else.
//!
//! Owns: that child and the time it gets. Must never: load anything, or run two children at once.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use axum::{Extension, Router};
use minisgl_proto::LoadOptions;
use minisgl_proto::admin::{AdminError, AdminErrorCode, LoadRequest};
use minisgl_proto::disk::{FitAnswer, FitQuestion, FitReport};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::Mutex;

use crate::access::{Access, Caller, Right};
use crate::checks::check_load;
use crate::config::WorkerCommand;
use crate::registry::Registry;
use crate::reply::{Sent, answer, parse};
use crate::resolve;

/// How long the child may take: a driver of many idle GPUs starts slowly.
const PATIENCE: Duration = Duration::from_secs(60);
/// Letters of a failed child's words that are passed on.
const WORDS_MAX: usize = 2000;

#[derive(Clone)]
struct Fit {
    registry: Registry,
    access: Access,
    turn: Arc<Mutex<()>>,
}

/// The route, with its state.
pub(crate) fn router(registry: Registry, access: Access) -> Router {
    let turn = Arc::default();
    Router::new().route("/admin/v1/fit", post(fit)).with_state(Fit { registry, access, turn })
}

/// It may download, and opens GPUs for a moment: a right of those who may load.
async fn fit(State(fit): State<Fit>, caller: Option<Extension<Caller>>, body: Sent) -> Response {
    let ask = async || {
        let caller = caller.as_ref().map(|Extension(caller)| caller);
        let caller = fit.access.check(caller, Right::Change, "try whether models fit")?;
        let request = parse::<LoadRequest>(body)?;
        let name = check_load(&request)?;
        caller.note("fit", &name);
        fit.report(name, request).await
    };
    answer(ask().await)
}

fn failed(message: String) -> AdminError {
    AdminError { code: AdminErrorCode::Failed, message }
}

impl Fit {
    async fn report(&self, name: String, request: LoadRequest) -> Result<FitReport, AdminError> {
        let hub = self.registry.hub();
        let LoadRequest { model, mut options, .. } = request;
        let mut notes = Vec::new();
        let offline = crate::config::HubConfig { offline: true, ..hub.clone() };
        let dummy = options.dummy_weights;
        let dir = match resolve::resolve(&offline, &model, dummy, &mut |_| ()).await {
            Ok(dir) => dir,
            // The configuration says enough.
            Err(_) => {
                let dir = resolve::resolve(&hub, &model, true, &mut |_| ()).await?;
                notes.push(
                    "its weights are not on disk: a load would download them, or say what is wrong with the folder"
                        .to_string(),
                );
                dir
            }
        };
        let others = self.registry.list();
        if let Some(taken) = others.iter().find(|other| other.name == name) {
            let state = format!("{:?}", taken.state).to_lowercase();
            notes.push(format!(
                "the name \"{name}\" is taken by a model that is {state}; what it holds counts as taken here"
            ));
        }
        if options.gpus.is_empty() {
            let mut taken: Vec<u32> =
                others.iter().flat_map(|other| other.gpus.iter().copied()).collect();
            taken.sort_unstable();
            taken.dedup();
            options.gpus_taken = taken;
        }
        let _turn = self.turn.lock().await;
        let FitAnswer { fit, problem } = ask(&self.registry.worker(), dir, options).await?;
        if fit.as_ref().is_some_and(|fit| fit.is_estimate) {
            notes.push(
                "weights and workspaces are an estimate: a load may end with some percent more or fewer tokens"
                    .to_string(),
            );
        }
        Ok(FitReport { name, fits: problem.is_none() && fit.is_some(), problem, fit, notes })
    }
}

/// Runs the child beside which workers are started too.
async fn ask(
    worker: &WorkerCommand,
    dir: PathBuf,
    options: LoadOptions,
) -> Result<FitAnswer, AdminError> {
    let WorkerCommand { program, env, .. } = worker;
    let question = serde_json::to_vec(&FitQuestion { dir, options })
        .map_err(|error| failed(format!("the question does not encode: {error}")))?;
    let work = async {
        let mut child = Command::new(program)
            .arg("fit")
            .envs(env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(&question).await?;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(PATIENCE, work).await.map_err(|_| {
        let seconds = PATIENCE.as_secs();
        failed(format!(
            "`minisgld fit` gave no answer in {seconds} s: NVIDIA's driver may hang; try nvidia-smi and dmesg"
        ))
    })?;
    let output =
        output.map_err(|error| failed(format!("`{} fit` failed: {error}", program.display())))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let said: String = said.trim().chars().take(WORDS_MAX).collect();
    if !output.status.success() {
        return Err(failed(format!("`minisgld fit` failed ({}): {said}", output.status)));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| failed(format!("`minisgld fit` gave no answer ({error}): {said}")))
}
