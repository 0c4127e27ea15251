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

#[test]
fn a_page_for_each_group_is_the_least() {
    let error = Scheduler::new(SchedConfig { pages: 3, ..windowed() }).unwrap_err();
    assert_eq!(error, ConfigError::TooFewPages { pages: 3, groups: 4 });
}
