//! Every bad request gets an answer that names the thing, and hurts nobody else.

#![allow(clippy::unwrap_used)] // Helpers outside of #[test] functions are tests too.

use std::io::{Read, Write};

use minisgl_proto::LoadOptions;
use minisgl_tests::{Daemon, Response, greedy, http, model_options};
use serde_json::{Value, json};

fn chat(more: Value) -> Value {
    let mut body = json!({
        "model": "smollm2",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 2,
    });
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

fn assert_error(response: &Response, status: u16, words: &[&str], what: &str) {
    let text = response.text();
    assert_eq!(response.status, status, "{what}: {text}");
    let error = response.json()["error"].clone();
    assert!(error["type"].is_string() && error["message"].is_string(), "{what}: {text}");
    assert!(error.get("param").is_some() && error.get("code").is_some(), "{what}: {text}");
    for word in words {
        assert!(text.contains(word), "{what}: {word:?} is not in {text}");
    }
}

#[test]
fn each_is_told_what_is_wrong() {
    let options = LoadOptions { max_len: Some(512), ..model_options() };
    let daemon = Daemon::with_smollm2(options);
    let expected = greedy(&daemon, "smollm2", &[504, 2365, 6354], 8);
    let path = "/v1/chat/completions";
    let cases = [
        (json!({"temperature": -1}), 400, "temperature"),
        (json!({"temperature": "warm"}), 400, "temperature"),
        (json!({"top_p": 1.5}), 400, "top_p"),
        (json!({"max_tokens": 0}), 400, "max_tokens"),
        (json!({"max_tokens": -5}), 400, "max_tokens"),
        (json!({"max_tokens": 1_000_000_000_000u64}), 400, "max_tokens"),
        (json!({"n": 0}), 400, "n"),
        (json!({"logit_bias": {"99999999": 1}}), 400, "logit_bias"),
        (json!({"messages": []}), 400, "messages"),
        (json!({"messages": "Hi"}), 400, "messages"),
        (json!({"messages": [{"role": "user", "content": {"a": 1}}]}), 400, "content"),
        (json!({"model": "nobody"}), 404, "nobody"),
        (json!({"messages": [{"role": "user", "content": "word ".repeat(2000)}]}), 400, "512"),
    ];
    for (more, status, word) in cases {
        let response = daemon.post(path, &chat(more.clone()));
        assert_error(&response, status, &[word], &more.to_string());
    }
    let too_long = daemon.post(
        path,
        &chat(json!({"messages": [
        {"role": "user", "content": "word ".repeat(2000)}]})),
    );
    assert_eq!(too_long.json()["error"]["code"], "context_length_exceeded");

    let vocabulary = json!({"model": "smollm2", "prompt": [1, 2, 49152]});
    assert_error(&daemon.post("/v1/completions", &vocabulary), 400, &["49152"], "a token id");
    let negative = json!({"model": "smollm2", "input_ids": [1, -2]});
    assert_error(&daemon.post("/generate", &negative), 400, &["-2"], "a negative token id");
    let empty = json!({"model": "smollm2", "prompt": []});
    assert_error(&daemon.post("/v1/completions", &empty), 400, &["prompt"], "no prompt");
    assert_error(&daemon.get("/v1/nothing"), 404, &["/v1/nothing"], "an unknown path");
    assert_eq!(daemon.get(path).status, 405);

    // Unknown fields are tolerated; the next request is none the worse for the ones before it.
    daemon.post(path, &chat(json!({"colour": "blue"}))).ok();
    assert_eq!(greedy(&daemon, "smollm2", &[504, 2365, 6354], 8), expected);
    daemon.assert_all_pages_back("smollm2");
}

#[test]
fn bodies_that_are_no_requests() {
    let daemon = Daemon::with_smollm2(model_options());
    let path = "/v1/chat/completions";
    let send = |body: &[u8]| daemon.api.send("POST", path, body).unwrap();
    assert_error(&send(b"{\"model\": \"smollm2\", "), 400, &["JSON"], "cut off");
    assert_error(&send(b""), 400, &[], "empty");
    assert_error(&send(b"[1, 2]"), 400, &[], "a list");
    let mut invalid = chat(json!({})).to_string().into_bytes();
    let at = invalid.windows(2).position(|w| w == b"Hi").unwrap();
    invalid[at] = 0xff;
    assert_error(&send(&invalid), 400, &["UTF-8"], "invalid UTF-8");
    let nested = "[".repeat(100_000);
    assert_error(&send(nested.as_bytes()), 400, &[], "a hundred thousand brackets");

    // A hundred megabytes: refused before they are sent, and refused while they are.
    let huge = 100 << 20;
    let refused = daemon.api.announce("POST", path, huge).unwrap();
    assert_error(&refused, 413, &["bytes"], "announced");
    let before = resident_mib(daemon.pid());
    let mut connection = daemon.api.connect().unwrap();
    connection.write_all(chunked_head(path).as_bytes()).unwrap();
    let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat();
    let sent = (0..huge / 0x10000).take_while(|_| connection.write_all(&chunk).is_ok()).count();
    let mut answer = Vec::new();
    let _ = connection.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    // What comes beyond the limit is read and thrown away for a while, so that the answer is not lost to a reset.
    let all = sent == huge / 0x10000;
    assert!(
        answer.contains(" 413 ") || (answer.is_empty() && !all),
        "after {sent} chunks: {answer}"
    );
    let after = resident_mib(daemon.pid());
    assert!(after < before + 64, "from {before} to {after} MiB for a body that was refused");

    daemon.post(path, &chat(json!({}))).ok();
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let options = LoadOptions { max_running: 1, max_waiting: 1, ..model_options() };
    let daemon = Daemon::with_smollm2(options);
    let long = json!({
        "model": "smollm2",
        "input_ids": [1, 2, 3],
        "stream": true,
        "sampling_params": {"temperature": 0, "max_new_tokens": 4000, "ignore_eos": true},
    });
    let mut first = daemon.events("/generate", &long);
    first.next_event().unwrap().unwrap();
    let refused = std::thread::scope(|scope| {
        let second = scope.spawn(|| daemon.api.events("/generate", &long));
        daemon.wait_for("smollm2", "full", |status| status.in_flight == 2);
        let refused = daemon.post("/generate", &json!({"model": "smollm2", "input_ids": [1]}));
        drop(first); // now the second one's turn comes
        drop(second.join().unwrap().unwrap());
        refused
    });
    assert_error(&refused, 429, &[], "a full queue");
    assert!(refused.header("retry-after").is_some_and(|s| s.parse::<u32>().is_ok()), "{refused:?}");
    daemon.assert_all_pages_back("smollm2");
}

fn chunked_head(path: &str) -> String {
    let head = http::head("POST", path, 0);
    head.replace("Content-Length: 0", "Transfer-Encoding: chunked")
}

fn resident_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}
