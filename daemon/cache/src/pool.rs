//! The page pool: a stack of free pages, and what each page is being used for.
//!
//! Owns: the state of every page. Must never: know tokens or requests.

use crate::PageId;

/// What a page is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageState {
    /// On the stack.
    Free,
    /// In the tree.
    Cached,
    /// In the private part of one page table.
    Owned,
}

/// Every page there is.
#[derive(Debug)]
pub(crate) struct Pool {
    states: Vec<PageState>,
    free: Vec<PageId>,
    cached: usize,
}

impl Pool {
    /// All pages free; low page ids are handed out first.
    pub(crate) fn new(pages: u32) -> Pool {
        Pool {
            states: vec![PageState::Free; pages as usize],
            free: (0..pages).rev().collect(),
            cached: 0,
        }
    }

    pub(crate) fn total(&self) -> usize {
        self.states.len()
    }

    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn cached(&self) -> usize {
        self.cached
    }

    pub(crate) fn owned(&self) -> usize {
        self.states.len() - self.free.len() - self.cached
    }

    pub(crate) fn states(&self) -> &[PageState] {
        &self.states
    }

    pub(crate) fn free_list(&self) -> &[PageId] {
        &self.free
    }

    /// Free to owned, `count` pages. As many must be free.
    pub(crate) fn take(&mut self, count: usize) -> impl Iterator<Item = PageId> {
        let rest = self.free.len().checked_sub(count).expect("as many pages are free");
        self.free.drain(rest..).rev().inspect(|&page| {
            move_to(&mut self.states, page, PageState::Free, PageState::Owned);
        })
    }

    /// Owned to free.
    pub(crate) fn give_back(&mut self, page: PageId) {
        move_to(&mut self.states, page, PageState::Owned, PageState::Free);
        self.free.push(page);
    }

    /// Owned to cached.
    pub(crate) fn adopt(&mut self, page: PageId) {
        move_to(&mut self.states, page, PageState::Owned, PageState::Cached);
        self.cached += 1;
    }

    /// Cached to free.
    pub(crate) fn evict(&mut self, page: PageId) {
        move_to(&mut self.states, page, PageState::Cached, PageState::Free);
        self.cached -= 1;
        self.free.push(page);
    }
}

fn move_to(states: &mut [PageState], page: PageId, from: PageState, to: PageState) {
    let state = &mut states[page as usize];
    assert_eq!(*state, from, "page {page} was to go from {from:?} to {to:?}");
    *state = to;
}
