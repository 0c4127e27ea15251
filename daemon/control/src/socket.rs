//! The Unix socket: who may open it, and who is at its other end.
//!
//! Owns: the socket file, from bind to removal. Must never: take over a socket that another daemon
//! serves.

use std::fs::Permissions;
use std::future::Future;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use minisgl_proto::socket::Place;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::access::{Caller, Peer};
use crate::children;

/// Connections at most; `minisglctl batch` opens 1024 at once.
const CONNECTIONS_MAX: usize = 2048;
/// How long a client may take to send the head of a request, or to begin the next one.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Time that open connections have for a request after no more are accepted.
const FIRST_WORDS: Duration = Duration::from_millis(300);
/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Owner and group may open it.
const MODE: u32 = 0o660;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another daemon answers there.
    #[error("{} is served by another daemon; stop it, or choose another socket", .0.display())]
    Taken(PathBuf),
    /// Something else than a socket has that name.
    #[error("{} exists and is no socket; remove it, or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The folder is not there.
    #[error("the folder {} does not exist; make it with: mkdir -p {} (systemd: RuntimeDirectory=), or choose another socket", .0.display(), .0.display())]
    NoFolder(PathBuf),
    /// The default folder is there, and not ours alone.
    #[error("{} must be a folder that belongs to user {owner} and that nobody else can write; remove it, or choose another socket", .folder.display())]
    NotOurs {
        /// The folder.
        folder: PathBuf,
        /// Who should own it.
        owner: u32,
    },
    /// Anything else.
    #[error("cannot {what} the socket {}: {error}", .path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why not.
        error: std::io::Error,
    },
}

/// Makes the folder of a default place, or sees that the one there is ours.
///
/// # Errors
/// `NoFolder` names the parent that is missing; `NotOurs`; `Io`.
pub fn make_folder(place: &Place) -> Result<(), SocketError> {
    let folder = place.folder.as_path();
    let io = |what| move |error| SocketError::Io { path: place.socket(), what, error };
    match std::fs::DirBuilder::new().mode(place.mode).create(folder) {
        // The umask may have taken more than was meant.
        Ok(()) => std::fs::set_permissions(folder, Permissions::from_mode(place.mode))
            .map_err(io("set the mode of the folder of")),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            // No link is followed: whoever made it could change where it leads.
            let data = std::fs::symlink_metadata(folder).map_err(io("look at the folder of"))?;
            let own = nix::unistd::geteuid().as_raw();
            // A system's folder may be the service user's; root trusts those it gave it to.
            let ours = data.uid() == own || own == 0;
            if data.is_dir() && ours && data.mode() & 0o022 == 0 {
                Ok(())
            } else {
                Err(SocketError::NotOurs { folder: folder.to_path_buf(), owner: own })
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let parent = folder.parent().unwrap_or(folder);
            Err(SocketError::NoFolder(parent.to_path_buf()))
        }
        Err(error) => Err(io("make the folder of")(error)),
    }
}

/// Binds the socket, mode 0660. A file that a dead daemon left is replaced.
///
/// # Errors
/// See [`SocketError`].
pub async fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let io = |what| move |error| SocketError::Io { path: path.to_path_buf(), what, error };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder
        && !folder.is_dir()
    {
        return Err(SocketError::NoFolder(folder.to_path_buf()));
    }
    match std::fs::symlink_metadata(path) {
        Ok(data) if !data.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_path_buf()));
        }
        Ok(_) => match UnixStream::connect(path).await {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(io("replace"))?;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(io("look at")(error)),
            Ok(_) => return Err(SocketError::Taken(path.to_path_buf())),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(io("look at")(error)),
    }
    let listener = UnixListener::bind(path).map_err(io("bind"))?;
    // Whoever slipped in between the two calls is still asked who they are before they change things.
    std::fs::set_permissions(path, Permissions::from_mode(MODE)).map_err(io("set the mode of"))?;
    Ok(listener)
}

/// Serves `router` on a bound socket until `shutdown`, then lets the open calls end, and removes the
/// socket file. How long that may take is the caller's to bound.
///
/// Whoever may change models has [`CONNECTIONS_MAX`] connections, apart from as many of everybody
/// else's, so readers never keep an operator out. One more is closed at once.
pub async fn serve_unix(
    listener: UnixListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    let path = listener.local_addr().ok().and_then(|at| at.as_pathname().map(Path::to_path_buf));
    serve_within(listener, router, shutdown, CONNECTIONS_MAX, HEADER_TIMEOUT).await;
    if let Some(path) = path {
        let _ = std::fs::remove_file(path);
    }
}

/// The same on a socket that somebody else made and keeps: its file stays.
pub async fn serve_lent(
    listener: UnixListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    serve_within(listener, router, shutdown, CONNECTIONS_MAX, HEADER_TIMEOUT).await;
}

async fn serve_within(
    listener: UnixListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
    connections_max: usize,
    header_timeout: Duration,
) {
    let [operators, others] = [(); 2].map(|()| Arc::new(Semaphore::new(connections_max)));
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        while connections.try_join_next().is_some() {}
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: they come back when connections close.
                tracing::warn!(%error, "cannot accept an admin connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let credentials = stream.peer_cred();
        let peer = credentials.map(|of| Peer { uid: of.uid(), gid: of.gid(), pid: of.pid() }).ok();
        if children::is_one(&stream, peer.and_then(|peer| peer.pid)) {
            tracing::warn!(
                ?peer,
                "a worker, or a process that is gone, opened the admin socket; closed it"
            );
            continue;
        }
        let slots = if peer.is_some_and(|peer| peer.is_operator()) { &operators } else { &others };
        let Ok(slot) = Arc::clone(slots).try_acquire_owned() else {
            tracing::warn!(?peer, connections_max, "too many admin connections; closed one");
            continue;
        };
        let (router, watcher) = (router.clone(), graceful.watcher());
        connections.spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(header_timeout)
                .serve_connection(
                    TokioIo::new(stream),
                    TowerToHyperService::new(known(router, peer).await),
                );
            if let Err(error) = watcher.watch(connection).await {
                tracing::debug!(%error, "an admin connection ended early");
            }
            drop(slot);
        });
    }
    drop(listener);
    // A client that was let in a moment ago has not sent a word yet; hyper would close on it without an answer.
    let all_gone = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(FIRST_WORDS, all_gone).await;
    graceful.shutdown().await;
    while connections.join_next().await.is_some() {}
}

/// `router` for this peer. The user database may be on another machine, so it is asked beside the runtime.
async fn known(router: Router, peer: Option<Peer>) -> Router {
    let Some(peer) = peer else { return router };
    match tokio::task::spawn_blocking(move || Caller::identify(peer)).await {
        Ok(caller) => router.layer(Extension(caller)),
        Err(_) => router,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let first = bind(&path).await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        assert!(matches!(bind(&path).await, Err(SocketError::Taken(_))));
        drop(first); // the file stays behind, as after a crash
        assert!(path.exists());
        bind(&path).await.unwrap();
    }

    #[tokio::test]
    async fn errors_name_what_is_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(matches!(bind(&file).await, Err(SocketError::NotASocket(_))));
        assert!(file.exists());
        let error = bind(&dir.path().join("no/admin.sock")).await.unwrap_err().to_string();
        assert!(error.contains("/no does not exist"), "{error}");
    }

    #[test]
    fn the_default_folder_is_made_and_a_strangers_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let own = nix::unistd::geteuid().as_raw();
        let place = |name: &str| Place { folder: dir.path().join(name), mode: 0o700, owner: own };
        let fresh = place("fresh");
        make_folder(&fresh).unwrap();
        assert_eq!(std::fs::metadata(&fresh.folder).unwrap().mode() & 0o777, 0o700);
        make_folder(&fresh).unwrap();
        std::fs::set_permissions(&fresh.folder, Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(make_folder(&fresh), Err(SocketError::NotOurs { .. })));
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
        assert!(matches!(make_folder(&place("link")), Err(SocketError::NotOurs { .. })));
        let error = make_folder(&place("no/folder")).unwrap_err().to_string();
        assert!(error.contains("/no does not exist; make it with: mkdir -p /"), "{error}");
    }

    // On a clock that stands still while anything can run, at first even while nothing can.
    #[tokio::test(start_paused = true)]
    async fn silent_connections_are_bounded_and_time_out() {
        // Time does not advance by itself beside a task that blocks.
        let (held, until_dropped) = std::sync::mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || until_dropped.recv());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let listener = bind(&path).await.unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let shutdown = async { drop(stopped.await) };
        let timeout = Duration::from_secs(3);
        let task = tokio::spawn(serve_within(listener, Router::new(), shutdown, 2, timeout));
        let began = tokio::time::Instant::now();
        let mut silent = Vec::new();
        for _ in 0..3 {
            silent.push(UnixStream::connect(&path).await.unwrap());
        }
        let mut rest = Vec::new();
        assert_eq!(silent[2].read_to_end(&mut rest).await.unwrap(), 0);
        assert_eq!(began.elapsed(), Duration::ZERO, "the third was let in");
        drop(held);
        for stream in &mut silent[..2] {
            let _ = stream.read_to_end(&mut rest).await;
        }
        let took = began.elapsed();
        assert!((timeout..2 * timeout).contains(&took), "{took:?}");
        // There is room again.
        let mut stream = UnixStream::connect(&path).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        stream.read_to_end(&mut rest).await.unwrap();
        assert!(String::from_utf8_lossy(&rest).contains("404 Not Found"));
        stop.send(()).unwrap();
        task.await.unwrap();
    }
}
