//! Connections: accepting them within a limit, and closing them well.
//!
//! Owns: sockets. Must never: look into a request.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::time::{Sleep, sleep};
use tokio_rustls::TlsAcceptor;

use crate::limits::Limits;
use crate::settings::Settings;
use crate::tls::Tls;

/// Where connections come from.
#[derive(Debug)]
pub enum Listener {
    /// The network, encrypted if there is a certificate.
    Tcp(TcpListener, Tls),
    /// This machine.
    Unix(UnixListener),
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection, and what it begins with.
struct Accepted {
    stream: Box<dyn Io>,
    acceptor: Option<TlsAcceptor>,
}

impl Listener {
    async fn accept(&self) -> io::Result<Accepted> {
        Ok(match self {
            Listener::Tcp(listener, tls) => {
                let (stream, _) = listener.accept().await?;
                // A token is smaller than a packet and must not wait for the next one.
                stream.set_nodelay(true)?;
                Accepted { stream: Box::new(stream), acceptor: tls.acceptor() }
            }
            Listener::Unix(listener) => {
                Accepted { stream: Box::new(listener.accept().await?.0), acceptor: None }
            }
        })
    }
}

impl Accepted {
    /// The stream to speak HTTP on, within the time that headers have.
    async fn open(self, time: Duration) -> io::Result<Box<dyn Io>> {
        let Some(acceptor) = self.acceptor else { return Ok(self.stream) };
        let stream = tokio::time::timeout(time, acceptor.accept(self.stream)).await;
        Ok(Box::new(stream.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??))
    }
}

/// Serves `router` on all listeners until `shutdown` resolves; then accepts no more, lets running
/// requests finish and returns. All listeners share the connections that `limits` allows. Dropping the returned future closes every connection.
pub async fn serve(
    listeners: Vec<Listener>,
    router: Router,
    settings: &Settings,
    limits: &Limits,
    shutdown: impl Future<Output = ()>,
) {
    let (stop, stopped) = watch::channel(false);
    let loops = listeners
        .into_iter()
        .map(|listener| accept_all(listener, router.clone(), settings, limits, stopped.clone()));
    let mut loops = pin!(futures_util::future::join_all(loops));
    tokio::select! {
        _ = &mut loops => return,
        () = shutdown => {}
    }
    let _ = stop.send(true);
    loops.await;
}

async fn accept_all(
    listener: Listener,
    router: Router,
    settings: &Settings,
    limits: &Limits,
    mut stopped: watch::Receiver<bool>,
) {
    let graceful = GracefulShutdown::new();
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let accepted = async {
            let slot = limits.slot().await;
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            accepted = accepted => accepted,
            _ = stopped.wait_for(|stopped| *stopped) => break,
        };
        while connections.try_join_next().is_some() {}
        let accepted = match accepted {
            Ok(accepted) => accepted,
            Err(why) => {
                // Out of descriptors, most likely: they come back when connections close.
                tracing::warn!(%why, "cannot accept a connection");
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (router, watcher) = (router.clone(), graceful.watcher());
        let (header_timeout, write_timeout) = (settings.header_timeout, settings.write_timeout);
        connections.spawn(async move {
            let stream = match accepted.open(header_timeout).await {
                Ok(stream) => stream,
                Err(why) => return tracing::debug!(%why, "a TLS connection did not begin"),
            };
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(header_timeout)
                .serve_connection(
                    TokioIo::new(Guarded::new(stream, write_timeout)),
                    TowerToHyperService::new(router),
                );
            if let Err(why) = watcher.watch(connection).await {
                tracing::debug!(%why, "a connection ended early");
            }
            drop(slot);
        });
    }
    drop(listener);
    // Whoever was let in a moment ago has not sent a word yet; hyper would close on them without an answer.
    let all_gone = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(FIRST_WORDS, all_gone).await;
    graceful.shutdown().await;
    while connections.join_next().await.is_some() {}
}

/// Time that open connections have for a request after no more are accepted.
const FIRST_WORDS: Duration = Duration::from_millis(300);

/// Time and bytes for which a closing connection still listens. The bytes are not kept, so that many
/// cost only the reading.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 << 20;

/// A stream that ends when writing makes no progress for too long, and that closes in two steps.
///
/// A client that never reads would keep its connection for ever. And a client that is still sending when its answer is complete (a
/// body over the limit) would get a reset in place of the answer if the socket were closed with
/// bytes unread; so the writing half is closed first, and what still comes is read and thrown away,
/// for a while.
struct Guarded<S> {
    stream: S,
    write_timeout: Duration,
    /// Set while the client takes nothing of what is to be written.
    stalled: Option<Pin<Box<Sleep>>>,
    closing: Option<Closing>,
}

struct Closing {
    deadline: Pin<Box<Sleep>>,
    left: usize,
}

impl<S> Guarded<S> {
    fn new(stream: S, write_timeout: Duration) -> Guarded<S> {
        Guarded { stream, write_timeout, stalled: None, closing: None }
    }

    /// What a write came to, unless it has waited for too long.
    fn in_time<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let after = self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(after)));
        std::task::ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("the client read nothing for {after:?}"),
        )))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.in_time(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.in_time(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.closing.is_none() {
            std::task::ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        }
        let closing = this.closing.get_or_insert_with(|| Closing {
            deadline: Box::pin(sleep(LINGER)),
            left: LINGER_BYTES,
        });
        let mut space = [0; 16 << 10];
        loop {
            if closing.left == 0 || closing.deadline.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut buf = ReadBuf::new(&mut space);
            match Pin::new(&mut this.stream).poll_read(cx, &mut buf) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    closing.left = closing.left.saturating_sub(buf.filled().len());
                }
                // Closed, or broken: nobody is left to wait for.
                Poll::Ready(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}
