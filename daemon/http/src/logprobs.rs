//! Log-probabilities in OpenAI's two shapes.

use minisgl_proto::{Sampled, TokenLogprob};
use serde_json::{Map, Value, json};

use crate::tokenizer::TextModel;

/// JSON has no infinity; this is what an impossible token gets.
const FLOOR: f32 = -9999.0;

/// A number that JSON can hold.
pub fn finite(logprob: f32) -> f32 {
    if logprob.is_nan() { FLOOR } else { logprob.clamp(FLOOR, 0.0) }
}

/// A token as text; bytes that are no text on their own are written `\xNN`.
fn spelled(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_string(),
        Err(_) => bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect(),
    }
}

/// `choices[].logprobs` of a chat completion.
pub fn chat(tokens: &[Sampled], text: &TextModel) -> Value {
    let entry = |token: u32, logprob: f32| {
        let bytes = text.token_bytes(token);
        json!({"token": spelled(&bytes), "logprob": finite(logprob), "bytes": bytes})
    };
    let content: Vec<Value> = tokens
        .iter()
        .map(|sampled| {
            let mut value = entry(sampled.token, sampled.logprob.unwrap_or(FLOOR));
            value["top_logprobs"] =
                sampled.top.iter().map(|top| entry(top.token, top.logprob)).collect();
            value
        })
        .collect();
    json!({"content": content, "refusal": null})
}

/// `choices[].logprobs` of a completion; `offset` counts the characters before it and moves on.
pub fn completion(tokens: &[Sampled], text: &TextModel, offset: &mut usize) -> Value {
    let spell = |token: u32| {
        if !text.has_tokenizer() {
            // As vLLM spells tokens that are asked for by id.
            return format!("token_id:{token}");
        }
        let bytes = text.token_bytes(token);
        let spelled = spelled(&bytes);
        if std::str::from_utf8(&bytes).is_ok() { spelled } else { format!("bytes:{spelled}") }
    };
    let (mut spellings, mut logprobs) = (Vec::new(), Vec::new());
    let (mut tops, mut offsets) = (Vec::new(), Vec::new());
    for sampled in tokens {
        let spelling = spell(sampled.token);
        let own = TokenLogprob { token: sampled.token, logprob: sampled.logprob.unwrap_or(FLOOR) };
        let top: Map<String, Value> = sampled
            .top
            .iter()
            .chain([&own])
            .map(|top| (spell(top.token), finite(top.logprob).into()))
            .collect();
        offsets.push(*offset);
        *offset += spelling.chars().count();
        logprobs.push(finite(own.logprob));
        tops.push(top);
        spellings.push(spelling);
    }
    json!({
        "tokens": spellings,
        "token_logprobs": logprobs,
        "top_logprobs": tops,
        "text_offset": offsets,
    })
}
