//! What two prompts share is computed once.

#![allow(clippy::unwrap_used)] // Helpers outside of #[test] functions are tests too.

use minisgl_proto::{CacheMode, LoadOptions};
use minisgl_tests::{Daemon, fixture, generate, model_options};
use serde_json::json;

/// A thousand tokens of text.
fn prefix() -> Vec<u32> {
    let long = fixture::smollm2().prompts.into_iter().find(|p| p.name == "long").unwrap().ids;
    long.iter().copied().cycle().take(1000).collect()
}

fn ask(daemon: &Daemon, tail: u32) -> (u64, u64) {
    let prompt = [prefix(), vec![tail, tail + 1, tail + 2]].concat();
    let sampling = json!({"temperature": 0, "max_new_tokens": 4, "ignore_eos": true});
    let answer = generate(daemon, "smollm2", &prompt, &sampling);
    assert_eq!(answer.prompt_tokens, 1003);
    (answer.cached_tokens, answer.prompt_tokens - answer.cached_tokens)
}

#[test]
fn the_second_prompt_computes_its_own_tokens_only() {
    let daemon = Daemon::with_smollm2(model_options());
    assert_eq!(ask(&daemon, 1000).0, 0);
    let (cached, computed) = ask(&daemon, 2000);
    println!("cached {cached}, computed {computed}");
    assert!(computed < 32, "{computed} tokens were computed");
    let stats = daemon.status("smollm2").stats.unwrap();
    assert_eq!(stats.cached_tokens, cached, "{stats:?}");

    assert!(daemon.flush("smollm2").pages_freed >= 1000 / 16);
    assert_eq!(ask(&daemon, 3000).0, 0, "a flush forgets");
    daemon.assert_all_pages_back("smollm2");
}

#[test]
fn chat_usage_tells() {
    let daemon = Daemon::with_smollm2(model_options());
    let text = "Remember the number 42 and everything else I say. ".repeat(40);
    let ask = |question: &str| {
        let body = json!({
            "model": "smollm2",
            "messages": [
                {"role": "system", "content": text},
                {"role": "user", "content": question},
            ],
            "max_tokens": 4,
        });
        let usage = daemon.post("/v1/chat/completions", &body).ok()["usage"].clone();
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        (cached, usage["prompt_tokens"].as_u64().unwrap() - cached)
    };
    assert_eq!(ask("One?").0, 0);
    let (cached, computed) = ask("Two?");
    assert!(cached > 300 && computed < 32, "cached {cached}, computed {computed}");
}

#[test]
fn without_a_cache_nothing_is_shared() {
    let options = LoadOptions { cache: CacheMode::Naive, ..model_options() };
    let daemon = Daemon::with_smollm2(options);
    assert_eq!(ask(&daemon, 1000).0, 0);
    assert_eq!(ask(&daemon, 1000).0, 0);
    let stats = daemon.status("smollm2").stats.unwrap();
    assert_eq!(stats.pages_free, stats.pages_total, "{stats:?}");
}
