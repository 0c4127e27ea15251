//! What is asked of a response that there is already.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, body::Body};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::front::Front;
use crate::record::KeyName;

type Key = Option<Extension<KeyName>>;

/// Name of the key that a request came with.
fn name(key: &Key) -> Option<&str> {
    key.as_ref().map(|Extension(KeyName(name))| &**name)
}

/// `GET /v1/responses`: some clients try a WebSocket first. 426 alone makes them go on at once.
pub async fn upgrade() -> Response {
    let text = "responses come over HTTP: POST to /v1/responses; there are no WebSockets, and no list of responses";
    let error =
        ApiError::new(StatusCode::UPGRADE_REQUIRED, text).with_code("websocket_unsupported");
    let mut response = error.into_response();
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("HTTP/1.1"));
    response
}

/// `GET /v1/responses/{id}`.
///
/// # Errors
/// 404: it is not there.
pub async fn one(
    State(front): State<Arc<Front>>,
    Path(id): Path<String>,
    key: Key,
) -> Result<Response, ApiError> {
    if let Some(begun) = front.responses.running(&id, name(&key)) {
        return Ok(raw(begun));
    }
    let answer = front.responses.find(&id, name(&key))?;
    Ok(raw(answer.response.clone()))
}

/// `DELETE /v1/responses/{id}`.
///
/// # Errors
/// As for `one`.
pub async fn delete(
    State(front): State<Arc<Front>>,
    Path(id): Path<String>,
    key: Key,
) -> Result<Json<Value>, ApiError> {
    front.responses.forget(&id, name(&key))?;
    Ok(Json(json!({"id": id, "object": "response", "deleted": true})))
}

/// `POST /v1/responses/{id}/cancel`: ends one that is being generated. The stream that tells it ends as well.
///
/// # Errors
/// 400: it is over; 404: it is not there.
pub async fn cancel(
    State(front): State<Arc<Front>>,
    Path(id): Path<String>,
    key: Key,
) -> Result<Response, ApiError> {
    front.responses.cancel(&id, name(&key)).map(raw)
}

/// `GET /v1/responses/{id}/input_items`: all that the model was given, the conversation before included.
///
/// # Errors
/// As for `one`.
pub async fn input_items(
    State(front): State<Arc<Front>>,
    Path(id): Path<String>,
    key: Key,
) -> Result<Json<Value>, ApiError> {
    let answer = front.responses.find(&id, name(&key))?;
    let items: Vec<Value> = serde_json::from_str(&answer.input)
        .map_err(|why| ApiError::internal(format!("the items cannot be read again: {why}")))?;
    let items = items.into_iter().enumerate().map(|(at, item)| listed(item, &id, at));
    let items: Vec<Value> = items.collect();
    let end = |item: Option<&Value>| item.map(|item| item["id"].clone());
    let (first, last) = (end(items.first()), end(items.last()));
    Ok(Json(json!({
        "object": "list", "data": items, "first_id": first, "last_id": last, "has_more": false,
    })))
}

/// An item with what clients leave out.
fn listed(mut item: Value, response: &str, at: usize) -> Value {
    let Some(fields) = item.as_object_mut() else { return item };
    fields.entry("type").or_insert("message".into());
    if fields["type"] == "message"
        && let Some(Value::String(text)) = fields.get("content")
    {
        let is_said = fields.get("role").is_some_and(|role| role == "assistant");
        let kind = if is_said { "output_text" } else { "input_text" };
        let parts = json!([{"type": kind, "text": text}]);
        fields.insert("content".into(), parts);
    }
    let id = || format!("item_{}_{at}", response.trim_start_matches("resp_")).into();
    fields.entry("id").or_insert_with(id);
    item
}

fn raw(json: impl Into<Body>) -> Response {
    let kind = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, kind)], json.into()).into_response()
}
