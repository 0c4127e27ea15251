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

use crate::PageId;

/// Index of a node.
pub(crate) type NodeId = u32;

/// Holds no page, is never evicted.
pub(crate) const ROOT: NodeId = 0;

/// An edge and the node at its end.
#[derive(Debug, Default)]
pub(crate) struct Node {
    pub(crate) parent: NodeId,
    /// Tokens of the edge: `pages.len() * page_size`.
    pub(crate) tokens: Vec<u32>,
    pub(crate) pages: Vec<PageId>,
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

/// The tree.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) page_size: usize,
    pub(crate) nodes: Vec<Node>,
    /// Unused entries of `nodes`.
    pub(crate) vacant: Vec<NodeId>,
    /// Unpinned leaves, least recently used first.
    pub(crate) leaves: BTreeSet<(u64, NodeId)>,
    /// Pages in unpinned nodes.
    pub(crate) evictable: usize,
    /// Ticks with every release.
    clock: u64,
}

impl Tree {
    pub(crate) fn new(page_size: usize) -> Tree {
        Tree {
            page_size,
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

    /// Follows `tokens` down from `from`, as far as whole pages agree. Appends the pages on the way
    /// and returns where it ended; an edge that agrees only in part is split there.
    pub(crate) fn descend(
        &mut self,
        from: NodeId,
        mut tokens: &[u32],
        pages: &mut Vec<PageId>,
    ) -> NodeId {
        let mut at = from;
        while let Some(first_page) = tokens.get(..self.page_size) {
            let Some(&child) = self.node(at).children.get(first_page) else { break };
            let edge = self.node(child);
            let common = common_tokens(&edge.tokens, tokens) / self.page_size;
            pages.extend_from_slice(&edge.pages[..common]);
            if common < edge.pages.len() {
                return self.split(child, common);
            }
            tokens = &tokens[edge.tokens.len()..];
            at = child;
        }
        at
    }

    /// Cuts the edge of `lower` after its first `at` pages; returns the new upper node. Tables that
    /// end in `lower` still do.
    fn split(&mut self, lower: NodeId, at: usize) -> NodeId {
        let page_size = self.page_size;
        let node = self.node_mut(lower);
        let tail_tokens = node.tokens.split_off(at * page_size);
        let tail_pages = node.pages.split_off(at);
        let upper = Node {
            parent: node.parent,
            tokens: mem::replace(&mut node.tokens, tail_tokens),
            pages: mem::replace(&mut node.pages, tail_pages),
            children: HashMap::from([(node.tokens[..page_size].into(), lower)]),
            tables: 0,
            pinned_children: u32::from(node.is_pinned()),
            last_used: node.last_used,
        };
        let (above, first_page) = (upper.parent, upper.tokens[..page_size].to_vec());
        let id = self.add(upper);
        self.node_mut(lower).parent = id;
        let link = self.node_mut(above).children.get_mut(first_page.as_slice());
        *link.expect("a node is its parent's child") = id;
        id
    }

    /// Hangs a new unpinned leaf below `parent`, which has no child with the same first page.
    pub(crate) fn attach(&mut self, parent: NodeId, tokens: &[u32], pages: &[PageId]) -> NodeId {
        self.evictable += pages.len();
        let leaf = Node {
            parent,
            tokens: tokens.to_vec(),
            pages: pages.to_vec(),
            last_used: self.clock,
            ..Node::default()
        };
        let id = self.add(leaf);
        self.leaves.insert((self.clock, id));
        let above = &mut self.nodes[parent as usize];
        if above.children.is_empty() {
            self.leaves.remove(&(above.last_used, parent));
        }
        let before = above.children.insert(tokens[..self.page_size].into(), id);
        assert!(before.is_none(), "two children with the same first page");
        id
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

    /// Drops `count` pages, least recently used first and each sequence from its end; `freed` is
    /// told of each. There must be as many evictable ones.
    pub(crate) fn evict(&mut self, mut count: usize, mut freed: impl FnMut(PageId)) {
        assert!(count <= self.evictable, "{count} pages to evict of {}", self.evictable);
        self.evictable -= count;
        while count > 0 {
            let &(last_used, id) = self.leaves.first().expect("evictable pages are below a leaf");
            let page_size = self.page_size;
            let node = &mut self.nodes[id as usize];
            let kept = node.pages.len().saturating_sub(count);
            count -= node.pages.len() - kept;
            node.pages.drain(kept..).rev().for_each(&mut freed);
            if kept > 0 {
                node.tokens.truncate(kept * page_size);
                continue;
            }
            let Node { parent, tokens, .. } = mem::take(node);
            self.leaves.remove(&(last_used, id));
            self.vacant.push(id);
            let above = &mut self.nodes[parent as usize];
            above.children.remove(&tokens[..page_size]);
            if above.children.is_empty() && !above.is_pinned() && parent != ROOT {
                self.leaves.insert((above.last_used, parent));
            }
        }
    }
}

/// Length of the common prefix, in tokens. Compares in blocks, which become vector compares.
fn common_tokens(a: &[u32], b: &[u32]) -> usize {
    const BLOCK: usize = 32;
    let blocks = a.chunks_exact(BLOCK).zip(b.chunks_exact(BLOCK)).take_while(|(a, b)| a == b);
    let same = blocks.count() * BLOCK;
    same + a[same..].iter().zip(&b[same..]).take_while(|(a, b)| a == b).count()
}
