//! Responses that are there for later requests, and those that are being generated.
//!
//! ```text
//!   begin -> running, its input is held -> Ticket::keep -> kept -> used least recently, too old or deleted: gone
//! ```
//!
//! Owns: how many are kept, how large, how long, and for whom: a response belongs to the [`Owner`] that made it, and
//! nobody else hears of it. Memory alone: a restart forgets all. Must never: read what it keeps; let one owner drive out
//! what others with less have.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::error::ApiError;
use crate::keys::Owner;
use crate::wire::Halt;

/// Responses that are kept, at most.
pub const RESPONSES_MAX: usize = 1_000;
/// Bytes of all of them, and of the inputs of those that are being generated and will be kept.
pub const BYTES_MAX: usize = 64 << 20;
/// Bytes of one conversation, with its answer.
pub const CONVERSATION_BYTES_MAX: usize = 4 << 20;
/// Time since the last use after which one is forgotten.
pub const AGE_MAX: Duration = Duration::from_secs(3600);

/// All of them.
#[derive(Default)]
pub struct Store(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    kept: HashMap<String, Kept>,
    /// Ids by their last use.
    uses: BTreeMap<u64, String>,
    next_use: u64,
    /// Of all owners.
    bytes: usize,
    owners: HashMap<Owner, Owned>,
    running: HashMap<String, Running>,
}

/// What an owner has here; those that have nothing are not listed.
#[derive(Default)]
struct Owned {
    /// The uses that are theirs.
    uses: BTreeSet<u64>,
    /// Of what is kept, and of the inputs of those that run.
    bytes: usize,
}

struct Kept {
    owner: Owner,
    used_at: Instant,
    /// Its place in `uses`.
    used: u64,
    answer: Arc<Answered>,
}

/// One that is over.
#[derive(Debug, PartialEq, Eq)]
pub struct Answered {
    /// JSON of the response.
    pub response: String,
    /// JSON of a list of items: all that the model was given.
    pub input: String,
    /// JSON of a list of items: what it said.
    pub output: String,
}

/// What is known of one before it is over.
pub trait Begun: Send + Sync {
    /// Its id.
    fn id(&self) -> &str;

    /// JSON of the response so far, or as it was cancelled.
    fn json(&self, is_cancelled: bool) -> Vec<u8>;
}

struct Running {
    owner: Owner,
    begun: Arc<dyn Begun>,
    halt: Option<oneshot::Sender<()>>,
    /// If it is to be kept.
    input: Option<String>,
    is_deleted: bool,
}

impl Running {
    fn is_of(&self, owner: &Owner) -> bool {
        self.owner == *owner && !self.is_deleted
    }
}

/// One that is being generated, as long as this is held.
pub struct Ticket {
    store: Arc<Store>,
    id: String,
}

impl Ticket {
    /// Whether it is to be kept.
    pub fn is_kept(&self) -> bool {
        self.store.inner().running.get(&self.id).is_some_and(|running| running.input.is_some())
    }

    /// It is over, and kept from the same moment on: JSON of the response, and of what was said. One that was to be kept,
    /// and was not deleted meanwhile; those that were used least recently give way.
    pub fn keep(self, response: String, output: String) {
        let mut inner = self.store.inner();
        if let Some((owner, Some(input))) = inner.end(&self.id) {
            inner.keep(&self.id, owner, Answered { response, input, output });
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.store.inner().end(&self.id);
    }
}

impl Store {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One is being generated, with the JSON of its input if it is to be kept. `begun` is told whether it will be: not if
    /// there is no room for its input. What comes back last receives when it is to end.
    pub fn begin<B: Begun + 'static>(
        self: &Arc<Store>,
        owner: Owner,
        input: Option<String>,
        begun: impl FnOnce(bool) -> B,
    ) -> (Arc<B>, Ticket, Halt) {
        let (sender, halt) = oneshot::channel();
        let mut inner = self.inner();
        let input = input.filter(|input| inner.reserve(&owner, input.len()));
        let begun = Arc::new(begun(input.is_some()));
        let id = begun.id().to_owned();
        let own = Arc::clone(&begun) as Arc<dyn Begun>;
        let running = Running { owner, begun: own, halt: Some(sender), input, is_deleted: false };
        inner.running.insert(id.clone(), running);
        (begun, Ticket { store: Arc::clone(self), id }, halt)
    }

    /// One that is over.
    ///
    /// # Errors
    /// 404: it is not there, or another's.
    pub fn find(&self, id: &str, owner: &Owner) -> Result<Arc<Answered>, ApiError> {
        self.inner().find(id, owner).ok_or_else(|| gone(id))
    }

    /// Forgets one. One that is being generated goes on, and is not kept.
    ///
    /// # Errors
    /// As for [`Store::find`].
    pub fn forget(&self, id: &str, owner: &Owner) -> Result<(), ApiError> {
        let mut inner = self.inner();
        if let Some(running) = inner.running.get_mut(id).filter(|it| it.is_of(owner)) {
            running.is_deleted = true;
            if let Some(input) = running.input.take() {
                inner.release(owner, input.len());
            }
            return Ok(());
        }
        inner.find(id, owner).ok_or_else(|| gone(id))?;
        inner.remove(id);
        Ok(())
    }

    /// JSON of one that is being generated.
    pub fn running(&self, id: &str, owner: &Owner) -> Option<Vec<u8>> {
        let inner = self.inner();
        let running = inner.running.get(id).filter(|it| it.is_of(owner))?;
        Some(running.begun.json(running.halt.is_none()))
    }

    /// Ends one that is being generated. Its JSON.
    ///
    /// # Errors
    /// 400: it is over; 404: as for [`Store::find`].
    pub fn cancel(&self, id: &str, owner: &Owner) -> Result<Vec<u8>, ApiError> {
        let mut inner = self.inner();
        if let Some(running) = inner.running.get_mut(id).filter(|it| it.is_of(owner)) {
            if let Some(halt) = running.halt.take() {
                // Whoever is gone has ended already.
                let _ = halt.send(());
            }
            return Ok(running.begun.json(true));
        }
        inner.find(id, owner).ok_or_else(|| gone(id))?;
        let text = format!("the response \"{}\" is over; there is nothing to cancel", short(id));
        Err(ApiError::field("response_id", text))
    }

    /// Keeps one as if it had been generated.
    #[cfg(test)]
    pub fn keep(&self, id: &str, owner: Owner, answer: Answered) {
        self.inner().keep(id, owner, answer);
    }
}

impl Answered {
    fn bytes(&self) -> usize {
        self.response.len() + self.input.len() + self.output.len()
    }
}

impl Inner {
    fn hold(&mut self, owner: &Owner, bytes: usize) {
        self.bytes += bytes;
        self.owners.entry(owner.clone()).or_default().bytes += bytes;
    }

    fn release(&mut self, owner: &Owner, bytes: usize) {
        self.bytes -= bytes;
        let Some(owned) = self.owners.get_mut(owner) else { return };
        owned.bytes -= bytes;
        if owned.bytes == 0 && owned.uses.is_empty() {
            self.owners.remove(owner);
        }
    }

    /// Holds so many bytes, unless there is no room.
    fn reserve(&mut self, owner: &Owner, bytes: usize) -> bool {
        self.hold(owner, bytes);
        let fits = self.make_room(owner);
        if !fits {
            self.release(owner, bytes);
            tracing::debug!(bytes, "there is no room to keep a response");
        }
        fits
    }

    /// One is no longer being generated; whose it was, and its input if it is to be kept.
    fn end(&mut self, id: &str) -> Option<(Owner, Option<String>)> {
        let Running { owner, input, .. } = self.running.remove(id)?;
        if let Some(input) = &input {
            self.release(&owner, input.len());
        }
        Some((owner, input))
    }

    fn keep(&mut self, id: &str, owner: Owner, answer: Answered) {
        let bytes = answer.bytes();
        if bytes > 3 * CONVERSATION_BYTES_MAX {
            tracing::debug!(bytes, "a response is too large to be kept");
            return;
        }
        self.remove(id);
        let used = self.stamp(id, &owner);
        self.hold(&owner, bytes);
        let (own, answer) = (owner.clone(), Arc::new(answer));
        let kept = Kept { owner: own, used_at: Instant::now(), used, answer };
        self.kept.insert(id.to_owned(), kept);
        if !self.make_room(&owner) {
            tracing::debug!(bytes, "there is no room to keep a response");
            self.remove(id);
        }
    }

    fn stamp(&mut self, id: &str, owner: &Owner) -> u64 {
        let used = self.next_use;
        self.next_use += 1;
        self.uses.insert(used, id.to_owned());
        self.owners.entry(owner.clone()).or_default().uses.insert(used);
        used
    }

    fn unstamp(&mut self, used: u64, owner: &Owner) {
        self.uses.remove(&used);
        if let Some(owned) = self.owners.get_mut(owner) {
            owned.uses.remove(&used);
        }
    }

    fn find(&mut self, id: &str, owner: &Owner) -> Option<Arc<Answered>> {
        self.forget_old();
        self.kept.get(id).filter(|kept| kept.owner == *owner)?;
        let used = self.stamp(id, owner);
        let kept = self.kept.get_mut(id)?;
        let before = std::mem::replace(&mut kept.used, used);
        kept.used_at = Instant::now();
        let answer = Arc::clone(&kept.answer);
        self.unstamp(before, owner);
        Some(answer)
    }

    fn remove(&mut self, id: &str) {
        if let Some(kept) = self.kept.remove(id) {
            self.unstamp(kept.used, &kept.owner);
            self.release(&kept.owner, kept.answer.bytes());
        }
    }

    fn forget_old(&mut self) {
        while let Some((_, id)) = self.uses.first_key_value() {
            if self.kept.get(id).is_some_and(|kept| kept.used_at.elapsed() < AGE_MAX) {
                return;
            }
            if let Some((_, id)) = self.uses.pop_first() {
                self.remove(&id);
            }
        }
    }

    /// Forgets what is too old and, as long as there is too much, what was used least recently by whoever has most. Whether
    /// that is enough: nobody gives way to `asker` who has less.
    fn make_room(&mut self, asker: &Owner) -> bool {
        self.forget_old();
        while self.kept.len() > RESPONSES_MAX {
            let Some((_, id)) = self.most(|owned| owned.uses.len()) else { break };
            self.remove(&id);
        }
        while self.bytes > BYTES_MAX {
            let Some((owner, id)) = self.most(|owned| owned.bytes) else { return false };
            let bytes_of = |owner| self.owners.get(owner).map_or(0, |owned| owned.bytes);
            if bytes_of(&owner) < bytes_of(asker) {
                return false;
            }
            self.remove(&id);
        }
        true
    }

    /// Who has most, of those of whom something is kept, and which of it they used least recently.
    fn most(&self, amount: impl Fn(&Owned) -> usize) -> Option<(Owner, String)> {
        let first = |owned: &Owned| owned.uses.first().copied();
        let kept =
            self.owners.iter().filter_map(|(owner, owned)| Some((owner, owned, first(owned)?)));
        let (owner, _, used) =
            kept.max_by_key(|(_, owned, used)| (amount(owned), Reverse(*used)))?;
        Some((owner.clone(), self.uses.get(&used)?.clone()))
    }
}

fn short(id: &str) -> String {
    id.chars().take(80).collect()
}

/// 404.
fn gone(id: &str) -> ApiError {
    let text = format!(
        "there is no response \"{}\": it was not stored (store: false, too large, or no room), was deleted, or is forgotten: of those that \
         were not used for an hour, or before the last {RESPONSES_MAX} or {} MiB, and before a restart, none is kept; send the \
         whole conversation as input",
        short(id),
        BYTES_MAX >> 20
    );
    ApiError::new(StatusCode::NOT_FOUND, text).with_code("response_not_found")
}

#[cfg(test)]
mod tests;
