//! A connection: the stream under it, and what it is doing.
//!
//! Owns: when a client has taken too long, and which connections nobody would miss. Must never: look into a request.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Sleep, sleep};

/// Time and bytes for which a closing connection still listens. The bytes are not kept, so that many
/// cost only the reading.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 << 20;

/// What HTTP is spoken over.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A stream that ends when writing makes no progress for too long, and that closes in two steps.
///
/// It lies under TLS, which takes up to 64 KiB at once and writes them when it is flushed or closed: every byte for
/// the client passes here last.
///
/// A client that never reads would keep its connection for ever. And a client that is still sending when its answer is complete (a
/// body over the limit) would get a reset in place of the answer if the socket were closed with
/// bytes unread; so the writing half is closed first, and what still comes is read and thrown away,
/// for a while.
pub struct Guarded<S> {
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
    /// Guards `stream`, whose client has so long to take something.
    pub fn new(stream: S, write_timeout: Duration) -> Guarded<S> {
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

/// The open connections, by number.
#[derive(Debug, Default)]
pub struct Open {
    next: AtomicU64,
    all: Mutex<HashMap<u64, Arc<State>>>,
}

/// What a connection is doing.
#[derive(Debug)]
pub struct State {
    activity: Mutex<Activity>,
    end: Notify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activity {
    /// No request of it is being answered.
    Idle(Instant),
    /// One is.
    Busy,
    /// Its place was given to another.
    Ended,
}

/// A connection's entry in [`Open`], which ends with it.
#[derive(Debug)]
pub struct Entry {
    open: Arc<Open>,
    number: u64,
    /// What it is doing.
    pub state: Arc<State>,
}

impl Open {
    fn all(&self) -> MutexGuard<'_, HashMap<u64, Arc<State>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a connection, which has sent nothing yet.
    pub fn enter(self: &Arc<Self>) -> Entry {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let activity = Mutex::new(Activity::Idle(Instant::now()));
        let state = Arc::new(State { activity, end: Notify::new() });
        self.all().insert(number, Arc::clone(&state));
        Entry { open: Arc::clone(self), number, state }
    }

    /// Ends the connection that has been idle for longest, and for `at_least` that long; whether there was one.
    pub fn end_idle(&self, at_least: Duration) -> bool {
        let all = self.all();
        let idle = all.values().filter_map(|state| Some((state.idle_since()?, state)));
        let Some((since, longest)) = idle.min_by_key(|(since, _)| *since) else { return false };
        since.elapsed() >= at_least && longest.give_way()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.open.all().remove(&self.number);
    }
}

impl State {
    fn activity(&self) -> MutexGuard<'_, Activity> {
        self.activity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle_since(&self) -> Option<Instant> {
        match *self.activity() {
            Activity::Idle(since) => Some(since),
            Activity::Busy | Activity::Ended => None,
        }
    }

    fn give_way(&self) -> bool {
        let mut activity = self.activity();
        if !matches!(*activity, Activity::Idle(_)) {
            return false;
        }
        *activity = Activity::Ended;
        self.end.notify_one();
        true
    }

    /// A request of it is being answered until this is dropped.
    pub fn busy(self: &Arc<Self>) -> Busy {
        let mut activity = self.activity();
        if matches!(*activity, Activity::Idle(_)) {
            *activity = Activity::Busy;
        }
        Busy(Arc::clone(self))
    }

    /// Resolves when it has to give way.
    pub async fn ended(&self) {
        self.end.notified().await;
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub struct Busy(Arc<State>);

impl Drop for Busy {
    fn drop(&mut self) {
        let mut activity = self.0.activity();
        if *activity == Activity::Busy {
            *activity = Activity::Idle(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_longest_idle_gives_way_and_the_busy_never() {
        let open = Arc::new(Open::default());
        assert!(!open.end_idle(Duration::ZERO));
        let (first, second, third) = (open.enter(), open.enter(), open.enter());
        let busy = first.state.busy();
        assert!(!open.end_idle(Duration::from_secs(60)), "idle, and not for long");
        assert!(open.end_idle(Duration::ZERO));
        second.state.ended().await;
        drop(busy);
        assert!(open.end_idle(Duration::ZERO));
        third.state.ended().await;
        let again = first.state.busy();
        assert!(!open.end_idle(Duration::ZERO));
        drop((again, second, third));
        assert!(open.end_idle(Duration::ZERO));
        assert_eq!(open.all().len(), 1, "who is gone is not listed");
    }
}
