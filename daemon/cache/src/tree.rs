//! The radix tree over token ids, at page granularity, with pins and the order of eviction.
//!
//! Owns: nodes, their links, pins and recency. Must never: decide when to evict, or own a page
//! that is not in a node.
//!
//! A node counts the tables that end in it and its children that are pinned; it is pinned while
//! either is above zero. Pinning therefore climbs only until it meets a node that is pinned
//! already, and an unpinned node has no pinned node below it: all its pages can be evicted, bottom
//! up.

use std::collections::{BTreeSet, HashMap};
use std::mem;

use crate::columns::{Columns, GONE};
use crate::{NodeId, PageId};

/// Holds no page, is never evicted.
pub(crate) const ROOT: NodeId = 0;

/// An edge and the node at its end.
#[derive(Debug, Default)]
pub(crate) struct Node {
    pub(crate) parent: NodeId,
    /// Tokens of the edge: `pages.len() * page_size`.
    pub(crate) tokens: Vec<u32>,
    pub(crate) pages: Vec<PageId>,
    /// Those of window groups, each as long as `pages`; [`GONE`] where a column is not there.
    pub(crate) windows: Vec<Vec<PageId>>,
    /// Pages from the beginning of the sequence to the edge.
    pub(crate) start: usize,
    /// By the tokens of their first page.
    pub(crate) children: HashMap<Box<[u32]>, NodeId>,
    /// Page tables that end here.
    pub(crate) tables: u32,
    /// Children that are pinned.
    pub(crate) pinned_children: u32,
    /// When the last pin was released.
    pub(crate) last_used: u64,
}

impl Node {
    pub(crate) fn is_pinned(&self) -> bool {
        self.tables > 0 || self.pinned_children > 0
    }
}

/// Pages along a way down the tree, by position, or behind it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Path {
    pub(crate) pages: Vec<PageId>,
    /// By window group, each as long as `pages`.
    pub(crate) windows: Vec<Vec<PageId>>,
}

impl Path {
    /// Of no page.
    pub(crate) fn new(groups: usize, capacity: usize) -> Path {
        Path { pages: Vec::with_capacity(capacity), windows: vec![Vec::new(); groups] }
    }

    fn extend(&mut self, node: &Node, count: usize) {
        self.pages.extend_from_slice(&node.pages[..count]);
        for (to, from) in self.windows.iter_mut().zip(&node.windows) {
            to.extend_from_slice(&from[..count]);
        }
    }
}

/// The tree.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) page_size: usize,
    pub(crate) nodes: Vec<Node>,
    /// Unused entries of `nodes`.
    pub(crate) vacant: Vec<NodeId>,
    /// Unpinned leaves, least recently used first.
    pub(crate) leaves: BTreeSet<(u64, NodeId)>,
    /// Pages in unpinned nodes, those of columns aside.
    pub(crate) evictable: usize,
    /// The columns of window groups in all nodes.
    pub(crate) columns: Columns,
    /// Ticks with every release.
    clock: u64,
}

impl Tree {
    pub(crate) fn new(page_size: usize, columns: Columns) -> Tree {
        Tree {
            page_size,
            columns,
            nodes: vec![Node::default()],
            vacant: Vec::new(),
            leaves: BTreeSet::new(),
            evictable: 0,
            clock: 0,
        }
    }

    fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id as usize]
    }

    /// The child of `at` whose edge begins with `tokens`, and with how many whole pages of them.
    fn next(&self, at: NodeId, tokens: &[u32]) -> Option<(NodeId, usize)> {
        let child = *self.node(at).children.get(tokens.get(..self.page_size)?)?;
        Some((child, common_tokens(&self.node(child).tokens, tokens) / self.page_size))
    }

    /// Follows `tokens` down from `from`, as far as whole pages agree. Appends the pages on the way
    /// and returns where it ended; an edge that agrees only in part is split there.
    pub(crate) fn descend(&mut self, from: NodeId, mut tokens: &[u32], path: &mut Path) -> NodeId {
        let mut at = from;
        while let Some((child, common)) = self.next(at, tokens) {
            let edge = self.node(child);
            path.extend(edge, common);
            if common < edge.pages.len() {
                return self.split(child, common);
            }
            tokens = &tokens[edge.tokens.len()..];
            at = child;
        }
        at
    }

    /// How many pages of `tokens` can be gone on from: all are there, and so is each column that is read behind them,
    /// from page `first_read(pages)` on.
    pub(crate) fn reach(&self, mut tokens: &[u32], first_read: impl Fn(usize) -> usize) -> usize {
        let (mut at, mut pages, mut columns, mut best) = (ROOT, 0, 0, 0);
        while let Some((child, common)) = self.next(at, tokens) {
            let edge = self.node(child);
            for &first in &edge.windows[0][..common] {
                pages += 1;
                columns = if first == GONE { 0 } else { columns + 1 };
                if columns >= pages - first_read(pages) {
                    best = pages;
                }
            }
            if common < edge.pages.len() {
                break;
            }
            tokens = &tokens[edge.tokens.len()..];
            at = child;
        }
        best
    }

    /// Cuts the edge of `lower` after its first `at` pages; returns the new upper node. Tables that
    /// end in `lower` still do.
    fn split(&mut self, lower: NodeId, at: usize) -> NodeId {
        let page_size = self.page_size;
        let node = self.node_mut(lower);
        let start = node.start;
        node.start += at;
        let tail_tokens = node.tokens.split_off(at * page_size);
        let tail_pages = node.pages.split_off(at);
        let tail = |group: &mut Vec<PageId>| {
            let tail = group.split_off(at);
            mem::replace(group, tail)
        };
        let windows = node.windows.iter_mut().map(tail).collect();
        let upper = Node {
            parent: node.parent,
            tokens: mem::replace(&mut node.tokens, tail_tokens),
            pages: mem::replace(&mut node.pages, tail_pages),
            windows,
            start,
            children: HashMap::from([(node.tokens[..page_size].into(), lower)]),
            tables: 0,
            pinned_children: u32::from(node.is_pinned()),
            last_used: node.last_used,
        };
        let (above, first_page) = (upper.parent, upper.tokens[..page_size].to_vec());
        let id = self.add(upper);
        if let Some(firsts) = self.nodes[id as usize].windows.first() {
            let there = firsts.iter().filter(|&&first| first != GONE);
            there.for_each(|&first| self.columns.move_to(first, id));
        }
        self.node_mut(lower).parent = id;
        let link = self.node_mut(above).children.get_mut(first_page.as_slice());
        *link.expect("a node is its parent's child") = id;
        id
    }

    /// Hangs a new unpinned leaf below `parent`, which has no child with the same first page. Whoever brings columns
    /// reads them.
    pub(crate) fn attach(&mut self, parent: NodeId, tokens: &[u32], path: Path) -> NodeId {
        self.evictable += path.pages.len();
        let above = self.node(parent);
        let start = above.start + above.pages.len();
        let leaf = Node {
            parent,
            tokens: tokens.to_vec(),
            pages: path.pages,
            windows: path.windows,
            start,
            last_used: self.clock,
            ..Node::default()
        };
        let id = self.add(leaf);
        if let Some(firsts) = self.nodes[id as usize].windows.first() {
            let there = firsts.iter().enumerate().filter(|(_, first)| **first != GONE);
            there.for_each(|(i, &first)| self.columns.adopt(first, id, start + i));
        }
        self.leaves.insert((self.clock, id));
        let above = &mut self.nodes[parent as usize];
        if above.children.is_empty() {
            self.leaves.remove(&(above.last_used, parent));
        }
        let before = above.children.insert(tokens[..self.page_size].into(), id);
        assert!(before.is_none(), "two children with the same first page");
        id
    }

    /// Puts a column where the tree has none: at page `at` of the way from the beginning down to `node`. Whoever brings it
    /// reads it. Returns the node it is in.
    pub(crate) fn fill(
        &mut self,
        mut node: NodeId,
        at: usize,
        column: impl Iterator<Item = PageId>,
    ) -> NodeId {
        while self.node(node).start > at {
            node = self.node(node).parent;
        }
        let into = &mut self.nodes[node as usize];
        let index = at - into.start;
        for (group, page) in into.windows.iter_mut().zip(column) {
            group[index] = page;
        }
        self.columns.adopt(into.windows[0][index], node, at);
        node
    }

    /// A reader of the column is past it; `is_kept` if it may be of use there.
    pub(crate) fn leave_column(&mut self, first: PageId, is_kept: bool) {
        self.clock += 1;
        self.columns.leave(first, is_kept, self.clock);
    }

    fn add(&mut self, node: Node) -> NodeId {
        if let Some(id) = self.vacant.pop() {
            self.nodes[id as usize] = node;
            return id;
        }
        self.nodes.push(node);
        (self.nodes.len() - 1) as NodeId
    }

    /// One more table ends at `id`.
    pub(crate) fn pin(&mut self, id: NodeId) {
        let mut at = id;
        let mut was_pinned = self.node(at).is_pinned();
        self.node_mut(at).tables += 1;
        while !was_pinned && at != ROOT {
            let node = &self.nodes[at as usize];
            self.evictable -= node.pages.len();
            if node.children.is_empty() {
                self.leaves.remove(&(node.last_used, at));
            }
            at = node.parent;
            was_pinned = self.node(at).is_pinned();
            self.node_mut(at).pinned_children += 1;
        }
    }

    /// One table less ends at `id`. Nodes that nothing pins any more were used just now.
    pub(crate) fn unpin(&mut self, id: NodeId) {
        self.clock += 1;
        let mut at = id;
        self.node_mut(at).tables -= 1;
        while at != ROOT && !self.node(at).is_pinned() {
            let node = &mut self.nodes[at as usize];
            node.last_used = self.clock;
            self.evictable += node.pages.len();
            if node.children.is_empty() {
                self.leaves.insert((self.clock, at));
            }
            at = node.parent;
            self.node_mut(at).pinned_children -= 1;
        }
    }

    /// Drops pages until at least `count` are free: columns that are not kept, then, least recently used first, other
    /// columns that nobody reads and leaves, each sequence from its end; `freed` is told of each. There must be as many evictable ones.
    pub(crate) fn evict(&mut self, count: usize, mut freed: impl FnMut(PageId)) {
        let evictable = self.evictable + self.columns.evictable();
        assert!(count <= evictable, "{count} pages to evict of {evictable}");
        let mut done = 0;
        while done < count {
            let column = self.columns.unread.first().copied();
            let leaf = self.leaves.first().copied();
            let is_first = |used| column.is_none_or(|(kept, other, _)| kept && used <= other);
            done += match (leaf, column) {
                (Some((used, id)), _) if is_first(used) => self.trim(id, count - done, &mut freed),
                (_, Some((_, _, first))) => self.evict_column(first, &mut freed),
                _ => unreachable!("evictable pages are below a leaf or in a column"),
            };
        }
    }

    /// Drops a column alone; returns how many pages that is.
    fn evict_column(&mut self, first: PageId, freed: &mut impl FnMut(PageId)) -> usize {
        let column = self.columns.remove(first);
        let node = &mut self.nodes[column.node as usize];
        let index = column.at as usize - node.start;
        for group in &mut node.windows {
            freed(mem::replace(&mut group[index], GONE));
        }
        self.columns.groups
    }

    /// Drops the end of a leaf, as many pages as it has up to `count` and the columns beside them; returns how many.
    fn trim(&mut self, id: NodeId, count: usize, freed: &mut impl FnMut(PageId)) -> usize {
        let page_size = self.page_size;
        let node = &mut self.nodes[id as usize];
        let mut done = 0;
        while done < count
            && let Some(page) = node.pages.pop()
        {
            freed(page);
            self.evictable -= 1;
            done += 1;
            let first = node.windows.first().and_then(|group| group.last());
            if let Some(&first) = first.filter(|first| **first != GONE) {
                self.columns.remove(first);
                done += self.columns.groups;
            }
            for group in &mut node.windows {
                group.pop().filter(|&page| page != GONE).map(&mut *freed);
            }
        }
        if !node.pages.is_empty() {
            node.tokens.truncate(node.pages.len() * page_size);
            return done;
        }
        let Node { parent, tokens, last_used, .. } = mem::take(node);
        self.leaves.remove(&(last_used, id));
        self.vacant.push(id);
        let above = &mut self.nodes[parent as usize];
        above.children.remove(&tokens[..page_size]);
        if above.children.is_empty() && !above.is_pinned() && parent != ROOT {
            self.leaves.insert((above.last_used, parent));
        }
        done
    }
}

/// Length of the common prefix, in tokens. Compares in blocks, which become vector compares.
fn common_tokens(a: &[u32], b: &[u32]) -> usize {
    const BLOCK: usize = 32;
    let blocks = a.chunks_exact(BLOCK).zip(b.chunks_exact(BLOCK)).take_while(|(a, b)| a == b);
    let same = blocks.count() * BLOCK;
    same + a[same..].iter().zip(&b[same..]).take_while(|(a, b)| a == b).count()
}
