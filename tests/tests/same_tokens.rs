//! The same greedy tokens, however they are computed: cache, pages, chunks, overlap, company.

#![allow(clippy::unwrap_used)] // Helpers outside of #[test] functions are tests too.

use minisgl_proto::{CacheMode, LoadOptions};
use minisgl_tests::{Daemon, Greedy, fixture, greedy_with_rivals, model_options, paths};

const COUNT: u32 = 24;

/// Two chats, a text of 299 tokens and one of 900: each crosses pages and small chunks.
fn prompts() -> Vec<Vec<u32>> {
    let fixture = fixture::smollm2();
    let find = |name: &str| fixture.prompts.iter().find(|p| p.name == name).unwrap().ids.clone();
    let long = find("long");
    vec![find("chat"), find("turns"), long.clone(), long.repeat(3)]
}

fn answers(daemon: &Daemon, prompts: &[Vec<u32>]) -> Vec<Greedy> {
    prompts.iter().map(|prompt| greedy_with_rivals(daemon, "smollm2", prompt, COUNT)).collect()
}

fn assert_same(expected: &[Greedy], got: &[Greedy], what: &str) {
    assert_eq!(expected.len(), got.len());
    for (at, (expected, got)) in expected.iter().zip(got).enumerate() {
        expected.assert_same(&got.ids, &format!("{what}, prompt {at}"));
    }
}

/// Loads with `options`, asks twice (the second time prefixes are cached, if at all), unloads.
fn check(daemon: &Daemon, expected: &[Greedy], what: &str, options: LoadOptions) {
    daemon.load("smollm2", &paths::smollm2(), options);
    for round in 0..2 {
        assert_same(expected, &answers(daemon, &prompts()), &format!("{what}, round {round}"));
    }
    daemon.assert_all_pages_back("smollm2");
    daemon.unload("smollm2", false);
}

/// One token a page, no cache, no overlap: as plain as it gets.
fn plain() -> LoadOptions {
    LoadOptions {
        cache: CacheMode::Naive,
        overlap: false,
        page_size: 1,
        chunk_tokens: Some(2048),
        ..model_options()
    }
}

#[test]
fn cache_pages_chunks_and_overlap_change_nothing() {
    let daemon = Daemon::with_smollm2(plain());
    let expected = answers(&daemon, &prompts());
    daemon.unload("smollm2", false);

    let base = model_options();
    check(&daemon, &expected, "defaults", base.clone());
    check(&daemon, &expected, "page size 1", LoadOptions { page_size: 1, ..base.clone() });
    check(
        &daemon,
        &expected,
        "chunks of 16",
        LoadOptions { chunk_tokens: Some(16), ..base.clone() },
    );
    check(
        &daemon,
        &expected,
        "chunks of 16, page size 1, no overlap",
        LoadOptions { chunk_tokens: Some(16), page_size: 1, overlap: false, ..base.clone() },
    );
    check(&daemon, &expected, "no cache", LoadOptions { cache: CacheMode::Naive, ..base.clone() });
    check(&daemon, &expected, "no overlap", LoadOptions { overlap: false, ..base });
}

#[test]
fn the_ablation_variable_changes_nothing() {
    let daemon = Daemon::with_smollm2(model_options());
    let prompts = &prompts()[..2];
    let expected = answers(&daemon, prompts);
    let without = Daemon::start_with(&[("MINISGL_DISABLE_OVERLAP_SCHEDULING", "1")]);
    without.load("smollm2", &paths::smollm2(), model_options());
    assert_same(&expected, &answers(&without, prompts), "without overlap");
}

#[test]
fn company_changes_nothing() {
    let daemon = Daemon::with_smollm2(model_options());
    let prompts = prompts();
    let expected = answers(&daemon, &prompts);
    daemon.flush("smollm2");
    crowd(&daemon, &prompts, &expected, 3);
    daemon.assert_all_pages_back("smollm2");
}

#[test]
fn preemption_changes_nothing() {
    let daemon = Daemon::with_smollm2(model_options());
    let prompts = &prompts()[..3];
    let expected = answers(&daemon, prompts);
    daemon.unload("smollm2", false);
    // Room for the largest request and little else.
    let tight = LoadOptions { kv_tokens: Some(384), max_len: Some(352), ..model_options() };
    daemon.load("smollm2", &paths::smollm2(), tight);
    crowd(&daemon, prompts, &expected, 4);
    daemon.assert_all_pages_back("smollm2");
    let preemptions = daemon.status("smollm2").stats.unwrap().preemptions;
    assert!(preemptions > 0, "384 tokens of KV cache were enough for everyone");
}

/// Asks every prompt `copies` times, all at once.
fn crowd(daemon: &Daemon, prompts: &[Vec<u32>], expected: &[Greedy], copies: usize) {
    std::thread::scope(|scope| {
        for copy in 0..copies {
            for (prompt, expected) in prompts.iter().zip(expected) {
                scope.spawn(move || {
                    let got = greedy_with_rivals(daemon, "smollm2", prompt, COUNT);
                    let what = format!("copy {copy}, {} tokens", prompt.len());
                    expected.assert_same(&got.ids, &what);
                });
            }
        }
    });
}
