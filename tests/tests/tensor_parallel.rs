//! The same greedy tokens on any number of ranks, a clear word where ranks do not divide, and what becomes of a rank
//! that fails. On the CPU, whatever device is tested: a machine may have one GPU.

#![allow(clippy::unwrap_used)] // Helpers outside of #[test] functions are tests too.

use std::time::{Duration, Instant};

use minisgl_proto::admin::{AdminErrorCode, ModelState};
use minisgl_proto::{Device, LoadOptions};
use minisgl_tests::daemon::assert_refused;
use minisgl_tests::{Daemon, dummy_folder, fixture, greedy, model_options, paths};

fn ranks(tp: u32) -> LoadOptions {
    LoadOptions { tp, device: Device::Cpu, ..model_options() }
}

#[test]
fn smollm2_on_one_and_three_ranks() {
    let daemon = Daemon::start();
    let prompts: Vec<Vec<u32>> = fixture::smollm2().prompts.into_iter().map(|p| p.ids).collect();
    let mut answers = Vec::new();
    for tp in [1, 3] {
        daemon.load("smollm2", &paths::smollm2(), ranks(tp));
        assert_eq!(daemon.status("smollm2").info.unwrap().tp, tp);
        let tokens = prompts.iter().map(|prompt| greedy(&daemon, "smollm2", prompt, 24));
        answers.push(tokens.collect::<Vec<_>>());
        daemon.unload("smollm2", false);
    }
    assert_eq!(answers[0], answers[1]);
}

#[test]
fn dummy_qwen3_on_one_to_eight_ranks() {
    dummy("qwen3");
}

#[test]
fn dummy_qwen2_on_one_to_eight_ranks() {
    dummy("qwen2");
}

/// 8 heads, 4 KV heads, seeded random weights.
fn dummy(shape: &str) {
    let daemon = Daemon::start();
    let dir = dummy_folder(shape, &daemon.dir());
    let prompts: [Vec<u32>; 3] =
        [(100..117).collect(), (1000..1400).step_by(3).collect(), vec![42, 7, 42, 7, 42]];
    let mut answers = Vec::new();
    // With eight, every KV head is held twice.
    for tp in [1, 2, 4, 8] {
        daemon.load("dummy", &dir, LoadOptions { dummy_weights: true, ..ranks(tp) });
        let tokens = prompts.iter().map(|prompt| greedy(&daemon, "dummy", prompt, 32));
        answers.push(tokens.collect::<Vec<_>>());
        daemon.unload("dummy", false);
    }
    assert_eq!(answers[0], answers[1], "tp 2");
    assert_eq!(answers[0], answers[2], "tp 4");
    assert_eq!(answers[0], answers[3], "tp 8");
    assert_ne!(answers[0][0], answers[0][1], "the weights do not listen to the prompt");
}

/// A rank that fails, or hangs, takes its worker down in time, in words; the request goes on with another worker.
#[test]
fn a_rank_that_fails_or_hangs_is_told_of_and_its_requests_go_on() {
    // Each worker fails in its step 9: the second one has no more than three tokens left to make.
    const TOKENS: u32 = 12;
    let dummy = |daemon: &Daemon| {
        let dir = dummy_folder("qwen3", &daemon.dir());
        daemon.load("dummy", &dir, LoadOptions { dummy_weights: true, ..ranks(2) });
    };
    let undisturbed = Daemon::start();
    dummy(&undisturbed);
    let expected = greedy(&undisturbed, "dummy", &[5, 6, 7], TOKENS);
    for (fault, told, at_most_s) in
        [("1:9:fail", "rank 1 failed in step 9", 10), ("1:9:stall", "ranks did not come", 40)]
    {
        let daemon = Daemon::start_with(&[("MINISGL_INJECT_FAULT", fault)]);
        dummy(&daemon);
        let before = daemon.status("dummy");
        let began = Instant::now();
        assert_eq!(greedy(&daemon, "dummy", &[5, 6, 7], TOKENS), expected, "{fault}");
        assert!(began.elapsed() < Duration::from_secs(at_most_s), "{fault}: {:?}", began.elapsed());
        let status = daemon.status("dummy");
        assert_eq!((status.state, status.restarts), (ModelState::Ready, 1), "{fault}");
        assert!(status.pid.is_some() && status.pid != before.pid, "{fault}");
        assert!(daemon.log().contains(told), "{fault}: {}", daemon.log());
    }
}

/// Every step of every rank is compared with the others'.
#[test]
fn ranks_that_are_compared_agree() {
    let daemon = Daemon::start_with(&[("MINISGL_CHECK_RANKS", "1")]);
    let dir = dummy_folder("qwen2", &daemon.dir());
    daemon.load("dummy", &dir, LoadOptions { dummy_weights: true, ..ranks(2) });
    assert_eq!(greedy(&daemon, "dummy", &[1, 2, 3, 4], 40).len(), 40);
    assert_eq!(daemon.status("dummy").restarts, 0);
}

#[test]
fn ranks_that_do_not_divide_are_refused_with_those_that_do() {
    let daemon = Daemon::start();
    let error = daemon.try_load("smollm2", &paths::smollm2(), ranks(2)).unwrap_err();
    // 9 heads, 3 KV heads.
    for word in ["9", "3", "2"] {
        assert!(error.message.contains(word), "{error:?}");
    }
    assert!(matches!(error.code, AdminErrorCode::Failed | AdminErrorCode::Invalid), "{error:?}");

    let dir = dummy_folder("qwen3", &daemon.dir());
    let options = LoadOptions { dummy_weights: true, ..ranks(3) };
    let error = daemon.try_load("dummy", &dir, options).unwrap_err();
    assert_refused(&error, error.code, &["8", "4", "2"]);
    // Neither left anything behind.
    daemon.load("dummy", &dir, LoadOptions { dummy_weights: true, ..ranks(1) });
}
