//! The requests of one model that are in flight, and the way of a token to its reader.
//!
//! ```text
//!   submit --(room, gate open)--> live --finish--> gone
//!                                  | guard dropped, reader gone, or buffer full
//!                                  v
//!                               aborted --the worker's last event--> gone
//! ```
//!
//! Owns: who waits for what. Must never: block. An aborted request keeps its place until the worker
//! has let go of it, so what is counted here is what the worker holds.
//!
//! The outbox cannot overflow by requests: a place brings at most three frames into it (a late
//! `Abort` of the request before, `Submit`, `Abort`), because a place is given up only on an answer
//! to a `Submit`, which has then left the outbox with all frames before it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use minisgl_proto::{Finish, RequestId, Submit, ToWorker, TokenEvent};
use tokio::sync::mpsc;

/// Frames that are not a request's: `Load`, `Ping`, `Flush`, `Drain`.
const OUTBOX_SPARE: usize = 64;

/// Places in an outbox when `requests` may be in flight.
pub(crate) fn outbox_capacity(requests: usize) -> usize {
    3 * requests + OUTBOX_SPARE
}

/// The inverse of [`outbox_capacity`].
fn requests_of(outbox: &mpsc::Sender<ToWorker>) -> usize {
    (outbox.max_capacity() - OUTBOX_SPARE) / 3
}

/// Why nothing was submitted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// No worker takes requests now.
    Shut,
    /// That many requests are in flight, and no more may be.
    Full(u32),
}

/// All requests of one model in flight.
pub(crate) struct Streams {
    /// Events a reader may lie behind.
    buffer: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// The way to the worker; `None` while there is none that is ready.
    outbox: Option<mpsc::Sender<ToWorker>>,
    /// Whether new requests are welcome.
    open: bool,
    /// Requests in flight at most.
    limit: usize,
    /// `None`: aborted, nobody reads it any more.
    live: HashMap<RequestId, Option<mpsc::Sender<TokenEvent>>>,
}

impl Streams {
    pub(crate) fn new(buffer: usize) -> Self {
        Streams { buffer: buffer.max(1), inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests are welcome, `limit` at most at once.
    pub(crate) fn open(&self, outbox: mpsc::Sender<ToWorker>, limit: u32) {
        let mut inner = self.lock();
        inner.limit = (limit as usize).min(requests_of(&outbox));
        inner.outbox = Some(outbox);
        inner.open = true;
    }

    /// New requests are refused; those in flight go on.
    pub(crate) fn shut(&self) {
        self.lock().open = false;
    }

    /// The worker is gone or given up: every request fails now. Returns how many there were.
    pub(crate) fn fail_all(&self, reason: &str) -> usize {
        self.end_all(&Finish::Failed(reason.to_string()))
    }

    /// The model is being stopped: every request is aborted now. Returns how many there were.
    pub(crate) fn abort_all(&self) -> usize {
        self.end_all(&Finish::Aborted)
    }

    fn end_all(&self, finish: &Finish) -> usize {
        let mut inner = self.lock();
        inner.open = false;
        inner.outbox = None;
        let live = std::mem::take(&mut inner.live);
        for (id, events) in &live {
            if let Some(events) = events {
                // The place for the last event is kept free by `route`.
                let _ = events.try_send(last_event(*id, finish.clone()));
            }
        }
        live.len()
    }

    /// Requests the worker holds.
    pub(crate) fn in_flight(&self) -> usize {
        self.lock().live.len()
    }

    /// Hands a request to the worker. Never blocks.
    pub(crate) fn submit(
        self: &Arc<Self>,
        submit: Submit,
    ) -> Result<(mpsc::Receiver<TokenEvent>, AbortGuard), Refused> {
        let id = submit.id;
        let mut inner = self.lock();
        let Some(outbox) = inner.outbox.as_ref().filter(|_| inner.open) else {
            return Err(Refused::Shut);
        };
        if inner.live.len() >= inner.limit {
            return Err(Refused::Full(u32::try_from(inner.limit).unwrap_or(u32::MAX)));
        }
        if outbox.try_send(ToWorker::Submit(submit)).is_err() {
            return Err(Refused::Shut); // the writer is gone: its worker is dying
        }
        let (sender, receiver) = mpsc::channel(self.buffer + 1); // one for the last event
        inner.live.insert(id, Some(sender));
        Ok((receiver, AbortGuard { id, streams: Arc::clone(self) }))
    }

    /// Hands out what a step brought; a reader that lies too far behind is cut off.
    pub(crate) fn route(&self, events: Vec<TokenEvent>) {
        let mut inner = self.lock();
        for event in events {
            let id = event.id;
            if event.finish.is_some() {
                if let Some(Some(reader)) = inner.live.remove(&id) {
                    let _ = reader.try_send(event); // gone, or behind: then it sees the end
                }
                continue;
            }
            let Some(Some(reader)) = inner.live.get(&id) else { continue };
            if reader.capacity() <= 1 {
                tracing::warn!(request = %id, "a reader fell too far behind and was cut off");
                inner.abort(id);
            } else if reader.try_send(event).is_err() {
                inner.abort(id);
            }
        }
    }

    /// Ends a request from this side, where the worker never heard of it.
    pub(crate) fn refuse(&self, id: RequestId, reason: String) {
        self.route(vec![last_event(id, Finish::Failed(reason))]);
    }
}

impl Inner {
    /// Tells the worker once; the request keeps its place until the worker answers.
    fn abort(&mut self, id: RequestId) {
        let Some(reader) = self.live.get_mut(&id) else { return };
        if reader.take().is_some()
            && let Some(outbox) = &self.outbox
            && let Err(mpsc::error::TrySendError::Full(_)) = outbox.try_send(ToWorker::Abort(id))
        {
            tracing::error!(request = %id, "the outbox has no room for an abort");
        }
    }
}

fn last_event(id: RequestId, finish: Finish) -> TokenEvent {
    TokenEvent {
        id,
        sampled: None,
        prompt_logprobs: Vec::new(),
        cached_tokens: None,
        queue_s: None,
        finish: Some(finish),
    }
}

/// Aborts its request when dropped, unless the request has ended.
pub struct AbortGuard {
    id: RequestId,
    streams: Arc<Streams>,
}

impl Drop for AbortGuard {
    fn drop(&mut self) {
        self.streams.lock().abort(self.id);
    }
}

impl std::fmt::Debug for AbortGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("AbortGuard").field(&self.id).finish()
    }
}

#[cfg(test)]
mod tests {
    use minisgl_proto::{Sampled, SamplingParams, StopParams};

    use super::*;

    fn submit(id: u64) -> Submit {
        Submit {
            id: RequestId(id),
            prompt: vec![1],
            sampling: SamplingParams::default(),
            stop: StopParams::default(),
            priority: 0,
        }
    }

    fn token(id: u64, token: u32) -> TokenEvent {
        TokenEvent {
            id: RequestId(id),
            sampled: Some(Sampled { token, logprob: None, top: Vec::new() }),
            prompt_logprobs: Vec::new(),
            cached_tokens: None,
            queue_s: None,
            finish: None,
        }
    }

    fn open(limit: u32, buffer: usize) -> (Arc<Streams>, mpsc::Receiver<ToWorker>) {
        let streams = Arc::new(Streams::new(buffer));
        let (outbox, frames) = mpsc::channel(outbox_capacity(limit as usize));
        streams.open(outbox, limit);
        (streams, frames)
    }

    fn frames(receiver: &mut mpsc::Receiver<ToWorker>) -> Vec<ToWorker> {
        std::iter::from_fn(|| receiver.try_recv().ok()).collect()
    }

    #[test]
    fn a_full_model_refuses_and_a_finished_request_makes_room() {
        let (streams, _frames) = open(2, 8);
        let first = streams.submit(submit(1)).unwrap();
        let _second = streams.submit(submit(2)).unwrap();
        assert_eq!(streams.submit(submit(3)).err(), Some(Refused::Full(2)));
        streams.route(vec![last_event(RequestId(1), Finish::Length)]);
        assert!(streams.submit(submit(3)).is_ok());
        drop(first);
    }

    #[test]
    fn a_dropped_guard_aborts_once_and_keeps_the_place_until_the_worker_answers() {
        let (streams, mut sent) = open(1, 8);
        let (_events, guard) = streams.submit(submit(1)).unwrap();
        drop(guard);
        let aborts = frames(&mut sent);
        assert!(matches!(&aborts[..], [ToWorker::Submit(_), ToWorker::Abort(RequestId(1))]));
        assert_eq!(streams.submit(submit(2)).err(), Some(Refused::Full(1)));
        streams.route(vec![last_event(RequestId(1), Finish::Aborted)]);
        assert_eq!(streams.in_flight(), 0);
    }

    #[test]
    fn a_finished_request_is_not_aborted() {
        let (streams, mut sent) = open(1, 8);
        let (mut events, guard) = streams.submit(submit(1)).unwrap();
        streams.route(vec![last_event(RequestId(1), Finish::Stop)]);
        assert_eq!(events.try_recv().unwrap().finish, Some(Finish::Stop));
        drop(guard);
        assert!(matches!(&frames(&mut sent)[..], [ToWorker::Submit(_)]));
    }

    #[test]
    fn a_slow_reader_is_cut_off_without_a_finish_and_its_neighbour_is_not() {
        let (streams, mut sent) = open(2, 3);
        let (mut slow, _slow_guard) = streams.submit(submit(1)).unwrap();
        let (mut quick, _quick_guard) = streams.submit(submit(2)).unwrap();
        for n in 0..10 {
            streams.route(vec![token(1, n), token(2, n)]);
            assert_eq!(quick.try_recv().unwrap().sampled.unwrap().token, n);
        }
        let got: Vec<TokenEvent> = std::iter::from_fn(|| slow.try_recv().ok()).collect();
        assert_eq!(got.len(), 3);
        assert!(got.iter().all(|event| event.finish.is_none()));
        assert!(matches!(slow.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
        let aborts = frames(&mut sent).into_iter().filter(|f| matches!(f, ToWorker::Abort(_)));
        assert_eq!(aborts.collect::<Vec<_>>(), [ToWorker::Abort(RequestId(1))]);
    }

    #[test]
    fn the_last_event_always_fits() {
        let (streams, _sent) = open(1, 3);
        let (mut events, _guard) = streams.submit(submit(1)).unwrap();
        for n in 0..3 {
            streams.route(vec![token(1, n)]);
        }
        assert_eq!(streams.fail_all("the worker died"), 1);
        let last = std::iter::from_fn(|| events.try_recv().ok()).last().unwrap();
        assert_eq!(last.finish, Some(Finish::Failed("the worker died".into())));
        assert_eq!(streams.submit(submit(2)).err(), Some(Refused::Shut));
    }

    #[test]
    fn opened_and_dropped_requests_never_overflow_the_outbox() {
        let (streams, mut sent) = open(4, 4);
        let mut next = 0;
        let mut held = std::collections::VecDeque::new();
        // The worker answers only what it has read; requests come and go as fast as they can.
        for _ in 0..1000 {
            while let Ok(generation) = streams.submit(submit(next)) {
                held.push_back(generation);
                next += 1;
            }
            while held.len() > 1 {
                held.pop_front();
            }
            assert!(streams.lock().outbox.as_ref().unwrap().capacity() >= OUTBOX_SPARE);
            if let Ok(ToWorker::Submit(read)) = sent.try_recv() {
                streams.route(vec![last_event(read.id, Finish::Length)]);
            }
        }
        assert!(next > 100, "only {next} were submitted");
    }
}
