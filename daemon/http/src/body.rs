//! Request bodies: received within limits, then read as JSON with errors that say where.
//!
//! A body is parsed more than once, each time into the fields that one concern needs (sampling,
//! messages, refusals): unknown fields are skipped at the speed of a scan, and no type has to know
//! of another's fields.

use std::borrow::Cow;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use serde::de::{DeserializeOwned, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use crate::error::ApiError;
use crate::settings::Settings;

/// Counts the bytes of all bodies on their way in.
#[derive(Debug, Default)]
pub struct BodyBudget(AtomicUsize);

/// A body's share of the budget, given back when dropped.
struct Share<'a> {
    budget: &'a BodyBudget,
    bytes: usize,
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.budget.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Receives a whole body.
///
/// # Errors
/// 413 (at once when the length is declared), 408, 503 over the budget, 400 when it breaks off.
pub async fn receive(
    headers: &HeaderMap,
    body: Body,
    settings: &Settings,
    budget: &BodyBudget,
) -> Result<Bytes, ApiError> {
    let limit = settings.body_bytes_max;
    let declared = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok())
        .unwrap_or_else(|| body.size_hint().lower());
    if declared > limit as u64 {
        return Err(too_large(limit));
    }
    let receiving = collect(body, settings, budget);
    match tokio::time::timeout(settings.body_timeout, receiving).await {
        Ok(result) => result,
        Err(_) => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("the request body did not arrive within {:?}", settings.body_timeout),
        )),
    }
}

async fn collect(
    mut body: Body,
    settings: &Settings,
    budget: &BodyBudget,
) -> Result<Bytes, ApiError> {
    let (limit, total) = (settings.body_bytes_max, settings.bodies_bytes_max);
    let mut share = Share { budget, bytes: 0 };
    let mut received = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|why| ApiError::invalid(format!("the request body broke off: {why}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if received.len() + data.len() > limit {
            return Err(too_large(limit));
        }
        share.bytes += data.len();
        if budget.0.fetch_add(data.len(), Ordering::Relaxed) + data.len() > total {
            return Err(ApiError::unavailable(
                "too many large requests are arriving at once; retry later",
            )
            .with_retry_after(settings.retry_after_s));
        }
        received.extend_from_slice(&data);
    }
    Ok(received.into())
}

fn too_large(limit: usize) -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the request body is larger than the limit of {limit} bytes"),
    )
    .with_code("request_too_large")
}

/// Reads a JSON object into `T`.
///
/// # Errors
/// 400: not UTF-8 (says at which byte), not JSON (line and column), or a field of the wrong type
/// (`param` names it).
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let text = std::str::from_utf8(body).map_err(|why| {
        ApiError::invalid(format!(
            "the request body is not valid UTF-8: byte {} does not belong there",
            why.valid_up_to()
        ))
        .with_code("invalid_json")
    })?;
    let mut json = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|failed| {
        let path = failed.path().to_string();
        explain(failed.inner(), (path != ".").then_some(path))
    })?;
    json.end().map_err(|why| explain(&why, None))?;
    Ok(value)
}

fn explain(why: &serde_json::Error, path: Option<String>) -> ApiError {
    if !why.is_data() {
        return ApiError::invalid(format!("the request body is not valid JSON: {why}"))
            .with_code("invalid_json");
    }
    match path {
        Some(path) => {
            let message = format!("{path}: {why}");
            let mut error = ApiError::field(path, message);
            error.code = Some("invalid_type");
            error
        }
        None => ApiError::invalid(format!("the request body is not as expected: {why}"))
            .with_code("invalid_type"),
    }
}

/// A field that a client may send but that is not built: refused unless its value asks for nothing.
pub struct Refusal {
    /// Name of the field.
    pub field: &'static str,
    /// Values, besides null, false and empty ones, that ask for nothing.
    pub harmless: fn(&Value) -> bool,
    /// Remedy, for the error message.
    pub instead: &'static str,
}

/// No value but null, false and empty ones is harmless.
pub fn never(_: &Value) -> bool {
    false
}

/// Refuses a body that uses one of these fields.
///
/// # Errors
/// 400 naming the field.
pub fn refuse(body: &[u8], refusals: &[Refusal]) -> Result<(), ApiError> {
    struct Probe<'a>(&'a [Refusal]);
    impl<'de> Visitor<'de> for Probe<'_> {
        type Value = Option<usize>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<usize>, A::Error> {
            let mut found = None;
            while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                match self.0.iter().position(|refusal| refusal.field == key) {
                    Some(at) => {
                        let value: Value = map.next_value()?;
                        if !is_nothing(&value) && !(self.0[at].harmless)(&value) {
                            found = found.or(Some(at));
                        }
                    }
                    None => {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
            }
            Ok(found)
        }
    }
    let found = serde_json::Deserializer::from_slice(body)
        .deserialize_map(Probe(refusals))
        .map_err(|why| explain(&why, None))?;
    match found {
        None => Ok(()),
        Some(at) => {
            let Refusal { field, instead, .. } = refusals[at];
            Err(ApiError::unsupported(field, format!("{field} is not supported; {instead}")))
        }
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}
