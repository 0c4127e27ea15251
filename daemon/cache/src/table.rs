//! The page table of one request, and the mailbox that carries its release back to the cache.
//!
//! Owns: the pin on a prefix and the private pages behind it, for as long as the table lives. Must
//! never: reach into the cache. A drop only posts what is to be released; the cache settles the
//! mailbox before each of its operations, so tables may be dropped anywhere, even after the cache.

use std::mem;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::columns::GONE;
use crate::{NodeId, PageId};

/// The pages of one token sequence, in the order of positions: position `p` lives in page
/// `pages()[p / page_size]`, and for the layers of window group `g` in page `group(g)[p / page_size]`.
///
/// ```text
///   pages     [ 7  9  12  30 | 4  5 ]
///               in the tree,   owned: only this
///               pinned         request writes them
///   group(1)  [ -  -  40   8 | 2  6 ]
///               gone: before the window
/// ```
#[derive(Debug)]
pub struct PageTable {
    pub(crate) pages: Vec<PageId>,
    /// By window group, each as long as `pages`; up to `live` all are [`GONE`].
    pub(crate) windows: Vec<Vec<PageId>>,
    /// First page whose column is there.
    pub(crate) live: usize,
    /// How many of `pages`, from the front, are in the tree.
    pub(crate) shared: usize,
    /// The node at which the shared part ends.
    pub(crate) node: NodeId,
    pub(crate) mailbox: Arc<Mailbox>,
}

impl PageTable {
    /// Every page of the first group, in the order of positions.
    pub fn pages(&self) -> &[PageId] {
        &self.pages
    }

    /// Every page of a group, in the order of positions. Those of window groups are [`GONE`] before [`live`](Self::live).
    pub fn group(&self, group: usize) -> &[PageId] {
        if group == 0 { &self.pages } else { &self.windows[group - 1] }
    }

    /// First page that window groups still have.
    pub fn live(&self) -> usize {
        self.live
    }

    /// How many pages, from the front, are in the tree. They must not be written any more.
    pub fn shared_pages(&self) -> usize {
        self.shared
    }

    /// Pages of all groups together.
    pub fn held(&self) -> usize {
        self.pages.len() + self.windows.len() * (self.pages.len() - self.live)
    }

    /// Pages that this table alone owns, of all groups.
    pub fn owned(&self) -> impl Iterator<Item = PageId> {
        let columns = self.live.max(self.shared);
        let windows = self.windows.iter().flat_map(move |group| &group[columns..]);
        self.pages[self.shared..].iter().chain(windows).copied()
    }

    /// Shared columns that it reads.
    pub(crate) fn read_columns(&self) -> Range<usize> {
        self.live.min(self.shared)..self.shared
    }

    /// Forgets the columns up to `end`.
    pub(crate) fn forget_columns(&mut self, end: usize) {
        for group in &mut self.windows {
            group[self.live..end].fill(GONE);
        }
        self.live = end;
    }
}

impl Drop for PageTable {
    fn drop(&mut self) {
        let read = self.windows.first().map_or(&[][..], |group| &group[self.read_columns()]);
        let (owned, read) = (self.owned().collect(), read.to_vec());
        self.mailbox.post(Release { node: self.node, owned, read });
    }
}

/// What a dropped table held.
#[derive(Debug)]
pub(crate) struct Release {
    pub(crate) node: NodeId,
    pub(crate) owned: Vec<PageId>,
    /// Columns in the tree that it read, by their first pages.
    pub(crate) read: Vec<PageId>,
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
