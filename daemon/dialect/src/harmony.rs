//! The machine of harmony, gpt-oss's messages.
//!
//! ```text
//!   <|channel|>analysis<|message|>thought<|end|>
//!   <|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>
//!   <|start|>assistant<|channel|>final<|message|>answer<|return|>
//!   '------------------ header ------------------''------- body -------'
//! ```
//!
//! A recipient may stand before the channel or behind it, and a content type with or without its marker. `analysis` is
//! reasoning, `final` and `commentary` without a recipient are text. A message to `functions.f` is a call of `f`, whatever
//! its channel; one to another recipient is a call where a tool has that name, and else what its channel is.
//!
//! Owns: headers, and whose a body is. Must never: take a content type for a recipient.

use std::sync::Arc;

use crate::body::{Fed, Object};
use crate::calls::{Calls, Sink};
use crate::part::{Left, Outcome, Part, Phase};
use crate::scan::{Found, find, spaces};
use crate::tools::Tools;

const START: &str = "<|start|>";
const CHANNEL: &str = "<|channel|>";
const CONSTRAIN: &str = "<|constrain|>";
const MESSAGE: &str = "<|message|>";
const END: &str = "<|end|>";
const CALL: &str = "<|call|>";
const RETURN: &str = "<|return|>";

/// Markers whose text the parser needs.
pub(crate) const MARKERS: &[&str] = &[START, CHANNEL, CONSTRAIN, MESSAGE, END, CALL, RETURN];
/// Behind what an answer begins.
pub(crate) const FINAL: &[&str] = &[
    "<|channel|>final<|message|>",
    "<|channel|>final <|constrain|>json<|message|>",
    "<|channel|>final json<|message|>",
];
/// What ends a body.
const ENDS: &[&str] = &[END, CALL, RETURN, START];
/// Bytes of a header. A longer one is text.
const HEADER_BYTES_MAX: usize = 512;

/// See the file's head.
pub(crate) struct Harmony {
    calls: Calls,
    reads_calls: bool,
    reads_thoughts: bool,
    untaken: String,
    at: At,
    header: String,
    /// Whether a marker showed that this is harmony at all.
    in_channel: bool,
}

enum At {
    /// In a header; whatever comes before its first marker may be plain text.
    Header,
    Text,
    Thought,
    /// Before the brace of a call's arguments.
    Lead {
        name: String,
    },
    Arguments(Object),
    /// Behind them.
    Tail,
}

impl Harmony {
    pub(crate) fn new(
        tools: Arc<Tools>,
        reads_calls: bool,
        reads_thoughts: bool,
        tail: &str,
    ) -> Harmony {
        let mut harmony = Harmony {
            calls: Calls::new(tools),
            reads_calls,
            reads_thoughts,
            untaken: String::new(),
            at: At::Header,
            header: String::new(),
            in_channel: false,
        };
        // The prompt ends in a header, which may have begun a channel already, or inside a message.
        if let Some((_, turn)) = tail.rsplit_once(START) {
            let turn = turn.strip_prefix("assistant").unwrap_or(turn);
            let header = turn.split_once(MESSAGE).map_or(turn, |(header, _)| header);
            if header.len() <= HEADER_BYTES_MAX {
                harmony.header.push_str(header);
            }
            harmony.in_channel = header.contains(CHANNEL);
            if turn.contains(MESSAGE) {
                harmony.message();
            }
        }
        harmony
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.at {
            At::Thought => Phase::Reasoning,
            At::Lead { .. } | At::Arguments(_) => Phase::Call,
            At::Header | At::Text | At::Tail => Phase::Text,
        }
    }

    pub(crate) fn held(&self) -> usize {
        let header = if matches!(self.at, At::Header) { self.header.len() } else { 0 };
        self.untaken.len() + header
    }

    pub(crate) fn push(&mut self, text: &str, sink: &mut Sink<'_>) {
        self.run(text, false, sink);
    }

    pub(crate) fn finish(&mut self, sink: &mut Sink<'_>) -> Left {
        self.run("", true, sink);
        let phase = self.phase();
        match std::mem::replace(&mut self.at, At::Header) {
            At::Arguments(_) => self.calls.end(Outcome::Cut, sink),
            // A header without its message says nothing; what never was one is text.
            At::Header if !self.in_channel => {
                let header = std::mem::take(&mut self.header);
                self.give(&header, sink);
            }
            At::Lead { .. } => self.calls.counts.refused += 1,
            _ => {}
        }
        Left { phase, counts: self.calls.counts }
    }

    fn run(&mut self, text: &str, last: bool, sink: &mut Sink<'_>) {
        let mut all = std::mem::take(&mut self.untaken);
        all.push_str(text);
        let mut at = 0;
        while let Some(taken) = self.turn(&all[at..], last, sink) {
            at += taken;
        }
        all.drain(..at);
        self.untaken = all;
    }

    fn turn(&mut self, text: &str, last: bool, sink: &mut Sink<'_>) -> Option<usize> {
        if text.is_empty() {
            return None;
        }
        if let At::Arguments(object) = &mut self.at {
            return Some(match object.feed(text, &mut self.calls, sink) {
                Fed::All => text.len(),
                Fed::End(at) => {
                    self.calls.end(Outcome::Whole, sink);
                    self.at = At::Tail;
                    at
                }
                Fed::Bad(at) => {
                    // A marker in the middle of it is the end of a call that was cut by the model itself.
                    self.calls.end(Outcome::Broken, sink);
                    self.at = At::Text;
                    at
                }
            });
        }
        if let At::Lead { name } = &self.at {
            let space = spaces(text);
            if space > 0 {
                return Some(space);
            }
            let name = name.clone();
            if text.starts_with('{') {
                self.calls.begin(&name, None, sink);
                self.at = At::Arguments(Object::new());
                return Some(0);
            }
            match find(text, ENDS.iter().copied()) {
                Found::Whole { at: 0, .. } => self.calls.whole(&name, "{}", sink),
                Found::Half(0) if !last => return None,
                _ => self.calls.counts.refused += 1,
            }
            self.at = At::Text;
            return Some(0);
        }
        if matches!(self.at, At::Tail) {
            let space = spaces(text);
            if space > 0 {
                return Some(space);
            }
            self.at = At::Text;
        }
        let markers = if matches!(self.at, At::Header) { MARKERS } else { ENDS };
        let (until, which) = match find(text, markers.iter().copied()) {
            Found::Whole { at, which } => (at, Some(which)),
            Found::Half(at) if !last => (at, None),
            _ => (text.len(), None),
        };
        if until > 0 {
            if matches!(self.at, At::Header) {
                return Some(self.plain_header(&text[..until], sink));
            }
            self.give(&text[..until], sink);
            return Some(until);
        }
        let marker = markers[which?];
        match (&self.at, marker) {
            (At::Header, MESSAGE) => self.message(),
            (At::Header, CHANNEL | CONSTRAIN) => {
                self.in_channel = true;
                self.header.push_str(marker);
                if self.header.len() > HEADER_BYTES_MAX {
                    self.at = At::Text;
                    let header = std::mem::take(&mut self.header);
                    self.give(&header, sink);
                }
            }
            // A new header, or the end of all.
            _ => {
                self.at = At::Header;
                self.header.clear();
                self.in_channel = marker == START;
            }
        }
        Some(marker.len())
    }

    /// Takes text that stands in a header, or where one should: what no header begins with is the answer.
    fn plain_header(&mut self, text: &str, sink: &mut Sink<'_>) -> usize {
        for (at, char) in text.char_indices() {
            self.header.push(char);
            let start = self.header.trim_start();
            let fits = self.in_channel || "to=".starts_with(start) || start.starts_with("to=");
            if !fits || self.header.len() > HEADER_BYTES_MAX {
                let header = std::mem::take(&mut self.header);
                self.at = At::Text;
                self.give(&header, sink);
                return at + char.len_utf8();
            }
        }
        text.len()
    }

    /// A header is complete: what follows is whose?
    fn message(&mut self) {
        let header = std::mem::take(&mut self.header);
        let words = header.replace(CHANNEL, &format!(" {CHANNEL}")).replace(CONSTRAIN, " ");
        let mut channel = "";
        let mut recipient = None;
        for word in words.split_whitespace() {
            if let Some(name) = word.strip_prefix(CHANNEL) {
                channel = name;
            } else if let Some(name) = word.strip_prefix("to=") {
                recipient = Some(name);
            }
        }
        let name = recipient.and_then(|to| match to.strip_prefix("functions.") {
            Some(name) => Some(name),
            None => self.calls.tools.knows(to).then_some(to),
        });
        self.at = match name {
            Some(name) if self.reads_calls && self.calls.accepts(name) => {
                At::Lead { name: name.to_string() }
            }
            _ if channel == "analysis" && self.reads_thoughts => At::Thought,
            _ => At::Text,
        };
    }

    fn give(&mut self, text: &str, sink: &mut Sink<'_>) {
        match self.at {
            _ if text.is_empty() => {}
            At::Thought => sink(Part::Reasoning(text)),
            _ => sink(Part::Text(text)),
        }
    }
}
