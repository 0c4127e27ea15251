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
    /// Text in which tags stand whose contents have a form, as a JSON object that says so: xgrammar's structural tag.
    StructuralTag(String),
    /// One of these texts.
    Choice(Vec<String>),
}

/// What an output is held to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guided {
    /// What follows this; `None`: nothing but the thought is.
    pub grammar: Option<Grammar>,
    /// The thought before it, which is free.
    pub thought: Option<Thought>,
    /// The field that asks for it, for errors.
    pub field: String,
}

/// A thought at an output's beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thought {
    /// Tokens that open one as the output's first; empty: the output begins inside of one.
    pub open: Vec<u32>,
    /// Texts of which each ends it, special tokens by their spelling.
    pub close: Vec<String>,
    /// Tokens of a thought at most, and those that end it then.
    pub budget: Option<(u32, Vec<u32>)>,
}

impl Grammar {
    /// What it is called in errors.
    pub fn what(&self) -> &'static str {
        match self {
            Grammar::JsonSchema { .. } | Grammar::JsonObject => "JSON schema",
            Grammar::Regex(_) => "regular expression",
            Grammar::Lark(_) | Grammar::Ebnf(_) => "grammar",
            Grammar::Calls(_) => "list of tools",
            Grammar::StructuralTag(_) => "structural tag",
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
            | Grammar::StructuralTag(text)
            | Grammar::Ebnf(text) => text.len(),
            Grammar::Choice(texts) => texts.iter().map(|text| text.len() + 1).sum(),
        }
    }
}
