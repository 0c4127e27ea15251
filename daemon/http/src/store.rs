//! Responses that are there for later requests, and those that are being generated.
//!
//! Owns: how many are kept, how large, how long, and for whom: a response belongs to the API key that made it, and
//! nobody else hears of it. Memory alone: a restart forgets all. Must never: read what it keeps.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::error::ApiError;
use crate::wire::Halt;

/// Responses that are kept, at most.
pub const RESPONSES_MAX: usize = 1_000;
/// Bytes of all of them.
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
    bytes: usize,
    running: HashMap<String, Running>,
}

struct Kept {
    owner: Option<String>,
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
    owner: Option<String>,
    begun: Arc<dyn Begun>,
    halt: Option<oneshot::Sender<()>>,
}

/// One that is being generated, as long as this is held.
pub struct Ticket {
    store: Arc<Store>,
    id: String,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.store.inner().running.remove(&self.id);
    }
}

impl Store {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One is being generated; what comes back receives when it is to end.
    pub fn begin(
        self: &Arc<Store>,
        owner: Option<String>,
        begun: Arc<dyn Begun>,
    ) -> (Ticket, Halt) {
        let (sender, halt) = oneshot::channel();
        let id = begun.id().to_owned();
        let running = Running { owner, begun, halt: Some(sender) };
        self.inner().running.insert(id.clone(), running);
        (Ticket { store: Arc::clone(self), id }, halt)
    }

    /// Keeps one. Those that were used least recently give way.
    pub fn keep(&self, id: &str, owner: Option<String>, answer: Answered) {
        let bytes = answer.bytes();
        if bytes > 3 * CONVERSATION_BYTES_MAX {
            tracing::debug!(bytes, "a response is too large to be kept");
            return;
        }
        let mut inner = self.inner();
        inner.remove(id);
        let used = inner.stamp(id);
        let kept = Kept { owner, used_at: Instant::now(), used, answer: Arc::new(answer) };
        inner.kept.insert(id.to_owned(), kept);
        inner.bytes += bytes;
        inner.prune();
    }

    /// One that is over.
    ///
    /// # Errors
    /// 404: it is not there, or another key's.
    pub fn find(&self, id: &str, key: Option<&str>) -> Result<Arc<Answered>, ApiError> {
        self.inner().find(id, key).ok_or_else(|| gone(id))
    }

    /// Forgets one.
    ///
    /// # Errors
    /// As for [`Store::find`].
    pub fn forget(&self, id: &str, key: Option<&str>) -> Result<(), ApiError> {
        let mut inner = self.inner();
        inner.find(id, key).ok_or_else(|| gone(id))?;
        inner.remove(id);
        Ok(())
    }

    /// JSON of one that is being generated.
    pub fn running(&self, id: &str, key: Option<&str>) -> Option<Vec<u8>> {
        let inner = self.inner();
        let running = inner.running.get(id).filter(|it| it.owner.as_deref() == key)?;
        Some(running.begun.json(running.halt.is_none()))
    }

    /// Ends one that is being generated. Its JSON.
    ///
    /// # Errors
    /// 400: it is over; 404: as for [`Store::find`].
    pub fn cancel(&self, id: &str, key: Option<&str>) -> Result<Vec<u8>, ApiError> {
        let mut inner = self.inner();
        let running = inner.running.get_mut(id).filter(|it| it.owner.as_deref() == key);
        if let Some(running) = running {
            if let Some(halt) = running.halt.take() {
                // Whoever is gone has ended already.
                let _ = halt.send(());
            }
            return Ok(running.begun.json(true));
        }
        inner.find(id, key).ok_or_else(|| gone(id))?;
        let text = format!("the response \"{}\" is over; there is nothing to cancel", short(id));
        Err(ApiError::field("response_id", text))
    }
}

impl Answered {
    fn bytes(&self) -> usize {
        self.response.len() + self.input.len() + self.output.len()
    }
}

impl Inner {
    fn stamp(&mut self, id: &str) -> u64 {
        let used = self.next_use;
        self.next_use += 1;
        self.uses.insert(used, id.to_owned());
        used
    }

    fn find(&mut self, id: &str, key: Option<&str>) -> Option<Arc<Answered>> {
        self.prune();
        self.kept.get(id).filter(|kept| kept.owner.as_deref() == key)?;
        let used = self.stamp(id);
        let kept = self.kept.get_mut(id)?;
        let before = std::mem::replace(&mut kept.used, used);
        kept.used_at = Instant::now();
        let answer = Arc::clone(&kept.answer);
        self.uses.remove(&before);
        Some(answer)
    }

    fn remove(&mut self, id: &str) {
        if let Some(kept) = self.kept.remove(id) {
            self.uses.remove(&kept.used);
            self.bytes -= kept.answer.bytes();
        }
    }

    /// Forgets what is too old, and the oldest as long as there is too much.
    fn prune(&mut self) {
        while let Some((_, id)) = self.uses.first_key_value() {
            let is_old = self.kept.get(id).is_none_or(|kept| kept.used_at.elapsed() >= AGE_MAX);
            if !is_old && self.kept.len() <= RESPONSES_MAX && self.bytes <= BYTES_MAX {
                return;
            }
            if let Some((_, id)) = self.uses.pop_first() {
                self.remove(&id);
            }
        }
    }
}

fn short(id: &str) -> String {
    id.chars().take(80).collect()
}

/// 404.
fn gone(id: &str) -> ApiError {
    let text = format!(
        "there is no response \"{}\": it was not stored (store: false, or too large), was deleted, or is forgotten: of those that \
         were not used for an hour, or before the last {RESPONSES_MAX} or {} MiB, and before a restart, none is kept; send the \
         whole conversation as input",
        short(id),
        BYTES_MAX >> 20
    );
    ApiError::new(StatusCode::NOT_FOUND, text).with_code("response_not_found")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(store: &Store, id: &str, key: Option<&str>, bytes: usize) {
        let answer =
            Answered { response: "r".repeat(bytes), input: String::new(), output: String::new() };
        store.keep(id, key.map(str::to_owned), answer);
    }

    fn has(store: &Store, id: &str) -> bool {
        store.inner().kept.contains_key(id)
    }

    fn check(store: &Store) {
        let inner = store.inner();
        assert_eq!(inner.uses.len(), inner.kept.len());
        assert_eq!(inner.bytes, inner.kept.values().map(|kept| kept.answer.bytes()).sum::<usize>());
        for (used, id) in &inner.uses {
            assert_eq!(inner.kept[id].used, *used);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_used_for_an_hour_is_gone() {
        let store = Store::default();
        keep(&store, "a", None, 1);
        keep(&store, "b", None, 1);
        tokio::time::advance(AGE_MAX / 2).await;
        store.find("a", None).unwrap();
        tokio::time::advance(AGE_MAX / 2).await;
        assert!(store.find("a", None).is_ok());
        let error = store.find("b", None).unwrap_err();
        assert_eq!((error.status.as_u16(), error.code), (404, Some("response_not_found")));
        assert!(!has(&store, "b"), "its memory is free");
        check(&store);
    }

    #[tokio::test]
    async fn what_was_used_least_recently_gives_way() {
        let store = Store::default();
        for number in 0..RESPONSES_MAX {
            keep(&store, &number.to_string(), None, 1);
        }
        store.find("0", None).unwrap();
        keep(&store, "new", None, 1);
        assert!(has(&store, "0") && has(&store, "new") && !has(&store, "1"));
        check(&store);
        let store = Store::default();
        let large = 3 * CONVERSATION_BYTES_MAX;
        for number in 0..BYTES_MAX / large {
            keep(&store, &number.to_string(), None, large);
        }
        assert!(has(&store, "0"));
        keep(&store, "new", None, large);
        assert!(!has(&store, "0") && has(&store, "1") && has(&store, "new"));
        keep(&store, "huge", None, large + 1);
        assert!(!has(&store, "huge") && has(&store, "1"));
        keep(&store, "new", None, 1);
        check(&store);
    }

    #[tokio::test]
    async fn another_key_hears_nothing() {
        let store = Store::default();
        keep(&store, "a", Some("alice"), 1);
        for key in [None, Some("bob")] {
            assert_eq!(store.find("a", key).unwrap_err(), gone("a"));
            assert_eq!(store.forget("a", key).unwrap_err(), gone("a"));
            assert_eq!(store.cancel("a", key).map(|_| ()).unwrap_err(), gone("a"));
        }
        assert_eq!(store.cancel("a", Some("alice")).map(|_| ()).unwrap_err().status, 400);
        store.forget("a", Some("alice")).unwrap();
        assert!(store.find("a", Some("alice")).is_err());
        check(&store);
    }
}
