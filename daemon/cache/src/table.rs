//! The page table of one request, and the mailbox that carries its release back to the cache.
//!
//! Owns: the pin on a prefix and the private pages behind it, for as long as the table lives. Must
//! never: reach into the cache. A drop only posts what is to be released; the cache settles the
//! mailbox before each of its operations, so tables may be dropped anywhere, even after the cache.

use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::PageId;
use crate::tree::NodeId;

/// The pages of one token sequence, in the order of positions: position `p` lives in page
/// `pages()[p / page_size]`.
///
/// ```text
///   pages     [ 7  9  12  30 | 4  5 ]
///               in the tree,   owned: only this
///               pinned         request writes them
/// ```
#[derive(Debug)]
pub struct PageTable {
    pub(crate) pages: Vec<PageId>,
    /// How many of `pages`, from the front, are in the tree.
    pub(crate) shared: usize,
    /// The node at which the shared part ends.
    pub(crate) node: NodeId,
    pub(crate) mailbox: Arc<Mailbox>,
}

impl PageTable {
    /// Every page, in the order of positions.
    pub fn pages(&self) -> &[PageId] {
        &self.pages
    }

    /// How many pages, from the front, are in the tree. They must not be written any more.
    pub fn shared_pages(&self) -> usize {
        self.shared
    }
}

impl Drop for PageTable {
    fn drop(&mut self) {
        let mut pages = mem::take(&mut self.pages);
        pages.drain(..self.shared);
        self.mailbox.post(Release { node: self.node, owned: pages });
    }
}

/// What a dropped table held.
#[derive(Debug)]
pub(crate) struct Release {
    pub(crate) node: NodeId,
    pub(crate) owned: Vec<PageId>,
}

/// Releases on their way to the cache; at most one for each table ever given out and not settled.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    /// Lets the cache see at the cost of one load that there is nothing to settle.
    any: AtomicBool,
    posts: Mutex<Vec<Release>>,
}

impl Mailbox {
    fn post(&self, release: Release) {
        self.posts.lock().unwrap_or_else(PoisonError::into_inner).push(release);
        self.any.store(true, Ordering::Release);
    }

    /// Swaps what has been posted into `out`, which must be empty. False when there is nothing.
    pub(crate) fn collect(&self, out: &mut Vec<Release>) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        self.any.store(false, Ordering::Relaxed);
        mem::swap(out, &mut self.posts.lock().unwrap_or_else(PoisonError::into_inner));
        true
    }
}
