//! What a model says, as the items of a response.
//!
//! Owns: the JSON of items, whole and begun. Must never: know of streams.

use serde_json::{Value, json};

use super::items::THOUGHT;
use super::tools::{Origin, input_of};
use crate::json::put;

/// What is shown of a thought beside itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Showing {
    /// A summary, which is the thought itself: some clients show no other.
    pub summary: bool,
    /// `encrypted_content`, from which this server reads it again.
    pub encrypted: bool,
}

/// What kind of item it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A thought.
    Reasoning,
    /// Text for the reader.
    Message,
    /// A call.
    Call {
        /// Its id.
        id: String,
        /// The tool.
        tool: Origin,
    },
}

/// How an item stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It is not over.
    Open,
    /// It is.
    Whole,
    /// It was cut off.
    Cut,
}

impl Progress {
    fn name(self) -> &'static str {
        match self {
            Progress::Open => "in_progress",
            Progress::Whole => "completed",
            Progress::Cut => "incomplete",
        }
    }
}

/// An item.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its id.
    pub id: String,
    /// Its kind.
    pub kind: Kind,
    /// Text, thought or arguments so far.
    pub text: String,
    /// Log-probabilities of its tokens: JSON, separated by commas.
    pub scores: Vec<u8>,
    /// How it stands.
    pub progress: Progress,
}

impl Item {
    /// One that begins: number `index` of a response.
    pub fn new(kind: Kind, response: &str, index: usize) -> Item {
        let prefix = match &kind {
            Kind::Reasoning => "rs",
            Kind::Message => "msg",
            Kind::Call { tool: Origin { is_custom: true, .. }, .. } => "ctc",
            Kind::Call { .. } => "fc",
        };
        let id = format!("{prefix}_{}_{index}", response.trim_start_matches("resp_"));
        let (text, scores) = (String::new(), Vec::new());
        Item { id, kind, text, scores, progress: Progress::Open }
    }

    /// The part that holds its text: so far, or where `empty`, as it began.
    pub fn part(&self, out: &mut Vec<u8>, empty: bool) {
        let text = if empty { "" } else { &*self.text };
        if self.kind == Kind::Reasoning {
            put(out, &json!({"type": "reasoning_text", "text": text}));
            return;
        }
        out.extend_from_slice(b"{\"type\":\"output_text\",\"text\":");
        put(out, text);
        out.extend_from_slice(b",\"annotations\":[],\"logprobs\":[");
        if !empty {
            out.extend_from_slice(&self.scores);
        }
        out.extend_from_slice(b"]}");
    }

    /// The summary of a thought, as a part.
    pub fn summary(&self, empty: bool) -> Value {
        json!({"type": "summary_text", "text": if empty { "" } else { &*self.text }})
    }

    /// The item: one that is open has no content yet.
    pub fn write(&self, out: &mut Vec<u8>, showing: Showing) {
        let is_open = self.progress == Progress::Open;
        let mut field = |name: &str, value: &Value| {
            out.extend_from_slice(name.as_bytes());
            put(out, value);
        };
        field("{\"id\":", &json!(self.id));
        match &self.kind {
            Kind::Reasoning => {
                field(",\"type\":", &json!("reasoning"));
                let summary = showing.summary && !is_open;
                let summary = if summary { vec![self.summary(false)] } else { Vec::new() };
                field(",\"summary\":", &summary.into());
                self.content(out, is_open);
                if showing.encrypted {
                    out.extend_from_slice(b",\"encrypted_content\":");
                    let kept = (!is_open).then(|| format!("{THOUGHT}{}", self.text));
                    put(out, &kept);
                }
            }
            Kind::Message => {
                field(",\"type\":", &json!("message"));
                field(",\"role\":", &json!("assistant"));
                self.content(out, is_open);
            }
            Kind::Call { id, tool } => {
                let (kind, name, text) = if tool.is_custom {
                    let text = if is_open { String::new() } else { input_of(&self.text) };
                    ("custom_tool_call", ",\"input\":", text)
                } else {
                    let text = if is_open { String::new() } else { self.text.clone() };
                    ("function_call", ",\"arguments\":", text)
                };
                field(",\"type\":", &json!(kind));
                field(",\"call_id\":", &json!(id));
                field(",\"name\":", &json!(tool.name));
                if let Some(namespace) = &tool.namespace {
                    field(",\"namespace\":", &json!(namespace));
                }
                field(name, &json!(text));
            }
        }
        out.extend_from_slice(b",\"status\":");
        put(out, self.progress.name());
        out.push(b'}');
    }

    fn content(&self, out: &mut Vec<u8>, is_open: bool) {
        out.extend_from_slice(b",\"content\":[");
        if !is_open {
            self.part(out, false);
        }
        out.push(b']');
    }
}

/// A list of items.
pub fn write_all(out: &mut Vec<u8>, items: &[Item], showing: Showing) {
    out.push(b'[');
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        item.write(out, showing);
    }
    out.push(b']');
}
