//! The prefix cache itself: what requests ask of pool and tree together.

use std::sync::Arc;

use crate::PageId;
use crate::integrity::{self, IntegrityError};
use crate::pool::Pool;
use crate::table::{Mailbox, PageTable, Release};
use crate::tree::{ROOT, Tree};

/// Whether prefixes are kept and shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// In the radix tree.
    #[default]
    Radix,
    /// Not at all; for ablation. Nothing matches, nothing is kept.
    Naive,
}

/// Where all pages are. `free + cached + owned` is every page there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Pages that hold nothing.
    pub free: usize,
    /// Pages in the tree.
    pub cached: usize,
    /// Those of `cached` that no page table pins.
    pub evictable: usize,
    /// Pages in the private part of page tables.
    pub owned: usize,
}

/// Page pool and radix tree. See the crate's documentation for the life of a page.
#[derive(Debug)]
pub struct PrefixCache {
    mode: Mode,
    pool: Pool,
    tree: Tree,
    /// Page tables alive.
    tables: usize,
    mailbox: Arc<Mailbox>,
    /// Keeps its capacity from one settlement to the next.
    releases: Vec<Release>,
}

impl PrefixCache {
    /// A cache of `pages` free pages with `page_size` tokens each.
    ///
    /// # Panics
    /// If `page_size` is 0.
    pub fn new(pages: u32, page_size: u32, mode: Mode) -> PrefixCache {
        assert!(page_size > 0, "a page holds at least one token");
        PrefixCache {
            mode,
            pool: Pool::new(pages),
            tree: Tree::new(page_size as usize),
            tables: 0,
            mailbox: Arc::default(),
            releases: Vec::new(),
        }
    }

    /// Tokens a page.
    pub fn page_size(&self) -> usize {
        self.tree.page_size
    }

    /// A table with the longest cached prefix of `tokens`, in whole pages, pinned.
    /// Time is linear in the tokens matched.
    pub fn match_prefix(&mut self, tokens: &[u32]) -> PageTable {
        self.settle();
        let mut pages = Vec::with_capacity(tokens.len() / self.page_size() + 1);
        let node = match self.mode {
            Mode::Radix => self.tree.descend(ROOT, tokens, &mut pages),
            Mode::Naive => ROOT,
        };
        self.tree.pin(node);
        self.tables += 1;
        PageTable { shared: pages.len(), pages, node, mailbox: Arc::clone(&self.mailbox) }
    }

    /// Appends `count` pages that `table` alone owns, evicting cached ones as needed. All or
    /// nothing: false when fewer are [`available`](Self::available).
    pub fn grow(&mut self, table: &mut PageTable, count: usize) -> bool {
        self.check_origin(table);
        self.settle();
        if let Some(lacking) = count.checked_sub(self.pool.free()).filter(|&lacking| lacking > 0) {
            if lacking > self.tree.evictable {
                return false;
            }
            self.tree.evict(lacking, |page| self.pool.evict(page));
        }
        table.pages.extend(self.pool.take(count));
        true
    }

    /// Gives the whole pages of `table` that `tokens` fill to the tree, and pins them there. Where
    /// the tree has pages for the same tokens already, the table takes those and its own are freed:
    /// they must not be written or read by anything planned later.
    ///
    /// `tokens` are the sequence's from its beginning. Only what is new since the last call is
    /// looked at. Returns how many pages of the table, from the front, are still the ones they were.
    ///
    /// # Panics
    /// If `table` has fewer pages than `tokens` fill.
    pub fn publish(&mut self, table: &mut PageTable, tokens: &[u32]) -> usize {
        self.check_origin(table);
        self.settle();
        let page_size = self.page_size();
        let (first, end) = (table.shared, tokens.len() / page_size);
        if self.mode == Mode::Naive || end <= first {
            return table.pages.len();
        }
        let new_tokens = &tokens[first * page_size..end * page_size];
        let mut known = Vec::new();
        let mut node = self.tree.descend(table.node, new_tokens, &mut known);
        let fresh = first + known.len();
        for (own, canonical) in table.pages[first..fresh].iter_mut().zip(known) {
            self.pool.give_back(*own);
            *own = canonical;
        }
        if fresh < end {
            let pages = &table.pages[fresh..end];
            pages.iter().for_each(|&page| self.pool.adopt(page));
            node = self.tree.attach(node, &tokens[fresh * page_size..end * page_size], pages);
        }
        self.tree.pin(node);
        self.tree.unpin(table.node);
        (table.node, table.shared) = (node, end);
        if fresh > first { first } else { table.pages.len() }
    }

    /// Evicts every page that no table pins; returns how many became free.
    pub fn flush(&mut self) -> usize {
        self.settle();
        let pages = self.tree.evictable;
        self.tree.evict(pages, |page| self.pool.evict(page));
        pages
    }

    /// Pages that [`grow`](Self::grow) can give out: free ones and evictable ones. Constant time.
    pub fn available(&mut self) -> usize {
        self.settle();
        self.pool.free() + self.tree.evictable
    }

    /// Where all pages are. Constant time.
    pub fn counts(&mut self) -> Counts {
        self.settle();
        Counts {
            free: self.pool.free(),
            cached: self.pool.cached(),
            evictable: self.tree.evictable,
            owned: self.pool.owned(),
        }
    }

    /// Walks the whole tree and the whole pool.
    ///
    /// # Errors
    /// The first thing found that does not add up: a bug in this crate.
    pub fn check_integrity(&mut self) -> Result<(), IntegrityError> {
        self.settle();
        integrity::check(&self.pool, &self.tree, self.tables)
    }

    /// Takes back what dropped tables held.
    fn settle(&mut self) {
        if !self.mailbox.collect(&mut self.releases) {
            return;
        }
        for Release { node, owned } in self.releases.drain(..) {
            self.tables -= 1;
            self.tree.unpin(node);
            // Backwards, so that they are handed out again in the order they were.
            owned.iter().rev().for_each(|&page: &PageId| self.pool.give_back(page));
        }
    }

    #[cfg(test)]
    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    fn check_origin(&self, table: &PageTable) {
        assert!(Arc::ptr_eq(&self.mailbox, &table.mailbox), "a page table of another cache");
    }
}
