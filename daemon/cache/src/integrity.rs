//! The integrity check: everything that pool and tree keep in more than one place, recomputed.
//!
//! Owns: nothing. Must never: change or repair what it looks at.

use std::collections::BTreeSet;

use crate::columns::GONE;
use crate::pool::{PageState, Pool};
use crate::tree::{Node, ROOT, Tree};
use crate::{NodeId, PageId};

/// What does not add up. Any of these is a bug in this crate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IntegrityError {
    /// A page is in two places, or in another one than its state says.
    #[error("page {page} is misplaced: {what}")]
    Page {
        /// Which page.
        page: PageId,
        /// What is wrong with it.
        what: String,
    },
    /// A node's links, edge or pins are wrong.
    #[error("node {node} is wrong: {what}")]
    Node {
        /// Which node.
        node: u32,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A sum kept on the way differs from the one counted.
    #[error("{what}: {kept} kept, {counted} counted")]
    Sum {
        /// Which sum.
        what: &'static str,
        /// As kept.
        kept: usize,
        /// As counted.
        counted: usize,
    },
}

/// Checks all of it; `tables` is the number of page tables alive.
pub(crate) fn check(pool: &Pool, tree: &Tree, tables: usize) -> Result<(), IntegrityError> {
    let mut walk = Walk { seen: vec![None; pool.total()], ..Walk::default() };
    for &page in pool.free_list() {
        walk.see(page, PageState::Free)?;
    }
    walk.visit(tree)?;

    let mut owned = 0;
    for (page, (&state, &seen)) in pool.states().iter().zip(&walk.seen).enumerate() {
        if state != seen.unwrap_or(PageState::Owned) {
            let what = format!("its state is {state:?}, it was found as {seen:?}");
            return Err(IntegrityError::Page { page: page as PageId, what });
        }
        owned += usize::from(seen.is_none());
    }
    same("cached pages", pool.cached(), walk.cached)?;
    same("owned pages", pool.owned(), owned)?;
    same("evictable pages", tree.evictable, walk.evictable)?;
    same("page tables", tables, walk.tables)?;
    same("nodes", tree.nodes.len() - tree.vacant.len(), walk.nodes)?;
    same("evictable leaves", tree.leaves.len(), walk.leaves.len())?;
    same("unread columns", tree.columns.unread.len(), walk.unread)?;
    same("columns in the order of eviction", tree.columns.unread.len(), walk.found)?;
    if let Some(&(_, node)) = tree.leaves.symmetric_difference(&walk.leaves).next() {
        return Err(IntegrityError::Node { node, what: "its place in the order of eviction" });
    }
    Ok(())
}

/// What one walk over pool and tree has counted.
#[derive(Default)]
struct Walk {
    seen: Vec<Option<PageState>>,
    nodes: usize,
    cached: usize,
    evictable: usize,
    tables: usize,
    leaves: BTreeSet<(u64, NodeId)>,
    /// Columns that nobody reads, and how many of them are in their place in the order of eviction.
    unread: usize,
    found: usize,
}

impl Walk {
    fn see(&mut self, page: PageId, state: PageState) -> Result<(), IntegrityError> {
        match self.seen.get_mut(page as usize) {
            None => {
                let what = format!("there are {} pages", self.seen.len());
                Err(IntegrityError::Page { page, what })
            }
            Some(Some(before)) => {
                let what = format!("found as {state:?} and as {before:?}");
                Err(IntegrityError::Page { page, what })
            }
            Some(seen) => {
                *seen = Some(state);
                Ok(())
            }
        }
    }

    /// The whole tree, on an explicit stack: a tree can be as deep as there are pages.
    fn visit(&mut self, tree: &Tree) -> Result<(), IntegrityError> {
        let mut stack = vec![ROOT];
        while let Some(id) = stack.pop() {
            let node = &tree.nodes[id as usize];
            self.visit_node(tree, id, node)?;
            stack.extend(node.children.values());
        }
        Ok(())
    }

    fn visit_node(&mut self, tree: &Tree, id: NodeId, node: &Node) -> Result<(), IntegrityError> {
        let wrong = |what| Err(IntegrityError::Node { node: id, what });
        self.nodes += 1;
        self.tables += node.tables as usize;
        if node.pages.is_empty() != (id == ROOT) {
            return wrong("every edge but the root's has a page");
        }
        if node.tokens.len() != node.pages.len() * tree.page_size {
            return wrong("its edge is not in whole pages");
        }
        for &page in &node.pages {
            self.see(page, PageState::Cached)?;
        }
        self.cached += node.pages.len();
        self.visit_columns(tree, id, node)?;
        if !node.is_pinned() {
            self.evictable += node.pages.len();
            if node.children.is_empty() && id != ROOT {
                self.leaves.insert((node.last_used, id));
            }
        }
        let mut pinned_children = 0;
        for (key, &child) in &node.children {
            let child = &tree.nodes[child as usize];
            if child.start != node.start + node.pages.len() {
                return wrong("a child does not begin where it ends");
            }
            if child.parent != id || child.tokens.get(..tree.page_size) != Some(key) {
                return wrong("a child is linked wrongly");
            }
            if id != ROOT && !node.is_pinned() && child.last_used > node.last_used {
                return wrong("its child was used after it");
            }
            pinned_children += u32::from(child.is_pinned());
        }
        if node.pinned_children != pinned_children {
            return wrong("its count of pinned children");
        }
        Ok(())
    }
}

impl Walk {
    fn visit_columns(
        &mut self,
        tree: &Tree,
        id: NodeId,
        node: &Node,
    ) -> Result<(), IntegrityError> {
        let wrong = |what| Err(IntegrityError::Node { node: id, what });
        let groups = if id == ROOT { 0 } else { tree.columns.groups };
        let as_long = node.windows.iter().all(|group| group.len() == node.pages.len());
        if node.windows.len() != groups || !as_long {
            return wrong("its window pages are not as many");
        }
        let Some(firsts) = node.windows.first() else { return Ok(()) };
        for (i, &first) in firsts.iter().enumerate() {
            let column = || node.windows.iter().map(move |group| group[i]);
            if column().any(|page| (page == GONE) != (first == GONE)) {
                return wrong("a column is there in part");
            }
            if first == GONE {
                continue;
            }
            for page in column() {
                self.see(page, PageState::Cached)?;
            }
            self.cached += groups;
            let known = tree.columns.get(first);
            if known.node != id || known.at as usize != node.start + i {
                return wrong("a column is not where it is looked for");
            }
            if known.readers == 0 {
                let place = (known.is_kept, known.last_used, first);
                self.unread += 1;
                self.found += usize::from(tree.columns.unread.contains(&place));
            } else if !node.is_pinned() {
                return wrong("a column is read, and no table ends below it");
            }
        }
        Ok(())
    }
}

fn same(what: &'static str, kept: usize, counted: usize) -> Result<(), IntegrityError> {
    if kept == counted { Ok(()) } else { Err(IntegrityError::Sum { what, kept, counted }) }
}
