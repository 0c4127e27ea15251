//! The loop behind every socket of the daemon: it accepts connections within a limit, serves HTTP on them within times,
//! and closes them well.
//!
//! Owns: connections, from accepting to closing. Must never: look into a request, or know what is served.
//!
//! ```text
//!   Entrance::accept -> admit (a slot, or it is closed) -> begin (TLS, who is there), under a header timeout
//!                    -> HTTP/1.1 on a Guarded stream, until the client leaves, dawdles, or gives way
//! ```

#![forbid(unsafe_code)]

mod attend;
mod connection;
mod throttle;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use attend::Attending;
pub use connection::{Guarded, Io, Open};
pub use throttle::Throttle;

/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Time that open connections have for a request after no more are accepted.
const FIRST_WORDS: Duration = Duration::from_millis(300);

/// How long clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// For what comes before a request's body: TLS, then the request line and headers; also between two requests.
    pub header: Duration,
    /// To take at least some of what is written to them.
    pub write: Duration,
}

/// A socket that listens: who comes in, how many at once, and what they are served.
pub trait Entrance: Send + Sync {
    /// A connection as the kernel gives it.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;
    /// What is known of its other end.
    type Peer: Send + Sync + 'static;

    /// What it is called in the log.
    const NAME: &'static str;

    /// The next connection. May be dropped while it waits, and no connection is lost then.
    ///
    /// # Errors
    /// There is none to be had now: no descriptors are left, most likely.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Self::Peer)>> + Send;

    /// A slot, which the connection holds until it ends; without one it is closed at once. Nobody else is accepted
    /// while this waits.
    fn admit(
        &self,
        stream: &Self::Stream,
        peer: &Self::Peer,
        open: &Open,
    ) -> impl Future<Output = Option<OwnedSemaphorePermit>> + Send;

    /// The stream to speak HTTP on, and what is served there, within the time that headers have.
    ///
    /// # Errors
    /// The client does not keep to what comes before HTTP.
    fn begin(
        &self,
        stream: Guarded<Self::Stream>,
        peer: Self::Peer,
    ) -> impl Future<Output = io::Result<(Box<dyn Io>, Router)>> + Send + 'static;
}

/// Serves HTTP/1.1 at `entrance` until `shutdown` resolves; then accepts no more, lets running requests finish and
/// returns. How long that may take is the caller's to bound: dropping the returned future closes every connection.
pub async fn serve<E: Entrance>(entrance: E, times: Times, shutdown: impl Future<Output = ()>) {
    let (graceful, open) = (GracefulShutdown::new(), Arc::new(Open::default()));
    let not_accepted = Throttle::new();
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = async {
            let (stream, peer) = entrance.accept().await?;
            let slot = entrance.admit(&stream, &peer, &open).await;
            Ok::<_, io::Error>((stream, peer, slot))
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            () = &mut shutdown => break,
        };
        while connections.try_join_next().is_some() {}
        let (stream, peer, slot) = match accepted {
            Ok((stream, peer, Some(slot))) => (stream, peer, slot),
            Ok((_, _, None)) => continue,
            Err(why) => {
                // Out of descriptors, most likely: they come back when connections close.
                if let Some(connections) = not_accepted.count() {
                    tracing::warn!(%why, connections, "cannot accept connections of {}", E::NAME);
                }
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let begun = entrance.begin(Guarded::new(stream, times.write), peer);
        let (watcher, entry) = (graceful.watcher(), open.enter());
        connections.spawn(async move {
            let talk = async {
                let begun = timeout(times.header, begun).await;
                let begun = begun.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
                let (stream, router) = match begun {
                    Ok(begun) => begun,
                    Err(why) => {
                        return tracing::debug!(%why, "a connection of {} did not begin", E::NAME);
                    }
                };
                let service = Attending::new(router, Arc::clone(&entry.state));
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(times.header)
                    .serve_connection(TokioIo::new(stream), service);
                if let Err(why) = watcher.watch(connection).await {
                    tracing::debug!(%why, "a connection of {} ended early", E::NAME);
                }
            };
            tokio::select! {
                () = talk => {}
                () = entry.state.ended() => {}
            }
            drop(slot);
        });
    }
    drop(entrance);
    // A client that was let in a moment ago has not sent a word yet; hyper would close on it without an answer.
    let all_gone = async { while connections.join_next().await.is_some() {} };
    let _ = timeout(FIRST_WORDS, all_gone).await;
    graceful.shutdown().await;
    while connections.join_next().await.is_some() {}
}
