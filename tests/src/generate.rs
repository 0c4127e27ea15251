//! Tokens in, tokens out: `POST /generate`, which speaks in ids and hides no token behind text.

use serde_json::{Value, json};

use crate::{Daemon, is_exact};

/// Log-probabilities that rounding to bf16 may swap lie this close together, in nat.
const TIE_MAX: f64 = 0.3;
/// Likeliest tokens that are asked for at each position.
const RIVALS: u64 = 10;

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
    greedy_with_rivals(daemon, model, prompt, count).ids
}

/// The same with what else was likely.
pub fn greedy_with_rivals(daemon: &Daemon, model: &str, prompt: &[u32], count: u32) -> Greedy {
    let sampling = json!({"temperature": 0, "max_new_tokens": count, "ignore_eos": true});
    let mut body = request(model, prompt, &sampling);
    body["top_logprobs_num"] = RIVALS.into();
    let answer = daemon.post("/generate", &body).ok();
    let ids = output_ids(&answer);
    assert_eq!(ids.len(), count as usize);
    let tops = answer["meta_info"]["output_top_logprobs"].as_array().expect("a list");
    let entry = |entry: &Value| {
        let token = entry[1].as_u64().expect("a token id") as u32;
        (token, entry[0].as_f64().expect("a log-probability"))
    };
    let rivals = tops.iter().map(|top| top.as_array().expect("a list").iter().map(entry).collect());
    Greedy { ids, rivals: rivals.collect() }
}

/// Greedy tokens and their rivals.
#[derive(Clone, Debug)]
pub struct Greedy {
    /// The tokens.
    pub ids: Vec<u32>,
    /// At each position the likeliest tokens with their log-probabilities, the chosen one first.
    rivals: Vec<Vec<(u32, f64)>>,
}

impl Greedy {
    /// The same tokens came about in another way. Where the device is not exact they may part, but at a tie
    /// only; after it the texts are different ones.
    pub fn assert_same(&self, other: &[u32], what: &str) {
        if is_exact() {
            assert_eq!(other, self.ids, "{what}");
        }
        assert!(other.len() <= self.ids.len(), "{what}: {other:?} after {:?}", self.ids);
        let Some(at) = other.iter().zip(&self.ids).position(|(a, b)| a != b) else { return };
        let best = self.rivals[at][0].1;
        let rival = self.rivals[at].iter().find(|(token, _)| *token == other[at]);
        let is_tie = rival.is_some_and(|(_, logprob)| best - logprob <= TIE_MAX);
        assert!(is_tie, "{what}: token {at} is {} instead of {:?}", other[at], self.rivals[at]);
        println!("{what}: a tie at token {at}");
    }
}
