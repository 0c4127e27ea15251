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
mod table;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use minisgl_proto::admin::RequestStatus;
use minisgl_proto::{Finish, Generate, RequestId, ToWorker, TokenEvent};
use tokio::sync::mpsc;

pub(crate) use self::session::Blame;
use self::session::{Place, Session};
use self::table::{Attached, Table, last_event};

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
    table: Mutex<Table>,
}

impl Sessions {
    pub(crate) fn new(model: String, buffer: usize, bytes_max: usize) -> Self {
        Sessions { model, buffer: buffer.max(1), bytes_max, table: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An instance is ready: requests are welcome, `limit` at most, and those that wait are sent to it.
    pub(crate) fn attach(&self, epoch: u32, outbox: mpsc::Sender<ToWorker>, limit: u32) {
        let mut table = self.lock();
        table.limit = (limit as usize).min(requests_of(&outbox));
        table.instance = Some(Attached { epoch, outbox, suspended: false, had_progress: false });
        table.open = true;
        table.pump(Instant::now());
    }

    /// The instance is dying: what it has sent still counts, and nothing more is sent to it.
    pub(crate) fn suspend(&self) {
        if let Some(instance) = &mut self.lock().instance {
            instance.suspended = true;
        }
    }

    /// The instance is gone: its requests wait for the next one. `why`, after "the worker", is how it ended.
    pub(crate) fn park(&self, blame: Blame, why: &str) -> Parked {
        let mut table = self.lock();
        let had_progress = table.instance.take().is_some_and(|instance| instance.had_progress);
        let mut parked = Parked { had_progress, ..Parked::default() };
        let now = Instant::now();
        let mut suspects = Vec::new();
        let mut over = Vec::new();
        for (&id, session) in &mut table.sessions {
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
        let culprit = match (table.on_trial.take(), &suspects[..]) {
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
            if let Some(mut session) = table.sessions.remove(&id)
                && let Some(reason) = reason
            {
                session.end(last_event(id, Finish::Failed(reason)));
            }
        }
        table.recount();
        parked.waiting = table.parked.len();
        parked
    }

    /// New requests are refused and those without an instance end; those with one go on.
    pub(crate) fn close(&self, reason: &str) {
        let mut table = self.lock();
        table.open = false;
        while let Some((_, id)) = table.parked.pop_first() {
            table.end(id, Finish::Failed(reason.to_string()));
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
        let mut table = self.lock();
        table.open = false;
        table.instance = None;
        let sessions = std::mem::take(&mut table.sessions);
        table.recount();
        let count = sessions.len();
        for (id, mut session) in sessions {
            session.end(last_event(id, finish.clone()));
        }
        count
    }

    /// Ends those that have waited for an instance for longer than `patience`. Returns how many.
    pub(crate) fn expire(&self, patience: Duration) -> usize {
        self.expire_at(patience, Instant::now())
    }

    fn expire_at(&self, patience: Duration, now: Instant) -> usize {
        let mut table = self.lock();
        let late = |(_, id): &&(Reverse<i32>, RequestId)| {
            table.sessions.get(id).is_some_and(|session| session.waited(now) > patience)
        };
        let late: Vec<_> = table.parked.iter().filter(late).copied().collect();
        for entry in &late {
            table.parked.remove(entry);
            let seconds = patience.as_secs_f64();
            let why = format!(
                "model \"{}\" had no worker for this request for {seconds:.0} s; retry later",
                self.model
            );
            table.end(entry.1, Finish::Failed(why));
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
        let table = self.lock();
        let statuses = table.sessions.iter();
        let mut statuses: Vec<RequestStatus> =
            statuses.filter_map(|(&id, session)| session.status(id, &self.model, now)).collect();
        drop(table);
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
        let mut table = self.lock();
        if !table.open {
            return Err(Refused::Closed);
        }
        if table.sessions.len() >= table.limit {
            return Err(Refused::Full(u32::try_from(table.limit).unwrap_or(u32::MAX)));
        }
        let has_room = table.bytes + session.bytes() <= self.bytes_max;
        let can_send = table.parked.is_empty() && table.can_send();
        if !has_room && !can_send {
            return Err(Refused::NoRoom);
        }
        table.bytes += session.bytes();
        table.parked.insert((Reverse(session.priority), id));
        table.sessions.insert(id, session);
        table.pump(now);
        if !has_room && table.parked.is_empty() {
            table.drop_journal(id);
        }
        Ok((receiver, AbortGuard { id, sessions: Arc::clone(self) }))
    }

    /// Hands out what a step of the instance `epoch` brought; a reader that lies too far behind is cut off. What
    /// an instance says that is not the one attached is not heard.
    pub(crate) fn route(&self, epoch: u32, events: Vec<TokenEvent>) {
        let mut table = self.lock();
        if table.instance.as_ref().is_none_or(|instance| instance.epoch != epoch) {
            return;
        }
        for event in events {
            table.route(event, self.bytes_max);
        }
        table.pump(Instant::now());
    }

    /// Ends a request that cannot be sent to the instance `epoch`.
    pub(crate) fn refuse(&self, epoch: u32, id: RequestId, reason: String) {
        self.route(epoch, vec![last_event(id, Finish::Failed(reason))]);
    }

    /// Ends the requests of this number or of this id of the client's, in the operator's name. Returns how many.
    pub(crate) fn cancel(&self, id: &str) -> usize {
        let number = id.parse().ok().map(RequestId);
        self.abort_where(|own, session| number == Some(own) || session.request_id() == id)
    }

    /// Ends the requests that came with the API key of this name, and with this id if there is one. Returns how many.
    pub(crate) fn abort_of(&self, key: Option<&str>, id: Option<&str>) -> usize {
        self.abort_where(|_, session| {
            session.key() == key && id.is_none_or(|id| session.request_id() == id)
        })
    }

    fn abort_where(&self, matches: impl Fn(RequestId, &Session) -> bool) -> usize {
        let mut table = self.lock();
        let is_meant = |(own, session): &(&RequestId, &Session)| {
            session.place != Place::Leaving && matches(**own, session)
        };
        let ids: Vec<RequestId> =
            table.sessions.iter().filter(is_meant).map(|(&id, _)| id).collect();
        for &id in &ids {
            if let Some(session) = table.sessions.get_mut(&id) {
                session.end(last_event(id, Finish::Aborted));
            }
            table.abort(id);
        }
        ids.len()
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
        let mut table = self.sessions.lock();
        table.abort(self.id);
        table.pump(Instant::now());
    }
}
