//! What a grammar that enforces a dialect's calls is made of, as data.
//!
//! Nothing here compiles a grammar, or writes one: `enforce.rs` does, one Lark text a request (its `%json` rules hold the
//! tools' schemas), and a worker compiles it, by llguidance:
//!
//! ```text
//!   start:   thought? (text | call)*            tool_choice auto: tags, free text between them
//!            thought? call+                     required; one call where parallel_tool_calls is false
//!   call:    begin NAME middle ARGUMENTS end    one alternative a tool
//! ```
//!
//! `ARGUMENTS` is `%json` of the tool's schema where the dialect writes JSON, and a rule an argument where it writes tags:
//! a string is any text without the closing tag, any other type is `%json` of its own schema. Markers that are tokens of
//! the vocabulary stand as tokens (`<[ID]>`), not as text, so that a forced call is what the model was trained on. The
//! grammar holds from where the thought ends: [`Dialect::is_in_thought`](crate::Dialect::is_in_thought) says whether it
//! begins in one, [`Dialect::thought`](crate::Dialect::thought) what ends it.
//!
//! What the grammar makes, the parser reads: a test of the crate that compiles grammars generates calls by it and holds
//! the parser's parts to them, for every dialect.

/// How arguments are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arguments {
    /// As a JSON object.
    Json,
    /// As text between tags, an argument each: before the key, between key and value, behind the value.
    Tagged {
        /// Before the key.
        open: &'static str,
        /// Between key and value.
        middle: &'static str,
        /// Behind the value.
        close: &'static str,
    },
    /// As Python literals by keyword.
    Python,
    /// As Gemma 4 writes them.
    Gemma,
}

/// How one call is written, as a model of the dialect was trained to: `NAME` stands for the function's name and `INDEX` for
/// the call's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Before all calls.
    pub first: &'static str,
    /// Before the arguments.
    pub begin: &'static str,
    /// How they are written.
    pub arguments: Arguments,
    /// Behind them.
    pub end: &'static str,
    /// Between two calls.
    pub between: &'static str,
    /// Behind all calls.
    pub last: &'static str,
}

/// Whether a vocabulary has a token of just this text.
pub type HasToken<'a> = dyn Fn(&str) -> bool + 'a;

/// Whether a vocabulary is that of some models of a family.
pub type IsOther = fn(&HasToken<'_>) -> bool;

/// What a grammar is made of.
#[derive(Clone, Copy, Debug)]
pub struct Enforcement {
    /// How calls are written; absent where the dialect has none that a grammar could begin.
    pub tag: Option<Tag>,
    /// How those of its models write them that such a vocabulary shows: older ones, or newer.
    pub other: Option<(IsOther, Tag)>,
    /// Markers that stand inside a call and are tokens in the family's vocabularies.
    pub inner_markers: &'static [&'static str],
}

impl Enforcement {
    /// How calls are written by a model of this vocabulary.
    pub fn tag(&self, has_token: &HasToken<'_>) -> Option<&Tag> {
        match &self.other {
            Some((is_other, tag)) if is_other(has_token) => Some(tag),
            _ => self.tag.as_ref(),
        }
    }
}
