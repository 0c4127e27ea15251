//! Listening sockets that outlive the daemon: systemd hands them over and keeps them through a restart, so that
//! nobody who connects in between is refused (`LISTEN_FDS` of sd_listen_fds(3), `FDSTORE=1` of sd_notify(3)).
//!
//! ```text
//!   minisgld.socket ──> admin.sock            daemon ── FDSTORE=1 ──> systemd ──> the next daemon: the API's port
//! ```
//!
//! Owns: inherited sockets until they are served. Must never: serve an address that the configuration does
//! not name.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::Context;
use listenfd::ListenFd;
use minisgl_control::socket;
use tokio::net::TcpListener;

use crate::config::Config;
use crate::notify::Notifier;

/// Sockets of a service manager, at most: more are not looked at.
const SOCKETS_MAX: usize = 16;

/// What the service manager handed over.
#[derive(Default)]
pub struct Inherited {
    tcp: Vec<std::net::TcpListener>,
    unix: Vec<UnixListener>,
}

impl Inherited {
    /// Takes what the environment names, and the variables out of it. To be called before there are threads.
    pub fn from_env() -> Inherited {
        let mut given = ListenFd::from_env();
        let mut inherited = Inherited::default();
        for index in 0..given.len().min(SOCKETS_MAX) {
            if let Ok(Some(socket)) = given.take_unix_listener(index) {
                inherited.unix.push(socket);
            } else if let Ok(Some(socket)) = given.take_tcp_listener(index) {
                inherited.tcp.push(socket);
            }
        }
        inherited
    }

    /// The socket of the OpenAI API, if one of this address was handed over. Others are closed.
    ///
    /// # Errors
    /// The socket cannot be used.
    pub fn http(&mut self, listen: SocketAddr) -> anyhow::Result<Option<TcpListener>> {
        let mut found = None;
        for socket in self.tcp.drain(..) {
            let at =
                socket.local_addr().context("cannot look at a socket of the service manager")?;
            if found.is_none() && is_meant(listen, at) {
                found = Some(socket);
            } else {
                tracing::warn!(
                    "the service manager's socket for {at} is not used: [http] listen is {listen}"
                );
            }
        }
        let Some(socket) = found else { return Ok(None) };
        socket.set_nonblocking(true).context("cannot use the socket of the OpenAI API")?;
        TcpListener::from_std(socket).context("cannot use the socket").map(Some)
    }

    /// The admin socket, if one of this path was handed over. Others are closed.
    ///
    /// # Errors
    /// The socket cannot be used.
    pub fn admin(&mut self, path: &Path) -> anyhow::Result<Option<tokio::net::UnixListener>> {
        let mut found = None;
        for socket in self.unix.drain(..) {
            let at =
                socket.local_addr().context("cannot look at a socket of the service manager")?;
            if found.is_none() && at.as_pathname() == Some(path) {
                found = Some(socket);
            } else {
                let path = path.display();
                tracing::warn!(
                    "the service manager's socket {at:?} is not used: the admin socket is {path}"
                );
            }
        }
        let Some(socket) = found else { return Ok(None) };
        socket.set_nonblocking(true).context("cannot use the admin socket")?;
        tokio::net::UnixListener::from_std(socket).context("cannot use the admin socket").map(Some)
    }
}

/// The sockets that are served.
pub struct Sockets {
    /// Of the OpenAI API.
    pub http: TcpListener,
    /// Of the admin API.
    pub admin: tokio::net::UnixListener,
    /// Whether the admin socket is the service manager's, which keeps its file.
    pub is_admin_lent: bool,
}

impl Sockets {
    /// Takes what was handed over and makes the rest. The API's port goes into the manager's keeping.
    ///
    /// # Errors
    /// An address or the socket cannot be bound.
    pub async fn open(
        config: &Config,
        mut inherited: Inherited,
        notifier: Option<&Notifier>,
    ) -> anyhow::Result<Sockets> {
        let listen = config.http.listen;
        let http = match inherited.http(listen)? {
            Some(http) => http,
            None => {
                let http = TcpListener::bind(listen).await.with_context(|| {
                    format!("cannot listen on {listen}; choose another address with --listen or [http] listen")
                })?;
                if let Some(notifier) = notifier {
                    notifier.keep("http", http.as_fd()).await;
                }
                http
            }
        };
        let path = config.socket();
        let (admin, is_admin_lent) = match inherited.admin(&path)? {
            Some(admin) => (admin, true),
            None => {
                if config.admin.socket.is_none() {
                    socket::make_folder(&Config::socket_place())?;
                }
                (socket::bind(&path).await?, false)
            }
        };
        Ok(Sockets { http, admin, is_admin_lent })
    }
}

/// Whether a socket at `at` is what `listen` asks for; port 0 is any.
fn is_meant(listen: SocketAddr, at: SocketAddr) -> bool {
    listen.ip() == at.ip() && (listen.port() == at.port() || listen.port() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_configured_addresses_are_served() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, other) = (dir.path().join("a"), dir.path().join("b"));
        let tcp = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (first, second) = (tcp(), tcp());
        let listen = second.local_addr().unwrap();
        let unix = [&other, &ours].map(|path| UnixListener::bind(path).unwrap());
        let mut inherited = Inherited { tcp: vec![first, second], unix: unix.into() };
        let http = inherited.http(listen).unwrap().unwrap();
        assert_eq!(http.local_addr().unwrap(), listen);
        let admin = inherited.admin(&ours).unwrap().unwrap();
        assert_eq!(admin.local_addr().unwrap().as_pathname(), Some(ours.as_path()));
        assert!(inherited.http(listen).unwrap().is_none());

        let mut public = Inherited {
            tcp: vec![tcp()],
            unix: vec![UnixListener::bind(dir.path().join("c")).unwrap()],
        };
        assert!(public.http("0.0.0.0:0".parse().unwrap()).unwrap().is_none());
        assert!(public.admin(&ours).unwrap().is_none());
    }

    #[test]
    fn port_0_is_any() {
        let at = |text: &str| text.parse().unwrap();
        assert!(is_meant(at("127.0.0.1:0"), at("127.0.0.1:4000")));
        assert!(!is_meant(at("127.0.0.1:0"), at("0.0.0.0:4000")));
        assert!(!is_meant(at("127.0.0.1:8000"), at("127.0.0.1:8001")));
    }
}
