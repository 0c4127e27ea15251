//! Where each session of a model is, and what follows when an event, a reader or an instance changes that.
//!
//! Owns: the counts that the limits go by. Must never: be used but under the lock of [`super::Sessions`].

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Instant;

use minisgl_proto::{Finish, RequestId, ToWorker, TokenEvent};
use tokio::sync::mpsc;

use super::session::{Place, Session};

#[derive(Default)]
pub(super) struct Table {
    /// Whether new requests are welcome.
    pub(super) open: bool,
    /// Sessions at most, as the last instance said.
    pub(super) limit: usize,
    pub(super) instance: Option<Attached>,
    pub(super) sessions: HashMap<RequestId, Session, BuildHasherDefault<IdHasher>>,
    /// Those that are parked, the next to be sent first.
    pub(super) parked: BTreeSet<(Reverse<i32>, RequestId)>,
    /// Those with the instance, or leaving it.
    pub(super) sent: usize,
    /// The suspect that was sent.
    pub(super) on_trial: Option<RequestId>,
    pub(super) bytes: usize,
}

/// The instance that computes.
pub(super) struct Attached {
    pub(super) epoch: u32,
    pub(super) outbox: mpsc::Sender<ToWorker>,
    /// It takes no more: it is dying.
    pub(super) suspended: bool,
    pub(super) had_progress: bool,
}

/// Request ids are counted up: they need no hashing.
#[derive(Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        // Spread over the upper bits, by which the table tells entries apart (Fibonacci hashing).
        self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.0 = (self.0 << 8) | u64::from(byte));
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = id;
    }
}

impl Table {
    /// Whether an instance takes one more.
    pub(super) fn can_send(&self) -> bool {
        self.sent < self.limit
            && self.instance.as_ref().is_some_and(|i| !i.suspended && !i.outbox.is_closed())
    }

    /// Sends those that are parked while the instance takes them.
    pub(super) fn pump(&mut self, now: Instant) {
        if self.parked.is_empty() || !self.can_send() {
            return;
        }
        let Table { instance, sessions, parked, sent, on_trial, limit, .. } = self;
        let Some(instance) = instance else { return };
        parked.retain(|&(_, id)| {
            let Some(session) = sessions.get_mut(&id) else { return false };
            let waits_for_trial = session.is_suspect() && on_trial.is_some();
            if *sent >= *limit || waits_for_trial {
                return true;
            }
            let Some(submit) = session.submit(id) else { return true };
            if instance.outbox.try_send(ToWorker::Submit(submit)).is_err() {
                return true; // the writer is gone: the instance is dying
            }
            if session.is_suspect() {
                *on_trial = Some(id);
            }
            session.on_sent(now);
            *sent += 1;
            false
        });
    }

    pub(super) fn route(&mut self, event: TokenEvent, bytes_max: usize) {
        let id = event.id;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if event.finish.is_some() {
            session.end(event); // with a reader that is behind it sees the end
            return self.remove(id);
        }
        if session.place == Place::Leaving {
            return;
        }
        if session.is_behind() {
            let request_id = session.request_id();
            tracing::warn!(request = %id, request_id, "a reader fell too far behind and was cut off");
            return self.abort(id);
        }
        let is_token = event.sampled.is_some();
        let is_progress = is_token || !event.prompt_logprobs.is_empty();
        if !session.deliver(event) {
            return self.abort(id);
        }
        if is_progress {
            if let Some(instance) = &mut self.instance {
                instance.had_progress = true;
            }
            if self.on_trial == Some(id) {
                self.on_trial = None;
            }
            if is_token && session.has_journal() {
                self.bytes += 4;
                if self.bytes > bytes_max {
                    self.drop_journal(id);
                }
            }
        }
    }

    pub(super) fn drop_journal(&mut self, id: RequestId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            self.bytes -= session.bytes();
            session.drop_journal();
            self.bytes += session.bytes();
        }
    }

    /// Nobody reads this request any more.
    pub(super) fn abort(&mut self, id: RequestId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.hang_up();
        match session.place {
            Place::Leaving => {}
            Place::Parked => {
                self.parked.remove(&(Reverse(session.priority), id));
                self.remove(id);
            }
            Place::Sent { .. } => {
                session.place = Place::Leaving;
                if let Some(instance) = &self.instance {
                    let _ = instance.outbox.try_send(ToWorker::Abort(id));
                }
            }
        }
    }

    /// Ends a request that is no longer among those parked.
    pub(super) fn end(&mut self, id: RequestId, finish: Finish) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.end(last_event(id, finish));
        }
        self.remove(id);
    }

    pub(super) fn remove(&mut self, id: RequestId) {
        let Some(session) = self.sessions.remove(&id) else { return };
        self.bytes -= session.bytes();
        if session.place != Place::Parked {
            self.sent -= 1;
        }
        if self.on_trial == Some(id) {
            self.on_trial = None;
        }
    }

    /// Counts anew when no instance is left.
    pub(super) fn recount(&mut self) {
        self.sent = 0;
        self.on_trial = None;
        self.bytes = self.sessions.values().map(Session::bytes).sum();
        let parked = self.sessions.iter().map(|(&id, session)| (Reverse(session.priority), id));
        self.parked = parked.collect();
    }
}

/// An event that ends its request without a token.
pub(super) fn last_event(id: RequestId, finish: Finish) -> TokenEvent {
    TokenEvent {
        id,
        sampled: None,
        prompt_logprobs: Vec::new(),
        cached_tokens: None,
        queue_s: None,
        finish: Some(finish),
    }
}
