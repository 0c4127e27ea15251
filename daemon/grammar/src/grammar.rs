//! Grammars as llguidance takes them, and why one is refused.

use llguidance::api::TopLevelGrammar;
use minisgl_proto::Grammar;
use serde_json::{Value, json};

use crate::ebnf::to_lark;
use crate::lark::{Lark, OPTIONS};
use crate::limits::Limits;
use crate::rewrite::{Budget, is_format, rewrite};
use crate::tags::{self, Special};
use crate::text::literal;
use crate::ways::most;

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

/// As llguidance takes it. `special` is the token of just a text, where no text stands for it.
///
/// # Errors
/// It is none, or has more of something than there may be.
pub(crate) fn source(
    grammar: &Grammar,
    special: &Special<'_>,
    limits: &Limits,
) -> Result<TopLevelGrammar, GrammarError> {
    let what = grammar.what();
    let refused = |reason: String| GrammarError::Refused { what, reason };
    let few = |of: &'static str, count: usize, limit: usize| match count > limit {
        true => Err(GrammarError::TooMany { what, of, count, limit }),
        false => Ok(()),
    };
    let lark = |text: &str, ours: bool| {
        let mut lark = Lark::read(text).map_err(refused)?;
        if !ours {
            let (bytes, limit) = (lark.bytes(), limits.lark_bytes);
            if bytes > limit {
                return Err(GrammarError::TooLong { what, bytes, limit });
            }
            few("rules", lark.count(b":"), limits.definitions)?;
            few("operators & and ~", lark.count(b"&~"), limits.lark_operators)?;
        }
        few("schemas", lark.schemas.len(), limits.definitions)?;
        rewritten(&mut lark.schemas, &few, limits)?;
        for schema in &mut lark.schemas {
            // Whoever made it of tools says in our own key how each is meant.
            let lenient = ours && schema[OPTIONS]["lenient"] == true;
            set_options(schema, lenient);
        }
        Ok(TopLevelGrammar::from_lark(lark.write()))
    };
    Ok(match grammar {
        Grammar::JsonSchema { schema, lenient } => {
            let mut schema = serde_json::from_str(schema).map_err(|e| refused(e.to_string()))?;
            rewritten(std::slice::from_mut(&mut schema), &few, limits)?;
            json(schema, *lenient)
        }
        Grammar::JsonObject => json(json!({ "type": "object" }), false),
        Grammar::Regex(text) => {
            few("characters", text.chars().count(), limits.pattern_chars)?;
            TopLevelGrammar::from_regex(text)
        }
        Grammar::Lark(text) => lark(text, false)?,
        Grammar::Calls(text) => lark(text, true)?,
        Grammar::Ebnf(text) => {
            few("bytes", text.len(), limits.lark_bytes)?;
            lark(&to_lark(text).map_err(refused)?, false)?
        }
        Grammar::StructuralTag(text) => {
            let tag = serde_json::from_str(text).map_err(|e| refused(e.to_string()))?;
            lark(&tags::to_lark(&tag, special, limits).map_err(refused)?, true)?
        }
        Grammar::Choice(texts) if texts.is_empty() => return Err(GrammarError::NoChoice),
        // A schema's `enum` of strings would be in quotation marks.
        Grammar::Choice(texts) => {
            few("texts", texts.len(), limits.choices)?;
            let texts: Vec<String> = texts.iter().map(|text| literal(text)).collect();
            TopLevelGrammar::from_regex(&texts.join("|"))
        }
    })
}

/// Holds a count of something to a limit.
type Few<'a> = dyn Fn(&'static str, usize, usize) -> Result<(), GrammarError> + 'a;

/// Holds schemas to the limits and says them in words that llguidance has, which may be more words.
fn rewritten(schemas: &mut [Value], few: &Few<'_>, limits: &Limits) -> Result<(), GrammarError> {
    let check = |schemas: &[Value]| {
        let mut sizes = Sizes::default();
        schemas.iter().for_each(|schema| sizes.add(schema));
        sizes.check(few, limits)?;
        let ways = schemas.iter().map(|schema| most(schema, limits.branches)).max();
        few("combinations of alternatives in one place", ways.unwrap_or(0), limits.branches)
    };
    check(schemas)?;
    let mut budget = Budget::default();
    schemas.iter_mut().for_each(|schema| rewrite(schema, &mut budget));
    check(schemas)
}

/// llguidance's words without its insides.
pub(crate) fn readable(reason: &str) -> String {
    let reason = reason.split("\n<").next().unwrap_or(reason);
    // Lines with numbers show the whole grammar.
    let shows = |line: &&str| {
        line.split_once(" | ").is_some_and(|(at, _)| at.trim().parse::<usize>().is_ok())
    };
    let lines: Vec<&str> = reason.lines().take_while(|line| !shows(line)).collect();
    let reason = lines.join("\n");
    let reason = reason.trim();
    if reason.contains("panic") {
        "it is too large, or has too much in one place".into()
    } else if reason == "NoExtensionBias" {
        "nothing fulfils it".into()
    } else if reason.contains("coerce_one_of") {
        "the branches of a oneOf may hold at once; give a property of each a const or enum of its own, or write anyOf".into()
    } else if let Some((_, to)) = reason.split_once("Resource '")
        && let Some((to, _)) = to.split_once("' is not present")
    {
        format!("it refers to {to}, which is not in it; nothing is fetched")
    } else {
        reason.into()
    }
}

/// A square's root, rounded up.
fn root(square: usize) -> usize {
    square.isqrt() + usize::from(!square.isqrt().pow(2).eq(&square))
}

/// What of a schema takes time and memory.
#[derive(Default)]
struct Sizes {
    /// Keys that refer to other places of it.
    references: usize,
    /// Fields of the largest object in it.
    fields: usize,
    /// Names in the largest list of those that must be there: merging two objects takes all of them again.
    required: usize,
    /// Squares of fields of all larger objects, added up: compiling one takes time that grows with its square, 0.4 s with 2,000.
    fields_squared: usize,
    /// Alternatives in the largest list of them.
    branches: usize,
    /// Squares of the characters of all patterns, added up.
    patterns_squared: usize,
    /// The largest `multipleOf`.
    multiple_of: u64,
}

impl Sizes {
    /// Adds a part of a schema. A value's depth is limited by whoever read it.
    fn add(&mut self, schema: &Value) {
        match schema {
            Value::Object(fields) => {
                self.fields = self.fields.max(fields.len());
                // Small ones cost what their length does.
                self.fields_squared += if fields.len() > 16 { fields.len().pow(2) } else { 0 };
                for (key, value) in fields {
                    self.take(key, value);
                    self.add(value);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.add(item)),
            _ => {}
        }
    }

    /// Holds what was added to the limits.
    fn check(&self, few: &Few<'_>, limits: &Limits) -> Result<(), GrammarError> {
        few("references", self.references, limits.definitions)?;
        few("properties in one object", self.fields, limits.definitions)?;
        few("required properties in one object", self.required, limits.definitions)?;
        few("properties, counted by their squares", root(self.fields_squared), limits.definitions)?;
        few("alternatives in one place", self.branches, limits.branches)?;
        few("characters in patterns", root(self.patterns_squared), limits.pattern_chars)?;
        few("multipleOf", self.multiple_of as usize, limits.multiple_of as usize)
    }

    fn take(&mut self, key: &str, value: &Value) {
        match (key, value) {
            ("$ref" | "$dynamicRef" | "$recursiveRef", _) => self.references += 1,
            ("anyOf" | "oneOf", Value::Array(items)) => {
                self.branches = self.branches.max(items.len());
            }
            ("required", Value::Array(names)) => self.required = self.required.max(names.len()),
            ("pattern", Value::String(text)) => self.pattern(text),
            ("patternProperties", Value::Object(of)) => {
                of.keys().for_each(|text| self.pattern(text));
            }
            ("multipleOf", Value::Number(number)) => {
                // A fraction's digits count, wherever its point is.
                let text = number.to_string().replace('.', "");
                let digits = text.split(['e', 'E']).next().unwrap_or_default().parse();
                let whole = number.as_f64().map_or(0, |f| f.abs() as u64);
                self.multiple_of = self.multiple_of.max(whole).max(digits.unwrap_or(0));
            }
            _ => {}
        }
    }

    fn pattern(&mut self, text: &str) {
        if !is_format(text) {
            self.patterns_squared += text.chars().count().pow(2);
        }
    }
}

/// Space that an output may have between tokens of JSON: a line's end, and an indentation. Models are known to fall into writing
/// nothing else if they may write as much as they like.
const SPACE: &str = r"[ \t]{1,128}|\r?\n[ \t]{0,128}";

fn json(mut schema: Value, lenient: bool) -> TopLevelGrammar {
    set_options(&mut schema, lenient);
    TopLevelGrammar::from_json_schema(schema)
}

fn set_options(schema: &mut Value, lenient: bool) {
    if let Value::Bool(any) = schema {
        // The same as an object, which has a place for options.
        *schema = if *any { json!({}) } else { json!({ "not": {} }) };
    }
    if let Value::Object(fields) = schema {
        let options = json!({ "lenient": lenient, "whitespace_pattern": SPACE });
        fields.insert(OPTIONS.to_owned(), options);
    }
}
