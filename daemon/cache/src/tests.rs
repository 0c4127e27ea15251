//! What the cache promises, one promise a test.

use std::thread;

use crate::{Counts, Mode, PageTable, PrefixCache};

fn cache(pages: u32, page_size: u32) -> PrefixCache {
    PrefixCache::new(pages, page_size, Mode::Radix)
}

/// A request that computes and publishes all of `tokens`.
fn computed(cache: &mut PrefixCache, tokens: &[u32]) -> PageTable {
    let mut table = cache.match_prefix(tokens);
    let pages = tokens.len().div_ceil(cache.page_size()) - table.pages().len();
    assert!(cache.grow(&mut table, pages));
    cache.publish(&mut table, tokens);
    cache.check_integrity().unwrap();
    table
}

#[test]
fn a_prefix_is_found_in_whole_pages() {
    let mut cache = cache(8, 2);
    let first = computed(&mut cache, &[1, 2, 3, 4, 5]);
    assert_eq!(first.shared_pages(), 2);
    assert_eq!(cache.counts(), Counts { free: 5, cached: 2, evictable: 0, owned: 1 });

    let other = cache.match_prefix(&[1, 2, 3, 9]);
    assert_eq!(other.pages(), &first.pages()[..1]);
    cache.check_integrity().unwrap();
}

#[test]
fn a_dropped_table_gives_everything_back() {
    let mut cache = cache(8, 2);
    let table = computed(&mut cache, &[1, 2, 3, 4, 5]);
    drop(table);
    assert_eq!(cache.counts(), Counts { free: 6, cached: 2, evictable: 2, owned: 0 });
    assert_eq!(cache.available(), 8);
}

#[test]
fn tables_may_be_dropped_anywhere() {
    let mut cache = cache(8, 1);
    let one = computed(&mut cache, &[1, 2]);
    let two = computed(&mut cache, &[1, 3]);
    thread::spawn(move || drop(one)).join().unwrap();
    assert_eq!(cache.counts().evictable, 1);
    drop(cache);
    drop(two);
}

#[test]
fn duplicates_are_freed_and_replaced() {
    let mut cache = cache(8, 1);
    let (mut a, mut b) = (cache.match_prefix(&[1, 2, 3]), cache.match_prefix(&[1, 2, 4]));
    assert!(cache.grow(&mut a, 3) && cache.grow(&mut b, 3));
    assert_eq!(cache.publish(&mut a, &[1, 2, 3]), 3);
    assert_eq!(cache.publish(&mut b, &[1, 2, 4]), 0);
    assert_eq!(a.pages()[..2], b.pages()[..2]);
    assert_ne!(a.pages()[2], b.pages()[2]);
    assert_eq!(cache.counts(), Counts { free: 4, cached: 4, evictable: 0, owned: 0 });
    cache.check_integrity().unwrap();
}

#[test]
fn pinned_pages_stay() {
    let mut cache = cache(4, 1);
    let mut held = computed(&mut cache, &[1, 2, 3]);
    drop(computed(&mut cache, &[9]));
    assert!(!cache.grow(&mut held, 2), "only the page of [9] can go");
    assert_eq!(cache.flush(), 1);
    assert!(cache.grow(&mut held, 1));
    assert_eq!(cache.match_prefix(&[1, 2, 3]).pages().len(), 3);
}

#[test]
fn the_least_recently_used_goes_first_and_from_its_end() {
    let mut cache = cache(6, 1);
    drop(computed(&mut cache, &[1, 2, 3]));
    drop(computed(&mut cache, &[7, 8, 9]));
    drop(cache.match_prefix(&[1, 2])); // [1, 2] was used last, [1, 2, 3] first.
    let found = |cache: &mut PrefixCache, tokens: &[u32]| cache.match_prefix(tokens).pages().len();

    let mut hungry = cache.match_prefix(&[]);
    assert!(cache.grow(&mut hungry, 1));
    assert_eq!(found(&mut cache, &[1, 2, 3]), 2);
    assert!(cache.grow(&mut hungry, 1));
    assert_eq!(found(&mut cache, &[7, 8, 9]), 2, "trimmed, not dropped");
    assert!(cache.grow(&mut hungry, 2));
    assert_eq!(found(&mut cache, &[1]), 0);
    cache.check_integrity().unwrap();
}

#[test]
fn growing_is_all_or_nothing() {
    let mut cache = cache(3, 1);
    let mut table = cache.match_prefix(&[]);
    assert!(!cache.grow(&mut table, 4));
    assert_eq!(cache.counts().free, 3);
    assert!(cache.grow(&mut table, 3));
    assert!(!cache.grow(&mut table, 1));
}

#[test]
fn a_leaf_on_every_page_makes_no_deep_recursion() {
    let mut cache = cache(50_000, 1);
    let tokens: Vec<u32> = (0..50_000).collect();
    let mut table = cache.match_prefix(&[]);
    for end in 1..=tokens.len() {
        assert!(cache.grow(&mut table, 1));
        cache.publish(&mut table, &tokens[..end]);
    }
    drop(table);
    assert_eq!(cache.match_prefix(&tokens).pages().len(), 50_000);
    cache.check_integrity().unwrap();
    assert_eq!(cache.flush(), 50_000);
    drop(cache);
}

#[test]
#[should_panic(expected = "another cache")]
fn a_table_of_another_cache_is_refused() {
    let (mut one, mut two) = (cache(2, 1), cache(2, 1));
    let mut table = one.match_prefix(&[]);
    two.grow(&mut table, 1);
}
