//! The pages of layers that see a window only: columns in the tree, who reads them, and which go first.
//!
//! Owns: the references to cached columns, where each lies, and the order in which unread ones are evicted. Must never:
//! touch a node; the tree asks here, and is told what went.
//!
//! Unread columns go in this order. First those that requests left behind, that nobody ever came back to and that are no part of
//! a milestone: they are most of a long prompt. Then, by when they were last of use, along with the leaves of the tree: those that a prefix
//! was matched by, where branches split; those at which a sequence ended; and milestones, the window before every
//! fourth of its lengths, from where a branch begins that nobody foresaw.
//!
//! A column is one page of each window group, for the same `page_size` tokens. In the tree it lies in the node that has
//! these tokens, and may go while the node is in use: whoever is far enough behind it reads it no more. It is known by
//! the page of its first window group.

use std::collections::BTreeSet;

use crate::{NodeId, PageId};

/// In the place of a page that is not there any more: the tokens are before the window of whoever has the table, or
/// the column was evicted.
pub const GONE: PageId = PageId::MAX;

/// The groups of layers whose tokens see a window only. The first group of layers, which sees everything, is not among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Windows {
    /// How many there are. Each takes a page of its own for the same tokens.
    pub groups: usize,
    /// Tokens right before a position whose window pages are read there.
    pub keep: usize,
}

impl Windows {
    /// First page whose column is read at `position`.
    pub(crate) fn first_read(&self, position: usize, page_size: usize) -> usize {
        position.saturating_sub(self.keep) / page_size
    }

    /// Groups of layers in all.
    pub fn all_groups(&self) -> usize {
        1 + self.groups
    }

    /// Whether the column of page `at` is read at a milestone.
    pub(crate) fn is_milestone(&self, at: usize, page_size: usize) -> bool {
        let window = self.keep.div_ceil(page_size).max(1);
        at % (MILESTONE_WINDOWS * window) >= (MILESTONE_WINDOWS - 1) * window
    }

    /// Columns that a request has at most while it is fed `row` tokens at a time: those that a row writes, and those that
    /// are read before it.
    fn columns(&self, row: usize, page_size: usize) -> usize {
        1 + (row.max(1) - 1).div_ceil(page_size) + self.keep.div_ceil(page_size)
    }

    /// Pages of all groups that a request has at most until `tokens` of it are computed, up to `row` at a time.
    pub fn pages_for(&self, tokens: usize, row: usize, page_size: usize) -> usize {
        let pages = tokens.div_ceil(page_size);
        pages + self.groups * pages.min(self.columns(row, page_size))
    }

    /// The other way round: tokens that a single request can have computed in `pages`.
    pub fn tokens_in(&self, pages: usize, row: usize, page_size: usize) -> usize {
        let (even, columns) = (pages / self.all_groups(), self.columns(row, page_size));
        let first = if even < columns { even } else { pages - self.groups * columns };
        first * page_size
    }
}

/// Windows from one milestone to the next.
const MILESTONE_WINDOWS: usize = 4;

/// What is known of a cached column.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Column {
    /// Page tables that read it.
    pub(crate) readers: u32,
    /// It is worth as much as a leaf that was used as lately.
    pub(crate) is_kept: bool,
    /// The node it lies in.
    pub(crate) node: NodeId,
    /// Pages from the beginning of the sequence to it.
    pub(crate) at: u32,
    /// When the last reader left.
    pub(crate) last_used: u64,
}

/// All columns in the tree.
#[derive(Debug)]
pub(crate) struct Columns {
    /// Pages of a column.
    pub(crate) groups: usize,
    /// By first page; empty without window groups.
    entries: Vec<Column>,
    /// Cached, and nobody reads them: those that are not kept, then by when they were used last.
    pub(crate) unread: BTreeSet<(bool, u64, PageId)>,
}

impl Columns {
    pub(crate) fn new(groups: usize, pages: u32) -> Columns {
        let entries = if groups > 0 { pages as usize } else { 0 };
        Columns { groups, entries: vec![Column::default(); entries], unread: BTreeSet::new() }
    }

    /// Pages of all columns that can go.
    pub(crate) fn evictable(&self) -> usize {
        self.groups * self.unread.len()
    }

    pub(crate) fn get(&self, first: PageId) -> &Column {
        &self.entries[first as usize]
    }

    /// A column comes into `node`, with one reader.
    pub(crate) fn adopt(&mut self, first: PageId, node: NodeId, at: usize) {
        let column = Column { readers: 1, node, at: at as u32, ..Column::default() };
        self.entries[first as usize] = column;
    }

    /// The tokens of a column are another node's now.
    pub(crate) fn move_to(&mut self, first: PageId, node: NodeId) {
        self.entries[first as usize].node = node;
    }

    /// One reader more; `is_matched` if a prefix was found by it.
    pub(crate) fn read(&mut self, first: PageId, is_matched: bool) {
        let column = &mut self.entries[first as usize];
        if column.readers == 0 {
            self.unread.remove(&(column.is_kept, column.last_used, first));
        }
        column.readers += 1;
        column.is_kept |= is_matched;
    }

    /// One reader less, at `now`; `is_kept` if it may be of use where the reader leaves it.
    pub(crate) fn leave(&mut self, first: PageId, is_kept: bool, now: u64) {
        let column = &mut self.entries[first as usize];
        column.readers -= 1;
        column.is_kept |= is_kept;
        if column.readers == 0 {
            column.last_used = now;
            self.unread.insert((column.is_kept, now, first));
        }
    }

    /// A column that nobody reads leaves the tree.
    pub(crate) fn remove(&mut self, first: PageId) -> Column {
        let column = self.entries[first as usize];
        let unread = self.unread.remove(&(column.is_kept, column.last_used, first));
        assert!(unread, "column {first} is read by {}", column.readers);
        column
    }
}
