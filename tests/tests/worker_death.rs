//! A worker that is killed takes its requests with it and nothing else.

#![allow(clippy::unwrap_used)] // Helpers outside of #[test] functions are tests too.

use minisgl_proto::admin::ModelState;
use minisgl_tests::{Daemon, greedy, greedy_with_rivals, model_options};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

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
    let error = last_error(&mut events);
    let message = error["message"].as_str().unwrap_or_default();
    assert!(message.contains("worker"), "{error}");
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

/// The error object that ends the stream.
fn last_error(events: &mut minisgl_tests::Events) -> Value {
    loop {
        match events.next_event() {
            Ok(Some(event)) if event.get("error").is_some() => return event["error"].clone(),
            Ok(Some(_)) => {}
            other => panic!("the stream ended without an error event: {other:?}"),
        }
    }
}
