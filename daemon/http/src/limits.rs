//! Limits that an operator may change while requests are served, and whether any more are taken at all.
//!
//! Owns: the slots of open connections. Must never: end a connection that is there already.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The limits in force. Clones are the same limits.
#[derive(Clone, Debug)]
pub struct Limits(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    body_bytes_max: AtomicUsize,
    connections_max: Mutex<usize>,
    slots: Arc<Semaphore>,
    closing: AtomicBool,
}

impl Limits {
    /// So many bytes of a body, and so many open connections.
    pub fn new(body_bytes_max: usize, connections_max: usize) -> Self {
        Limits(Arc::new(Inner {
            body_bytes_max: AtomicUsize::new(body_bytes_max),
            connections_max: Mutex::new(connections_max),
            slots: Arc::new(Semaphore::new(connections_max)),
            closing: AtomicBool::new(false),
        }))
    }

    /// Bytes of a request body, at most.
    pub fn body_bytes_max(&self) -> usize {
        self.0.body_bytes_max.load(Ordering::Relaxed)
    }

    /// Exchanges both. Fewer connections than are open: new ones wait until enough of them are closed. Must be
    /// called in a tokio runtime.
    pub fn set(&self, body_bytes_max: usize, connections_max: usize) {
        self.0.body_bytes_max.store(body_bytes_max, Ordering::Relaxed);
        let mut before = self.0.connections_max.lock().unwrap_or_else(PoisonError::into_inner);
        let (more, fewer) =
            (connections_max.saturating_sub(*before), before.saturating_sub(connections_max));
        *before = connections_max;
        self.0.slots.add_permits(more);
        let Ok(fewer @ 1..) = u32::try_from(fewer) else { return };
        let slots = Arc::clone(&self.0.slots);
        // Whoever asks first is served first, so no connection slips in before these are taken away.
        tokio::spawn(async move {
            if let Ok(taken) = slots.acquire_many(fewer).await {
                taken.forget();
            }
        });
    }

    /// A slot for one connection, if one is free.
    pub(crate) fn try_slot(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0.slots).try_acquire_owned().ok()
    }

    /// A slot for one connection; `None` never comes, since the slots are not closed.
    pub(crate) async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0.slots).acquire_owned().await.ok()
    }

    /// From now on new requests are refused: the daemon stops.
    pub fn close(&self) {
        self.0.closing.store(true, Ordering::SeqCst);
    }

    /// Whether the daemon stops.
    pub fn is_closing(&self) -> bool {
        self.0.closing.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Whether there is a slot at once.
    async fn is_free(limits: &Limits) -> bool {
        tokio::time::timeout(Duration::from_millis(50), limits.slot()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn connections_follow_the_limit_up_and_down() {
        let limits = Limits::new(10, 2);
        let (first, second) = (limits.slot().await, limits.slot().await);
        assert!(!is_free(&limits).await);
        limits.set(20, 3);
        assert_eq!(limits.body_bytes_max(), 20);
        let third = limits.slot().await;
        limits.set(20, 1);
        tokio::task::yield_now().await;
        drop((first, second));
        assert!(!is_free(&limits).await, "one is open, and one is all");
        drop(third);
        assert!(is_free(&limits).await);
        limits.set(20, 4);
        let many = [limits.slot().await, limits.slot().await, limits.slot().await];
        assert!(is_free(&limits).await);
        drop(many);
    }
}
