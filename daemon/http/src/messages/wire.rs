//! How a message is written, whole or as events.
//!
//! ```text
//!   message_start (content_block_start content_block_delta* content_block_stop)* message_delta message_stop
//! ```
//!
//! A stream's blocks are the stretches of an answer in the order in which they came, and a whole answer has the same ones,
//! but for a call that the model broke off: clients would run it without its arguments, so a whole answer tells it as text,
//! and a stream, whose block has begun, leaves its JSON as incomplete as it is. Calls that are whole alone make the end a
//! `tool_use`. One that `max_tokens` cut off is a block without input.
//!
//! Owns: these forms. Must never: lose what a client has to send back: a thought that is not shown travels as its signature.

use serde_json::value::RawValue;

use super::blocks::SIGNATURE;
use crate::error::{ApiError, Form};
use crate::json::put;
use crate::part::{Call, Delta, Ended, Part, Run, Usage, Whole};
use crate::wire::{Answer, END, Wire};

/// A kind of block, while one is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Text,
    Thought,
    Call,
}

/// How an answer is written.
pub struct MessagesWire {
    id: String,
    model: String,
    /// Whether thoughts come without their text.
    omitted: bool,
    open: Option<Open>,
    /// Blocks that have ended.
    blocks: usize,
    /// Whether a tool was called, with all its arguments.
    called: bool,
    /// The open thought, if it comes without its text.
    thought: String,
}

impl MessagesWire {
    /// Of this answer.
    pub fn new(answer: &Answer, omitted: bool) -> MessagesWire {
        MessagesWire {
            id: format!("msg_{}", answer.id),
            model: answer.model.clone(),
            omitted,
            open: None,
            blocks: 0,
            called: false,
            thought: String::new(),
        }
    }

    /// What a message begins with.
    fn head(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"id\":");
        put(out, &self.id);
        out.extend_from_slice(b",\"type\":\"message\",\"role\":\"assistant\",\"model\":");
        put(out, &self.model);
        out.extend_from_slice(b",\"content\":[");
    }

    /// An event of the open block; `rest` are its fields.
    fn block(&self, out: &mut Vec<u8>, kind: &str, rest: impl FnOnce(&mut Vec<u8>)) {
        event(out, kind, |out| {
            out.extend_from_slice(b",\"index\":");
            put(out, &self.blocks);
            rest(out);
        });
    }

    /// Begins a block, unless it would go on the one that is open.
    fn begin(&mut self, out: &mut Vec<u8>, open: Open, block: impl FnOnce(&mut Vec<u8>)) {
        if open != Open::Call && self.open == Some(open) {
            return;
        }
        self.end(out);
        self.open = Some(open);
        self.block(out, "content_block_start", |out| {
            out.extend_from_slice(b",\"content_block\":");
            block(out);
        });
    }

    /// More of the open block: a delta of this type, whose one field has this name.
    fn more(&self, out: &mut Vec<u8>, kind: &str, name: &str, text: &str) {
        if text.is_empty() {
            return;
        }
        self.block(out, "content_block_delta", |out| {
            out.extend_from_slice(b",\"delta\":{\"type\":");
            put(out, kind);
            out.push(b',');
            put(out, name);
            out.push(b':');
            put(out, text);
            out.push(b'}');
        });
    }

    /// Ends the open block.
    fn end(&mut self, out: &mut Vec<u8>) {
        let Some(open) = self.open.take() else { return };
        if open == Open::Thought {
            let signature = signature(&std::mem::take(&mut self.thought));
            self.more(out, "signature_delta", "signature", &signature);
        }
        self.block(out, "content_block_stop", |_| {});
        self.blocks += 1;
    }

    /// One block of a whole answer.
    fn thought(&self, out: &mut Vec<u8>, text: &str) {
        let (shown, kept) = if self.omitted { ("", text) } else { (text, "") };
        out.extend_from_slice(b"{\"type\":\"thinking\",\"thinking\":");
        put(out, shown);
        out.extend_from_slice(b",\"signature\":");
        put(out, &signature(kept));
        out.push(b'}');
    }
}

/// What stands for a thought's signature, and for the thought, where it is not shown.
fn signature(thought: &str) -> String {
    if thought.is_empty() { SIGNATURE.to_owned() } else { format!("{SIGNATURE}:{thought}") }
}

/// An event, whose fields behind `type` are `rest`.
fn event(out: &mut Vec<u8>, kind: &str, rest: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\ndata: {\"type\":");
    put(out, kind);
    rest(out);
    out.push(b'}');
    out.extend_from_slice(END);
}

fn text_block(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(b"{\"type\":\"text\",\"text\":");
    put(out, text);
    out.push(b'}');
}

/// A block of a call; `input` is an object's JSON.
fn call_block(out: &mut Vec<u8>, id: &str, name: &str, input: &str) {
    out.extend_from_slice(b"{\"type\":\"tool_use\",\"id\":");
    put(out, id);
    out.extend_from_slice(b",\"name\":");
    put(out, name);
    out.extend_from_slice(b",\"input\":");
    out.extend_from_slice(input.as_bytes());
    out.push(b'}');
}

/// A call's input: one that was cut off has none.
fn input(call: &Call) -> &str {
    let text = call.arguments.trim();
    let is_object = text.starts_with('{') && serde_json::from_str::<&RawValue>(text).is_ok();
    if call.whole && is_object { text } else { "{}" }
}

/// Of Anthropic's, the tokens that come from the cache are not among those of the input.
fn usage(out: &mut Vec<u8>, usage: Usage) {
    out.extend_from_slice(b",\"usage\":{\"input_tokens\":");
    put(out, &usage.prompt.saturating_sub(usage.cached));
    out.extend_from_slice(b",\"cache_creation_input_tokens\":0,\"cache_read_input_tokens\":");
    put(out, &usage.cached);
    out.extend_from_slice(b",\"output_tokens\":");
    put(out, &usage.completion);
    out.extend_from_slice(b",\"output_tokens_details\":{\"thinking_tokens\":");
    put(out, &usage.reasoning);
    out.extend_from_slice(b"}}");
}

/// Why it ended.
fn stop(out: &mut Vec<u8>, ended: Option<&Ended>, called: bool) {
    let (reason, sequence) = match ended {
        None => (None, None),
        Some(Ended::StopString(text)) => (Some("stop_sequence"), Some(text)),
        Some(Ended::Length { .. }) => (Some("max_tokens"), None),
        Some(Ended::StopToken(_) | Ended::Called) if called => (Some("tool_use"), None),
        Some(Ended::StopToken(_) | Ended::Called) => (Some("end_turn"), None),
    };
    out.extend_from_slice(b"\"stop_reason\":");
    put(out, &reason);
    out.extend_from_slice(b",\"stop_sequence\":");
    put(out, &sequence);
}

impl Wire for MessagesWire {
    const PING: &'static [u8] = b"event: ping\ndata: {\"type\":\"ping\"}\n\n";

    fn open(&mut self, out: &mut Vec<u8>, total: Usage) {
        event(out, "message_start", |out| {
            out.extend_from_slice(b",\"message\":");
            self.head(out);
            out.extend_from_slice(b"],");
            stop(out, None, false);
            usage(out, total);
            out.push(b'}');
        });
    }

    fn delta(&mut self, out: &mut Vec<u8>, delta: &Delta<'_>) {
        match delta.part {
            Part::Text("") | Part::Reasoning("") => {}
            Part::Text(text) => {
                self.begin(out, Open::Text, |out| text_block(out, ""));
                self.more(out, "text_delta", "text", text);
            }
            Part::Reasoning(text) => {
                self.begin(out, Open::Thought, |out| {
                    out.extend_from_slice(
                        b"{\"type\":\"thinking\",\"thinking\":\"\",\"signature\":\"\"}",
                    );
                });
                if self.omitted {
                    self.thought.push_str(text);
                } else {
                    self.more(out, "thinking_delta", "thinking", text);
                }
            }
            Part::ToolCall { start, arguments, .. } => {
                if let Some((id, name)) = start {
                    self.begin(out, Open::Call, |out| call_block(out, id, name, "{}"));
                }
                self.more(out, "input_json_delta", "partial_json", arguments);
            }
            Part::CallEnd { whole, .. } => {
                self.called |= whole;
                self.end(out);
            }
        }
        if let Some(ended) = delta.ended {
            self.end(out);
            event(out, "message_delta", |out| {
                out.extend_from_slice(b",\"delta\":{");
                stop(out, Some(ended), self.called);
                out.push(b'}');
                usage(out, delta.total);
            });
        }
    }

    fn close(&mut self, out: &mut Vec<u8>, _: Usage) {
        event(out, "message_stop", |_| {});
    }

    fn fail(&mut self, out: &mut Vec<u8>, error: &ApiError) {
        out.extend_from_slice(b"event: error\ndata: ");
        put(out, &error.to_json_as(Form::Anthropic));
        out.extend_from_slice(END);
    }

    fn whole(self, out: &mut Vec<u8>, wholes: Vec<Whole>, total: Usage) {
        let whole = wholes.into_iter().next().unwrap_or_default();
        self.head(out);
        let (mut text, mut thought) = (&*whole.text, &*whole.reasoning);
        let is_cut = matches!(whole.ended, Some(Ended::Length { .. }));
        for (at, run) in whole.runs.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            match *run {
                Run::Text(bytes) => {
                    let (here, rest) = text.split_at(bytes);
                    text_block(out, here);
                    text = rest;
                }
                Run::Reasoning(bytes) => {
                    let (here, rest) = thought.split_at(bytes);
                    self.thought(out, here);
                    thought = rest;
                }
                Run::Call(call) => {
                    let call = &whole.calls[call];
                    if !call.whole && !is_cut {
                        text_block(out, &format!("{} {}", call.name, call.arguments));
                        continue;
                    }
                    call_block(out, &call.id, &call.name, input(call));
                }
            }
        }
        out.extend_from_slice(b"],");
        stop(out, whole.ended.as_ref(), whole.calls.iter().any(|call| call.whole));
        usage(out, total);
        out.push(b'}');
    }
}
