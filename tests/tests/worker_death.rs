//! A worker that is killed is replaced, and its stream goes on.

#![allow(clippy::unwrap_used)] // Helpers outside of #[test] functions are tests too.

use minisgl_proto::admin::ModelState;
use minisgl_tests::{Daemon, greedy, greedy_with_rivals, model_options};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

#[test]
fn a_killed_worker_is_told_of_and_replaced() {
    let daemon = Daemon::with_smollm2(model_options());
    let expected = greedy_with_rivals(&daemon, "smollm2", &[504, 2365, 6354], 8);
    let before = daemon.status("smollm2");

    let body = json!({
        "model": "smollm2",
        "messages": [{"role": "user", "content": "Tell me a very long story."}],
        "stream": true,
        "ignore_eos": true,
        "max_tokens": 2000,
    });
    let mut events = daemon.events("/v1/chat/completions", &body);
    for _ in 0..5 {
        events.next_event().unwrap().expect("the story has begun");
    }
    kill(Pid::from_raw(before.pid.unwrap() as i32), Signal::SIGKILL).unwrap();
    let mut after = 0;
    while after < 40 {
        let event = events.next_event().unwrap().expect("the story goes on");
        assert!(event.get("error").is_none(), "{event}");
        after += 1;
    }
    drop(events);
    assert!(daemon.log().contains("smollm2"), "the log names the model");

    // It is told, and another one serves.
    let status = daemon.wait_for("smollm2", "replaced", |s| {
        s.state == ModelState::Ready && s.pid.is_some() && s.pid != before.pid
    });
    assert_eq!(status.restarts, 1);
    let reason = status.reason.unwrap_or_default();
    assert!(reason.to_lowercase().contains("kill") || reason.contains('9'), "{reason:?}");
    let ps = daemon.ctl(&["ps"]);
    assert!(String::from_utf8_lossy(&ps.stdout).contains("smollm2"), "{ps:?}");
    expected.assert_same(&greedy(&daemon, "smollm2", &[504, 2365, 6354], 8), "the new worker");
    daemon.assert_all_pages_back("smollm2");
}
