//! What a parser gives: parts, and what was left at the end.
//!
//! Owns: the output of the seam. Must never: know a dialect.

/// A piece of what a model said. Texts and arguments come in pieces of any length, never empty; how they are cut says
/// nothing, their concatenation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// Text for the reader.
    Text(&'a str),
    /// What the model thinks.
    Reasoning(&'a str),
    /// A call begins. At most one is open at a time.
    Begin {
        /// Counts the calls from 0, in order.
        index: usize,
        /// Name of the function, not empty.
        name: &'a str,
        /// The id that the model gave it, where its dialect has one and the template wants it back (Kimi K2, Mistral).
        id: Option<&'a str>,
    },
    /// The next piece of the open call's arguments: with those before it the beginning of a JSON object, and all
    /// together a whole one where the call ends as [`Outcome::Whole`].
    Arguments {
        /// As in [`Part::Begin`].
        index: usize,
        /// JSON text.
        json: &'a str,
    },
    /// The open call ends.
    End {
        /// As in [`Part::Begin`].
        index: usize,
        /// How.
        outcome: Outcome,
    },
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its arguments are a JSON object.
    Whole,
    /// The output ended inside it. Its arguments are the beginning of an object, and nobody completes them.
    Cut,
    /// What followed cannot be a call's. Its arguments are the beginning of an object; the rest is text.
    Broken,
}

/// What became of the calls of one output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls that ended as [`Outcome::Whole`].
    pub whole: u32,
    /// As [`Outcome::Cut`].
    pub cut: u32,
    /// As [`Outcome::Broken`].
    pub broken: u32,
    /// Texts that began as a call does and were none: they are text, every character of them.
    pub refused: u32,
    /// Those of them that were longer than what is held back.
    pub too_long: u32,
}

/// What a parser is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A thought: tokens now count as reasoning, and no grammar holds yet.
    Reasoning,
    /// The answer.
    Text,
    /// A call, or what may become one.
    Call,
}

/// What the end of an output left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// What it ended in.
    pub phase: Phase,
    /// All calls of the output.
    pub counts: Counts,
}
