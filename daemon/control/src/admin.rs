//! The admin API: HTTP with JSON bodies. The calls are listed in [`minisgl_proto::admin`].
//!
//! Who may do what is [`crate::access`]'s to say; every change is in the log with who asked for it.
//!
//! Owns: translation between HTTP and [`Registry`]. Must never: hold state of its own.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use futures_util::StreamExt;
use minisgl_proto::VERSION;
use minisgl_proto::admin::{
    AdminError, AdminErrorCode, CancelReply, CancelRequest, FlushReply, FlushRequest, LoadRequest,
    LogLines, RestartRequest, UnloadRequest, VersionInfo,
};
use tokio_stream::wrappers::ReceiverStream;

use crate::access::{Access, Caller, Peer, Right};
use crate::disk;
use crate::doctor::Doctor;
use crate::event::Watch;
use crate::fit;
use crate::registry::Registry;
use crate::reply::{BODY_BYTES_MAX, Sent, answer, json, parse, refuse};

/// What the daemon says of itself.
#[derive(Clone, Debug)]
pub struct DaemonInfo {
    /// When it started.
    pub started: Instant,
    /// Address that serves the OpenAI API.
    pub listen: String,
    /// Looks at the machine.
    pub doctor: Arc<Doctor>,
    /// Who may do what.
    pub access: Access,
}

#[derive(Clone)]
struct Admin {
    registry: Registry,
    info: DaemonInfo,
}

/// The routes under `/admin/v1`. Serve them with [`crate::socket::serve_unix`] alone: that is where
/// the caller's identity comes from, and without it nothing may be changed.
pub fn router(registry: Registry, info: DaemonInfo) -> Router {
    let disk = disk::router(registry.clone(), info.access.clone());
    let fit = fit::router(registry.clone(), info.access.clone());
    Router::new()
        .route("/admin/v1/version", get(version))
        .route("/admin/v1/models", get(models))
        .route("/admin/v1/models/{name}", get(model))
        .route("/admin/v1/models/{name}/logs", get(logs))
        .route("/admin/v1/requests", get(requests))
        .route("/admin/v1/cancel", post(cancel))
        .route("/admin/v1/restart", post(restart))
        .route("/admin/v1/health", get(health))
        .route("/admin/v1/doctor", get(doctor))
        .route("/admin/v1/load", post(load))
        .route("/admin/v1/unload", post(unload))
        .route("/admin/v1/flush", post(flush))
        .with_state(Admin { registry, info })
        .merge(disk)
        .merge(fit)
        .route("/admin/{*rest}", axum::routing::any(no_such_call))
        .method_not_allowed_fallback(no_such_call)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

async fn version(State(admin): State<Admin>) -> Response {
    json(&VersionInfo {
        version: VERSION.to_string(),
        pid: std::process::id(),
        uptime_s: admin.info.started.elapsed().as_secs_f64(),
        listen: admin.info.listen.clone(),
    })
}

async fn models(State(admin): State<Admin>) -> Response {
    json(&admin.registry.list_with_gpu_memory().await)
}

async fn model(State(admin): State<Admin>, Path(name): Path<String>) -> Response {
    answer(admin.registry.status_with_gpu_memory(&name).await)
}

#[derive(serde::Deserialize)]
struct LogQuery {
    #[serde(default = "LogQuery::default_lines")]
    lines: usize,
}

impl LogQuery {
    fn default_lines() -> usize {
        100
    }
}

async fn logs(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Response {
    let logs = || {
        let Query(query) = query.map_err(|error| AdminError {
            code: AdminErrorCode::Invalid,
            message: format!("the query is wrong ({error}); it is ?lines=N"),
        })?;
        let lines = admin.registry.logs(&name, query.lines)?;
        Ok(LogLines { lines })
    };
    answer(logs())
}

async fn requests(State(admin): State<Admin>) -> Response {
    json(&admin.registry.requests())
}

async fn cancel(
    State(admin): State<Admin>,
    caller: Option<Extension<Caller>>,
    body: Sent,
) -> Response {
    let cancel = || {
        let caller = admin.may_change(&caller, "cancel requests")?;
        let Peer { uid, pid, .. } = caller.peer;
        let CancelRequest { id } = parse(body)?;
        let cancelled = admin.registry.cancel(&id);
        let user = caller.name();
        tracing::info!(user, uid, pid, action = "cancel", request = id, cancelled, "admin");
        if cancelled == 0 {
            return Err(AdminError {
                code: AdminErrorCode::NotFound,
                message: format!("no request {id:.100?} is there; see minisglctl requests"),
            });
        }
        Ok(CancelReply { cancelled: u32::try_from(cancelled).unwrap_or(u32::MAX) })
    };
    answer(cancel())
}

async fn health(State(admin): State<Admin>) -> Response {
    json(&admin.registry.health())
}

/// Opens every GPU, which takes memory of theirs: more than a look.
async fn doctor(State(admin): State<Admin>, caller: Option<Extension<Caller>>) -> Response {
    let ask = async || {
        admin.may_change(&caller, "run the doctor")?;
        admin.info.doctor.ask().await
    };
    answer(ask().await)
}

/// Streams the load's events. The load is the registry's: it goes on if the caller leaves.
async fn load(
    State(admin): State<Admin>,
    caller: Option<Extension<Caller>>,
    body: Sent,
) -> Response {
    let load = async || {
        let caller = admin.may_change(&caller, "load models")?;
        let request = parse::<LoadRequest>(body)?;
        caller.note("load", request.name.as_ref().unwrap_or(&request.model));
        admin.registry.load(request).await
    };
    stream(load().await)
}

async fn restart(
    State(admin): State<Admin>,
    caller: Option<Extension<Caller>>,
    body: Sent,
) -> Response {
    let restart = async || {
        let caller = admin.may_change(&caller, "restart models")?;
        let request = parse::<RestartRequest>(body)?;
        caller.note("restart", &request.name);
        admin.registry.restart(request).await
    };
    stream(restart().await)
}

/// Each event a line.
fn stream(events: Result<Watch, AdminError>) -> Response {
    let events = match events {
        Ok(events) => events,
        Err(error) => return refuse(error),
    };
    let lines = ReceiverStream::new(events).map(|event| {
        let mut line = serde_json::to_vec(&event)?;
        line.push(b'\n');
        Ok::<_, serde_json::Error>(line)
    });
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson")];
    (headers, Body::from_stream(lines)).into_response()
}

async fn unload(
    State(admin): State<Admin>,
    caller: Option<Extension<Caller>>,
    body: Sent,
) -> Response {
    let unload = async || {
        let caller = admin.may_change(&caller, "unload models")?;
        let request = parse::<UnloadRequest>(body)?;
        caller.note(if request.force { "unload by force" } else { "unload" }, &request.name);
        // A caller that leaves does not take the unload back.
        let registry = admin.registry.clone();
        let work = async move { registry.unload(&request.name, request.force).await };
        tokio::spawn(work).await.unwrap_or_else(|error| {
            Err(AdminError { code: AdminErrorCode::Failed, message: error.to_string() })
        })
    };
    answer(unload().await)
}

async fn flush(
    State(admin): State<Admin>,
    caller: Option<Extension<Caller>>,
    body: Sent,
) -> Response {
    let flush = async || {
        let caller = admin.may_change(&caller, "flush caches")?;
        let request = parse::<FlushRequest>(body)?;
        caller.note("flush", &request.name);
        let pages_freed = admin.registry.flush(&request.name).await?;
        Ok(FlushReply { pages_freed })
    };
    answer(flush().await)
}

async fn no_such_call(request: Request) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    let message = format!("there is no call {method} {path}; is minisglctl of another version?");
    refuse(AdminError { code: AdminErrorCode::Invalid, message })
}

impl Admin {
    /// Who asks, if they may do that.
    fn may_change<'a>(
        &self,
        caller: &'a Option<Extension<Caller>>,
        action: &str,
    ) -> Result<&'a Caller, AdminError> {
        let caller = caller.as_ref().map(|Extension(caller)| caller);
        self.info.access.check(caller, Right::Change, action)
    }
}
