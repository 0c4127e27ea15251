//! Server-sent events: what a wire writes, as the body of a response.
//!
//! Owns: when bytes go out, comments while nothing is said, and the end of a stream. All that is ready at once is
//! one write. The body holds the generations, so a client that goes away drops them. Must never: hold a buffer
//! while it waits.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use http_body::Frame;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::choices::{Choices, Progress};
use crate::error::ApiError;
use crate::part::Usage;
use crate::record::Record;
use crate::wire::Wire;

/// Bytes after which a write goes out although more is ready.
const WRITE_BYTES: usize = 32 << 10;
/// Bytes of a thread's buffer that are kept for its next write.
const KEPT_BYTES: usize = 256 << 10;

thread_local! {
    /// Where a write is put together: a thread's, so that no stream holds one.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

struct Stream<W> {
    choices: Choices,
    wire: W,
    record: Arc<Record>,
    /// Written before the answer began.
    first: Option<Bytes>,
    ping: Option<Ping>,
    opened: bool,
    over: bool,
}

/// When a comment is due.
struct Ping {
    interval: Duration,
    /// When something was last said.
    last: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Ping {
    fn new(interval: Duration) -> Ping {
        let last = Instant::now();
        Ping { interval, last, timer: Box::pin(sleep_until(last + interval)) }
    }

    /// Ready when nothing was said for the interval. The timer is set anew only when it runs out: a stream that
    /// talks does not touch it.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let due = self.last + self.interval;
            if due > now {
                self.timer.as_mut().reset(due);
                continue;
            }
            self.last = now;
            self.timer.as_mut().reset(now + self.interval);
            // Polled again, so that the next one wakes.
            let _ = self.timer.as_mut().poll(cx);
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl<W: Wire> Stream<W> {
    /// Writes all that is there. Ready with an error: nothing more comes.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Vec<u8>,
    ) -> Poll<Result<(), ApiError>> {
        let Stream { choices, wire, opened, .. } = self;
        let total = choices.total();
        let progress = choices.poll_parts(cx, |delta| {
            if !std::mem::replace(opened, true) {
                // How much of the prompt was in the cache is known with the first token.
                wire.open(out, Usage { cached: delta.total.cached, ..total });
            }
            wire.delta(out, delta);
            out.len() < WRITE_BYTES
        });
        match progress {
            Poll::Ready(Ok(Progress::Full)) => Poll::Ready(Ok(())),
            Poll::Ready(Ok(Progress::Done)) => {
                self.wire.close(out, self.choices.total());
                self.record.complete();
                self.over = true;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => {
                self.over = true;
                Poll::Ready(Err(error))
            }
            Poll::Pending if out.is_empty() => Poll::Pending,
            Poll::Pending => Poll::Ready(Ok(())),
        }
    }

    /// What is said while nothing is.
    fn ping(&mut self) -> Bytes {
        let mut out = Vec::new();
        if !W::OPENS_FIRST || std::mem::replace(&mut self.opened, true) {
            self.wire.ping(&mut out);
        } else {
            self.wire.open(&mut out, self.choices.total());
        }
        out.into()
    }

    /// What was said, and the error that ends it.
    fn fail(&mut self, said: &[u8], error: &ApiError) -> Bytes {
        self.record.failed(error);
        let mut out = said.to_vec();
        self.wire.fail(&mut out, error);
        out.into()
    }

    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, (Bytes, ApiError)>> {
        let mut out = BUFFER.take();
        out.clear();
        let written = self.poll_write(cx, &mut out);
        let bytes = Bytes::copy_from_slice(&out);
        if out.capacity() <= KEPT_BYTES {
            BUFFER.set(out);
        }
        written.map(|written| match written {
            Ok(()) => Ok(bytes),
            Err(error) => Err((bytes, error)),
        })
    }
}

impl<W: Wire> HttpBody for Stream<W> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let frame = |bytes| Poll::Ready(Some(Ok(Frame::data(bytes))));
        if let Some(first) = this.first.take() {
            return frame(first);
        }
        if this.over {
            return Poll::Ready(None);
        }
        let bytes = match this.poll_bytes(cx) {
            Poll::Ready(Ok(bytes)) => bytes,
            Poll::Ready(Err((said, error))) => this.fail(&said, &error),
            Poll::Pending => {
                let Some(ping) = &mut this.ping else { return Poll::Pending };
                std::task::ready!(ping.poll(cx));
                return frame(this.ping());
            }
        };
        if let Some(ping) = &mut this.ping {
            ping.last = Instant::now();
        }
        frame(bytes)
    }
}

/// Answers with a stream, once its first text is there: a failure before it has a status of its own. Where that
/// takes longer than the interval of pings, the answer begins with one. An error on the way is the wire's to tell.
///
/// # Errors
/// The generation failed before its first text.
pub async fn respond<W: Wire>(
    choices: Choices,
    wire: W,
    record: Arc<Record>,
    ping_interval: Option<Duration>,
) -> Result<Response, ApiError> {
    let mut ping = ping_interval.map(Ping::new);
    let opened = false;
    let mut stream = Stream { choices, wire, record, first: None, ping: None, opened, over: false };
    let first = std::future::poll_fn(|cx| match stream.poll_bytes(cx) {
        Poll::Ready(first) => Poll::Ready(first),
        Poll::Pending => match &mut ping {
            Some(ping) => ping.poll(cx).map(|()| Ok(stream.ping())),
            None => Poll::Pending,
        },
    });
    match first.await {
        Ok(first) => stream.first = Some(first),
        Err((said, error)) if said.is_empty() => return Err(error),
        Err((said, error)) => {
            // It failed at once, behind its first text: both are there.
            stream.first = Some(stream.fail(&said, &error));
        }
    }
    stream.ping = ping;
    stream.record.streaming();
    let mut response = Response::new(Body::new(stream));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(W::STREAM_TYPE));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that buffer would make one lump of the stream.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}
