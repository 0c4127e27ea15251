//! A call as a name, a separator, and a JSON object.
//!
//! ```text
//!   get_weather[ARGS]{"city": "Paris"}
//!   functions.get_weather:0<|tool_call_argument_begin|>{"city": "Paris"}<|tool_call_end|>
//! ```

use super::{Body, Fed, NAME_BYTES_MAX, Object, Step, name_window};
use crate::calls::{Calls, Sink};
use crate::part::Outcome;
use crate::scan::{Found, Here, find, here, spaces};

/// Reads a name and, where there is one, an id.
type Head = fn(&str) -> Option<(&str, Option<&str>)>;

/// What varies.
pub(crate) struct NamedForm {
    /// What ends the head.
    pub(crate) separators: &'static [&'static str],
    /// Whether the brace of the arguments ends it, too.
    pub(crate) brace: bool,
    /// Reads name and id out of the head.
    pub(crate) head: Head,
    /// What may stand behind the arguments, and is dropped (the end of a fence).
    pub(crate) trail: &'static [&'static str],
    /// Closing markers; none where nothing closes it.
    pub(crate) close: &'static [&'static str],
}

/// See the file's head.
pub(crate) struct NamedCall {
    form: &'static NamedForm,
    at: At,
    head: String,
    object: Object,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Head,
    /// Between the separator and the brace.
    Lead,
    Arguments,
    Trail,
    Close,
}

impl NamedCall {
    pub(crate) fn new(form: &'static NamedForm) -> NamedCall {
        NamedCall { form, at: At::Head, head: String::new(), object: Object::new() }
    }

    fn read_head(&mut self, text: &str, last: bool, calls: &Calls) -> Step {
        let window = name_window(text);
        let (text, last) = (window, last && window.len() == text.len());
        let brace = self.form.brace.then_some("{");
        let ends = self.form.separators.iter().copied().chain(brace);
        let (until, which) = match find(text, ends) {
            Found::Whole { at, which } => (at, Some(which)),
            Found::Half(at) if !last => (at, None),
            _ => (text.len(), None),
        };
        // What cannot be in a name ends the attempt at its very place.
        for (at, char) in text[..until].char_indices() {
            let odd = char == '\n' || char == '{' || char == '"' || char.is_control();
            if odd || self.head.len() + at >= NAME_BYTES_MAX {
                return Step::Not(at);
            }
        }
        self.head.push_str(&text[..until]);
        let Some(which) = which else {
            return if until > 0 { Step::Took(until) } else { Step::Need };
        };
        let taken = until + self.form.separators.get(which).map_or(0, |marker| marker.len());
        match (self.form.head)(&self.head) {
            Some((name, _)) if calls.accepts(name) => {
                self.at = At::Lead;
                Step::Took(taken)
            }
            _ => Step::Not(taken),
        }
    }

    fn begin(&self, calls: &mut Calls, sink: &mut Sink<'_>) {
        if let Some((name, id)) = (self.form.head)(&self.head) {
            calls.begin(name, id, sink);
        }
    }

    fn lead(&mut self, text: &str, last: bool, calls: &mut Calls, sink: &mut Sink<'_>) -> Step {
        let space = spaces(text);
        if space > 0 {
            return Step::Took(space);
        }
        if text.starts_with('{') {
            self.begin(calls, sink);
            self.at = At::Arguments;
            return Step::Took(0);
        }
        match here(text.as_bytes(), self.form.close.iter().copied()) {
            // No arguments at all.
            Here::Whole(which) => {
                self.begin(calls, sink);
                calls.arguments("{}", sink);
                calls.end(Outcome::Whole, sink);
                self.at = At::Close;
                Step::Done { taken: self.form.close[which].len(), closed: true }
            }
            Here::Half if !last => Step::Need,
            _ if text.is_empty() => Step::Need,
            _ => Step::Not(0),
        }
    }

    /// White space and optional markers behind the arguments.
    fn close(&mut self, text: &str, last: bool) -> Step {
        let space = spaces(text);
        if space > 0 {
            return Step::Took(space);
        }
        let trail = if self.at == At::Trail { self.form.trail } else { &[] };
        let closed = self.form.close.is_empty();
        if text.is_empty() {
            return if last || (closed && trail.is_empty()) {
                Step::Done { taken: 0, closed }
            } else {
                Step::Need
            };
        }
        match here(text.as_bytes(), trail.iter().chain(self.form.close).copied()) {
            Here::Whole(which) if which < trail.len() => {
                self.at = At::Close;
                Step::Took(trail[which].len())
            }
            Here::Whole(which) => {
                Step::Done { taken: self.form.close[which - trail.len()].len(), closed: true }
            }
            Here::Half if last => Step::Done { taken: text.len(), closed: true },
            Here::Half => Step::Need,
            Here::No => Step::Done { taken: 0, closed },
        }
    }
}

impl Body for NamedCall {
    fn step(&mut self, text: &str, last: bool, calls: &mut Calls, sink: &mut Sink<'_>) -> Step {
        match self.at {
            At::Head if text.is_empty() => Step::Need,
            At::Head => self.read_head(text, last, calls),
            At::Lead => self.lead(text, last, calls, sink),
            At::Arguments if text.is_empty() => Step::Need,
            At::Arguments => match self.object.feed(text, calls, sink) {
                Fed::All => Step::Took(text.len()),
                Fed::Bad(at) => Step::Broken(at),
                Fed::End(at) => {
                    calls.end(Outcome::Whole, sink);
                    self.at = At::Trail;
                    Step::Took(at)
                }
            },
            At::Trail | At::Close => self.close(text, last),
        }
    }

    fn is_pending(&self) -> bool {
        matches!(self.at, At::Head | At::Lead)
    }

    fn closes(&self) -> &'static [&'static str] {
        self.form.close
    }
}
