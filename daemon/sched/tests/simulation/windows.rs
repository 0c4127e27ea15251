//! Layers that see a window: what their pages are given up for, and what is found again.

use minisgl_proto::{Finish, Reject};
use minisgl_sched::{ConfigError, SchedConfig, Scheduler, Windows};

use crate::worker::{Worker, alone, config, prompt, request};

/// Four groups of layers, three of which see eight tokens.
fn windowed() -> SchedConfig {
    SchedConfig { windows: Windows { groups: 3, keep: 8 }, ..config() }
}

#[test]
fn a_window_lets_a_long_request_into_a_small_pool() {
    // 64 pages are 64 tokens of all groups.
    let submit = request(1, prompt(5, 100), 28);
    let mut worker = Worker::new(windowed());
    worker.submit([submit.clone()]);
    worker.run_until_idle();
    assert_eq!(worker.tokens(1), alone(&submit));
    assert_eq!(worker.finish(1), Some(&Finish::Length));

    let all = SchedConfig { windows: Windows { groups: 3, keep: 128 }, ..config() };
    let mut worker = Worker::new(all);
    worker.submit([submit]);
    let refused = Reject::TooLong { prompt: 100, limit: 64 };
    assert_eq!(worker.finish(1), Some(&Finish::Rejected(refused)));
}

#[test]
fn what_decodes_holds_a_window_and_no_more() {
    let mut worker = Worker::new(windowed());
    worker.submit([request(1, prompt(5, 4), 100)]);
    for _ in 0..80 {
        worker.turn([]);
    }
    let stats = worker.driver.scheduler_mut().stats();
    assert_eq!(stats.running, 1);
    // Of 80 tokens or more, 20 pages of the first group, and of others those of 8 tokens and the one that is written.
    let held = stats.pages_owned + stats.pages_cached - stats.pages_evictable;
    assert!((20 + 3 * 2..=22 + 3 * 4).contains(&held), "{stats:?}");
}

#[test]
fn a_conversation_is_gone_on_with() {
    let mut worker = Worker::new(windowed());
    let first = request(1, prompt(5, 40), 12);
    worker.submit([first.clone()]);
    worker.run_until_idle();
    let mut turns = first.prompt;
    turns.extend(worker.tokens(1));
    // The last token was not fed, and pages are whole.
    let second = request(2, [&turns[..], &prompt(70, 9)].concat(), 5);
    worker.submit([second.clone()]);
    worker.run_until_idle();
    assert_eq!(worker.cached(2), Some(48));
    assert_eq!(worker.tokens(2), alone(&second));
}

/// Wherever its window begins within a page, and wherever it ends.
#[test]
fn the_end_of_a_conversation_is_found() {
    for keep in 5..=9 {
        for out in 12..20 {
            let windows = Windows { groups: 3, keep };
            let mut worker = Worker::new(SchedConfig { windows, pages: 400, ..config() });
            let first = request(1, prompt(5, 40), out);
            worker.submit([first.clone()]);
            worker.run_until_idle();
            let said = [&first.prompt[..], &worker.tokens(1)].concat();
            worker.submit([request(2, [&said[..], &prompt(70, 9)].concat(), 2)]);
            worker.run_until_idle();
            // The last token was not fed, and pages are whole.
            let whole = (said.len() as u32 - 1) / 4 * 4;
            assert_eq!(worker.cached(2), Some(whole), "keep {keep}, {out} tokens");
        }
    }
}

/// Conversations whose windows are small are kept by their ends; what is between does not push others out.
#[test]
fn as_many_conversations_stay_as_have_room() {
    let windows = Windows { groups: 6, keep: 4 };
    let base = SchedConfig { page_size: 1, chunk_tokens: 20, max_len: 110, ..config() };
    // 250 pages a conversation with its window and milestones, 630 with all of it.
    let found = |windows: Windows, pages: u32| {
        let mut worker = Worker::new(SchedConfig { windows, pages, ..base.clone() });
        let talk = |id: u32| prompt(id, 90);
        for id in 0..60 {
            worker.submit([request(u64::from(id), talk(id), 1)]);
            worker.run_until_idle();
        }
        // The latest first, so that those that are found push nobody out.
        let again = (0..60).rev().filter(|&id| {
            let key = u64::from(id) + 1_000;
            worker.submit([request(key, [&talk(id)[..], &[5]].concat(), 1)]);
            worker.run_until_idle();
            worker.cached(key) >= Some(85)
        });
        again.count()
    };
    let (grouped, all) = (found(windows, 7_000), found(Windows { groups: 6, keep: 4_000 }, 7_000));
    assert!(all <= 11, "{all} of 60 with all of their pages");
    assert!(grouped >= 22, "{grouped} of 60");
}

#[test]
fn a_page_for_each_group_is_the_least() {
    let error = Scheduler::new(SchedConfig { pages: 3, ..windowed() }).unwrap_err();
    assert_eq!(error, ConfigError::TooFewPages { pages: 3, groups: 4 });
}
