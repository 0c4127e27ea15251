//! The prefix cache itself: what requests ask of pool and tree together.

use std::sync::Arc;

use crate::columns::{Columns, GONE, Windows};
use crate::integrity::{self, IntegrityError};
use crate::pool::Pool;
use crate::table::{Mailbox, PageTable, Release};
use crate::tree::{Path, ROOT, Tree};
use crate::{NodeId, PageId};

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
    /// Those of `cached` that can go: no page table pins them, or, of a column, reads it.
    pub evictable: usize,
    /// Pages in the private part of page tables.
    pub owned: usize,
}

/// Page pool and radix tree. See the crate's documentation for the life of a page.
#[derive(Debug)]
pub struct PrefixCache {
    mode: Mode,
    windows: Windows,
    pool: Pool,
    tree: Tree,
    /// Page tables alive.
    tables: usize,
    mailbox: Arc<Mailbox>,
    /// Keeps its capacity from one settlement to the next.
    releases: Vec<Release>,
}

impl PrefixCache {
    /// A cache of `pages` free pages with `page_size` tokens of one group of layers each.
    ///
    /// # Panics
    /// If `page_size` is 0.
    pub fn new(pages: u32, page_size: u32, windows: Windows, mode: Mode) -> PrefixCache {
        assert!(page_size > 0, "a page holds at least one token");
        PrefixCache {
            mode,
            windows,
            pool: Pool::new(pages),
            tree: Tree::new(page_size as usize, Columns::new(windows.groups, pages)),
            tables: 0,
            mailbox: Arc::default(),
            releases: Vec::new(),
        }
    }

    /// Tokens a page.
    pub fn page_size(&self) -> usize {
        self.tree.page_size
    }

    /// Groups of layers: the first, and window groups. As many pages lie beside each other for the same tokens.
    pub fn groups(&self) -> usize {
        self.windows.all_groups()
    }

    /// A table with the longest cached prefix of `tokens` that can be gone on from, in whole pages, pinned: window groups
    /// have what is read behind it. Time is linear in the tokens matched.
    pub fn match_prefix(&mut self, tokens: &[u32]) -> PageTable {
        self.settle();
        let (page_size, windows) = (self.page_size(), self.windows);
        let mut path = Path::new(windows.groups, tokens.len() / page_size + 1);
        let node = match self.mode {
            Mode::Naive => ROOT,
            Mode::Radix if windows.groups == 0 => self.tree.descend(ROOT, tokens, &mut path),
            Mode::Radix => {
                let first_read = |pages: usize| windows.first_read(pages * page_size, page_size);
                let pages = self.tree.reach(tokens, first_read);
                self.tree.descend(ROOT, &tokens[..pages * page_size], &mut path)
            }
        };
        self.tree.pin(node);
        self.tables += 1;
        let Path { pages, windows: groups } = path;
        let shared = pages.len();
        let mut table = PageTable {
            pages,
            windows: groups,
            live: 0,
            shared,
            node,
            mailbox: Arc::clone(&self.mailbox),
        };
        if windows.groups > 0 {
            table.forget_columns(windows.first_read(shared * page_size, page_size));
            let read = &table.windows[0][table.live..];
            read.iter().for_each(|&first| self.tree.columns.read(first, true));
        }
        table
    }

    /// Appends the pages of `count * page_size` tokens, one of each group, that `table` alone owns, evicting cached ones as
    /// needed. All or nothing: false when fewer are [`available`](Self::available).
    pub fn grow(&mut self, table: &mut PageTable, count: usize) -> bool {
        self.check_origin(table);
        self.settle();
        let all = count * self.groups();
        if let Some(lacking) = all.checked_sub(self.pool.free()).filter(|&lacking| lacking > 0) {
            if lacking > self.evictable() {
                return false;
            }
            self.tree.evict(lacking, |page| self.pool.evict(page));
        }
        table.pages.extend(self.pool.take(count));
        for group in &mut table.windows {
            group.extend(self.pool.take(count));
        }
        true
    }

    /// Gives up the columns of `table` that are not read at `position` or behind it, nor at the end of the last whole page
    /// before it, where another may go on. Those in the tree stay there for others as long as there is room. Nothing planned
    /// later may read or write them for this table.
    pub fn slide(&mut self, table: &mut PageTable, position: usize) {
        if self.windows.groups == 0 {
            return;
        }
        self.check_origin(table);
        self.settle();
        let (windows, page_size) = (self.windows, self.page_size());
        let whole = position / page_size * page_size;
        let first = windows.first_read(whole, page_size).min(table.pages.len());
        if first <= table.live {
            return;
        }
        for at in table.live..first {
            if at < table.shared {
                let is_milestone = windows.is_milestone(at, page_size);
                self.tree.leave_column(table.windows[0][at], is_milestone);
            } else {
                table.windows.iter().for_each(|group| self.pool.give_back(group[at]));
            }
        }
        table.forget_columns(first);
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
        let mut known = Path::new(self.windows.groups, 0);
        let mut node = self.tree.descend(table.node, new_tokens, &mut known);
        let fresh = first + known.pages.len();
        for (own, canonical) in table.pages[first..fresh].iter_mut().zip(&known.pages) {
            self.pool.give_back(*own);
            *own = *canonical;
        }
        if self.windows.groups > 0 {
            // From the end up, as the way through the tree leads.
            let mut above = node;
            for at in (first.max(table.live)..fresh).rev() {
                let known = |group: usize| known.windows[group][at - first];
                above = self.publish_column(table, at, above, known);
            }
        }
        if fresh < end {
            let new = |group: &Vec<PageId>| group[fresh..end].to_vec();
            let path =
                Path { pages: new(&table.pages), windows: table.windows.iter().map(new).collect() };
            let all = path.pages.iter().chain(path.windows.iter().flatten());
            all.filter(|&&page| page != GONE).for_each(|&page| self.pool.adopt(page));
            node = self.tree.attach(node, &tokens[fresh * page_size..end * page_size], path);
        }
        self.tree.pin(node);
        self.tree.unpin(table.node);
        (table.node, table.shared) = (node, end);
        if fresh > first { first } else { table.pages.len() }
    }

    /// Gives a column of `table` to the tree, which has the tokens already, above or in `node`; if it has their column,
    /// too, `canonical`, the table takes that one. Returns a node that the column before is in or below.
    fn publish_column(
        &mut self,
        table: &mut PageTable,
        at: usize,
        node: NodeId,
        canonical: impl Fn(usize) -> PageId,
    ) -> NodeId {
        if canonical(0) == GONE {
            let column = || table.windows.iter().map(|group| group[at]);
            column().for_each(|page| self.pool.adopt(page));
            return self.tree.fill(node, at, column());
        }
        for (group, pages) in table.windows.iter_mut().enumerate() {
            self.pool.give_back(pages[at]);
            pages[at] = canonical(group);
        }
        self.tree.columns.read(canonical(0), false);
        node
    }

    /// Evicts every page that no table needs; returns how many became free.
    pub fn flush(&mut self) -> usize {
        self.settle();
        let pages = self.evictable();
        self.tree.evict(pages, |page| self.pool.evict(page));
        pages
    }

    /// Pages that [`grow`](Self::grow) can give out: free ones and evictable ones. Constant time.
    pub fn available(&mut self) -> usize {
        self.settle();
        self.pool.free() + self.evictable()
    }

    fn evictable(&self) -> usize {
        self.tree.evictable + self.tree.columns.evictable()
    }

    /// Where all pages are. Constant time.
    pub fn counts(&mut self) -> Counts {
        self.settle();
        Counts {
            free: self.pool.free(),
            cached: self.pool.cached(),
            evictable: self.evictable(),
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
        for Release { node, owned, read } in self.releases.drain(..) {
            self.tables -= 1;
            self.tree.unpin(node);
            // After the leaf, which goes first then: without its columns it would be of no use.
            read.iter().for_each(|&first| self.tree.leave_column(first, true));
            // Backwards, so that they are handed out again in the order they were.
            owned.iter().rev().for_each(|&page| self.pool.give_back(page));
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
