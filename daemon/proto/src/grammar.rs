//! What a request wants its output to look like.

use serde::{Deserialize, Serialize};

/// What an output must be, from its first character to its last.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Grammar {
    /// JSON that a schema describes.
    JsonSchema {
        /// The schema's text.
        schema: String,
        /// Whether keywords that cannot be enforced are left out, and `oneOf` whose branches are not seen to exclude each other is
        /// `anyOf`; else they are refused.
        lenient: bool,
    },
    /// Any JSON object.
    JsonObject,
    /// What a regular expression matches as a whole, in the syntax of the crate `regex`.
    Regex(String),
    /// What a context-free grammar derives, in the Lark syntax of llguidance.
    Lark(String),
    /// In that syntax as well, made by the server itself of a request's tools. In each schema the field `lenient` of the key `x-guidance` says what
    /// [`Grammar::JsonSchema`] says with its own.
    Calls(String),
    /// A context-free grammar in the notation of llama.cpp, with a rule `root`.
    Ebnf(String),
    /// One of these texts.
    Choice(Vec<String>),
}

/// A grammar, and from where on an output follows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guided {
    /// Which.
    pub grammar: Grammar,
    /// Sequences of tokens, such as what ends a thought: the grammar begins behind the first that the output has, and what comes
    /// before is free. Empty: it begins with the output.
    pub after: Vec<Vec<u32>>,
    /// The field that asks for it, for errors.
    pub field: String,
}

impl Grammar {
    /// What it is called in errors.
    pub fn what(&self) -> &'static str {
        match self {
            Grammar::JsonSchema { .. } | Grammar::JsonObject => "JSON schema",
            Grammar::Regex(_) => "regular expression",
            Grammar::Lark(_) | Grammar::Ebnf(_) => "grammar",
            Grammar::Calls(_) => "list of tools",
            Grammar::Choice(_) => "list of choices",
        }
    }

    /// Bytes of its text.
    pub fn bytes(&self) -> usize {
        match self {
            Grammar::JsonSchema { schema, .. } => schema.len(),
            Grammar::JsonObject => 0,
            Grammar::Regex(text)
            | Grammar::Lark(text)
            | Grammar::Calls(text)
            | Grammar::Ebnf(text) => text.len(),
            Grammar::Choice(texts) => texts.iter().map(|text| text.len() + 1).sum(),
        }
    }
}
