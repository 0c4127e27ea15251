//! `/v1/models`, what routers and benchmarks ask of a server, probes, and `/metrics`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use minisgl_proto::VERSION;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::backend::{Model, ModelEntry, Unavailable};
use crate::error::ApiError;
use crate::front::Front;

fn to_json(entry: &ModelEntry) -> Value {
    json!({
        "id": entry.name,
        "object": "model",
        "created": entry.created_s,
        "owned_by": "minisgl",
        "root": entry.source,
        "max_model_len": entry.max_len,
    })
}

/// `GET /v1/models`: the models that take requests, also while a worker of theirs is replaced.
pub async fn list(State(front): State<Arc<Front>>) -> Json<Value> {
    front.prune();
    let models: Vec<Value> =
        front.backend.models().iter().filter(|entry| entry.ready).map(to_json).collect();
    Json(json!({"object": "list", "data": models}))
}

/// `GET /v1/models/{id}`.
pub async fn one(
    State(front): State<Arc<Front>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let entries = front.backend.models();
    if let Some(entry) = entries.iter().find(|entry| entry.name == name) {
        return Ok(Json(to_json(entry)));
    }
    // By another name, perhaps.
    let model = front.model(Some(&name))?;
    let entry = entries.iter().find(|entry| entry.name == model.name());
    entry.map(|entry| Json(to_json(entry))).ok_or_else(|| {
        let refusal = Unavailable::NotFound { name, hint: "see /v1/models".into() };
        ApiError::from_unavailable(&refusal, front.settings.retry_after_s)
    })
}

/// `GET /health`: 200, or 503 with the reason.
pub async fn health(State(front): State<Arc<Front>>) -> Response {
    front.prune();
    let (healthy, reason) = front.backend.health();
    if healthy {
        return (StatusCode::OK, Json(json!({"status": "ok", "reason": reason}))).into_response();
    }
    ApiError::unavailable(reason)
        .with_code("not_ready")
        .with_retry_after(front.settings.retry_after_s)
        .into_response()
}

/// `GET /livez`: the process answers. Whether a model does is another question: who restarts what is not alive would
/// restart a daemon that is loading.
pub async fn live() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// Which model.
#[derive(Deserialize)]
pub struct Which {
    pub(crate) model: Option<String>,
}

/// `GET /readyz`, with `?model=` of one model: 200, or why not.
pub async fn ready(state: State<Arc<Front>>, Query(which): Query<Which>) -> Response {
    let Some(name) = which.model else { return health(state).await };
    let front = &state.0;
    match front.backend.model(Some(&name)) {
        Ok(_) => Json(json!({"status": "ok", "model": name})).into_response(),
        Err(refusal) => {
            ApiError::from_unavailable(&refusal, front.settings.retry_after_s).into_response()
        }
    }
}

/// The model that is asked about: the named one, else the first that takes requests.
///
/// # Errors
/// There is none of this name, or it is not ready; 503: none is.
pub(crate) fn which(front: &Front, which: Which) -> Result<(ModelEntry, Arc<dyn Model>), ApiError> {
    let entries = front.backend.models();
    let first = || entries.iter().find(|entry| entry.ready).map(|entry| entry.name.clone());
    let name = which.model.or_else(first).ok_or_else(|| {
        ApiError::unavailable("no model is ready")
            .with_code("not_ready")
            .with_retry_after(front.settings.retry_after_s)
    })?;
    let model = front.model(Some(&name))?;
    let entry = entries.iter().find(|entry| entry.name == model.name());
    let entry = entry.ok_or_else(|| ApiError::internal("the model is not listed"))?;
    Ok((entry.clone(), model))
}

/// `GET /server_info`, as SGLang's routers read it: name and limits of a model.
pub async fn server_info(
    State(front): State<Arc<Front>>,
    Query(query): Query<Which>,
) -> Result<Json<Value>, ApiError> {
    let (entry, model) = which(&front, query)?;
    let info = model.info();
    Ok(Json(json!({
        "model_path": entry.source,
        "served_model_name": entry.name,
        "tp_size": info.tp,
        "dp_size": 1,
        "context_length": info.max_len,
        "max_running_requests": info.max_running,
        "max_total_num_tokens": info.kv_tokens,
        "version": VERSION,
    })))
}

/// `GET /model_info`, as SGLang's benchmark reads it: where the tokenizer is from.
pub async fn model_info(
    State(front): State<Arc<Front>>,
    Query(query): Query<Which>,
) -> Result<Json<Value>, ApiError> {
    let (entry, model) = which(&front, query)?;
    Ok(Json(json!({
        "model_path": entry.source,
        "tokenizer_path": entry.source,
        "served_model_name": entry.name,
        "is_generation": true,
        "architectures": [model.info().architecture],
        "max_model_len": model.info().max_len,
    })))
}

/// `GET /metrics`.
pub async fn metrics(State(front): State<Arc<Front>>) -> Result<Response, ApiError> {
    front.prune();
    let text = front.metrics.render().map_err(|why| ApiError::internal(why.to_string()))?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response())
}
