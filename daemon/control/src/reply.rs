//! Bodies of the admin API in both directions: JSON, within limits of bytes and of time, and the status of a refusal.
//!
//! Owns: how much a caller may send, and for how long. Must never: know a call.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use minisgl_proto::admin::{AdminError, AdminErrorCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of a body at most.
pub(crate) const BODY_BYTES_MAX: usize = 1 << 20;

/// Time a caller has to send one.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// A body as it came, or why it did not.
pub(crate) struct Sent(Result<Bytes, AdminError>);

impl<S: Send + Sync> FromRequest<S> for Sent {
    type Rejection = std::convert::Infallible;

    async fn from_request(request: Request, state: &S) -> Result<Sent, Self::Rejection> {
        let received = tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, state));
        Ok(Sent(match received.await {
            Ok(body) => body.map_err(|error| {
                let limit = format!("the limit is {BODY_BYTES_MAX} bytes");
                invalid(format!("the body was not read ({error}); {limit}"))
            }),
            Err(_) => Err(invalid(format!("the body did not arrive within {BODY_TIMEOUT:?}"))),
        }))
    }
}

fn invalid(message: String) -> AdminError {
    AdminError { code: AdminErrorCode::Invalid, message }
}

/// What a body says.
///
/// # Errors
/// `Invalid`: it is too long, took too long, or says something else.
pub(crate) fn parse<T: DeserializeOwned>(Sent(body): Sent) -> Result<T, AdminError> {
    serde_json::from_slice(&body?).map_err(|error| invalid(format!("the body is wrong: {error}")))
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

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let never = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
        let request = Request::new(Body::from_stream(never));
        let sent = tokio::time::timeout(BODY_TIMEOUT * 2, Sent::from_request(request, &())).await;
        let Ok(sent) = sent.expect("it is waited for");
        let error = parse::<bool>(sent).unwrap_err();
        assert_eq!(error.code, AdminErrorCode::Invalid);
        assert!(error.message.contains("did not arrive within 60s"), "{error}");
    }
}
