//! Grammars as llguidance takes them, and why one is refused.

use llguidance::api::TopLevelGrammar;
use minisgl_proto::Grammar;
use serde_json::{Value, json};

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

/// As llguidance takes it.
pub(crate) fn source(grammar: &Grammar) -> Result<TopLevelGrammar, GrammarError> {
    let refused = |reason: String| GrammarError::Refused { what: grammar.what(), reason };
    Ok(match grammar {
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
