//! Log-probabilities in the shapes of OpenAI, vLLM and SGLang.

use std::borrow::Cow;

use minisgl_proto::{Sampled, TokenLogprob};

use crate::json::put;
use crate::part::Scored;
use crate::tokenizer::TextModel;

/// JSON has no infinity; this is what an impossible token gets.
const FLOOR: f32 = -9999.0;

/// A number that JSON can hold.
fn finite(logprob: f32) -> f32 {
    if logprob.is_nan() { FLOOR } else { logprob.clamp(FLOOR, 0.0) }
}

/// A token as text; bytes that are no text on their own are written `\xNN`.
fn spelled(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect(),
    }
}

/// As many times as there are items, with commas between.
fn list<T>(
    out: &mut Vec<u8>,
    items: impl IntoIterator<Item = T>,
    mut write: impl FnMut(&mut Vec<u8>, T),
) {
    out.push(b'[');
    for (at, item) in items.into_iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        write(out, item);
    }
    out.push(b']');
}

/// `choices[].logprobs` of a chat completion.
pub fn chat(out: &mut Vec<u8>, tokens: &[Scored], text: &TextModel) {
    out.extend_from_slice(b"{\"content\":");
    entries(out, tokens, text);
    out.extend_from_slice(b",\"refusal\":null}");
}

/// A list of tokens, each with its text, its bytes and the most likely ones in its place.
pub fn entries(out: &mut Vec<u8>, tokens: &[Scored], text: &TextModel) {
    let entry = |out: &mut Vec<u8>, token: u32, logprob: f32| {
        let bytes = text.token_bytes(token);
        out.extend_from_slice(b"{\"token\":");
        put(out, &*spelled(&bytes));
        out.extend_from_slice(b",\"logprob\":");
        put(out, &finite(logprob));
        out.extend_from_slice(b",\"bytes\":");
        put(out, &*bytes);
    };
    list(out, tokens, |out, Scored { sampled, .. }| {
        entry(out, sampled.token, sampled.logprob.unwrap_or(FLOOR));
        out.extend_from_slice(b",\"top_logprobs\":");
        list(out, &sampled.top, |out, top| {
            entry(out, top.token, top.logprob);
            out.push(b'}');
        });
        out.push(b'}');
    });
}

/// A token of a completion, or of its prompt.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Its id.
    pub token: u32,
    /// Its log-probability; the first token of a prompt has none.
    pub logprob: Option<f32>,
    /// The most likely ones in its place.
    pub top: &'a [TokenLogprob],
    /// Characters of text before it.
    pub at: usize,
}

impl Entry<'_> {
    /// Of a generated token, whose text begins `base` characters after the text of the choice.
    pub fn of(scored: &Scored, base: usize) -> Entry<'_> {
        let Sampled { token, logprob, top } = &scored.sampled;
        Entry { token: *token, logprob: Some(logprob.unwrap_or(FLOOR)), top, at: base + scored.at }
    }
}

/// `choices[].logprobs` of a completion.
pub fn completion(out: &mut Vec<u8>, entries: &[Entry<'_>], text: &TextModel) {
    let spell = |token: u32| {
        if !text.has_tokenizer() {
            // As vLLM spells tokens that are asked for by id.
            return format!("token_id:{token}");
        }
        let bytes = text.token_bytes(token);
        let spelled = spelled(&bytes);
        if std::str::from_utf8(&bytes).is_ok() {
            spelled.into()
        } else {
            format!("bytes:{spelled}")
        }
    };
    out.extend_from_slice(b"{\"tokens\":");
    list(out, entries, |out, entry| put(out, &spell(entry.token)));
    out.extend_from_slice(b",\"token_logprobs\":");
    list(out, entries, |out, entry| put(out, &entry.logprob.map(finite)));
    out.extend_from_slice(b",\"top_logprobs\":");
    list(out, entries, |out, entry| {
        let Some(logprob) = entry.logprob else { return out.extend_from_slice(b"null") };
        let own = TokenLogprob { token: entry.token, logprob };
        let mut told: Vec<String> = Vec::with_capacity(entry.top.len() + 1);
        out.push(b'{');
        for top in [&own].into_iter().chain(entry.top) {
            let spelling = spell(top.token);
            // Two tokens may have one spelling; a name stands once in an object.
            if told.contains(&spelling) {
                continue;
            }
            if !told.is_empty() {
                out.push(b',');
            }
            put(out, &spelling);
            out.push(b':');
            put(out, &finite(top.logprob));
            told.push(spelling);
        }
        out.push(b'}');
    });
    out.extend_from_slice(b",\"text_offset\":");
    list(out, entries, |out, entry| put(out, &entry.at));
    out.push(b'}');
}

/// The tokens of a prompt from position `from` on, each with its score. Scores are those of the last positions;
/// position 0 has none.
pub fn of_prompt<'a>(
    ids: &'a [u32],
    scores: &'a [Sampled],
    from: usize,
) -> impl Iterator<Item = (u32, Option<&'a Sampled>)> {
    let first = ids.len().saturating_sub(scores.len());
    ids.iter().enumerate().skip(from).map(move |(at, &id)| {
        let score = at.checked_sub(first).and_then(|at| scores.get(at));
        (id, score.filter(|score| score.logprob.is_some()))
    })
}

/// vLLM's `prompt_logprobs`: for each token of the prompt null or an object by token id.
pub fn prompt(out: &mut Vec<u8>, ids: &[u32], scores: &[Sampled], text: &TextModel) {
    let one = |out: &mut Vec<u8>, token: u32, logprob: f32, rank: Option<usize>| {
        put(out, &token.to_string());
        out.extend_from_slice(b":{\"logprob\":");
        put(out, &finite(logprob));
        out.extend_from_slice(b",\"rank\":");
        put(out, &rank);
        out.extend_from_slice(b",\"decoded_token\":");
        put(out, &*String::from_utf8_lossy(&text.token_bytes(token)));
        out.push(b'}');
    };
    list(out, of_prompt(ids, scores, 0), |out, (id, score)| {
        let Some(score) = score else { return out.extend_from_slice(b"null") };
        out.push(b'{');
        let rank = score.top.iter().position(|top| top.token == id).map(|at| at + 1);
        one(out, id, score.logprob.unwrap_or(FLOOR), rank);
        for (at, top) in score.top.iter().enumerate().filter(|(_, top)| top.token != id) {
            out.push(b',');
            one(out, top.token, top.logprob, Some(at + 1));
        }
        out.push(b'}');
    });
}

/// SGLang's form of a token: `[log-probability or null, id, text or null]`.
pub fn triple(out: &mut Vec<u8>, token: u32, logprob: Option<f32>, text: Option<&TextModel>) {
    out.push(b'[');
    put(out, &logprob.map(finite));
    out.push(b',');
    put(out, &token);
    out.push(b',');
    match text {
        Some(text) => put(out, &*String::from_utf8_lossy(&text.token_bytes(token))),
        None => out.extend_from_slice(b"null"),
    }
    out.push(b']');
}

/// SGLang's `output_token_logprobs` or `input_token_logprobs`, without its brackets.
pub fn triples<'a>(
    out: &mut Vec<u8>,
    tokens: impl Iterator<Item = (u32, Option<&'a Sampled>)>,
    text: Option<&TextModel>,
) {
    for (at, (token, score)) in tokens.enumerate() {
        if at > 0 {
            out.push(b',');
        }
        triple(out, token, score.and_then(|score| score.logprob), text);
    }
}

/// SGLang's `output_top_logprobs` or `input_top_logprobs`, without its brackets.
pub fn top_triples<'a>(
    out: &mut Vec<u8>,
    tokens: impl Iterator<Item = (u32, Option<&'a Sampled>)>,
    text: Option<&TextModel>,
) {
    for (at, (_, score)) in tokens.enumerate() {
        if at > 0 {
            out.push(b',');
        }
        match score {
            None => out.extend_from_slice(b"null"),
            Some(score) => list(out, &score.top, |out, top: &TokenLogprob| {
                triple(out, top.token, Some(top.logprob), text);
            }),
        }
    }
}
