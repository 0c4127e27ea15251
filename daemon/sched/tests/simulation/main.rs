//! The scheduler, first one behaviour at a time, then in thousands of random worlds, with an
//! executor that checks what it is told to read and write, and clients that check every token
//! against what they would get alone.
//!
//! `MINISGLD_SIM_WORLDS=N` runs N worlds a test instead of the default; `MINISGLD_SIM_SEED=S`
//! runs the one world of a failure.

#![allow(clippy::unwrap_used)] // A panic is how a test fails.

mod behaviour;
mod client;
mod executor;
mod faults;
mod held;
mod limits;
mod model;
mod rng;
mod scoring;
mod windows;
mod worker;
mod world;

use world::{Tally, World};

const TURNS: usize = 600;

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

fn run_worlds(first_seed: u64, mortal: bool) {
    if let Some(seed) = from_env("MINISGLD_SIM_SEED") {
        World::new(seed, mortal).run(TURNS);
        return;
    }
    let mut all = Tally::default();
    for seed in first_seed..first_seed + from_env("MINISGLD_SIM_WORLDS").unwrap_or(2_000) {
        // Only shown if it fails, and then the last one is the one.
        println!("MINISGLD_SIM_SEED={seed}");
        let tally = World::new(seed, mortal).run(TURNS);
        all.events += tally.events;
        all.finished += tally.finished;
        all.tokens += tally.tokens;
        all.scores += tally.scores;
        all.preemptions += tally.preemptions;
        all.cached_tokens += tally.cached_tokens;
        all.resumed += tally.resumed;
        all.masked += tally.masked;
        all.overlapped_masks += tally.overlapped_masks;
        all.stuck += tally.stuck;
        all.ended_rules += tally.ended_rules;
        all.windowed += tally.windowed;
        all.windows_cached += tally.windows_cached;
    }
    eprintln!("{all:?}");
    assert!(all.preemptions > all.finished / 100, "the pools are too large to preempt");
    assert!(all.scores > all.finished / 3, "too few prompts are scored");
    assert!(all.cached_tokens > all.finished / 10, "the prompts share too little");
    assert!(all.masked > all.tokens / 50, "too few tokens are sampled under a mask");
    assert!(all.overlapped_masks > all.masked / 50, "too few masks come late");
    assert!(all.windowed > all.tokens / 10, "too few rows see a window");
    assert!(all.windows_cached > all.cached_tokens / 10, "too little is found behind a window");
    assert!(all.stuck > 0, "none rules every token out");
    assert!(all.ended_rules > all.finished / 1_000, "too few rules end");
    assert!(
        !mortal || all.resumed > all.finished / 20,
        "too few were running when their worker died"
    );
}

#[test]
fn any_crowd_gets_what_each_would_get_alone() {
    run_worlds(1_000_000, false);
}

#[test]
fn and_so_does_any_other() {
    run_worlds(2_000_000, false);
}

#[test]
fn a_crowd_whose_worker_dies_again_and_again_cannot_tell() {
    run_worlds(3_000_000, true);
}
