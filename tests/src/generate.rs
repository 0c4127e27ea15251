//! Tokens in, tokens out: `POST /generate`, which speaks in ids and hides no token behind text.

use serde_json::{Value, json};

use crate::Daemon;

/// What came back.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// Token ids, an end-of-sequence token included.
    pub ids: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// How many of them came from the prefix cache.
    pub cached_tokens: u64,
    /// The whole answer.
    pub raw: Value,
}

/// Generates with these `sampling_params`.
pub fn generate(daemon: &Daemon, model: &str, prompt: &[u32], sampling: &Value) -> Generated {
    let raw = daemon.post("/generate", &request(model, prompt, sampling)).ok();
    let count =
        |key: &str| raw["meta_info"][key].as_u64().unwrap_or_else(|| panic!("{key}: {raw}"));
    Generated {
        ids: output_ids(&raw),
        prompt_tokens: count("prompt_tokens"),
        cached_tokens: count("cached_tokens"),
        raw: raw.clone(),
    }
}

/// The body of a request whose answer has the token ids in it.
pub fn request(model: &str, prompt: &[u32], sampling: &Value) -> Value {
    json!({
        "model": model,
        "input_ids": prompt,
        "sampling_params": sampling,
        "return_logprob": true,
    })
}

/// The token ids of an answer: they come with their log-probabilities.
pub fn output_ids(answer: &Value) -> Vec<u32> {
    let Some(tokens) = answer["meta_info"]["output_token_logprobs"].as_array() else {
        panic!("no output_token_logprobs: {answer}");
    };
    tokens.iter().map(|entry| entry[1].as_u64().expect("a token id") as u32).collect()
}

/// Exactly `count` greedy tokens, going on past the end of sequence.
pub fn greedy(daemon: &Daemon, model: &str, prompt: &[u32], count: u32) -> Vec<u32> {
    let sampling = json!({"temperature": 0, "max_new_tokens": count, "ignore_eos": true});
    let ids = generate(daemon, model, prompt, &sampling).ids;
    assert_eq!(ids.len(), count as usize);
    ids
}
