//! The HTTP surface: OpenAI's, Anthropic's, SGLang's and Ollama's.
//!
//! Owns: request parsing, text of tokens, streams. Must never: know what a worker is, or read what a model's author
//! wrote.
//!
//! ```text
//!   body -> Surface -> Intent -> prompts (the model's text process), sampling
//!        -> Choices (submit; detokenize, stop strings, a dialect's parser) -> Part -> Wire -> events or one JSON object
//! ```
//!
//! A request's answer begins only when its first text is there, or after a while, so whatever fails before has a
//! status of its own. Everything a request holds hangs on its handler's future or its response's
//! body; when the client goes away, hyper drops them and the generations are aborted.

#![forbid(unsafe_code)]

pub mod backend;
mod body;
mod chat;
mod choices;
mod completions;
mod detokenize;
mod error;
pub mod fields;
mod fleet;
mod format;
mod front;
mod generate;
mod guide;
mod input;
mod intent;
mod json;
mod keys;
mod limits;
mod logprobs;
mod messages;
mod metrics;
mod middleware;
mod models;
mod ollama;
mod origin;
pub mod part;
mod pool;
mod prompt;
mod random;
mod record;
mod responses;
mod room;
mod sampling;
mod server;
mod settings;
mod sse;
mod stop;
mod store;
mod surface;
mod talk;
mod timestamp;
mod tls;
mod tokenizer;
mod tokens;
mod tools;
mod unserved;
mod usage;
mod wire;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use tower_http::catch_panic::CatchPanicLayer;

pub use error::ApiError;
pub use front::Front;
pub use keys::{BadKeys, KeyList, Keys, Rule};
pub use limits::Limits;
pub use origin::{is_host, is_origin};
pub use record::KeyName;
pub use server::serve;
pub use settings::{BODIES_BYTES_MAX, Settings, Thoughts};
pub use tls::{BadCertificate, Certificate, Tls};

/// All routes, for everybody. Serve it with [`serve`], or merge it into another router that asks who is there.
pub fn router(front: Arc<Front>) -> Router {
    let routes = routes(&front);
    finish(routes, front)
}

/// All routes, for whoever `keys` lets in. Serve it with [`serve`].
pub fn keyed_router(front: Arc<Front>, keys: Keys) -> Router {
    let admit = axum::middleware::from_fn_with_state(keys.clone(), keys::admit);
    let guard = axum::middleware::from_fn_with_state(keys, origin::guard);
    let routes = routes(&front).layer(admit).layer(guard);
    finish(routes, front)
}

fn routes(front: &Front) -> Router<Arc<Front>> {
    Router::new()
        .route("/v1/chat/completions", post(surface::serve::<chat::Chat>))
        .route(
            "/v1/responses",
            post(surface::serve::<responses::Responses>).get(responses::routes::upgrade),
        )
        .route("/v1/responses/{id}", get(responses::routes::one).delete(responses::routes::delete))
        .route("/v1/responses/{id}/input_items", get(responses::routes::input_items))
        .route("/v1/responses/{id}/cancel", post(responses::routes::cancel))
        .route("/v1/completions", post(surface::serve::<completions::Completions>))
        .route("/v1/messages", post(surface::serve::<messages::Messages>))
        .route("/v1/messages/count_tokens", post(messages::count_tokens))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/generate", post(surface::serve::<generate::Generated>))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/server_info", get(models::server_info))
        .route("/get_server_info", get(models::server_info))
        .route("/model_info", get(models::model_info))
        .route("/get_model_info", get(models::model_info))
        .route("/v1/embeddings", post(unserved::embeddings))
        .route("/v1/rerank", post(unserved::reranking))
        .route("/v2/rerank", post(unserved::reranking))
        .route("/rerank", post(unserved::reranking))
        .route("/v1/score", post(unserved::reranking))
        .route("/score", post(unserved::reranking))
        .route("/flush_cache", post(fleet::flush).get(fleet::flush_by_get))
        .route("/reset_prefix_cache", post(fleet::flush))
        .route("/abort_request", post(fleet::abort))
        .route("/v1/loads", get(fleet::loads))
        .route("/loads", get(fleet::loads))
        .route("/get_load", get(fleet::load_list))
        .route("/tokenizer_info", get(fleet::tokenizer_info))
        .route("/health_generate", get(fleet::health_generate))
        .route("/health", get(models::health))
        .route("/ping", get(models::health))
        .route("/readyz", get(models::ready))
        .route("/livez", get(models::live))
        .route("/metrics", get(models::metrics))
        .merge(ollama::routes(front.settings.ollama))
        .fallback(middleware::not_found)
        .method_not_allowed_fallback(middleware::method_not_allowed)
}

fn finish(routes: Router<Arc<Front>>, front: Arc<Front>) -> Router {
    routes
        .layer(CatchPanicLayer::custom(middleware::panicked))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&front), middleware::account))
        .with_state(front)
}
