//! What the cache promises, one promise a test.

use std::thread;

use crate::{Counts, GONE, Mode, PageTable, PrefixCache, Windows};

fn cache(pages: u32, page_size: u32) -> PrefixCache {
    PrefixCache::new(pages, page_size, Windows::default(), Mode::Radix)
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

/// What a request may hold is what it can be given, whatever the sizes: both ways of reckoning agree.
#[test]
fn as_many_tokens_fit_as_have_pages() {
    for (groups, keep, page_size) in [(0, 0, 16), (1, 3, 1), (2, 7, 4), (6, 1_151, 16)] {
        let windows = Windows { groups, keep };
        for row in [1, 16, 8_192] {
            for pages in (1 + groups..400).chain([5_000, 100_000]) {
                let tokens = windows.tokens_in(pages, row, page_size);
                let fits = |tokens| windows.pages_for(tokens, row, page_size) <= pages;
                assert!(fits(tokens) && tokens > 0, "{windows:?}, {pages} pages");
                assert!(!fits(tokens + 1), "{windows:?}, {pages} pages hold more");
            }
        }
    }
}

const WINDOWS: Windows = Windows { groups: 2, keep: 3 };

/// A request whose tokens see three before them in two groups of layers, once it has computed `tokens`.
fn slid(cache: &mut PrefixCache, tokens: &[u32]) -> PageTable {
    let mut table = computed(cache, tokens);
    cache.slide(&mut table, tokens.len());
    cache.check_integrity().unwrap();
    table
}

#[test]
fn a_long_sequence_keeps_a_window_of_columns() {
    let mut cache = PrefixCache::new(60, 1, WINDOWS, Mode::Radix);
    let tokens: Vec<u32> = (0..10).collect();
    let table = slid(&mut cache, &tokens);
    assert_eq!(table.live(), 7);
    assert!(table.group(1)[..7].iter().all(|&page| page == GONE) && table.group(1)[7] != GONE);
    assert_eq!(table.held(), 10 + 2 * 3);
    // Under the live node, seven columns can go; nothing else can.
    assert_eq!(cache.counts(), Counts { free: 30, cached: 30, evictable: 14, owned: 0 });
    assert_eq!(cache.flush(), 14);
    assert_eq!(cache.match_prefix(&tokens).pages(), table.pages());
    assert_eq!(cache.match_prefix(&tokens[..9]).pages().len(), 0, "its window is gone");
}

#[test]
fn what_is_not_published_goes_back_at_once() {
    let mut cache = PrefixCache::new(40, 1, WINDOWS, Mode::Radix);
    let mut table = cache.match_prefix(&[1]);
    assert!(cache.grow(&mut table, 10));
    cache.slide(&mut table, 10);
    assert_eq!(cache.counts(), Counts { free: 24, cached: 0, evictable: 0, owned: 16 });
    cache.publish(&mut table, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    assert_eq!(cache.counts().cached, 16);
    cache.check_integrity().unwrap();
}

#[test]
fn a_column_that_was_evicted_is_filled_by_who_computes_it_again() {
    let mut cache = PrefixCache::new(200, 1, WINDOWS, Mode::Radix);
    let tokens: Vec<u32> = (0..10).collect();
    drop(slid(&mut cache, &tokens));
    let mut hungry = cache.match_prefix(&[]);
    let free = cache.counts().free;
    assert!(cache.grow(&mut hungry, free / 3 + 1), "a column goes, no leaf");
    assert_eq!(cache.match_prefix(&tokens).pages().len(), 10);
    cache.flush();
    drop(hungry);
    let trunk = slid(&mut cache, &tokens);
    cache.flush();
    let branch = [0, 1, 2, 3, 4, 77, 78];
    assert_eq!(cache.match_prefix(&branch).pages().len(), 0);
    drop(slid(&mut cache, &branch));
    assert_eq!(cache.match_prefix(&[0, 1, 2, 3, 4, 88]).pages(), &trunk.pages()[..5]);
    cache.check_integrity().unwrap();
}
