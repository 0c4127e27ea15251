//! How a response is written: events as OpenAI's clients join them, or one object.
//!
//! ```text
//!   created, in_progress, (output_item.added, parts, output_item.done)*, completed | incomplete | failed
//! ```
//!
//! Owns: events, their order and numbers. An answer that is no stream goes through the same steps, which nobody reads, so that
//! both have the same items. Must never: have more than one item open.

use std::sync::Arc;

use super::head::{Head, Status, failure};
use super::output::{Item, Kind, Progress, Showing, write_all};
use super::tools::{Names, input_of};
use crate::error::ApiError;
use crate::front::unix_s;
use crate::json::put;
use crate::keys::Owner;
use crate::logprobs;
use crate::part::{Delta, Ended, Part, Scored, Usage, Whole};
use crate::store::{Store, Ticket};
use crate::tokenizer::TextModel;
use crate::wire::{END, Halt, Wire};

/// What a wire is made of.
pub struct Parts {
    /// What is known of the response.
    pub head: Head,
    /// What tools are to the client.
    pub names: Names,
    /// What is shown of thoughts.
    pub showing: Showing,
    /// The model's text side.
    pub text: Arc<TextModel>,
}

/// How a response is written.
pub struct ResponseWire {
    head: Arc<Head>,
    names: Names,
    showing: Showing,
    text: Arc<TextModel>,
    /// Until it is over.
    ticket: Option<Ticket>,
    halt: Option<Halt>,
    items: Vec<Item>,
    events: Events,
    opened: bool,
    /// Whether a limit ended it.
    cut: bool,
    /// Counts so far.
    total: Usage,
}

/// Numbers events.
#[derive(Default)]
struct Events(u64);

impl Events {
    /// An event; `write` writes its other fields, each behind a comma.
    fn put(&mut self, out: &mut Vec<u8>, name: &str, write: impl FnOnce(&mut Vec<u8>)) {
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\ndata: {\"type\":");
        put(out, name);
        out.extend_from_slice(b",\"sequence_number\":");
        put(out, &self.0);
        write(out);
        out.push(b'}');
        out.extend_from_slice(END);
        self.0 += 1;
    }

    /// An event about the item in place `at`; `index` names the field that counts its parts, if it has any.
    fn of_item(
        &mut self,
        out: &mut Vec<u8>,
        name: &str,
        (item, at): (&Item, usize),
        index: Option<&str>,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        self.put(out, name, |out| {
            out.extend_from_slice(b",\"item_id\":");
            put(out, &item.id);
            out.extend_from_slice(b",\"output_index\":");
            put(out, &at);
            if let Some(index) = index {
                out.extend_from_slice(b",\"");
                out.extend_from_slice(index.as_bytes());
                out.extend_from_slice(b"\":0");
            }
            write(out);
        });
    }

    /// An item begins, or ends.
    fn item(&mut self, out: &mut Vec<u8>, name: &str, (item, at): (&Item, usize), show: Showing) {
        self.put(out, name, |out| {
            out.extend_from_slice(b",\"output_index\":");
            put(out, &at);
            out.extend_from_slice(b",\"item\":");
            item.write(out, show);
        });
    }
}

const CONTENT: Option<&str> = Some("content_index");
const SUMMARY: Option<&str> = Some("summary_index");

/// A field behind a comma.
fn field<T: serde::Serialize + ?Sized>(out: &mut Vec<u8>, name: &str, value: &T) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    put(out, value);
}

fn part_field(out: &mut Vec<u8>, item: &Item, empty: bool) {
    out.extend_from_slice(b",\"part\":");
    item.part(out, empty);
}

impl ResponseWire {
    /// Of these; `input` is the JSON of the items that it answers, if it is to be kept for `owner`.
    pub fn new(
        parts: Parts,
        store: &Arc<Store>,
        owner: Owner,
        input: Option<String>,
    ) -> ResponseWire {
        let Parts { head, names, showing, text } = parts;
        let (head, ticket, halt) = store.begin(owner, input, |store| Head { store, ..head });
        ResponseWire {
            head,
            names,
            showing,
            text,
            ticket: Some(ticket),
            halt: Some(halt),
            items: Vec::new(),
            events: Events::default(),
            opened: false,
            cut: false,
            total: Usage::default(),
        }
    }

    /// The place of the item that is open.
    fn open_item(&self) -> Option<usize> {
        let last = self.items.last().filter(|item| item.progress == Progress::Open);
        last.map(|_| self.items.len() - 1)
    }

    /// The place of an item of this kind: the one that is open, or a new one.
    fn item_for(&mut self, out: &mut Vec<u8>, kind: Kind) -> usize {
        if let Some(at) = self.open_item() {
            if self.items[at].kind == kind {
                return at;
            }
            self.end_item(out, Progress::Whole);
        }
        let at = self.items.len();
        let item = Item::new(kind, &self.head.id, at);
        let (events, show) = (&mut self.events, self.showing);
        events.item(out, "response.output_item.added", (&item, at), show);
        if matches!(item.kind, Kind::Message | Kind::Reasoning) {
            events.of_item(out, "response.content_part.added", (&item, at), CONTENT, |out| {
                part_field(out, &item, true);
            });
        }
        if item.kind == Kind::Reasoning && show.summary {
            let name = "response.reasoning_summary_part.added";
            events.of_item(out, name, (&item, at), SUMMARY, |out| {
                field(out, "part", &item.summary(true));
            });
        }
        self.items.push(item);
        at
    }

    /// Ends the item that is open.
    fn end_item(&mut self, out: &mut Vec<u8>, progress: Progress) {
        let Some(at) = self.open_item() else { return };
        self.items[at].progress = progress;
        let (item, events, show) = (&self.items[at], &mut self.events, self.showing);
        let mut tell = |name: &str, index, write: &dyn Fn(&mut Vec<u8>)| {
            events.of_item(out, name, (item, at), index, write);
        };
        let text = |out: &mut Vec<u8>| field(out, "text", &item.text);
        match &item.kind {
            Kind::Reasoning => {
                tell("response.reasoning_text.done", CONTENT, &text);
                tell("response.content_part.done", CONTENT, &|out| part_field(out, item, false));
                if show.summary {
                    tell("response.reasoning_summary_text.done", SUMMARY, &text);
                    tell("response.reasoning_summary_part.done", SUMMARY, &|out| {
                        field(out, "part", &item.summary(false));
                    });
                }
            }
            Kind::Message => {
                tell("response.output_text.done", CONTENT, &|out| {
                    text(out);
                    scores(out, &item.scores);
                });
                tell("response.content_part.done", CONTENT, &|out| part_field(out, item, false));
            }
            Kind::Call { tool, .. } if tool.is_custom => {
                let input = input_of(&item.text);
                tell("response.custom_tool_call_input.delta", None, &|out| {
                    field(out, "delta", &input);
                });
                tell("response.custom_tool_call_input.done", None, &|out| {
                    field(out, "input", &input);
                });
            }
            Kind::Call { tool, .. } => {
                tell("response.function_call_arguments.done", None, &|out| {
                    field(out, "name", &tool.name);
                    field(out, "arguments", &item.text);
                });
            }
        }
        events.item(out, "response.output_item.done", (item, at), show);
    }

    /// More of the item in place `at`.
    fn more(&mut self, out: &mut Vec<u8>, at: usize, text: &str, tokens: &[Scored]) {
        let item = &mut self.items[at];
        item.text.push_str(text);
        let mut new = Vec::new();
        if item.kind == Kind::Message && !tokens.is_empty() {
            logprobs::entries(&mut new, tokens, &self.text);
            // Without the brackets.
            new.pop();
            new.remove(0);
            if !item.scores.is_empty() {
                item.scores.push(b',');
            }
            item.scores.extend_from_slice(&new);
        }
        let item = &self.items[at];
        let (name, index) = match &item.kind {
            Kind::Message => ("response.output_text.delta", CONTENT),
            Kind::Reasoning => ("response.reasoning_text.delta", CONTENT),
            // Its text is JSON until it ends.
            Kind::Call { tool, .. } if tool.is_custom => return,
            Kind::Call { .. } => ("response.function_call_arguments.delta", None),
        };
        self.events.of_item(out, name, (item, at), index, |out| {
            field(out, "delta", text);
            if item.kind == Kind::Message {
                scores(out, &new);
            }
        });
        if item.kind == Kind::Reasoning && self.showing.summary {
            let name = "response.reasoning_summary_text.delta";
            self.events.of_item(out, name, (item, at), SUMMARY, |out| field(out, "delta", text));
        }
    }

    fn step(&mut self, out: &mut Vec<u8>, delta: &Delta<'_>) {
        self.total = delta.total;
        match delta.part {
            Part::Text(text) => {
                let is_said =
                    self.open_item().is_some_and(|at| self.items[at].kind == Kind::Message);
                if !text.is_empty() || (is_said && !delta.tokens.is_empty()) {
                    let at = self.item_for(out, Kind::Message);
                    self.more(out, at, text, delta.tokens);
                }
            }
            Part::Reasoning("") => {}
            Part::Reasoning(text) => {
                let at = self.item_for(out, Kind::Reasoning);
                self.more(out, at, text, &[]);
            }
            Part::ToolCall { start, arguments, .. } => {
                if let Some((id, name)) = start {
                    self.end_item(out, Progress::Whole);
                    let kind = Kind::Call { id: id.to_owned(), tool: self.names.origin(name) };
                    self.item_for(out, kind);
                }
                if let Some(at) = self.open_item().filter(|_| !arguments.is_empty()) {
                    self.more(out, at, arguments, &[]);
                }
            }
            Part::CallEnd { whole, .. } => {
                self.end_item(out, if whole { Progress::Whole } else { Progress::Cut });
            }
        }
        self.cut |= matches!(delta.ended, Some(Ended::Length { .. }));
    }

    /// Ends what is open, and says how the response stands.
    fn end(&mut self, out: &mut Vec<u8>) -> Status<'static> {
        // Clients look for a message where there is nothing else.
        if self.items.is_empty() {
            self.item_for(out, Kind::Message);
        }
        self.end_item(out, if self.cut { Progress::Cut } else { Progress::Whole });
        if self.cut { Status::Incomplete } else { Status::Completed(unix_s()) }
    }

    /// The response, which is kept as it is.
    fn finish(&mut self, status: Status<'_>, total: Usage) -> Vec<u8> {
        let mut output = Vec::new();
        write_all(&mut output, &self.items, self.showing);
        let mut response = Vec::with_capacity(output.len() + 2048);
        let list = |out: &mut Vec<u8>| out.extend_from_slice(&output);
        self.head.write(&mut response, status, list, Some(total));
        if let Some(ticket) = self.ticket.take().filter(Ticket::is_kept) {
            output.shrink_to_fit();
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).ok();
            if let (Some(response), Some(output)) = (text(response.clone()), text(output)) {
                ticket.keep(response, output);
            }
        }
        response
    }

    fn last(&mut self, out: &mut Vec<u8>, status: Status<'_>, total: Usage) {
        let response = self.finish(status, total);
        self.events.put(out, status.event(), |out| {
            out.extend_from_slice(b",\"response\":");
            out.extend_from_slice(&response);
        });
    }
}

fn scores(out: &mut Vec<u8>, scores: &[u8]) {
    out.extend_from_slice(b",\"logprobs\":[");
    out.extend_from_slice(scores);
    out.push(b']');
}

impl Wire for ResponseWire {
    // Comments do not keep all clients waiting.
    const PING: &'static [u8] = b"event: ping\ndata: {\"type\":\"ping\"}\n\n";
    // OpenAI's own refuse whatever comes before `response.created`.
    const OPENS_FIRST: bool = true;

    fn open(&mut self, out: &mut Vec<u8>, _: Usage) {
        self.opened = true;
        for name in ["response.created", "response.in_progress"] {
            self.events.put(out, name, |out| {
                out.extend_from_slice(b",\"response\":");
                let nothing = |out: &mut Vec<u8>| out.extend_from_slice(b"[]");
                self.head.write(out, Status::InProgress, nothing, None);
            });
        }
    }

    fn delta(&mut self, out: &mut Vec<u8>, delta: &Delta<'_>) {
        self.step(out, delta);
    }

    fn close(&mut self, out: &mut Vec<u8>, total: Usage) {
        let status = self.end(out);
        self.last(out, status, total);
    }

    fn fail(&mut self, out: &mut Vec<u8>, error: &ApiError) {
        if !self.opened {
            self.open(out, self.total);
        }
        if let Some(at) = self.open_item() {
            self.items[at].progress = Progress::Cut;
        }
        let (code, message) = failure(error);
        let status =
            if error.is_cancelled() { Status::Cancelled } else { Status::Failed(code, &message) };
        self.last(out, status, self.total);
    }

    fn hear(&mut self, delta: &Delta<'_>) {
        self.step(&mut Vec::new(), delta);
    }

    fn halt(&mut self) -> Option<Halt> {
        self.halt.take()
    }

    fn whole(mut self, out: &mut Vec<u8>, _: Vec<Whole>, total: Usage) {
        let status = self.end(&mut Vec::new());
        out.extend_from_slice(&self.finish(status, total));
    }
}
