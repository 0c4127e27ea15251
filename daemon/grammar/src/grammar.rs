//! Grammars as llguidance takes them, and why one is refused.

use llguidance::api::TopLevelGrammar;
use minisgl_proto::Grammar;
use serde_json::{Value, json};

use crate::ebnf::to_lark;

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
            let schema = serde_json::from_str(schema).map_err(|e| refused(e.to_string()))?;
            json(schema, *lenient)
        }
        Grammar::JsonObject => json(json!({ "type": "object" }), false),
        Grammar::Regex(text) => TopLevelGrammar::from_regex(text),
        Grammar::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
        Grammar::Ebnf(text) => TopLevelGrammar::from_lark(to_lark(text).map_err(refused)?),
        Grammar::Choice(texts) if texts.is_empty() => return Err(GrammarError::NoChoice),
        // A schema's `enum` of strings would be in quotation marks.
        Grammar::Choice(texts) => {
            let texts: Vec<String> =
                texts.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
            TopLevelGrammar::from_lark(format!("start: {}", texts.join(" | ")))
        }
    })
}

/// Space that an output may have between tokens of JSON: a line's end, and an indentation. Models are known to fall into writing
/// nothing else if they may write as much as they like.
const SPACE: &str = r"[ \t]{1,128}|\r?\n[ \t]{0,128}";

fn json(mut schema: Value, lenient: bool) -> TopLevelGrammar {
    if let Value::Bool(_) = schema {
        // The same as an object, which has a place for options.
        schema = if schema == true { json!({}) } else { json!({ "not": {} }) };
    }
    if let Value::Object(fields) = &mut schema {
        // A key of llguidance's, through which whoever wrote the schema could set its options.
        let options = json!({ "lenient": lenient, "whitespace_pattern": SPACE });
        fields.insert("x-guidance".to_owned(), options);
    }
    TopLevelGrammar::from_json_schema(schema)
}
