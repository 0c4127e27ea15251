//! What Hugging Face transformers computes for SmolLM2; fixtures/make_smollm2_logits.py says how.

use serde::Deserialize;

use crate::paths;

/// `fixtures/smollm2_logits.json`.
#[derive(Debug, Deserialize)]
pub struct Smollm2 {
    /// Teacher-forced log-probabilities.
    pub prompts: Vec<Prompt>,
    /// Greedy answers.
    pub greedy: Vec<Answer>,
}

/// A prompt and what may follow at some of its positions.
#[derive(Debug, Deserialize)]
pub struct Prompt {
    /// For messages.
    pub name: String,
    /// Token ids.
    pub ids: Vec<u32>,
    /// In order.
    pub positions: Vec<Position>,
}

/// The likeliest next tokens after `ids[..=position]`.
#[derive(Debug, Deserialize)]
pub struct Position {
    /// Index of the last token that is seen.
    pub position: usize,
    /// Token id and natural log-probability, likeliest first; 50 of them.
    pub top: Vec<(u32, f32)>,
}

/// A greedy answer to a question.
#[derive(Debug, Deserialize)]
pub struct Answer {
    /// What the user asks.
    pub question: String,
    /// Token ids of the whole rendered chat.
    pub prompt_ids: Vec<u32>,
    /// At most 40, the end-of-sequence token included.
    pub output_ids: Vec<u32>,
    /// The same as text, without special tokens.
    pub text: String,
    /// Logits between the chosen token and the next best, where they are closest.
    pub margin_min: f32,
}

/// Reads the fixture.
pub fn smollm2() -> Smollm2 {
    let text = std::fs::read(paths::fixture("smollm2_logits.json")).expect("a checked-in file");
    serde_json::from_slice(&text).expect("the format above")
}
