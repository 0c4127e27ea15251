//! Connections: accepting them within a limit, and closing them well.
//!
//! Owns: sockets. Must never: look into a request.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

use crate::connection::{Busy, Guarded, Io, Open, State};
use crate::limits::Limits;
use crate::settings::Settings;
use crate::throttle::Throttle;
use crate::tls::Tls;

/// Where connections come from.
#[derive(Debug)]
pub enum Listener {
    /// The network, encrypted if there is a certificate.
    Tcp(TcpListener, Tls),
    /// This machine.
    Unix(UnixListener),
}

/// A connection, and what it begins with.
enum Accepted {
    Tcp(TcpStream, Option<TlsAcceptor>),
    Unix(UnixStream),
}

/// Time between two looks for a connection that may give way.
const GIVE_WAY_PAUSE: Duration = Duration::from_millis(50);
/// A connection is idle for so long before it gives way: one that was opened just now is about to speak.
const IDLE_MIN: Duration = Duration::from_millis(500);
/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Time that open connections have for a request after no more are accepted.
const FIRST_WORDS: Duration = Duration::from_millis(300);

impl Listener {
    async fn accept(&self) -> io::Result<Accepted> {
        Ok(match self {
            Listener::Tcp(listener, tls) => {
                let (stream, _) = listener.accept().await?;
                // A token is smaller than a packet and must not wait for the next one. Of a client that is gone already the
                // connection will tell.
                if let Err(why) = stream.set_nodelay(true) {
                    tracing::debug!(%why, "a connection may be slow");
                }
                Accepted::Tcp(stream, tls.acceptor())
            }
            Listener::Unix(listener) => Accepted::Unix(listener.accept().await?.0),
        })
    }
}

impl Accepted {
    /// The stream to speak HTTP on, within the time that headers have.
    async fn open(self, times: &Times) -> io::Result<Box<dyn Io>> {
        let (stream, acceptor) = match self {
            Accepted::Unix(stream) => return Ok(Box::new(Guarded::new(stream, times.write))),
            Accepted::Tcp(stream, acceptor) => (Guarded::new(stream, times.write), acceptor),
        };
        let Some(acceptor) = acceptor else { return Ok(Box::new(stream)) };
        let stream = tokio::time::timeout(times.header, acceptor.accept(stream)).await;
        Ok(Box::new(stream.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??))
    }
}

/// How long clients may take.
#[derive(Clone, Copy)]
struct Times {
    header: Duration,
    write: Duration,
}

/// Serves `router` on all listeners until `shutdown` resolves; then accepts no more, lets running
/// requests finish and returns. All listeners share the connections that `limits` allows; where all are taken, one more
/// takes the place of the longest idle, and waits while none is. Dropping the returned future closes every connection.
pub async fn serve(
    listeners: Vec<Listener>,
    router: Router,
    settings: &Settings,
    limits: &Limits,
    shutdown: impl Future<Output = ()>,
) {
    let (stop, stopped) = watch::channel(false);
    let open = Arc::new(Open::default());
    let times = Times { header: settings.header_timeout, write: settings.write_timeout };
    let loops = listeners.into_iter().map(|listener| {
        accept_all(listener, router.clone(), times, limits, Arc::clone(&open), stopped.clone())
    });
    let mut loops = pin!(futures_util::future::join_all(loops));
    tokio::select! {
        _ = &mut loops => return,
        () = shutdown => {}
    }
    let _ = stop.send(true);
    loops.await;
}

static NOT_ACCEPTED: Throttle = Throttle::new();
static GAVE_WAY: Throttle = Throttle::new();

async fn accept_all(
    listener: Listener,
    router: Router,
    times: Times,
    limits: &Limits,
    open: Arc<Open>,
    mut stopped: watch::Receiver<bool>,
) {
    let graceful = GracefulShutdown::new();
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let accepted = async {
            let accepted = listener.accept().await;
            let slot = if accepted.is_ok() { Some(place(limits, &open).await) } else { None };
            (accepted, slot)
        };
        let (accepted, slot) = tokio::select! {
            accepted = accepted => accepted,
            _ = stopped.wait_for(|stopped| *stopped) => break,
        };
        while connections.try_join_next().is_some() {}
        let accepted = match accepted {
            Ok(accepted) => accepted,
            Err(why) => {
                // Out of descriptors, most likely: they come back when connections close.
                if let Some(connections) = NOT_ACCEPTED.count() {
                    tracing::warn!(%why, connections, "cannot accept connections");
                }
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (router, watcher, entry) = (router.clone(), graceful.watcher(), open.enter());
        connections.spawn(async move {
            let talk = async {
                let stream = match accepted.open(&times).await {
                    Ok(stream) => stream,
                    Err(why) => return tracing::debug!(%why, "a TLS connection did not begin"),
                };
                let state = Arc::clone(&entry.state);
                let service = Attending { router: TowerToHyperService::new(router), state };
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(times.header)
                    .serve_connection(TokioIo::new(stream), service);
                if let Err(why) = watcher.watch(connection).await {
                    tracing::debug!(%why, "a connection ended early");
                }
            };
            tokio::select! {
                () = talk => {}
                () = entry.state.ended() => {}
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

/// A place for one more connection. Where there is none, the longest idle connection gives way: clients that keep
/// connections and say nothing do not keep out those that have something to ask.
async fn place(limits: &Limits, open: &Open) -> Option<OwnedSemaphorePermit> {
    loop {
        if let Some(slot) = limits.try_slot() {
            return Some(slot);
        }
        if open.end_idle(IDLE_MIN)
            && let Some(connections) = GAVE_WAY.count()
        {
            tracing::warn!(
                connections,
                "idle connections were closed to make room: [http] connections_max"
            );
        }
        if let Ok(slot) = tokio::time::timeout(GIVE_WAY_PAUSE, limits.slot()).await {
            return slot;
        }
    }
}

/// A router that marks its connection busy until the answer is written, or broken off.
struct Attending {
    router: TowerToHyperService<Router>,
    state: Arc<State>,
}

impl Service<Request<Incoming>> for Attending {
    type Response = Response<Attended>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let busy = self.state.busy();
        let answer = self.router.call(request);
        Box::pin(async move { Ok(answer.await?.map(|body| Attended { body, _busy: busy })) })
    }
}

/// A body that keeps its connection busy.
struct Attended {
    body: Body,
    _busy: Busy,
}

impl HttpBody for Attended {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
