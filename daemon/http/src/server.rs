//! The port of the OpenAI API: how a connection of the network comes in.
//!
//! Owns: TLS, and who gives way when all connections are taken. Must never: look into a request.

use std::future::Future;
use std::io;
use std::time::Duration;

use axum::Router;
use minisgl_accept::{Entrance, Guarded, Io, Open, Throttle, Times};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;

use crate::limits::Limits;
use crate::settings::Settings;
use crate::tls::Tls;

/// Time between two looks for a connection that may give way.
const GIVE_WAY_PAUSE: Duration = Duration::from_millis(50);
/// A connection is idle for so long before it gives way: one that was opened just now is about to speak.
const IDLE_MIN: Duration = Duration::from_millis(500);

/// Serves `router` on `listener`, encrypted while there is a certificate, until `shutdown` resolves; then accepts no
/// more, lets running requests finish and returns. Where all connections that `limits` allows are taken, one more takes
/// the place of the longest idle, and waits while none is. Dropping the returned future closes every connection.
pub async fn serve(
    listener: TcpListener,
    tls: Tls,
    router: Router,
    settings: &Settings,
    limits: &Limits,
    shutdown: impl Future<Output = ()>,
) {
    let times = Times { header: settings.header_timeout, write: settings.write_timeout };
    let gave_way = Throttle::new();
    let port = Port { listener, tls, router, limits: limits.clone(), gave_way };
    minisgl_accept::serve(port, times, shutdown).await;
}

struct Port {
    listener: TcpListener,
    tls: Tls,
    router: Router,
    limits: Limits,
    gave_way: Throttle,
}

impl Entrance for Port {
    type Stream = TcpStream;
    type Peer = ();

    const NAME: &'static str = "the OpenAI API";

    async fn accept(&self) -> io::Result<(TcpStream, ())> {
        let (stream, _) = self.listener.accept().await?;
        // A token is smaller than a packet and must not wait for the next one. Of a client that is gone already the
        // connection will tell.
        if let Err(why) = stream.set_nodelay(true) {
            tracing::debug!(%why, "a connection may be slow");
        }
        Ok((stream, ()))
    }

    /// Clients that keep connections and say nothing do not keep out those that have something to ask.
    async fn admit(&self, _: &TcpStream, (): &(), open: &Open) -> Option<OwnedSemaphorePermit> {
        loop {
            if let Some(slot) = self.limits.try_slot() {
                return Some(slot);
            }
            if open.end_idle(IDLE_MIN)
                && let Some(connections) = self.gave_way.count()
            {
                tracing::warn!(
                    connections,
                    "idle connections were closed to make room: [http] connections_max"
                );
            }
            if let Ok(slot) = tokio::time::timeout(GIVE_WAY_PAUSE, self.limits.slot()).await {
                return slot;
            }
        }
    }

    fn begin(
        &self,
        stream: Guarded<TcpStream>,
        (): (),
    ) -> impl Future<Output = io::Result<(Box<dyn Io>, Router)>> + Send + 'static {
        let (acceptor, router) = (self.tls.acceptor(), self.router.clone());
        async move {
            let stream: Box<dyn Io> = match acceptor {
                Some(acceptor) => Box::new(acceptor.accept(stream).await?),
                None => Box::new(stream),
            };
            Ok((stream, router))
        }
    }
}
