//! How a surface writes an answer: each shape once, for streams and for whole answers.
//!
//! Owns: the trait, and the framing of events. A stream's bytes are written straight into one buffer: no tree, no
//! copies, no memory that an idle stream holds. Must never: wait.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::error::ApiError;
use crate::json::put;
use crate::part::{Delta, Usage, Whole};
use crate::tokenizer::TextModel;
use crate::usage::Telling;

/// Receives the word to end.
pub type Halt = oneshot::Receiver<()>;

/// A surface's JSON. What is written to a stream are whole events, or lines.
pub trait Wire: Send + Unpin + 'static {
    /// What a stream says while nothing is said: a comment, which every client of server-sent events reads over.
    const PING: &'static [u8] = b": ping\n\n";
    /// Whether what comes before all else must be the opening: then it stands for the first ping.
    const OPENS_FIRST: bool = false;
    /// The type of a stream.
    const STREAM_TYPE: &'static str = "text/event-stream";

    /// The same, where it is not always the same.
    fn ping(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(Self::PING);
    }

    /// Before the first delta.
    fn open(&mut self, out: &mut Vec<u8>, total: Usage);

    /// For one delta.
    fn delta(&mut self, out: &mut Vec<u8>, delta: &Delta<'_>);

    /// After the last delta: a stream's end.
    fn close(&mut self, out: &mut Vec<u8>, total: Usage);

    /// For one delta of an answer that is no stream; their fold comes with [`Wire::whole`].
    fn hear(&mut self, _delta: &Delta<'_>) {}

    /// Receives when the answer is to end early, at somebody else's word; asked for once, before the first delta.
    fn halt(&mut self) -> Option<Halt> {
        None
    }

    /// In place of what is still to come: what ends a stream that fails on its way. Where nothing but
    /// pings were said, it was not opened, unless that is the first ping.
    fn fail(&mut self, out: &mut Vec<u8>, error: &ApiError) {
        out.extend_from_slice(DATA);
        put(out, &error.to_json());
        out.extend_from_slice(END);
    }

    /// The whole answer: one JSON value. The wholes are folds of the deltas that a stream would have got.
    fn whole(self, out: &mut Vec<u8>, wholes: Vec<Whole>, total: Usage);
}

/// What a wire needs to know of the answer it writes.
pub struct Answer {
    /// Its id, which no other answer has.
    pub id: String,
    /// The request's id.
    pub request_id: String,
    /// Unix time.
    pub created_s: u64,
    /// Name of the model.
    pub model: String,
    /// The model's text side.
    pub text: Arc<TextModel>,
    /// Whether log-probabilities of generated tokens are wanted.
    pub logprobs: bool,
    /// When `usage` is told.
    pub telling: Telling,
    /// Choices of all prompts.
    pub choices: usize,
    /// Choices of one prompt.
    pub per_prompt: usize,
    /// Whether there is a list of prompts.
    pub is_batch: bool,
    /// The prompts, where the answer repeats them: to be echoed, or with their log-probabilities.
    pub prompts: Vec<Prompted>,
}

/// A prompt that the answer repeats.
#[derive(Clone, Debug, Default)]
pub struct Prompted {
    /// Its token ids.
    pub ids: Vec<u32>,
    /// Its text.
    pub text: String,
}

/// What every event of an answer in OpenAI's form begins with.
pub struct Head(Vec<u8>);

impl Head {
    /// `{"id": ..., "object": ..., "created": ..., "model": ...,"choices":[`, for a stream behind `data: `.
    pub fn new(answer: &Answer, id: &str, object: &str) -> Head {
        let mut head = Vec::with_capacity(192);
        head.extend_from_slice(b"data: {\"id\":");
        put(&mut head, id);
        head.extend_from_slice(b",\"object\":");
        put(&mut head, object);
        head.extend_from_slice(b",\"created\":");
        put(&mut head, &answer.created_s);
        head.extend_from_slice(b",\"model\":");
        put(&mut head, &answer.model);
        head.extend_from_slice(b",\"choices\":[");
        head.shrink_to_fit();
        Head(head)
    }

    /// Begins an event.
    pub fn event(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
    }

    /// Begins a whole answer.
    pub fn whole(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0[DATA.len()..]);
    }

    /// The event that tells the usage.
    pub fn usage_event(&self, out: &mut Vec<u8>, total: Usage) {
        self.event(out);
        out.extend_from_slice(b"],\"usage\":");
        crate::usage::write(out, total);
        out.push(b'}');
        out.extend_from_slice(END);
    }
}

/// What ends a stream in OpenAI's form.
pub const DONE: &[u8] = b"data: [DONE]\n\n";
/// What an event begins with.
pub const DATA: &[u8] = b"data: ";
/// What an event ends with.
pub const END: &[u8] = b"\n\n";
