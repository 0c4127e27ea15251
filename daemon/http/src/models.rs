//! `/v1/models`, `/health` and `/metrics`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::backend::{ModelEntry, Unavailable};
use crate::error::ApiError;
use crate::front::Front;

fn to_json(entry: &ModelEntry) -> Value {
    json!({
        "id": entry.name,
        "object": "model",
        "created": entry.created_s,
        "owned_by": "minisgl",
        "root": entry.name,
        "max_model_len": entry.max_len,
    })
}

/// `GET /v1/models`: the models that take requests now.
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

/// `GET /metrics`.
pub async fn metrics(State(front): State<Arc<Front>>) -> Result<Response, ApiError> {
    front.prune();
    let text = front.metrics.render().map_err(|why| ApiError::internal(why.to_string()))?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response())
}
