//! What is in the log of a request, and what must not be.

#![allow(clippy::unwrap_used)] // Helpers outside of #[test] functions are tests too.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use minisgl_proto::LoadOptions;
use minisgl_tests::{Daemon, dummy_folder, model_options};
use serde_json::{Value, json};

/// A word that comes from nowhere else.
const SECRET: &str = "xylophone";

fn start(configuration: &str) -> Daemon {
    let daemon = Daemon::start_configured(configuration);
    let options = LoadOptions { dummy_weights: true, ..model_options() };
    daemon.load("m", &dummy_folder("qwen3", &daemon.dir()), options);
    daemon
}

/// Asks with a request id of the client's; the id that came back.
fn ask(daemon: &Daemon, id: &str) -> String {
    let prompt = format!("Tell me of a {SECRET}. {}", "word ".repeat(20));
    let body =
        json!({"model": "m", "prompt": prompt, "max_tokens": 4, "ignore_eos": true}).to_string();
    let mut connection = daemon.api.connect().unwrap();
    write!(
        connection,
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nx-request-id: {id}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let header = answer.lines().find_map(|line| line.strip_prefix("x-request-id: "));
    header.unwrap_or_else(|| panic!("no id: {answer}")).to_string()
}

/// The log's line with these words, once it is there.
fn line(daemon: &Daemon, words: &[&str]) -> String {
    let began = Instant::now();
    loop {
        let log = daemon.log();
        if let Some(line) = log.lines().find(|line| words.iter().all(|word| line.contains(word))) {
            return line.to_string();
        }
        assert!(began.elapsed() < Duration::from_secs(120), "{words:?} are not in\n{log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_request_is_one_line_with_its_id_and_without_its_prompt() {
    let daemon = start("[log]\nlevel = \"trace\"\n");
    assert_eq!(ask(&daemon, "job-7.b"), "job-7.b");
    let line = line(&daemon, &["job-7.b", "outcome="]);
    for part in [
        "request_id=job-7.b",
        "model=\"m\"",
        "outcome=\"ok\"",
        "generated_tokens=4",
        "first_token_s=",
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    let all = std::fs::read_to_string(daemon.dir().join("log")).unwrap();
    assert!(!all.contains(SECRET), "a prompt is in the log");
}

#[test]
fn prompts_are_logged_where_that_is_asked_for() {
    let daemon = start("[log]\nformat = \"json\"\nprompts = true\n");
    ask(&daemon, "job-8");
    let prompt: Value = serde_json::from_str(&line(&daemon, &["job-8", SECRET])).unwrap();
    assert_eq!((&prompt["message"], &prompt["model"]), (&json!("prompt"), &json!("m")), "{prompt}");
    assert!(prompt["prompt"].as_str().unwrap().contains(SECRET), "{prompt}");
    let request: Value = serde_json::from_str(&line(&daemon, &["job-8", "elapsed_s"])).unwrap();
    assert_eq!(request["request_id"], "job-8", "{request}");
    assert!(!request.to_string().contains(SECRET), "{request}");
}
