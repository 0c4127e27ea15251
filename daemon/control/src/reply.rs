//! Answers of the admin API: JSON, and the status of a refusal.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use minisgl_proto::admin::{AdminError, AdminErrorCode};
use serde::Serialize;

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
