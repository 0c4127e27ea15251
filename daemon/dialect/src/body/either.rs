//! A call that may be written in several ways: which one shows in its first characters.

use super::{Body, Step};
use crate::calls::{Calls, Sink};
use crate::scan::spaces;

/// White space, in bytes, inside what decides.
const SPACE_BYTES_MAX: usize = 128;

/// Chooses by the first characters that are no white space. `None`: more of them are needed.
pub(crate) type Choice = fn(&str) -> Option<Box<dyn Body>>;

/// See the file's head.
pub(crate) struct Either {
    choice: Choice,
    body: Option<Box<dyn Body>>,
}

impl Either {
    pub(crate) fn new(choice: Choice) -> Either {
        Either { choice, body: None }
    }
}

/// The character behind a bracket; `None`: it is not there yet. A run of white space that is too long counts as one.
pub(crate) fn behind_bracket(text: &str) -> Option<char> {
    let rest = text.get(1..)?;
    let space = spaces(rest);
    if space > SPACE_BYTES_MAX {
        return Some(' ');
    }
    rest[space..].chars().next()
}

impl Body for Either {
    fn step(&mut self, text: &str, last: bool, calls: &mut Calls, sink: &mut Sink<'_>) -> Step {
        if let Some(body) = &mut self.body {
            return body.step(text, last, calls, sink);
        }
        let space = spaces(text);
        if space > 0 {
            return Step::Took(space);
        }
        if text.is_empty() {
            return Step::Need;
        }
        self.body = (self.choice)(text);
        match self.body {
            Some(_) => Step::Took(0),
            None if last => Step::Not(0),
            None => Step::Need,
        }
    }

    fn is_pending(&self) -> bool {
        self.body.as_ref().is_none_or(|body| body.is_pending())
    }

    fn closes(&self) -> &'static [&'static str] {
        self.body.as_ref().map_or(&[], |body| body.closes())
    }

    fn held(&self) -> &str {
        self.body.as_ref().map_or("", |body| body.held())
    }
}
