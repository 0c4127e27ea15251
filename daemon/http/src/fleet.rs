//! What routers, benchmarks and evaluations of SGLang's and vLLM's make ask of a server beside generations: its load,
//! an empty cache, the end of a request, its tokenizer.
//!
//! Owns: the forms of these answers. Must never: let a client at what is another's, unless the operator allows it.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderValue, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use minisgl_proto::VERSION;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::backend::Model;
use crate::error::ApiError;
use crate::front::{Front, unix_s};
use crate::keys::Owner;
use crate::models::{Which, which};
use crate::timestamp::rfc3339;

/// Bytes of the body of `/abort_request`; a longer one names no request.
const ABORT_BYTES_MAX: usize = 64 << 10;

/// `GET /health_generate`: 200 if the model that is asked where none is named takes requests, else why not. No token is
/// generated: a worker that makes no progress is noticed by the daemon itself.
///
/// # Errors
/// 503: none is ready.
pub async fn health_generate(
    State(front): State<Arc<Front>>,
    Query(query): Query<Which>,
) -> Result<Json<Value>, ApiError> {
    which(&front, query)?;
    Ok(Json(json!({"status": "ok"})))
}

/// `POST /flush_cache`: empties the prefix cache of the only model, or of that which `model` names. Requests that run keep
/// what they use, so nothing is waited for: `timeout` is read over.
///
/// # Errors
/// 403: the operator does not let clients. 409: the model cannot do it now.
pub async fn flush(
    State(front): State<Arc<Front>>,
    Query(query): Query<Which>,
) -> Result<Json<Value>, ApiError> {
    if !front.settings.client_flush {
        let message = "clients may not empty caches here: [http] client_flush = true in the configuration lets them; \
                       the operator can, with: minisglctl flush MODEL";
        return Err(ApiError::new(StatusCode::FORBIDDEN, message).with_code("not_allowed"));
    }
    let model = front.model(query.model.as_deref())?;
    let pages = front
        .backend
        .flush(model.name())
        .await
        .map_err(|why| ApiError::new(StatusCode::CONFLICT, why).with_code("not_flushed"))?;
    let name = model.name();
    tracing::info!(model = name, pages, "a client emptied the prefix cache");
    Ok(Json(
        json!({"success": true, "message": "Cache flushed.", "model": name, "pages_freed": pages}),
    ))
}

/// `GET /flush_cache`: 405. Whatever page a browser shows can make it send a GET, as for an image.
pub async fn flush_by_get() -> Response {
    let message = "GET changes nothing here: POST to /flush_cache empties the prefix cache";
    let error =
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message).with_code("method_not_allowed");
    let mut response = error.into_response();
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
    response
}

/// The body of `/abort_request`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Abort {
    rid: Option<String>,
    abort_all: Option<bool>,
}

/// `POST /abort_request`: ends the requests with this `rid` (their `x-request-id`, or `rid` of `/generate`) that came with
/// the same API key, or with `abort_all` all of its own. As in SGLang, one that is not there is no error.
///
/// # Errors
/// 400: nothing is named. 403: the key has no name, or there are no keys and `abort_all` is asked for: such requests cannot
/// be told from others'.
pub async fn abort(
    State(front): State<Arc<Front>>,
    request: Request<Body>,
) -> Result<Json<Value>, ApiError> {
    let key = match Owner::of(request.extensions()) {
        Owner::Name(name) => Some(name),
        Owner::Anybody => None,
        Owner::Key(_) => {
            let message = "keys need a name for /abort_request (NAME:KEY in the list of keys): requests of keys without one \
                           cannot be told apart; the operator can end any request: minisglctl cancel ID";
            return Err(ApiError::new(StatusCode::FORBIDDEN, message).with_code("not_allowed"));
        }
    };
    let body = front.small_body(request, ABORT_BYTES_MAX).await?;
    let Abort { rid, abort_all } = serde_json::from_slice(&body).map_err(|why| {
        ApiError::invalid(format!("the request body is not {{\"rid\": \"..\"}}: {why}"))
            .with_code("invalid_json")
    })?;
    let rid = match (abort_all, rid) {
        (Some(true), _) if key.is_none() => {
            let message = "abort_all ends the requests of one API key, which needs a name (NAME:KEY in the list of keys); \
                           the operator can end any request: minisglctl cancel ID";
            return Err(ApiError::new(StatusCode::FORBIDDEN, message).with_code("not_allowed"));
        }
        (Some(true), _) => None,
        (_, Some(rid)) if !rid.is_empty() => Some(rid),
        _ => return Err(ApiError::field("rid", "rid is missing: the id of the request to end")),
    };
    let aborted = front.backend.abort(key.as_deref(), rid.as_deref());
    tracing::info!(request = rid, key = key.as_deref(), aborted, "a client ended requests");
    Ok(Json(json!({"success": true, "aborted": aborted})))
}

/// What a model does now, under SGLang's names. Tokens that only the cache holds count as free.
fn load(model: &dyn Model, rank: usize) -> Value {
    let (info, stats) = (model.info(), model.stats().unwrap_or_default());
    let page = u64::from(info.page_size);
    let used = stats.pages_total.saturating_sub(stats.pages_free + stats.pages_evictable);
    let total = if stats.pages_total == 0 { 1 } else { stats.pages_total };
    let usage = used as f64 / total as f64;
    let found = stats.cached_tokens as f64 / stats.prompt_tokens.max(1) as f64;
    json!({
        "model": model.name(),
        "dp_rank": rank,
        "num_running_reqs": stats.running,
        "num_waiting_reqs": stats.waiting,
        "num_total_reqs": stats.running + stats.waiting,
        "num_reqs": stats.running + stats.waiting,
        "num_tokens": used * page,
        "num_used_tokens": used * page,
        "num_total_tokens": used * page,
        "max_total_num_tokens": info.kv_tokens,
        "token_usage": usage,
        "utilization": f64::from(stats.running) / f64::from(info.max_running.max(1)),
        "cache_hit_rate": found,
        "max_running_requests": info.max_running,
    })
}

/// Of the model that is named, else of all that take requests.
fn loads_of(front: &Front, query: Which) -> Result<Vec<Value>, ApiError> {
    if query.model.is_some() {
        let (_, model) = which(front, query)?;
        return Ok(vec![load(&*model, 0)]);
    }
    let entries = front.backend.models();
    let ready = entries.iter().filter(|entry| entry.ready);
    let models = ready.filter_map(|entry| front.backend.model(Some(&entry.name)).ok());
    Ok(models.enumerate().map(|(rank, model)| load(&*model, rank)).collect())
}

/// `GET /v1/loads`, as SGLang's newer routers read it.
///
/// # Errors
/// The model that is named is not there.
pub async fn loads(
    State(front): State<Arc<Front>>,
    Query(query): Query<Which>,
) -> Result<Json<Value>, ApiError> {
    let loads = loads_of(&front, query)?;
    Ok(Json(json!({"timestamp": rfc3339(unix_s(), 0), "version": VERSION, "loads": loads})))
}

/// `GET /get_load`, as its older ones do: the list alone.
///
/// # Errors
/// As for [`loads`].
pub async fn load_list(
    State(front): State<Arc<Front>>,
    Query(query): Query<Which>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(loads_of(&front, query)?.into()))
}

/// `GET /tokenizer_info`, as lm-eval reads it: special tokens and the chat template's source, where they are known.
///
/// # Errors
/// The model is not there.
pub async fn tokenizer_info(
    State(front): State<Arc<Front>>,
    Query(query): Query<Which>,
) -> Result<Json<Value>, ApiError> {
    let (entry, model) = which(&front, query)?;
    let text = model.text().info();
    let mut fields = Map::new();
    fields.insert("model".into(), entry.name.into());
    fields.insert("model_max_length".into(), model.info().max_len.into());
    for name in ["bos_token", "eos_token", "pad_token", "unk_token"] {
        fields.insert(name.into(), Value::Null);
    }
    for (name, token) in &text.named {
        fields.insert(name.clone(), token.as_str().into());
    }
    fields.insert("chat_template".into(), text.template_source.clone().into());
    Ok(Json(fields.into()))
}
