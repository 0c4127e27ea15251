//! Bodies of the admin API in both directions: JSON, within a limit, and the status of a refusal.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use minisgl_proto::admin::{AdminError, AdminErrorCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of a body at most.
pub(crate) const BODY_BYTES_MAX: usize = 1 << 20;

/// What a body says.
///
/// # Errors
/// `Invalid`: it is too long, or says something else.
pub(crate) fn parse<T: DeserializeOwned>(
    body: Result<Bytes, BytesRejection>,
) -> Result<T, AdminError> {
    let invalid = |message| AdminError { code: AdminErrorCode::Invalid, message };
    let body = body.map_err(|error| {
        invalid(format!("the body was not read ({error}); the limit is {BODY_BYTES_MAX} bytes"))
    })?;
    serde_json::from_slice(&body).map_err(|error| invalid(format!("the body is wrong: {error}")))
}

/// A value, or why there is none.
pub(crate) fn answer<T: Serialize>(result: Result<T, AdminError>) -> Response {
    match result {
        Ok(value) => json(&value),
        Err(error) => refuse(error),
    }
}

/// A value.
pub(crate) fn json<T: Serialize>(value: &T) -> Response {
    axum::Json(value).into_response()
}

/// A refusal.
pub(crate) fn refuse(error: AdminError) -> Response {
    let status = match error.code {
        AdminErrorCode::Invalid => StatusCode::BAD_REQUEST,
        AdminErrorCode::NotFound => StatusCode::NOT_FOUND,
        AdminErrorCode::Conflict => StatusCode::CONFLICT,
        AdminErrorCode::Forbidden => StatusCode::FORBIDDEN,
        AdminErrorCode::Failed => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, axum::Json(error)).into_response()
}
