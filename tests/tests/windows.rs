//! A model whose layers see a window, but for one: its window pages come and go, and nobody can tell but by the room.

#![allow(clippy::unwrap_used)] // Helpers outside of #[test] functions are tests too.

use std::path::PathBuf;

use minisgl_proto::{CacheMode, LoadOptions};
use minisgl_tests::{Daemon, Greedy, generate, greedy_with_rivals, model_options};
use serde_json::json;

const COUNT: u32 = 30;

/// Gemma 3's shape, with a window of 40 tokens in three of four layers, and random weights.
fn model(daemon: &Daemon) -> PathBuf {
    let sliding = "sliding_attention";
    let config = json!({
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "vocab_size": 300,
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 64, "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": [sliding, sliding, "full_attention", sliding], "sliding_window": 40,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "rope_local_base_freq": 1e4, "query_pre_attn_scalar": 64, "tie_word_embeddings": true,
        "eos_token_id": 2,
    });
    let dir = daemon.dir().join("gemma");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    dir
}

fn options() -> LoadOptions {
    LoadOptions { dummy_weights: true, chunk_tokens: Some(64), ..model_options() }
}

fn prompts() -> Vec<Vec<u32>> {
    let prompt = |len: u32, step: u32| (0..len).map(|n| (n * n + n * step + 7) % 300).collect();
    // Two share 400 tokens, one is those 400 and nothing else.
    let trunk: Vec<u32> = prompt(400, 1);
    let branch = |step| [trunk.clone(), prompt(150, step)].concat();
    vec![prompt(3, 2), trunk.clone(), branch(5), branch(11), prompt(1_000, 3)]
}

fn answers(daemon: &Daemon, prompts: &[Vec<u32>]) -> Vec<Greedy> {
    prompts.iter().map(|prompt| greedy_with_rivals(daemon, "gemma", prompt, COUNT)).collect()
}

fn assert_same(expected: &[Greedy], got: &[Greedy], what: &str) {
    for (at, (expected, got)) in expected.iter().zip(got).enumerate() {
        expected.assert_same(&got.ids, &format!("{what}, prompt {at}"));
    }
}

#[test]
fn windows_change_nothing_but_the_room() {
    let daemon = Daemon::start();
    let dir = model(&daemon);
    let plain = LoadOptions { cache: CacheMode::Naive, overlap: false, page_size: 1, ..options() };
    daemon.load("gemma", &dir, plain);
    let prompts = prompts();
    let expected = answers(&daemon, &prompts);
    let talk = greedy_with_rivals(&daemon, "gemma", &prompts[0], 300);
    daemon.unload("gemma", false);
    for (what, options) in [
        ("defaults", options()),
        ("page size 1", LoadOptions { page_size: 1, ..options() }),
        ("chunks of 16", LoadOptions { chunk_tokens: Some(16), ..options() }),
        ("no overlap", LoadOptions { overlap: false, ..options() }),
    ] {
        daemon.load("gemma", &dir, options);
        for round in 0..2 {
            assert_same(&expected, &answers(&daemon, &prompts), &format!("{what}, round {round}"));
        }
        daemon.assert_all_pages_back("gemma");
        daemon.unload("gemma", false);
    }

    // Pages for 384 tokens of all layers, and a request of 1,030.
    let tight = LoadOptions { kv_tokens: Some(384), chunk_tokens: Some(16), ..options() };
    daemon.load("gemma", &dir, tight);
    let info = daemon.status("gemma").info.unwrap();
    assert_eq!((info.kv_tokens, info.kv_groups, info.max_len), (384, 4, 1_296));
    std::thread::scope(|scope| {
        for copy in 0..3 {
            // Pages are not kept for what is still to come, so that these run out of them.
            let (daemon, talk, prompt) = (&daemon, &talk, &prompts[0]);
            scope.spawn(move || {
                let got = greedy_with_rivals(daemon, "gemma", prompt, 300);
                talk.assert_same(&got.ids, &format!("copy {copy} of much talk"));
            });
            for (at, (prompt, expected)) in prompts.iter().zip(&expected).enumerate() {
                scope.spawn(move || {
                    let got = greedy_with_rivals(daemon, "gemma", prompt, COUNT);
                    expected.assert_same(&got.ids, &format!("copy {copy} of prompt {at}"));
                });
            }
        }
    });
    daemon.assert_all_pages_back("gemma");
    let stats = daemon.status("gemma").stats.unwrap();
    assert_eq!(stats.pages_total, 4 * 384 / 16);
    assert!(stats.preemptions > 0, "384 tokens of KV cache were enough for everyone: {stats:?}");
    let too_long = vec![5; 1_300];
    let refused = daemon.post("/generate", &json!({"model": "gemma", "input_ids": too_long}));
    assert_eq!(refused.status, 400, "{refused:?}");
    assert_same(&expected, &answers(&daemon, &prompts), "after the crowd");
}

#[test]
fn a_conversation_and_its_branches_are_found_again() {
    let daemon = Daemon::start();
    let dir = model(&daemon);
    daemon.load("gemma", &dir, options());
    let sampling = json!({"temperature": 0, "max_new_tokens": COUNT, "ignore_eos": true});
    let ask = |prompt: &[u32]| generate(&daemon, "gemma", prompt, &sampling);
    let prompts = prompts();
    let first = ask(&prompts[2]);
    assert_eq!(first.cached_tokens, 0);
    // The next turn begins with all that was said; the last token was never fed.
    let turn = [&prompts[2][..], &first.ids, &[9, 8, 7]].concat();
    assert_eq!(ask(&turn).cached_tokens, (550 + 29) / 16 * 16);
    // Another branch, from the middle of the prompt, where the window has been and gone.
    assert_eq!(ask(&prompts[3]).cached_tokens, 400);
    // Flushed, nothing is found; whoever comes puts it back.
    daemon.flush("gemma");
    assert_eq!(ask(&prompts[3]).cached_tokens, 0);
    assert_eq!(ask(&prompts[2]).cached_tokens, 400);
    daemon.assert_all_pages_back("gemma");
}
