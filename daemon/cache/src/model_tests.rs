//! Random operations on the cache beside a plain model of it: a list of token sequences, one
//! for each cached page, searched by brute force. After each step both must agree on every cached
//! page, and the integrity check must pass.

use std::collections::BTreeMap;

use crate::tree::{ROOT, Tree};
use crate::{GONE, Mode, PageId, PageTable, PrefixCache, Windows};

/// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

#[derive(Clone, Debug)]
struct Cached {
    page: PageId,
    last_used: u64,
    /// Pages of window groups, if they are there.
    column: Option<Vec<PageId>>,
    column_used: u64,
    /// A prefix was found by the column, a table was dropped that read it, or it is part of a milestone.
    column_kept: bool,
}

/// A page table and what the model knows of it.
struct Held {
    table: PageTable,
    tokens: Vec<u32>,
    /// Tokens in the tree.
    shared: usize,
    /// The pages it is to have.
    pages: Vec<PageId>,
    /// And of window groups, by position: none where they are gone.
    columns: Vec<Option<Vec<PageId>>>,
}

impl Held {
    /// First page whose column it has.
    fn live(&self) -> usize {
        self.columns.iter().take_while(|column| column.is_none()).count()
    }
}

#[derive(Default)]
struct Model {
    page_size: usize,
    total: usize,
    windows: Windows,
    clock: u64,
    /// By all tokens from the beginning to the page's end.
    cached: BTreeMap<Vec<u32>, Cached>,
}

impl Model {
    /// First page whose column is read behind `pages` pages.
    fn first_read(&self, position: usize) -> usize {
        (0..position).find(|at| position - at <= self.windows.keep).unwrap_or(position)
            / self.page_size
    }

    fn matched(&self, tokens: &[u32]) -> Vec<&Cached> {
        let ends = (1..=tokens.len() / self.page_size).map(|pages| pages * self.page_size);
        let mut all: Vec<_> = ends.map_while(|end| self.cached.get(&tokens[..end])).collect();
        let lacks = |all: &[&Cached]| {
            let first = self.first_read(all.len() * self.page_size);
            self.windows.groups > 0 && all[first..].iter().any(|c| c.column.is_none())
        };
        while lacks(&all) {
            all.pop();
        }
        all
    }

    fn is_read(&self, prefix: &[u32], held: &[Held]) -> bool {
        let at = prefix.len() / self.page_size - 1;
        held.iter().any(|h| h.tokens[..h.shared].starts_with(prefix) && at >= h.live())
    }

    /// Columns of `tokens` that `held` read no more.
    fn leave(
        &mut self,
        tokens: &[u32],
        columns: std::ops::Range<usize>,
        is_dropped: bool,
        held: &[Held],
    ) {
        let window = self.windows.keep.div_ceil(self.page_size).max(1);
        for at in columns {
            self.clock += 1;
            let prefix = &tokens[..(at + 1) * self.page_size];
            let is_read = self.is_read(prefix, held);
            let cached = self.cached.get_mut(prefix).unwrap();
            // Milestones are four windows apart, each a window long.
            cached.column_kept |= is_dropped || at / window % 4 == 3;
            if !is_read {
                cached.column_used = self.clock;
            }
        }
    }

    fn unread(&self, held: &[Held]) -> Vec<(bool, u64, Vec<u32>)> {
        let there = self.cached.iter().filter(|(_, c)| c.column.is_some());
        let unread = there.filter(|(prefix, _)| !self.is_read(prefix, held));
        let place = |(p, c): (&Vec<u32>, &Cached)| (c.column_kept, c.column_used, p.clone());
        let mut unread: Vec<_> = unread.map(place).collect();
        unread.sort();
        unread
    }

    fn is_pinned(prefix: &[u32], held: &[Held]) -> bool {
        held.iter().any(|h| h.tokens[..h.shared].starts_with(prefix))
    }

    fn release(&mut self, tokens: &[u32], held: &[Held]) {
        self.clock += 1;
        for (prefix, cached) in &mut self.cached {
            if tokens.starts_with(prefix) && !Self::is_pinned(prefix, held) {
                cached.last_used = self.clock;
            }
        }
    }

    fn evictable(&self, held: &[Held]) -> usize {
        let pages = self.cached.keys().filter(|prefix| !Self::is_pinned(prefix, held)).count();
        pages + self.windows.groups * self.unread(held).len()
    }

    fn evict(&mut self, count: usize, held: &[Held]) {
        let mut done = 0;
        while done < count {
            let is_leaf = |prefix: &[u32]| {
                !self
                    .cached
                    .keys()
                    .any(|other| other.len() > prefix.len() && other.starts_with(prefix))
            };
            let leaves =
                self.cached.iter().filter(|(p, _)| is_leaf(p) && !Self::is_pinned(p, held));
            let mut leaves: Vec<_> = leaves.map(|(p, c)| (c.last_used, p.clone())).collect();
            leaves.sort();
            if let [first, second, ..] = &leaves[..] {
                assert_ne!(first.0, second.0, "the order of eviction is total");
            }
            let unread = self.unread(held);
            let column =
                unread.first().filter(|c| !c.0 || leaves.first().is_none_or(|leaf| c.1 < leaf.0));
            if let Some((_, _, prefix)) = column {
                let cached = self.cached.get_mut(prefix).unwrap();
                (cached.column, cached.column_kept) = (None, false);
                done += self.windows.groups;
            } else {
                let gone = self.cached.remove(&leaves[0].1).unwrap();
                done += 1 + gone.column.map_or(0, |column| column.len());
            }
        }
    }

    fn free(&self, held: &[Held]) -> usize {
        let groups = self.windows.groups;
        let owned = held.iter().map(|h| {
            let shared = h.shared / self.page_size;
            h.pages.len() - shared + groups * (h.pages.len() - h.live().max(shared))
        });
        let columns = self.cached.values().filter(|c| c.column.is_some()).count();
        self.total - owned.sum::<usize>() - self.cached.len() - groups * columns
    }
}

/// Every cached page and its column, by all tokens from the beginning to the page's end.
fn walk(tree: &Tree) -> BTreeMap<Vec<u32>, (PageId, Option<Vec<PageId>>)> {
    let mut found = BTreeMap::new();
    let mut stack = vec![(ROOT, Vec::new())];
    while let Some((id, prefix)) = stack.pop() {
        let node = &tree.nodes[id as usize];
        for (i, &page) in node.pages.iter().enumerate() {
            let mut key = prefix.clone();
            key.extend_from_slice(&node.tokens[..(i + 1) * tree.page_size]);
            found.insert(key, (page, column_at(&node.windows, i)));
        }
        let whole = [&prefix[..], &node.tokens[..]].concat();
        stack.extend(node.children.values().map(|&child| (child, whole.clone())));
    }
    found
}

/// The pages of window groups at a position, if they are there.
fn column_at(windows: &[Vec<PageId>], at: usize) -> Option<Vec<PageId>> {
    let column: Vec<_> = windows.iter().map(|group| group[at]).collect();
    Some(column).filter(|column| column.iter().all(|&page| page != GONE) && !column.is_empty())
}

/// Two kinds of page, now and then with one token flipped, so that pages agree often but not
/// always.
fn random_tokens(rng: &mut Rng, page_size: usize, pages: usize) -> Vec<u32> {
    let mut tokens = Vec::new();
    for _ in 0..pages {
        let kind = rng.below(2) as u32;
        let at = tokens.len();
        tokens.resize(at + page_size, kind);
        if rng.below(8) == 0 {
            tokens[at + rng.below(page_size)] ^= 1;
        }
    }
    tokens.truncate(tokens.len() - rng.below(page_size));
    tokens
}

fn check(mode: Mode, page_size: usize, total: usize, steps: usize, seed: u64) {
    check_windows(mode, page_size, total, Windows::default(), steps, seed);
}

fn check_windows(
    mode: Mode,
    page_size: usize,
    total: usize,
    windows: Windows,
    steps: usize,
    seed: u64,
) {
    println!("{windows:?}, mode {mode:?}, page size {page_size}, {total} pages, seed {seed:#x}");
    let mut rng = Rng(seed);
    let mut cache = PrefixCache::new(total as u32, page_size as u32, windows, mode);
    let mut model = Model { page_size, total, windows, ..Model::default() };
    let mut held: Vec<Held> = Vec::new();
    let pages_of = |tokens: usize| tokens / page_size;
    let (mut evictions, mut slid, mut filled_up) = (0, 0, 0);

    for _ in 0..steps {
        match rng.below(100) {
            0..30 if held.len() < 6 => {
                let pages = 1 + rng.below(total);
                let tokens = random_tokens(&mut rng, page_size, pages);
                let table = cache.match_prefix(&tokens);
                let matched = model.matched(&tokens);
                let shared = matched.len() * page_size;
                assert_eq!(table.shared_pages(), matched.len());
                let live = if windows.groups == 0 { usize::MAX } else { model.first_read(shared) };
                let pages = matched.iter().map(|c| c.page).collect();
                let columns = matched.iter().enumerate();
                let columns = columns.map(|(at, c)| c.column.clone().filter(|_| at >= live));
                let columns = columns.collect();
                for at in live..pages_of(shared) {
                    let prefix = &tokens[..(at + 1) * page_size];
                    model.cached.get_mut(prefix).unwrap().column_kept = true;
                }
                held.push(Held { table, tokens, shared, pages, columns });
            }
            30..60 if !held.is_empty() => {
                let at = rng.below(held.len());
                let count = rng.below(4);
                let lacking = (count * (1 + windows.groups)).saturating_sub(model.free(&held));
                let fits = lacking <= model.evictable(&held);
                assert_eq!(cache.grow(&mut held[at].table, count), fits);
                if fits {
                    evictions += lacking;
                    model.evict(lacking, &held);
                    let h = &mut held[at];
                    let fresh = &h.table.pages()[h.pages.len()..];
                    assert_eq!(fresh.len(), count);
                    for at in h.pages.len()..h.pages.len() + count {
                        h.columns.push(column_at(&h.table.windows, at));
                    }
                    h.pages.extend_from_slice(fresh);
                }
            }
            60..80 if !held.is_empty() => {
                let at = rng.below(held.len());
                let h = &mut held[at];
                let filled = h.tokens.len().min(h.pages.len() * page_size);
                let tokens = h.tokens[..rng.below(filled + 1)].to_vec();
                let before = h.table.pages().to_vec();
                let live = h.live();
                let kept = cache.publish(&mut h.table, &tokens);
                let same = before.iter().zip(h.table.pages()).take_while(|(a, b)| a == b).count();
                assert_eq!(kept, same, "what is told of the pages that changed");
                let whole = tokens.len() / page_size * page_size;
                if mode == Mode::Radix && whole > h.shared {
                    for end in (h.shared + page_size..=whole).step_by(page_size) {
                        let at = end / page_size - 1;
                        let own = h.columns[at].clone();
                        let entry = model.cached.entry(tokens[..end].to_vec());
                        let (page, column) = (h.pages[at], own.clone());
                        let new = Cached {
                            page,
                            last_used: 0,
                            column,
                            column_used: 0,
                            column_kept: false,
                        };
                        let cached = entry.or_insert(new);
                        h.pages[at] = cached.page;
                        if let Some(own) = own.filter(|_| at >= live) {
                            filled_up += usize::from(cached.column.is_none());
                            h.columns[at] = Some(cached.column.get_or_insert(own).clone());
                        }
                    }
                    h.shared = whole;
                    model.clock += 1;
                }
            }
            80..92 if !held.is_empty() => {
                let gone = held.swap_remove(rng.below(held.len()));
                let tokens = gone.tokens[..gone.shared].to_vec();
                let shared = gone.shared / page_size;
                let read = gone.live().min(shared)..shared;
                drop(gone);
                model.release(&tokens, &held);
                if windows.groups > 0 {
                    model.leave(&tokens, read, true, &held);
                }
            }
            92..98 if !held.is_empty() && windows.groups > 0 => {
                // As far as tokens are computed, or not quite.
                let at = rng.below(held.len());
                let h = &mut held[at];
                let position = rng.below(h.pages.len() * page_size + 1);
                cache.slide(&mut h.table, position);
                let whole = position / page_size * page_size;
                let (live, first) = (h.live(), model.first_read(whole));
                for column in h.columns.iter_mut().take(first) {
                    slid += usize::from(column.take().is_some());
                }
                let (tokens, shared) = (h.tokens.clone(), h.shared / page_size);
                let left = live.min(shared)..first.min(shared);
                model.leave(&tokens, left, false, &held);
            }
            98 => {
                let pages = model.evictable(&held);
                assert_eq!(cache.flush(), pages);
                model.evict(pages, &held);
            }
            _ => {}
        }

        cache.check_integrity().unwrap();
        let counts = cache.counts();
        assert_eq!(counts.free + counts.cached + counts.owned, total);
        assert_eq!(counts.free, model.free(&held));
        assert_eq!(counts.evictable, model.evictable(&held));
        assert_eq!(cache.available(), counts.free + counts.evictable);
        let expected: BTreeMap<_, _> =
            model.cached.iter().map(|(p, c)| (p.clone(), (c.page, c.column.clone()))).collect();
        assert_eq!(walk(cache.tree()), expected);
        for h in &held {
            assert_eq!(h.table.pages(), h.pages);
            let columns = (0..h.pages.len()).map(|at| column_at(&h.table.windows, at));
            assert_eq!(columns.collect::<Vec<_>>(), h.columns);
            let columns = h.columns.iter().filter(|column| column.is_some()).count();
            assert_eq!(h.table.held(), h.pages.len() + windows.groups * columns);
            assert_eq!(h.table.shared_pages() * page_size, h.shared);
        }
    }
    if mode == Mode::Radix {
        assert!(evictions > steps / 100, "only {evictions} evictions: the pool is not tight");
    }
    if mode == Mode::Radix && windows.groups > 0 {
        assert!(
            slid > steps / 1_000 && filled_up > steps / 10_000,
            "{slid} slid, {filled_up} filled"
        );
    }
    drop(held);
    cache.flush();
    assert_eq!(cache.counts().free, total);
}

#[test]
fn page_size_1() {
    check(Mode::Radix, 1, 12, 100_000, 0x5eed_0001);
}

#[test]
fn page_size_2() {
    check(Mode::Radix, 2, 10, 100_000, 0x5eed_0002);
}

#[test]
fn page_size_3() {
    check(Mode::Radix, 3, 9, 100_000, 0x5eed_0003);
}

#[test]
fn page_size_16() {
    check(Mode::Radix, 16, 12, 100_000, 0x5eed_0016);
}

#[test]
fn naive_shares_nothing() {
    check(Mode::Naive, 2, 10, 20_000, 0x5eed_000a);
}

#[test]
fn one_window_group() {
    let windows = Windows { groups: 1, keep: 3 };
    check_windows(Mode::Radix, 1, 20, windows, 100_000, 0x5eed_0101);
}

#[test]
fn three_window_groups_of_pages_of_two() {
    let windows = Windows { groups: 3, keep: 5 };
    check_windows(Mode::Radix, 2, 40, windows, 100_000, 0x5eed_0302);
}

#[test]
fn a_window_shorter_than_a_page() {
    check_windows(Mode::Radix, 4, 24, Windows { groups: 2, keep: 2 }, 100_000, 0x5eed_0204);
}

#[test]
fn naive_with_a_window() {
    check_windows(Mode::Naive, 2, 30, Windows { groups: 2, keep: 4 }, 20_000, 0x5eed_020a);
}
