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
    /// It has too many rules, or references.
    #[error("the {what} has {count} {of}; the limit is {limit}")]
    TooMany {
        /// What has them.
        what: &'static str,
        /// Of what there are too many.
        of: &'static str,
        /// How many it has.
        count: usize,
        /// How many it may have.
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
///
/// # Errors
/// It is none, or has more than so many `definitions`.
pub(crate) fn source(
    grammar: &Grammar,
    definitions: usize,
) -> Result<TopLevelGrammar, GrammarError> {
    let few = |of: &'static str, count: usize| match count > definitions {
        true => Err(GrammarError::TooMany { what: grammar.what(), of, count, limit: definitions }),
        false => Ok(()),
    };
    let refused = |reason: String| GrammarError::Refused { what: grammar.what(), reason };
    Ok(match grammar {
        Grammar::JsonSchema { schema, lenient } => {
            let schema = serde_json::from_str(schema).map_err(|e| refused(e.to_string()))?;
            few("references", references(&schema))?;
            // Compiling an object takes time that grows with the square of its properties: 0.4 s with 2,000.
            few("properties in one object", most_fields(&schema))?;
            json(schema, *lenient)
        }
        Grammar::JsonObject => json(json!({ "type": "object" }), false),
        Grammar::Regex(text) => TopLevelGrammar::from_regex(text),
        Grammar::Lark(text) => {
            few("rules", colons(text))?;
            TopLevelGrammar::from_lark(text.clone())
        }
        Grammar::Ebnf(text) => {
            let lark = to_lark(text).map_err(refused)?;
            few("rules", colons(&lark))?;
            TopLevelGrammar::from_lark(lark)
        }
        Grammar::Choice(texts) if texts.is_empty() => return Err(GrammarError::NoChoice),
        // A schema's `enum` of strings would be in quotation marks.
        Grammar::Choice(texts) => {
            let texts: Vec<String> =
                texts.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
            TopLevelGrammar::from_lark(format!("start: {}", texts.join(" | ")))
        }
    })
}

/// Keys of a schema that refer to other places of it. A value's depth is limited by whoever read it.
fn references(schema: &Value) -> usize {
    match schema {
        Value::Object(fields) => fields
            .iter()
            .map(|(key, value)| {
                let refers = ["$ref", "$dynamicRef", "$recursiveRef"].contains(&key.as_str());
                usize::from(refers) + references(value)
            })
            .sum(),
        Value::Array(items) => items.iter().map(references).sum(),
        _ => 0,
    }
}

/// Fields of the largest object in it.
fn most_fields(schema: &Value) -> usize {
    match schema {
        Value::Object(fields) => fields.values().map(most_fields).fold(fields.len(), usize::max),
        Value::Array(items) => items.iter().map(most_fields).max().unwrap_or(0),
        _ => 0,
    }
}

/// Colons outside of quotation marks: as many as there are rules, or more; with `%json` as many as there are keys.
fn colons(lark: &str) -> usize {
    let (mut count, mut quoted, mut escaped) = (0, false, false);
    for byte in lark.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            b':' if !quoted => count += 1,
            // A text ends in its line.
            b'\n' => quoted = false,
            _ => {}
        }
    }
    count
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
