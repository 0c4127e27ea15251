//! A call as Gemma 4 writes it: `call:f{city:<|"|>Paris<|"|>,days:[1,2],deep:{a:true}}`.
//!
//! Strings stand between markers of their own and have no escapes; keys stand bare, or as strings.

use super::{Body, NAME_BYTES_MAX, Step, name_window};
use crate::calls::{Calls, Sink};
use crate::json::{Json, escape};
use crate::part::Outcome;
use crate::scan::{Found, Here, find, here, spaces};

const HEAD: &str = "call:";
const QUOTE: &str = "<|\"|>";
const CLOSE: &[&str] = &["<tool_call|>"];
/// Containers inside containers.
const DEPTH_MAX: usize = 128;

/// See the file's head.
pub(crate) struct GemmaCall {
    at: At,
    name: String,
    /// A key, or a bare value.
    token: String,
    /// Containers that are open: whether it is an object, and its items so far.
    stack: Vec<(bool, usize)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Head,
    Name,
    /// Before a key.
    Key,
    /// In a bare key.
    BareKey,
    /// In a quoted key.
    QuotedKey,
    Colon,
    /// Before a value.
    Value,
    Text,
    Bare,
    /// Behind a value.
    Next,
    Close,
}

impl GemmaCall {
    pub(crate) fn new() -> GemmaCall {
        GemmaCall { at: At::Head, name: String::new(), token: String::new(), stack: Vec::new() }
    }

    fn in_object(&self) -> bool {
        self.stack.last().is_some_and(|(object, _)| *object)
    }

    fn item(&mut self, calls: &mut Calls, sink: &mut Sink<'_>) {
        if let Some((_, items)) = self.stack.last_mut() {
            if *items > 0 {
                calls.arguments(", ", sink);
            }
            *items += 1;
        }
    }

    /// Closes the innermost container at its bracket.
    fn close(&mut self, calls: &mut Calls, sink: &mut Sink<'_>) {
        let object = self.stack.pop().is_none_or(|(object, _)| object);
        calls.arguments(if object { "}" } else { "]" }, sink);
        self.at = At::Next;
        if self.stack.is_empty() {
            calls.end(Outcome::Whole, sink);
            self.at = At::Close;
        }
    }

    fn closing(&self) -> u8 {
        if self.in_object() { b'}' } else { b']' }
    }

    fn key(&mut self, calls: &mut Calls, sink: &mut Sink<'_>) {
        self.item(calls, sink);
        let mut json = String::from("\"");
        escape(self.token.trim(), &mut json);
        json.push_str("\": ");
        calls.arguments(&json, sink);
        self.token.clear();
    }

    /// A value without quotes has ended.
    fn bare(&mut self, calls: &mut Calls, sink: &mut Sink<'_>) {
        let text = self.token.trim();
        let mut json = match text {
            "None" | "none" | "nil" => "null".to_string(),
            "True" => "true".to_string(),
            "False" => "false".to_string(),
            _ => text.to_string(),
        };
        let mut reader = Json::new();
        if !(json.bytes().all(|byte| reader.push(byte)) && reader.is_whole()) {
            json = String::from("\"");
            escape(text, &mut json);
            json.push('"');
        }
        calls.arguments(&json, sink);
        self.token.clear();
        self.at = At::Next;
    }

    fn head(&mut self, text: &str, last: bool, calls: &mut Calls, sink: &mut Sink<'_>) -> Step {
        let window = name_window(text);
        let (text, last) = (window, last && window.len() == text.len());
        let end = text.find('{');
        let until = end.unwrap_or(text.len());
        for (at, char) in text[..until].char_indices() {
            let fits = char.is_ascii_alphanumeric() || matches!(char, '_' | '-' | '.' | ':');
            if !fits || self.name.len() + at >= NAME_BYTES_MAX {
                return Step::Not(at);
            }
        }
        self.name.push_str(&text[..until]);
        if end.is_none() {
            return if last { Step::Not(until) } else { Step::Took(until) };
        }
        if !calls.accepts(&self.name) {
            return Step::Not(until);
        }
        calls.begin(&self.name, None, sink);
        calls.arguments("{", sink);
        self.stack.push((true, 0));
        self.at = At::Key;
        Step::Took(until + 1)
    }

    fn quoted(&mut self, text: &str, last: bool, calls: &mut Calls, sink: &mut Sink<'_>) -> Step {
        let (until, end) = match find(text, [QUOTE].into_iter()) {
            Found::Whole { at, .. } => (at, true),
            Found::Half(at) if !last => (at, false),
            _ => (text.len(), false),
        };
        if self.at == At::QuotedKey {
            if let Some(fits) = self.too_long(text, until) {
                return Step::Broken(fits);
            }
            self.token.push_str(&text[..until]);
            if end {
                self.key(calls, sink);
                self.at = At::Colon;
            }
        } else {
            let mut json = String::new();
            escape(&text[..until], &mut json);
            calls.arguments(&json, sink);
            if end {
                calls.arguments("\"", sink);
                self.at = At::Next;
            }
        }
        match (end, until) {
            (true, _) => Step::Took(until + QUOTE.len()),
            (false, 0) => Step::Need,
            (false, _) => Step::Took(until),
        }
    }

    /// Text up to one of some characters, into the token.
    fn plain(&mut self, text: &str, ends: &[char]) -> Result<usize, Step> {
        let text = name_window(text);
        let end = text.find(ends);
        let until = end.unwrap_or(text.len());
        if let Some(fits) = self.too_long(text, until) {
            return Err(Step::Broken(fits));
        }
        self.token.push_str(&text[..until]);
        end.ok_or(Step::Took(until))
    }

    /// How much of a text the token still takes, where that is not all up to `until`; the token has it then.
    fn too_long(&mut self, text: &str, until: usize) -> Option<usize> {
        let mut fits = NAME_BYTES_MAX.saturating_sub(self.token.len());
        if fits >= until {
            return None;
        }
        while !text.is_char_boundary(fits) {
            fits -= 1;
        }
        self.token.push_str(&text[..fits]);
        Some(fits)
    }

    fn value(&mut self, text: &str, last: bool, calls: &mut Calls, sink: &mut Sink<'_>) -> Step {
        let quote = here(text.as_bytes(), [QUOTE].into_iter());
        if quote == Here::Half && !last {
            return Step::Need;
        }
        let byte = text.as_bytes()[0];
        if byte == b']' && !self.in_object() {
            self.close(calls, sink);
            return Step::Took(1);
        }
        if matches!(byte, b',' | b'}' | b']' | b':') {
            return Step::Broken(0);
        }
        if !self.in_object() {
            self.item(calls, sink);
        }
        match byte {
            _ if quote != Here::No && quote != Here::Half => {
                calls.arguments("\"", sink);
                self.at = At::Text;
                Step::Took(QUOTE.len())
            }
            b'{' | b'[' if self.stack.len() < DEPTH_MAX => {
                calls.arguments(if byte == b'{' { "{" } else { "[" }, sink);
                self.stack.push((byte == b'{', 0));
                self.at = if byte == b'{' { At::Key } else { At::Value };
                Step::Took(1)
            }
            b'{' | b'[' => Step::Broken(0),
            _ => {
                self.at = At::Bare;
                Step::Took(0)
            }
        }
    }
}

impl Body for GemmaCall {
    fn step(&mut self, text: &str, last: bool, calls: &mut Calls, sink: &mut Sink<'_>) -> Step {
        let at_rest = matches!(self.at, At::Key | At::Colon | At::Value | At::Next | At::Close);
        let space = if at_rest { spaces(text) } else { 0 };
        if space > 0 {
            return Step::Took(space);
        }
        if text.is_empty() {
            let done = last && self.at == At::Close;
            return if done { Step::Done { taken: 0, closed: false } } else { Step::Need };
        }
        let byte = text.as_bytes()[0];
        match self.at {
            At::Head => match here(text.as_bytes(), [HEAD].into_iter()) {
                Here::Whole(_) => {
                    self.at = At::Name;
                    Step::Took(HEAD.len())
                }
                Here::Half if !last => Step::Need,
                _ => Step::Not(0),
            },
            At::Name => self.head(text, last, calls, sink),
            At::Key => match here(text.as_bytes(), [QUOTE].into_iter()) {
                Here::Whole(_) => {
                    self.at = At::QuotedKey;
                    Step::Took(QUOTE.len())
                }
                Here::Half if !last => Step::Need,
                _ if byte == b'}' => {
                    self.close(calls, sink);
                    Step::Took(1)
                }
                _ => {
                    self.at = At::BareKey;
                    Step::Took(0)
                }
            },
            At::BareKey => match self.plain(text, &[':', ',', '{', '}', '[', ']', '<']) {
                Err(step) => step,
                Ok(end) if text.as_bytes()[end] == b':' && !self.token.trim().is_empty() => {
                    self.key(calls, sink);
                    self.at = At::Value;
                    Step::Took(end + 1)
                }
                Ok(end) => Step::Broken(end),
            },
            At::QuotedKey | At::Text => self.quoted(text, last, calls, sink),
            At::Colon if byte == b':' => {
                self.at = At::Value;
                Step::Took(1)
            }
            At::Colon => Step::Broken(0),
            At::Value => self.value(text, last, calls, sink),
            At::Bare => match self.plain(text, &[',', '}', ']', '{', '[', '<']) {
                Err(step) => step,
                Ok(end) if matches!(text.as_bytes()[end], b',' | b'}' | b']') => {
                    self.bare(calls, sink);
                    Step::Took(end)
                }
                Ok(end) => Step::Broken(end),
            },
            At::Next if byte == b',' => {
                self.at = if self.in_object() { At::Key } else { At::Value };
                Step::Took(1)
            }
            At::Next if byte == self.closing() => {
                self.close(calls, sink);
                Step::Took(1)
            }
            At::Next => Step::Broken(0),
            At::Close => match here(text.as_bytes(), CLOSE.iter().copied()) {
                Here::Whole(_) => Step::Done { taken: CLOSE[0].len(), closed: true },
                Here::Half if last => Step::Done { taken: text.len(), closed: true },
                Here::Half => Step::Need,
                Here::No => Step::Done { taken: 0, closed: false },
            },
        }
    }

    fn is_pending(&self) -> bool {
        matches!(self.at, At::Head | At::Name)
    }

    fn closes(&self) -> &'static [&'static str] {
        CLOSE
    }

    fn held(&self) -> &str {
        &self.token
    }
}
