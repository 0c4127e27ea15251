//! Where the requests are kept, found by a key without hashing.
//!
//! Owns: the requests that have not ended. Must never: know whether they wait or run.

use std::ops::{Index, IndexMut};

use crate::request::Request;

/// Names a request for as long as it lives; a key that outlives it finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    index: u32,
    /// The request's arrival, unique.
    arrival: u64,
}

/// A slab of requests.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    entries: Vec<Option<Request>>,
    vacant: Vec<u32>,
}

impl Requests {
    pub(crate) fn insert(&mut self, request: Request) -> Key {
        let arrival = request.rank.arrival;
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.entries.push(None);
            (self.entries.len() - 1) as u32
        });
        self.entries[index as usize] = Some(request);
        Key { index, arrival }
    }

    /// `None` once it has ended.
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Request> {
        self.entries[key.index as usize].as_mut().filter(|r| r.rank.arrival == key.arrival)
    }

    /// `None` once it has ended.
    pub(crate) fn get(&self, key: Key) -> Option<&Request> {
        self.entries[key.index as usize].as_ref().filter(|r| r.rank.arrival == key.arrival)
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<Request> {
        self.get(key)?;
        self.vacant.push(key.index);
        self.entries[key.index as usize].take()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.vacant.len()
    }
}

/// For keys of requests that are known to live: those in the queue and those that run.
impl Index<Key> for Requests {
    type Output = Request;

    fn index(&self, key: Key) -> &Request {
        self.get(key).expect("a queued or running request has not ended")
    }
}

impl IndexMut<Key> for Requests {
    fn index_mut(&mut self, key: Key) -> &mut Request {
        self.get_mut(key).expect("a queued or running request has not ended")
    }
}
