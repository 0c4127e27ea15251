//! The sessions of one model: every request between `submit` and its last event, whichever instance computes it.
//!
//! ```text
//!                 attached, and there is room
//!   submit --> PARKED ----------------------> SENT --last event--> gone
//!                ^                             | |
//!                +--------- its instance died -+ | guard dropped, reader gone or too far behind
//!                                                v
//!                                             LEAVING --the instance's last event, or its death--> gone
//! ```
//!
//! A session keeps its prompt, its parameters and the tokens that were delivered. When its instance dies it is sent
//! to the next one with these, which goes on at the very next token: what is sampled depends on seed and position
//! alone. A token counts as delivered once it is in the reader's channel; what an instance sampled beyond that is
//! lost with it and sampled again.
//!
//! # A request that ends its instances
//!
//! Each end of an instance speaks against the requests that it had ([`Blame`]); a token delivered clears a request.
//! Those against which too much speaks are suspects. A sole suspect is given up. Of several, one at a time is sent
//! to the next instances, until it gets a token, ends, or ends the instance: then it is given up. All others go on.
//!
//! # Limits
//!
//! As many sessions as the model may have requests; none waits for an instance longer than a time that the
//! supervisor gives; all together keep so many bytes. A session for which there is no room is not kept, and fails
//! with its instance.
//!
//! The outbox cannot overflow by requests: a place among the sessions brings at most three frames into it (a late
//! `Abort` of the request before, `Submit`, `Abort`), because a request that was sent gives up its place only on an
//! answer to its `Submit`, which has then left the outbox with all frames before it.
//!
//! Owns: who waits for what. Must never: block.

mod session;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use minisgl_proto::admin::RequestStatus;
use minisgl_proto::{Finish, Generate, RequestId, ToWorker, TokenEvent};
use tokio::sync::mpsc;

pub(crate) use self::session::Blame;
use self::session::{Place, Session};

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
    /// The model takes no requests now.
    Closed,
    /// That many requests are there, and no more may be.
    Full(u32),
    /// No instance is there, and what waits for one is as much as may.
    NoRoom,
}

/// What became of the sessions of an instance that is gone.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Parked {
    /// They wait for the next one.
    pub(crate) waiting: usize,
    /// They ended with it, because what they need was not kept.
    pub(crate) lost: usize,
    /// They are taken for the cause.
    pub(crate) given_up: usize,
    /// The instance had brought requests forward.
    pub(crate) had_progress: bool,
}

/// All sessions of one model.
pub(crate) struct Sessions {
    model: String,
    /// Events that a reader may lie behind.
    buffer: usize,
    /// Bytes that all sessions may keep.
    bytes_max: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Whether new requests are welcome.
    open: bool,
    /// Sessions at most, as the last instance said.
    limit: usize,
    instance: Option<Attached>,
    sessions: HashMap<RequestId, Session, BuildHasherDefault<IdHasher>>,
    /// Those that are parked, the next to be sent first.
    parked: BTreeSet<(Reverse<i32>, RequestId)>,
    /// Those with the instance, or leaving it.
    sent: usize,
    /// The suspect that was sent.
    on_trial: Option<RequestId>,
    bytes: usize,
}

/// The instance that computes.
struct Attached {
    epoch: u32,
    outbox: mpsc::Sender<ToWorker>,
    /// It takes no more: it is dying.
    suspended: bool,
    had_progress: bool,
}

/// Request ids are counted up: they need no hashing.
#[derive(Default)]
struct IdHasher(u64);

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

impl Sessions {
    pub(crate) fn new(model: String, buffer: usize, bytes_max: usize) -> Self {
        Sessions { model, buffer: buffer.max(1), bytes_max, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An instance is ready: requests are welcome, `limit` at most, and those that wait are sent to it.
    pub(crate) fn attach(&self, epoch: u32, outbox: mpsc::Sender<ToWorker>, limit: u32) {
        let mut inner = self.lock();
        inner.limit = (limit as usize).min(requests_of(&outbox));
        inner.instance = Some(Attached { epoch, outbox, suspended: false, had_progress: false });
        inner.open = true;
        inner.pump(Instant::now());
    }

    /// The instance is dying: what it has sent still counts, and nothing more is sent to it.
    pub(crate) fn suspend(&self) {
        if let Some(instance) = &mut self.lock().instance {
            instance.suspended = true;
        }
    }

    /// The instance is gone: its requests wait for the next one. `why`, after "the worker", is how it ended.
    pub(crate) fn park(&self, blame: Blame, why: &str) -> Parked {
        let mut inner = self.lock();
        let had_progress = inner.instance.take().is_some_and(|instance| instance.had_progress);
        let mut parked = Parked { had_progress, ..Parked::default() };
        let now = Instant::now();
        let mut suspects = Vec::new();
        let mut over = Vec::new();
        for (&id, session) in &mut inner.sessions {
            match session.place {
                Place::Parked => {}
                Place::Leaving => over.push((id, None)),
                Place::Sent { .. } if !session.has_journal() => {
                    parked.lost += 1;
                    let why = format!(
                        "the worker {why}, and no room was left to keep what the request needs to go on; see \
                         [workers] park_bytes_max"
                    );
                    over.push((id, Some(why)));
                }
                Place::Sent { .. } => {
                    session.park(blame, now);
                    if session.is_suspect() {
                        suspects.push(id);
                    }
                }
            }
        }
        let culprit = match (inner.on_trial.take(), &suspects[..]) {
            _ if blame == Blame::None => None,
            (Some(on_trial), _) if suspects.contains(&on_trial) => Some(on_trial),
            (_, [sole]) => Some(*sole),
            _ => None,
        };
        if let Some(id) = culprit {
            parked.given_up = 1;
            let why = format!(
                "the worker {why}, as did the one before while it had this request: the request is given up"
            );
            over.push((id, Some(why)));
        }
        for (id, reason) in over {
            if let Some(mut session) = inner.sessions.remove(&id)
                && let Some(reason) = reason
            {
                session.end(last_event(id, Finish::Failed(reason)));
            }
        }
        inner.recount();
        parked.waiting = inner.parked.len();
        parked
    }

    /// New requests are refused and those without an instance end; those with one go on.
    pub(crate) fn close(&self, reason: &str) {
        let mut inner = self.lock();
        inner.open = false;
        while let Some((_, id)) = inner.parked.pop_first() {
            inner.end(id, Finish::Failed(reason.to_string()));
        }
    }

    /// The model is given up: every request fails now. Returns how many there were.
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
        inner.instance = None;
        let sessions = std::mem::take(&mut inner.sessions);
        inner.recount();
        let count = sessions.len();
        for (id, mut session) in sessions {
            session.end(last_event(id, finish.clone()));
        }
        count
    }

    /// Ends those that have waited for an instance for longer than `patience`. Returns how many.
    pub(crate) fn expire(&self, patience: Duration) -> usize {
        let now = Instant::now();
        let mut inner = self.lock();
        let late = |(_, id): &&(Reverse<i32>, RequestId)| {
            inner.sessions.get(id).is_some_and(|session| session.waited(now) > patience)
        };
        let late: Vec<_> = inner.parked.iter().filter(late).copied().collect();
        for entry in &late {
            inner.parked.remove(entry);
            let seconds = patience.as_secs_f64();
            let why = format!(
                "model \"{}\" had no worker for this request for {seconds:.0} s; retry later",
                self.model
            );
            inner.end(entry.1, Finish::Failed(why));
        }
        late.len()
    }

    /// Requests that have not ended.
    pub(crate) fn in_flight(&self) -> usize {
        self.lock().sessions.len()
    }

    /// Those that an instance has.
    pub(crate) fn sent(&self) -> usize {
        self.lock().sent
    }

    /// Those that wait for an instance.
    pub(crate) fn parked(&self) -> usize {
        self.lock().parked.len()
    }

    /// Each of them, by age.
    pub(crate) fn list(&self) -> Vec<RequestStatus> {
        let now = Instant::now();
        let inner = self.lock();
        let statuses = inner.sessions.iter();
        let mut statuses: Vec<RequestStatus> =
            statuses.filter_map(|(&id, session)| session.status(id, &self.model, now)).collect();
        drop(inner);
        statuses.sort_unstable_by_key(|status| status.id);
        statuses
    }

    /// Takes a request; it is sent to the instance at once if there is one. Never blocks.
    pub(crate) fn submit(
        self: &Arc<Self>,
        id: RequestId,
        request: Generate,
    ) -> Result<(mpsc::Receiver<TokenEvent>, AbortGuard), Refused> {
        let now = Instant::now();
        let (sender, receiver) = mpsc::channel(self.buffer + 1); // one for the last event
        let session = Session::new(request, sender, now);
        let mut inner = self.lock();
        if !inner.open {
            return Err(Refused::Closed);
        }
        if inner.sessions.len() >= inner.limit {
            return Err(Refused::Full(u32::try_from(inner.limit).unwrap_or(u32::MAX)));
        }
        let has_room = inner.bytes + session.bytes() <= self.bytes_max;
        let can_send = inner.parked.is_empty() && inner.can_send();
        if !has_room && !can_send {
            return Err(Refused::NoRoom);
        }
        inner.bytes += session.bytes();
        inner.parked.insert((Reverse(session.priority), id));
        inner.sessions.insert(id, session);
        inner.pump(now);
        if !has_room && inner.parked.is_empty() {
            inner.drop_journal(id);
        }
        Ok((receiver, AbortGuard { id, sessions: Arc::clone(self) }))
    }

    /// Hands out what a step of the instance `epoch` brought; a reader that lies too far behind is cut off. What
    /// an instance says that is not the one attached is not heard.
    pub(crate) fn route(&self, epoch: u32, events: Vec<TokenEvent>) {
        let mut inner = self.lock();
        if inner.instance.as_ref().is_none_or(|instance| instance.epoch != epoch) {
            return;
        }
        for event in events {
            inner.route(event, self.bytes_max);
        }
        inner.pump(Instant::now());
    }

    /// Ends a request that cannot be sent to the instance `epoch`.
    pub(crate) fn refuse(&self, epoch: u32, id: RequestId, reason: String) {
        self.route(epoch, vec![last_event(id, Finish::Failed(reason))]);
    }

    /// Ends the requests of this number or of this id of the client's, in the operator's name. Returns how many.
    pub(crate) fn cancel(&self, id: &str) -> usize {
        let mut inner = self.lock();
        let number = id.parse().ok().map(RequestId);
        let matches = |(own, session): &(&RequestId, &Session)| {
            let is_named = number == Some(**own) || session.request_id() == id;
            is_named && session.place != Place::Leaving
        };
        let ids: Vec<RequestId> =
            inner.sessions.iter().filter(matches).map(|(&id, _)| id).collect();
        for &id in &ids {
            if let Some(session) = inner.sessions.get_mut(&id) {
                session.end(last_event(id, Finish::Aborted));
            }
            inner.abort(id);
        }
        ids.len()
    }
}

impl Inner {
    /// Whether an instance takes one more.
    fn can_send(&self) -> bool {
        self.sent < self.limit
            && self.instance.as_ref().is_some_and(|i| !i.suspended && !i.outbox.is_closed())
    }

    /// Sends those that are parked while the instance takes them.
    fn pump(&mut self, now: Instant) {
        if self.parked.is_empty() || !self.can_send() {
            return;
        }
        let Inner { instance, sessions, parked, sent, on_trial, limit, .. } = self;
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

    fn route(&mut self, event: TokenEvent, bytes_max: usize) {
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

    fn drop_journal(&mut self, id: RequestId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            self.bytes -= session.bytes();
            session.drop_journal();
            self.bytes += session.bytes();
        }
    }

    /// Nobody reads this request any more.
    fn abort(&mut self, id: RequestId) {
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
    fn end(&mut self, id: RequestId, finish: Finish) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.end(last_event(id, finish));
        }
        self.remove(id);
    }

    fn remove(&mut self, id: RequestId) {
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
    fn recount(&mut self) {
        self.sent = 0;
        self.on_trial = None;
        self.bytes = self.sessions.values().map(Session::bytes).sum();
        let parked = self.sessions.iter().map(|(&id, session)| (Reverse(session.priority), id));
        self.parked = parked.collect();
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

/// Aborts its request when it is dropped, unless the request has ended.
pub struct AbortGuard {
    id: RequestId,
    sessions: Arc<Sessions>,
}

impl std::fmt::Debug for AbortGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AbortGuard").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Drop for AbortGuard {
    fn drop(&mut self) {
        let mut inner = self.sessions.lock();
        inner.abort(self.id);
        inner.pump(Instant::now());
    }
}
