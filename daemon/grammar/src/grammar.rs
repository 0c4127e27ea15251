//! The kinds of grammars, and why one is refused.

use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

/// What an output must be, from its first character to its last.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
    /// One of these texts.
    Choice(Vec<String>),
}

/// A grammar that is not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// Its text is too long.
    #[error("the {what} has {bytes} bytes; the limit is {limit}")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        limit: usize,
    },
    /// There is nothing to choose from.
    #[error("the list of choices is empty")]
    NoChoice,
    /// It is no grammar, or has what cannot be enforced.
    #[error("the {what} cannot be enforced: {reason}")]
    Refused {
        /// Of what kind it is.
        what: &'static str,
        /// Why.
        reason: String,
    },
}

impl Grammar {
    /// What it is called in errors.
    pub fn what(&self) -> &'static str {
        match self {
            Grammar::JsonSchema { .. } | Grammar::JsonObject => "JSON schema",
            Grammar::Regex(_) => "regular expression",
            Grammar::Lark(_) => "grammar",
            Grammar::Choice(_) => "list of choices",
        }
    }

    /// Bytes of its text.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Grammar::JsonSchema { schema, .. } => schema.len(),
            Grammar::JsonObject => 0,
            Grammar::Regex(text) | Grammar::Lark(text) => text.len(),
            Grammar::Choice(texts) => texts.iter().map(|text| text.len() + 1).sum(),
        }
    }

    /// As llguidance takes it.
    pub(crate) fn source(&self) -> Result<TopLevelGrammar, GrammarError> {
        let refused = |reason: String| GrammarError::Refused { what: self.what(), reason };
        Ok(match self {
            Grammar::JsonSchema { schema, lenient } => {
                let mut schema: Value =
                    serde_json::from_str(schema).map_err(|e| refused(e.to_string()))?;
                if let Value::Object(fields) = &mut schema {
                    // A key of llguidance's, through which whoever wrote the schema could set its options.
                    fields.insert("x-guidance".to_owned(), json!({ "lenient": lenient }));
                }
                TopLevelGrammar::from_json_schema(schema)
            }
            Grammar::JsonObject => TopLevelGrammar::from_json_schema(json!({ "type": "object" })),
            Grammar::Regex(text) => TopLevelGrammar::from_regex(text),
            Grammar::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
            Grammar::Choice(texts) if texts.is_empty() => return Err(GrammarError::NoChoice),
            // A schema's `enum` of strings would be in quotation marks.
            Grammar::Choice(texts) => {
                let texts: Vec<String> =
                    texts.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
                TopLevelGrammar::from_lark(format!("start: {}", texts.join(" | ")))
            }
        })
    }
}
