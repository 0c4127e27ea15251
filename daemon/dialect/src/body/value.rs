//! An argument that is written as plain text: a JSON value of the type that the tool's schema gives it.
//!
//! Owns: the decision what the text is. A string is given on while it is written. What may be something else is held, as
//! long as it may; a text that is nothing of what the schema allows is a string, so no argument is ever lost.

use crate::calls::{Calls, Sink};
use crate::json::{Json, escape, is_space};
use crate::tools::Types;

/// Bytes of a value that is held because it may be no string. A longer one is a string.
pub const VALUE_BYTES_MAX: usize = 256 * 1024;

/// One value on its way.
pub(crate) struct Value {
    types: Types,
    /// It is a string, and was begun.
    is_text: bool,
    held: String,
    json: Json,
    /// Whether what is held may be JSON still.
    is_json: bool,
}

/// Words that stand for values, with Python's spelling, which models fall into.
const WORDS: [(&str, &str, Types); 6] = [
    ("null", "null", Types::NULL),
    ("None", "null", Types::NULL),
    ("true", "true", Types::BOOLEAN),
    ("True", "true", Types::BOOLEAN),
    ("false", "false", Types::BOOLEAN),
    ("False", "false", Types::BOOLEAN),
];

impl Value {
    pub(crate) fn new(types: Types) -> Value {
        let held = String::new();
        Value { types, is_text: false, held, json: Json::new(), is_json: true }
    }

    /// Takes more of its text. The call is open.
    pub(crate) fn push(&mut self, text: &str, calls: &mut Calls, sink: &mut Sink<'_>) {
        if !self.is_text && self.types == Types::STRING {
            self.is_text = true;
            calls.arguments("\"", sink);
        }
        if self.is_text {
            return self.give(text, calls, sink);
        }
        for (at, char) in text.char_indices() {
            for &byte in char.encode_utf8(&mut [0; 4]).as_bytes() {
                let behind = self.json.is_done() && is_space(byte);
                self.is_json = self.is_json && (behind || self.json.push(byte));
            }
            self.held.push(char);
            let text_alone = self.types.has(Types::STRING) && !self.may_be_other();
            if text_alone || self.held.len() > VALUE_BYTES_MAX {
                self.is_text = true;
                let held = std::mem::take(&mut self.held);
                calls.arguments("\"", sink);
                self.give(&held, calls, sink);
                return self.give(&text[at + char.len_utf8()..], calls, sink);
            }
        }
    }

    /// Ends it.
    pub(crate) fn end(&mut self, calls: &mut Calls, sink: &mut Sink<'_>) {
        if self.is_text {
            return calls.arguments("\"", sink);
        }
        let json = self.convert();
        calls.arguments(&json, sink);
    }

    fn give(&self, text: &str, calls: &mut Calls, sink: &mut Sink<'_>) {
        let mut escaped = String::with_capacity(text.len());
        escape(text, &mut escaped);
        calls.arguments(&escaped, sink);
    }

    /// Whether what is held may become something that is allowed and no string.
    fn may_be_other(&self) -> bool {
        let text = self.held.trim_start();
        let allowed = match text.as_bytes().first() {
            None => return true,
            Some(b'{') => Types::OBJECT,
            Some(b'[') => Types::ARRAY,
            Some(b'-' | b'0'..=b'9') => Types::NUMBER.or(Types::INTEGER),
            Some(_) => {
                let text = text.trim_end();
                let mut words = WORDS.iter().filter(|(_, _, types)| self.types.has(*types));
                return words.any(|(word, ..)| word.starts_with(text));
            }
        };
        self.is_json && self.types.has(allowed)
    }

    fn convert(&self) -> String {
        let text = self.held.trim();
        if let Some((_, json, _)) = WORDS.iter().find(|(word, _, types)| {
            *word == text && (self.types.has(*types) || !self.allows_text())
        }) {
            return (*json).to_string();
        }
        if let Ok(value) = serde_json::from_str::<serde_json::Value>(text) {
            match &value {
                serde_json::Value::String(inner) if !self.allows_text() => {
                    // Encoded twice.
                    let twice = serde_json::from_str::<serde_json::Value>(inner);
                    if twice.is_ok_and(|value| self.types.has(Types::of(&value))) {
                        return inner.clone();
                    }
                    return text.to_string();
                }
                serde_json::Value::String(_) => {}
                // With its own digits, and what the schema does not allow as well: the client's to judge.
                value if self.types.has(Types::of(value)) || !self.allows_text() => {
                    return text.to_string();
                }
                _ => {}
            }
        } else if self.is_json && self.json.is_whole() && !self.allows_text() {
            // A number too large for a machine's is one nonetheless.
            return text.to_string();
        } else if text.starts_with(['{', '['])
            && self.types.has(Types::OBJECT.or(Types::ARRAY))
            && let Some(json) = super::python::to_json(text)
        {
            return json;
        }
        let mut json = String::from("\"");
        escape(&self.held, &mut json);
        json.push('"');
        json
    }

    fn allows_text(&self) -> bool {
        self.types.has(Types::STRING)
    }
}
