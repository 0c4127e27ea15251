//! The Unix socket: who may open it, and who is at its other end.
//!
//! Owns: the socket file, from bind to removal. Must never: take over a socket that another daemon
//! serves.

use std::future::Future;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use axum::Router;
use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::net::{UnixListener, UnixStream};

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
    #[error("the folder {} does not exist; create it (systemd: RuntimeDirectory=), or choose another socket", .0.display())]
    NoFolder(PathBuf),
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

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Effective user id, as the kernel says.
    pub uid: Option<u32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Peer { uid: stream.io().peer_cred().ok().map(|peer| peer.uid()) }
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
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(io("replace"))?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(io("look at")(error)),
            Ok(_) => return Err(SocketError::Taken(path.to_path_buf())),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(io("look at")(error)),
    }
    let listener = UnixListener::bind(path).map_err(io("bind"))?;
    // Whoever slipped in between the two calls is still asked who they are before they change things.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))
        .map_err(io("set the mode of"))?;
    Ok(listener)
}

/// Serves `router` on a bound socket until `shutdown`, then lets the open calls end, and removes the
/// socket file. How long that may take is the caller's to bound.
///
/// # Errors
/// None of the accepted connections can cause one; it is there for the listener's sake.
pub async fn serve_unix(
    listener: UnixListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let path = listener.local_addr()?.as_pathname().map(Path::to_path_buf);
    let service = router.into_make_service_with_connect_info::<Peer>();
    let served = axum::serve(listener, service).with_graceful_shutdown(shutdown).await;
    if let Some(path) = path {
        let _ = std::fs::remove_file(path);
    }
    served
}

#[cfg(test)]
mod tests {
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
}
