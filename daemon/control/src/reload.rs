//! `POST /admin/v1/reload`: has the daemon read its configuration again, and says what came of it.
//!
//! Owns: the call. Must never: know what a configuration is; that is the daemon's.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Router};
use minisgl_proto::admin::{AdminError, AdminErrorCode};
use minisgl_proto::reload::ReloadReply;
use tokio::sync::{mpsc, oneshot};

use crate::access::{Access, Caller, Peer, Right};

/// Where the answer goes: what changed, or why nothing did.
pub type Asked = oneshot::Sender<Result<ReloadReply, String>>;

struct Reloading {
    ask: mpsc::Sender<Asked>,
    access: Access,
}

/// The route. Whoever asks is heard at the other end of `ask`.
pub fn router(ask: mpsc::Sender<Asked>, access: Access) -> Router {
    let state = Arc::new(Reloading { ask, access });
    Router::new().route("/admin/v1/reload", post(reload)).with_state(state)
}

async fn reload(
    State(reloading): State<Arc<Reloading>>,
    caller: Option<Extension<Caller>>,
) -> Response {
    match reloading.ask(caller.as_ref().map(|Extension(caller)| caller)).await {
        Ok(reply) => axum::Json(reply).into_response(),
        Err(error) => crate::reply::refuse(error),
    }
}

impl Reloading {
    async fn ask(&self, caller: Option<&Caller>) -> Result<ReloadReply, AdminError> {
        let caller = self.access.check(caller, Right::Change, "reload the configuration")?;
        let Peer { uid, pid, .. } = caller.peer;
        tracing::info!(user = caller.name(), uid, pid, action = "reload", "admin");
        let (reply, answer) = oneshot::channel();
        let gone = || AdminError {
            code: AdminErrorCode::Failed,
            message: "the daemon is stopping and reloads nothing".to_owned(),
        };
        self.ask.send(reply).await.map_err(|_| gone())?;
        let reloaded = answer.await.map_err(|_| gone())?;
        reloaded.map_err(|message| AdminError { code: AdminErrorCode::Invalid, message })
    }
}
