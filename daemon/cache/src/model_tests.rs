//! Random operations on the cache beside a plain model of it: a list of token sequences, one
//! for each cached page, searched by brute force. After each step both must agree on every cached
//! page, and the integrity check must pass.

use std::collections::BTreeMap;

use crate::tree::{ROOT, Tree};
use crate::{Mode, PageId, PageTable, PrefixCache};

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
}

/// A page table and what the model knows of it.
struct Held {
    table: PageTable,
    tokens: Vec<u32>,
    /// Tokens in the tree.
    shared: usize,
    /// The pages it is to have.
    pages: Vec<PageId>,
}

#[derive(Default)]
struct Model {
    page_size: usize,
    total: usize,
    clock: u64,
    /// By all tokens from the beginning to the page's end.
    cached: BTreeMap<Vec<u32>, Cached>,
}

impl Model {
    fn matched(&self, tokens: &[u32]) -> Vec<PageId> {
        let ends = (1..=tokens.len() / self.page_size).map(|pages| pages * self.page_size);
        ends.map_while(|end| self.cached.get(&tokens[..end]).map(|c| c.page)).collect()
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
        self.cached.keys().filter(|prefix| !Self::is_pinned(prefix, held)).count()
    }

    fn evict(&mut self, count: usize, held: &[Held]) {
        for _ in 0..count {
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
            self.cached.remove(&leaves[0].1);
        }
    }

    fn free(&self, held: &[Held]) -> usize {
        let owned: usize = held.iter().map(|h| h.pages.len() - h.shared / self.page_size).sum();
        self.total - owned - self.cached.len()
    }
}

/// Every cached page, by all tokens from the beginning to the page's end.
fn walk(tree: &Tree) -> BTreeMap<Vec<u32>, PageId> {
    let mut found = BTreeMap::new();
    let mut stack = vec![(ROOT, Vec::new())];
    while let Some((id, prefix)) = stack.pop() {
        let node = &tree.nodes[id as usize];
        for (i, &page) in node.pages.iter().enumerate() {
            let mut key = prefix.clone();
            key.extend_from_slice(&node.tokens[..(i + 1) * tree.page_size]);
            found.insert(key, page);
        }
        let whole = [&prefix[..], &node.tokens[..]].concat();
        stack.extend(node.children.values().map(|&child| (child, whole.clone())));
    }
    found
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
    println!("mode {mode:?}, page size {page_size}, {total} pages, seed {seed:#x}");
    let mut rng = Rng(seed);
    let mut cache = PrefixCache::new(total as u32, page_size as u32, mode);
    let mut model = Model { page_size, total, ..Model::default() };
    let mut held: Vec<Held> = Vec::new();
    let mut evictions = 0;

    for _ in 0..steps {
        match rng.below(100) {
            0..30 if held.len() < 6 => {
                let pages = 1 + rng.below(total);
                let tokens = random_tokens(&mut rng, page_size, pages);
                let table = cache.match_prefix(&tokens);
                let pages = model.matched(&tokens);
                let shared = pages.len() * page_size;
                assert_eq!(table.shared_pages(), pages.len());
                held.push(Held { table, tokens, shared, pages });
            }
            30..60 if !held.is_empty() => {
                let at = rng.below(held.len());
                let count = rng.below(4);
                let lacking = count.saturating_sub(model.free(&held));
                let fits = lacking <= model.evictable(&held);
                assert_eq!(cache.grow(&mut held[at].table, count), fits);
                if fits {
                    evictions += lacking;
                    model.evict(lacking, &held);
                    let h = &mut held[at];
                    let fresh = &h.table.pages()[h.pages.len()..];
                    assert_eq!(fresh.len(), count);
                    h.pages.extend_from_slice(fresh);
                }
            }
            60..80 if !held.is_empty() => {
                let at = rng.below(held.len());
                let h = &mut held[at];
                let filled = h.tokens.len().min(h.pages.len() * page_size);
                let tokens = h.tokens[..rng.below(filled + 1)].to_vec();
                let before = h.table.pages().to_vec();
                let kept = cache.publish(&mut h.table, &tokens);
                let same = before.iter().zip(h.table.pages()).take_while(|(a, b)| a == b).count();
                assert_eq!(kept, same, "what is told of the pages that changed");
                let whole = tokens.len() / page_size * page_size;
                if mode == Mode::Radix && whole > h.shared {
                    for end in (h.shared + page_size..=whole).step_by(page_size) {
                        let page = &mut h.pages[end / page_size - 1];
                        let entry = model.cached.entry(tokens[..end].to_vec());
                        *page = entry.or_insert(Cached { page: *page, last_used: 0 }).page;
                    }
                    h.shared = whole;
                    model.clock += 1;
                }
            }
            80..98 if !held.is_empty() => {
                let gone = held.swap_remove(rng.below(held.len()));
                let tokens = gone.tokens[..gone.shared].to_vec();
                drop(gone);
                model.release(&tokens, &held);
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
            model.cached.iter().map(|(prefix, cached)| (prefix.clone(), cached.page)).collect();
        assert_eq!(walk(cache.tree()), expected);
        for h in &held {
            assert_eq!(h.table.pages(), h.pages);
            assert_eq!(h.table.shared_pages() * page_size, h.shared);
        }
    }
    if mode == Mode::Radix {
        assert!(evictions > steps / 100, "only {evictions} evictions: the pool is not tight");
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
