//! Arguments that are written as JSON.
//!
//! Owns: giving a JSON object on while it is written, with raw control characters of strings escaped. Must never: hold
//! any of it.

use crate::calls::{Calls, Sink};
use crate::json::{Json, escape};

/// A JSON object on its way.
pub(crate) struct Object {
    json: Json,
}

/// What became of some text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fed {
    /// All of it is the object's.
    All,
    /// The object ended behind this byte.
    End(usize),
    /// No JSON goes on with this byte.
    Bad(usize),
}

impl Object {
    /// Before its brace.
    pub(crate) fn new() -> Object {
        Object { json: Json::new() }
    }

    /// Gives on what is the object's. The call is open.
    pub(crate) fn feed(&mut self, text: &str, calls: &mut Calls, sink: &mut Sink<'_>) -> Fed {
        let mut given = 0;
        let mut fed = Fed::All;
        let mut end = text.len();
        for (at, byte) in text.bytes().enumerate() {
            let raw = byte < 0x20 && self.json.in_text();
            if !self.json.push(byte) {
                (fed, end) = (Fed::Bad(at), at);
                break;
            }
            if raw {
                calls.arguments(&text[given..at], sink);
                let mut escaped = String::new();
                escape(&text[at..=at], &mut escaped);
                calls.arguments(&escaped, sink);
                given = at + 1;
            }
            if self.json.is_done() {
                (fed, end) = (Fed::End(at + 1), at + 1);
                break;
            }
        }
        calls.arguments(&text[given..end], sink);
        fed
    }
}
