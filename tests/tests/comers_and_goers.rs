//! Clients that leave whenever they like: nothing they held stays behind.

#![allow(clippy::unwrap_used)] // Helpers outside of #[test] functions are tests too.

use std::io::Write;
use std::time::Duration;

use minisgl_proto::LoadOptions;
use minisgl_tests::daemon::number;
use minisgl_tests::random::Random;
use minisgl_tests::{Daemon, dummy_folder, greedy, http, model_options};
use serde_json::json;

/// Unless `MINISGL_TEST_REQUESTS` says otherwise.
const REQUESTS: u64 = 2000;
const CLIENTS: u64 = 16;

#[test]
fn requests_dropped_at_random_moments() {
    // A small model with a small cache: the test is about leaving, not about arithmetic.
    let daemon = Daemon::start();
    let dir = dummy_folder("qwen3", &daemon.dir());
    let options = LoadOptions { kv_tokens: Some(4096), max_len: Some(1024), ..model_options() };
    daemon.load("dummy", &dir, LoadOptions { dummy_weights: true, ..options });
    let expected = greedy(&daemon, "dummy", &[504, 2365, 6354], 8);
    let requests = number("MINISGL_TEST_REQUESTS").unwrap_or(REQUESTS);
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let daemon = &daemon;
            scope.spawn(move || {
                let mut random = Random::new(1000 + client);
                for _ in 0..requests / CLIENTS {
                    come_and_go(daemon, &mut random);
                }
            });
        }
    });
    daemon.assert_all_pages_back("dummy");
    let metrics = daemon.get("/metrics").text();
    assert!(metrics.contains("outcome=\"cancelled\""), "those who left are counted:\n{metrics}");
    assert_eq!(greedy(&daemon, "dummy", &[504, 2365, 6354], 8), expected);
}

/// One request, left at a random moment: while sending, at once, a little later, after some events.
fn come_and_go(daemon: &Daemon, random: &mut Random) {
    let length = if random.below(16) == 0 { 600 } else { 1 + random.below(40) as u32 };
    let first = random.below(1000) as u32;
    let body = json!({
        "model": "dummy",
        "input_ids": (first..first + length).collect::<Vec<u32>>(),
        "stream": true,
        "sampling_params": {"temperature": 1.0, "max_new_tokens": 200, "ignore_eos": true},
    });
    match random.below(4) {
        0 => {
            let text = http::head("POST", "/generate", body.to_string().len()) + &body.to_string();
            let cut = random.below(text.len() as u64) as usize;
            let mut connection = daemon.api.connect().unwrap();
            connection.write_all(&text.as_bytes()[..cut]).unwrap();
        }
        1 => {
            let text = http::head("POST", "/generate", body.to_string().len()) + &body.to_string();
            let mut connection = daemon.api.connect().unwrap();
            connection.write_all(text.as_bytes()).unwrap();
            std::thread::sleep(Duration::from_micros(random.below(20_000)));
        }
        _ => {
            // A full queue may refuse; that is an answer too.
            let Ok(mut events) = daemon.api.events("/generate", &body) else { return };
            for _ in 0..random.below(4) {
                events.next_event().unwrap();
            }
        }
    }
}
