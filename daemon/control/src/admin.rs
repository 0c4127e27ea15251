//! The admin API: HTTP with JSON bodies. The calls are listed in [`minisgl_proto::admin`].
//!
//! Who may open the socket may read; who changes the state of a model must be root or the user that
//! the daemon runs as.
//!
//! Owns: translation between HTTP and [`Registry`]. Must never: hold state of its own.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::StreamExt;
use minisgl_proto::VERSION;
use minisgl_proto::admin::{
    AdminError, AdminErrorCode, FlushReply, FlushRequest, LoadRequest, UnloadRequest, VersionInfo,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_stream::wrappers::ReceiverStream;

use crate::doctor::Doctor;
use crate::registry::Registry;
use crate::socket::Peer;

/// Bytes of a body at most.
const BODY_BYTES_MAX: usize = 1 << 20;

/// What the daemon says of itself.
#[derive(Clone, Debug)]
pub struct DaemonInfo {
    /// When it started.
    pub started: Instant,
    /// Address that serves the OpenAI API.
    pub listen: String,
    /// Looks at the machine.
    pub doctor: Arc<Doctor>,
}

#[derive(Clone)]
struct Admin {
    registry: Registry,
    info: DaemonInfo,
}

/// The routes under `/admin/v1`. Serve them with [`crate::socket::serve_unix`] alone: that is where
/// the caller's identity comes from, and without it nothing may be changed.
pub fn router(registry: Registry, info: DaemonInfo) -> Router {
    let changes = Router::new()
        .route("/admin/v1/load", post(load))
        .route("/admin/v1/unload", post(unload))
        .route("/admin/v1/flush", post(flush))
        .layer(middleware::from_fn(may_change));
    Router::new()
        .route("/admin/v1/version", get(version))
        .route("/admin/v1/models", get(models))
        .route("/admin/v1/models/{name}", get(model))
        .route("/admin/v1/health", get(health))
        .route("/admin/v1/doctor", get(doctor))
        .merge(changes)
        .route("/admin/{*rest}", axum::routing::any(no_such_call))
        .method_not_allowed_fallback(no_such_call)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(Admin { registry, info })
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
    json(&admin.registry.list_with_memory().await)
}

async fn model(State(admin): State<Admin>, Path(name): Path<String>) -> Response {
    answer(admin.registry.status_with_memory(&name).await)
}

async fn health(State(admin): State<Admin>) -> Response {
    json(&admin.registry.health())
}

async fn doctor(State(admin): State<Admin>) -> Response {
    answer(admin.info.doctor.ask().await)
}

/// Streams the load's events. The load is the registry's: it goes on if the caller leaves.
async fn load(State(admin): State<Admin>, body: Result<Bytes, BytesRejection>) -> Response {
    let events = match parse::<LoadRequest>(body) {
        Ok(request) => admin.registry.load(request).await,
        Err(error) => Err(error),
    };
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

async fn unload(State(admin): State<Admin>, body: Result<Bytes, BytesRejection>) -> Response {
    match parse::<UnloadRequest>(body) {
        Ok(request) => {
            // A caller that leaves does not take the unload back.
            let registry = admin.registry.clone();
            let work = async move { registry.unload(&request.name, request.force).await };
            let done = tokio::spawn(work).await;
            answer(done.unwrap_or_else(|error| {
                Err(AdminError { code: AdminErrorCode::Failed, message: error.to_string() })
            }))
        }
        Err(error) => refuse(error),
    }
}

async fn flush(State(admin): State<Admin>, body: Result<Bytes, BytesRejection>) -> Response {
    match parse::<FlushRequest>(body) {
        Ok(request) => {
            let flushed = admin.registry.flush(&request.name).await;
            answer(flushed.map(|pages_freed| FlushReply { pages_freed }))
        }
        Err(error) => refuse(error),
    }
}

async fn no_such_call(request: Request) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    let message = format!("there is no call {method} {path}; is minisglctl of another version?");
    refuse(AdminError { code: AdminErrorCode::Invalid, message })
}

/// Lets root and the daemon's own user through.
async fn may_change(request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<Peer>>().map(|info| info.0);
    if peer.is_some_and(|peer| peer.is_operator()) {
        return next.run(request).await;
    }
    let own = nix::unistd::geteuid().as_raw();
    let peer = peer.and_then(|peer| peer.uid);
    let who = peer.map_or("somebody unknown".to_string(), |uid| format!("user {uid}"));
    let message = format!("{who} may not change models: only root and user {own} may; try sudo");
    refuse(AdminError { code: AdminErrorCode::Forbidden, message })
}

fn parse<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, AdminError> {
    let invalid = |message| AdminError { code: AdminErrorCode::Invalid, message };
    let body = body.map_err(|error| {
        invalid(format!("the body was not read ({error}); the limit is {BODY_BYTES_MAX} bytes"))
    })?;
    serde_json::from_slice(&body).map_err(|error| invalid(format!("the body is wrong: {error}")))
}

fn answer<T: Serialize>(result: Result<T, AdminError>) -> Response {
    match result {
        Ok(value) => json(&value),
        Err(error) => refuse(error),
    }
}

fn json<T: Serialize>(value: &T) -> Response {
    axum::Json(value).into_response()
}

fn refuse(error: AdminError) -> Response {
    let status = match error.code {
        AdminErrorCode::Invalid => StatusCode::BAD_REQUEST,
        AdminErrorCode::NotFound => StatusCode::NOT_FOUND,
        AdminErrorCode::Conflict => StatusCode::CONFLICT,
        AdminErrorCode::Forbidden => StatusCode::FORBIDDEN,
        AdminErrorCode::Failed => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, axum::Json(error)).into_response()
}
