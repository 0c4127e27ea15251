//! Around every request: its id, its record, and answers for what no handler took.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::error::{ApiError, Form};
use crate::front::Front;
use crate::record::Record;

static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Anthropic's name for the same.
static REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// Bytes of a client's request id, at most; a longer one is replaced.
const ID_BYTES_MAX: usize = 128;

/// Seconds after which a client that came during a stop may find the next daemon.
const STOPPING_RETRY_S: u32 = 5;

/// An endpoint as metrics know it: a path of ours, or `other`.
fn endpoint(path: &str) -> &'static str {
    const ENDPOINTS: [&str; 31] = [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/responses",
        "/v1/models",
        "/generate",
        "/tokenize",
        "/detokenize",
        "/health",
        "/ping",
        "/livez",
        "/readyz",
        "/server_info",
        "/model_info",
        "/metrics",
        "/health_generate",
        "/v1/embeddings",
        "/v1/rerank",
        "/v1/score",
        "/flush_cache",
        "/abort_request",
        "/v1/loads",
        "/tokenizer_info",
        "/api/chat",
        "/api/generate",
        "/api/tags",
        "/api/show",
        "/api/ps",
        "/api/version",
        "/api/embed",
    ];
    if path.starts_with("/v1/models/") {
        return "/v1/models";
    }
    if path.starts_with("/v1/responses/") {
        return "/v1/responses";
    }
    // Other names of the same.
    let path = match path {
        "/reset_prefix_cache" => "/flush_cache",
        "/loads" | "/get_load" => "/v1/loads",
        "/rerank" | "/v2/rerank" => "/v1/rerank",
        "/score" => "/v1/score",
        "/api/embeddings" => "/api/embed",
        "/get_server_info" => "/server_info",
        "/get_model_info" => "/model_info",
        path => path,
    };
    ENDPOINTS.into_iter().find(|known| *known == path).unwrap_or("other")
}

/// Gives a request its id and its record, and the answer the same id.
pub async fn account(
    State(front): State<Arc<Front>>,
    mut request: Request<Body>,
    next: Next,
) -> Response {
    let given = request.headers().get(&X_REQUEST_ID).and_then(|id| id.to_str().ok());
    let id = match given.filter(|id| is_id(id)) {
        Some(id) => id.to_string(),
        None => front.random.id(),
    };
    let header = HeaderValue::from_str(&id);
    let (endpoint, form) = (endpoint(request.uri().path()), Form::of(request.uri().path()));
    let record = Record::new(id, endpoint, Arc::clone(&front.metrics));
    request.extensions_mut().insert(Arc::clone(&record));
    // Metrics are wanted to the end.
    let mut response = if front.limits.is_closing() && endpoint != "/metrics" {
        let mut response = stopping().into_response();
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        response
    } else {
        next.run(request).await
    };
    // Whoever refused it, keys among them, knew nothing of who reads it.
    if form != Form::OpenAi
        && let Some(error) = response.extensions().get::<ApiError>().cloned()
    {
        let headers = std::mem::take(response.headers_mut());
        response = error.respond(form);
        for (name, value) in &headers {
            if !response.headers().contains_key(name) {
                response.headers_mut().insert(name, value.clone());
            }
        }
    }
    record.answered(response.status().as_u16(), response.extensions().get::<ApiError>());
    if let Ok(header) = header {
        if form == Form::Anthropic {
            response.headers_mut().insert(&REQUEST_ID, header.clone());
        }
        response.headers_mut().insert(&X_REQUEST_ID, header);
    }
    response
}

/// Whether a client's id for its request can be taken.
pub fn is_id(id: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(&byte);
    !id.is_empty() && id.len() <= ID_BYTES_MAX && id.bytes().all(allowed)
}

/// 503: the daemon has been told to stop.
fn stopping() -> ApiError {
    ApiError::unavailable("the daemon is stopping and takes no new requests; retry later")
        .with_code("stopping")
        .with_retry_after(STOPPING_RETRY_S)
}

/// 404.
pub async fn not_found(method: Method, uri: Uri) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, format!("there is no {method} {}", uri.path()))
        .with_code("unknown_url")
}

/// 405.
pub async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{method} is not allowed for {}", uri.path()),
    )
    .with_code("method_not_allowed")
}

/// 500, for a handler that panicked. The others go on.
pub fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    ApiError::internal("the server failed on this request; its log says more").into_response()
}
