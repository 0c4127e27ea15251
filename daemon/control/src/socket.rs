//! The Unix socket: who may open it, and who is at its other end.
//!
//! Owns: the socket file, from bind to removal, and how many connections whom may have. Must never: take over a socket
//! that another daemon serves.

use std::fs::Permissions;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use minisgl_accept::{Entrance, Guarded, Io, Open, Throttle, Times};
use minisgl_proto::socket::Place;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::access::{Caller, Peer};
use crate::children;

/// Connections at most; `minisglctl batch` opens 1024 at once.
const CONNECTIONS_MAX: usize = 2048;
/// The same as at the API's port.
const TIMES: Times = Times { header: Duration::from_secs(30), write: Duration::from_secs(60) };
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
/// else's, so readers never keep an operator out. One more is closed at once, and so is one whose client says or takes
/// nothing for too long.
pub async fn serve_unix(
    listener: UnixListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    let path = listener.local_addr().ok().and_then(|at| at.as_pathname().map(Path::to_path_buf));
    serve_within(listener, router, shutdown, CONNECTIONS_MAX, TIMES).await;
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
    serve_within(listener, router, shutdown, CONNECTIONS_MAX, TIMES).await;
}

async fn serve_within(
    listener: UnixListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
    connections_max: usize,
    times: Times,
) {
    let [operators, others] = [(); 2].map(|()| Arc::new(Semaphore::new(connections_max)));
    let [from_children, too_many] = [(); 2].map(|()| Throttle::new());
    let socket = Socket { listener, router, operators, others, from_children, too_many };
    minisgl_accept::serve(socket, times, shutdown).await;
}

struct Socket {
    listener: UnixListener,
    router: Router,
    /// Slots of those who may change models, and of everybody else.
    operators: Arc<Semaphore>,
    others: Arc<Semaphore>,
    from_children: Throttle,
    too_many: Throttle,
}

impl Entrance for Socket {
    type Stream = UnixStream;
    type Peer = Option<Peer>;

    const NAME: &'static str = "the admin socket";

    async fn accept(&self) -> io::Result<(UnixStream, Option<Peer>)> {
        let (stream, _) = self.listener.accept().await?;
        let credentials = stream.peer_cred();
        let peer = credentials.map(|of| Peer { uid: of.uid(), gid: of.gid(), pid: of.pid() }).ok();
        Ok((stream, peer))
    }

    async fn admit(
        &self,
        stream: &UnixStream,
        peer: &Option<Peer>,
        _: &Open,
    ) -> Option<OwnedSemaphorePermit> {
        if children::is_one(stream, peer.as_ref().and_then(|peer| peer.pid)) {
            if let Some(connections) = self.from_children.count() {
                tracing::warn!(
                    ?peer,
                    connections,
                    "a worker, or a process that is gone, opened the admin socket; closed it"
                );
            }
            return None;
        }
        let is_operator = peer.is_some_and(|peer| peer.is_operator());
        let slots = if is_operator { &self.operators } else { &self.others };
        let slot = Arc::clone(slots).try_acquire_owned().ok();
        if slot.is_none()
            && let Some(connections) = self.too_many.count()
        {
            tracing::warn!(?peer, connections, "too many admin connections; closed one more");
        }
        slot
    }

    fn begin(
        &self,
        stream: Guarded<UnixStream>,
        peer: Option<Peer>,
    ) -> impl Future<Output = io::Result<(Box<dyn Io>, Router)>> + Send + 'static {
        let router = self.router.clone();
        async move { Ok((Box::new(stream) as Box<dyn Io>, known(router, peer).await)) }
    }
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
    use std::sync::atomic::{AtomicUsize, Ordering};

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
        let times = Times { header: timeout, ..TIMES };
        let task = tokio::spawn(serve_within(listener, Router::new(), shutdown, 2, times));
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

    /// Counts the bodies that are being written.
    struct Written(Arc<AtomicUsize>);

    impl Drop for Written {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// What comes after a request for `path`, read to its end.
    async fn ask(socket: &Path, path: &str) -> String {
        let mut stream = UnixStream::connect(socket).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        // It may be closed before all is written.
        let _ = stream.write_all(head.as_bytes()).await;
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
        String::from_utf8_lossy(&all).into_owned()
    }

    #[tokio::test]
    async fn who_never_reads_is_let_go_and_others_are_answered() {
        let dir = tempfile::tempdir().unwrap();
        let open = Arc::new(AtomicUsize::new(0));
        let endless = {
            let open = Arc::clone(&open);
            async move || {
                open.fetch_add(1, Ordering::SeqCst);
                let written = Written(open);
                let chunks = futures_util::stream::repeat_with(move || {
                    let _held = &written;
                    Ok::<_, std::convert::Infallible>(vec![b'x'; 16 << 10])
                });
                axum::body::Body::from_stream(chunks)
            }
        };
        let router = Router::new()
            .route("/endless", axum::routing::get(endless))
            .route("/short", axum::routing::get(async || "answered"));
        for connections_max in [2, 1] {
            let path = dir.path().join(connections_max.to_string());
            let listener = bind(&path).await.unwrap();
            let times = Times { write: Duration::from_millis(500), ..TIMES };
            let never = std::future::pending();
            tokio::spawn(serve_within(listener, router.clone(), never, connections_max, times));
            let mut deaf = UnixStream::connect(&path).await.unwrap();
            deaf.write_all(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            if connections_max > 1 {
                assert!(ask(&path, "/short").await.ends_with("answered"), "beside it");
            }
            // Its place is free again although it is there, and what was written for it is dropped.
            let is_let_go = async {
                while !ask(&path, "/short").await.ends_with("answered") {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                while open.load(Ordering::SeqCst) > 0 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            let let_go = tokio::time::timeout(Duration::from_secs(20), is_let_go).await;
            let_go.expect("a client that does not read keeps its place");
            drop(deaf);
        }
    }
}
