//! `/v1/embeddings`, `/v1/rerank` and `/v1/score`: 501, in words that say what is missing.
//!
//! Owns: that refusal. Must never: answer 404, which clients take for a wrong address.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};

use crate::backend::Unavailable;
use crate::error::ApiError;
use crate::front::Front;

/// Characters of a model's name in the refusal.
const NAME_CHARS_MAX: usize = 200;

/// Handles `/v1/embeddings`, and Ollama's `/api/embed`.
///
/// # Errors
/// Always.
pub async fn embeddings(
    State(front): State<Arc<Front>>,
    request: Request<Body>,
) -> Result<(), ApiError> {
    Err(refuse(&front, request).await?)
}

/// Handles `/v1/rerank` and `/v1/score`.
///
/// # Errors
/// Always.
pub async fn reranking(
    State(front): State<Arc<Front>>,
    request: Request<Body>,
) -> Result<(), ApiError> {
    Err(refuse(&front, request).await?)
}

async fn refuse(front: &Front, request: Request<Body>) -> Result<ApiError, ApiError> {
    let name = front.model_of(front.receive(request).await?).await?;
    let whose = match &name {
        Some(name) => {
            let name: String = name.chars().take(NAME_CHARS_MAX).collect();
            match front.backend.model(Some(&name)) {
                Err(Unavailable::NotFound { .. }) => {
                    format!("model {name:?} is not served")
                }
                _ => format!("model {name:?} generates text"),
            }
        }
        None => "models here generate text".to_owned(),
    };
    let message = format!("{whose}; embedding and reranking models are not served yet");
    let mut error =
        ApiError::new(StatusCode::NOT_IMPLEMENTED, message).with_code("unsupported_model");
    error.param = Some("model".into());
    Ok(error)
}
