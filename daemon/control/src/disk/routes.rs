//! `pull`, `disk` and `rm` of the admin API; see [`minisgl_proto::disk`].
//!
//! Owns: translation between HTTP and the cache. Must never: block the runtime with a disk.

use std::path::PathBuf;

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use futures_util::StreamExt;
use minisgl_proto::admin::{AdminError, AdminErrorCode};
use minisgl_proto::disk::{DiskReport, PullEvent, PullRequest, Pulled, RmReply, RmRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{remove, scan};
use crate::access::{Access, Caller, Right};
use crate::layout::RepoId;
use crate::registry::Registry;
use crate::reply::{Sent, answer, parse, refuse};
use crate::resolve;

/// Lines of a pull's answer that may wait for a slow client; progress beyond it is dropped.
const PULL_EVENTS_MAX: usize = 64;
/// Files of a snapshot that are counted.
const FILES_MAX: usize = 100_000;

#[derive(Clone)]
struct Disk {
    registry: Registry,
    access: Access,
}

/// The routes, with their state.
pub(crate) fn router(registry: Registry, access: Access) -> Router {
    Router::new()
        .route("/admin/v1/disk", get(disk))
        .route("/admin/v1/pull", post(pull))
        .route("/admin/v1/rm", post(rm))
        .with_state(Disk { registry, access })
}

impl Disk {
    fn may_change<'a>(
        &self,
        caller: &'a Option<Extension<Caller>>,
        action: &str,
    ) -> Result<&'a Caller, AdminError> {
        self.access.check(caller.as_ref().map(|Extension(caller)| caller), Right::Change, action)
    }

    fn cache(&self) -> Result<PathBuf, AdminError> {
        self.registry.hub().cache().ok_or_else(|| AdminError {
            code: AdminErrorCode::Conflict,
            message: "there is no cache folder: set [hub] cache_dir, or HOME".to_string(),
        })
    }
}

async fn disk(State(disk): State<Disk>) -> Response {
    let Some(cache) = disk.registry.hub().cache() else {
        return answer(Ok(DiskReport::default()));
    };
    let models = disk.registry.list();
    let report = resolve::on_a_thread("disk", move || scan::scan(&cache, &models)).await;
    answer(report.map_err(AdminError::from))
}

async fn rm(State(disk): State<Disk>, caller: Option<Extension<Caller>>, body: Sent) -> Response {
    let rm = async || -> Result<RmReply, AdminError> {
        let caller = disk.may_change(&caller, "remove models from the disk")?;
        let request = parse::<RmRequest>(body)?;
        caller.note("rm", &request.model);
        let (cache, registry) = (disk.cache()?, disk.registry.clone());
        let work = move || remove::remove(&cache, &request.model, &|| registry.list());
        resolve::on_a_thread("rm", work).await?
    };
    answer(rm().await)
}

/// Streams a download, which ends when the caller leaves and nobody else waits for it.
async fn pull(State(disk): State<Disk>, caller: Option<Extension<Caller>>, body: Sent) -> Response {
    let begin = || {
        let caller = disk.may_change(&caller, "download models")?;
        let request = parse::<PullRequest>(body)?;
        let repo = RepoId::parse(&request.model).map_err(|error| AdminError {
            code: AdminErrorCode::Invalid,
            message: error.to_string(),
        })?;
        caller.note("pull", &request.model);
        Ok((repo, disk.cache()?))
    };
    let (repo, cache) = match begin() {
        Ok(begun) => begun,
        Err(error) => return refuse(error),
    };
    let hub = disk.registry.hub();
    let (events, lines) = mpsc::channel(PULL_EVENTS_MAX);
    tokio::spawn(async move {
        let mut report = |at| {
            // One place is the last line's.
            if events.capacity() > 1 {
                let _ = events.try_send(PullEvent::Progress(at));
            }
        };
        let pulled = tokio::select! {
            pulled = resolve::pull(&hub, &cache, &repo, &mut report) => pulled,
            () = events.closed() => return,
        };
        let counted = match pulled {
            Ok(dir) => resolve::on_a_thread("count", move || count(&repo, dir)).await,
            Err(error) => Err(error),
        };
        let last = match counted {
            Ok(done) => PullEvent::Done(done),
            Err(error) => PullEvent::Failed(error.into()),
        };
        let _ = events.send(last).await;
    });
    let lines = ReceiverStream::new(lines).map(|event| {
        let mut line = serde_json::to_vec(&event)?;
        line.push(b'\n');
        Ok::<_, serde_json::Error>(line)
    });
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson")];
    (headers, Body::from_stream(lines)).into_response()
}

fn count(repo: &RepoId, dir: PathBuf) -> Pulled {
    let files = std::fs::read_dir(&dir).into_iter().flatten().flatten().take(FILES_MAX);
    // What the links lead to.
    let bytes = files.filter_map(|file| std::fs::metadata(file.path()).ok());
    let bytes = bytes.filter(std::fs::Metadata::is_file).map(|file| file.len()).sum();
    let commit = dir.file_name().map(|name| name.to_string_lossy().into_owned());
    Pulled { model: repo.to_string(), commit: commit.unwrap_or_default(), dir, bytes }
}
