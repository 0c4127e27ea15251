//! The prefix cache: a pool of KV pages and a radix tree over token ids, in one object.
//!
//! Owns: which page is free, cached or owned by a request, and which tokens a cached page holds.
//! Must never: do I/O, read a clock, start a thread, or touch what is in a page.
//!
//! ```text
//!            grow                    publish
//!   free -----------> owned by one ----------> cached, pinned by every page table through it
//!    ^ ^              page table                  |  ^
//!    | |                  | drop            drop  |  | match_prefix
//!    | +------------------+                       v  |
//!    +------------------------------------- cached, evictable
//!                 eviction, flush
//! ```
//!
//! A request holds one [`PageTable`]: the pages of its prefix that live in the tree, which the
//! table pins, and behind them the pages that it alone writes. Dropping the table, at any time and
//! on any thread, unpins the former and frees the latter; there is no call to forget. `free +
//! cached + owned = all` holds between any two calls.
//!
//! The tree works in whole pages. An edge holds one or more pages of tokens, children are keyed by
//! the tokens of their first page, and an edge is split only between pages. Eviction takes the
//! least recently used leaf and trims it from its end, one page after another, so no more is
//! forgotten than is needed. "Used" means pinned: a node is as recent as the moment its last
//! pin was released, in ticks of a logical clock.
//!
//! Layers may come in groups that remember differently. A page holds tokens of the layers of one group; those of the first
//! group are kept like this. Layers that see a window only are in window groups ([`Windows`]): one page of each, for the
//! same tokens, is a column. A table gives up the columns that are behind its window ([`PrefixCache::slide`]); in the tree they are
//! evicted apart from their node, least recently read first, while it is in use, too. A prefix is matched up to where the
//! columns before its end are there, and a table that computes a column anew puts it back into the tree.
//!
//! The idea is RadixAttention, from Zheng et al., "SGLang: Efficient Execution of Structured
//! Language Model Programs" (2024), section 3.

#![forbid(unsafe_code)]

mod cache;
mod columns;
mod integrity;
mod pool;
mod table;
mod tree;

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;

pub use cache::{Counts, Mode, PrefixCache};
pub use columns::{GONE, Windows};
pub use integrity::IntegrityError;
pub use table::PageTable;

/// Index of a KV page, in `0..pages`.
pub type PageId = u32;

/// Index of a node of the tree.
type NodeId = u32;
