//! How a call stands in text, between the marker that opens it and the one that closes it.
//!
//! Owns: the contract between a [`Body`] and the machine that runs it. A body looks at the text that nobody has taken
//! yet, takes some of it from the front, and is asked again. What it decides must depend on the text alone, never on how
//! much of it is there: where more text could change its mind it says [`Step::Need`], which leaves at most a marker's
//! length untaken. Must never: give the text of a call that is none; the machine keeps that.

mod arguments;
mod either;
mod gemma;
mod json;
mod named;
mod python;
mod value;
mod xml;

pub(crate) use arguments::{Fed, Object};
pub(crate) use either::{Either, behind_bracket};
pub(crate) use gemma::GemmaCall;
pub(crate) use json::{JsonCall, JsonForm};
pub(crate) use named::{NamedCall, NamedForm};
pub(crate) use python::{PythonCall, PythonForm};
pub use value::VALUE_BYTES_MAX;
pub(crate) use xml::{XmlCall, XmlForm};

use crate::calls::{Calls, Sink};

/// Bytes of the longest name of a function, with what a dialect writes around it.
pub(crate) const NAME_BYTES_MAX: usize = 256;

/// The part of a text in which a name must end, with the marker behind it: whoever looks for the end of a name looks no
/// further, or a text of many beginnings would be searched to its end for each of them.
pub(crate) fn name_window(text: &str) -> &str {
    let mut end = (NAME_BYTES_MAX + 64).min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// What a body made of the text before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing before there is more of it.
    Need,
    /// Took these bytes and wants to go on.
    Took(usize),
    /// It ended behind these bytes, with or without its closing marker.
    Done { taken: usize, closed: bool },
    /// No call began: what was pending, and these bytes, are text.
    Not(usize),
    /// The call that is open cannot be one any more; these bytes are its own still.
    Broken(usize),
}

/// See the file's head.
pub(crate) trait Body: Send {
    /// Takes some of the text; `last`: nothing follows it. Nothing is taken of an empty text but at last.
    fn step(&mut self, text: &str, last: bool, calls: &mut Calls, sink: &mut Sink<'_>) -> Step;

    /// Whether what it took since the last call's end is text if no call begins.
    fn is_pending(&self) -> bool;

    /// The markers that close it.
    fn closes(&self) -> &'static [&'static str];

    /// What it took of an open call and did not give: half a key. It is text if the call breaks.
    fn held(&self) -> &str {
        ""
    }
}
