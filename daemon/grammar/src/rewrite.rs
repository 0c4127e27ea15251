//! Schemas in words that llguidance has.
//!
//! | what stands there | becomes |
//! |---|---|
//! | `uniqueItems: false`, `propertyNames` that any name has | nothing |
//! | `propertyNames` that lists names, as pydantic and zod write for keys of an enumeration | `properties` |
//! | `propertyNames` with a `pattern` | `patternProperties` |
//! | `format` date, time and date-time | a `pattern`, without 29 February in other years and leap seconds |
//! | a `format` that is not known beside a `pattern` | the pattern alone |
//! | `minItems: 1.0` | `minItems: 1` |
//! | limits of numbers beyond those of an i64, as zod writes for a float32 | the largest of an i64 |
//! | `oneOf` of constants that differ, or of objects with a required property that is one | `anyOf` |
//! | a `$schema` of json-schema.org that is misspelt | the draft that it names, or nothing |
//!
//! Owns: changes after which a schema means the same, or less where JSON Schema leaves it open. Must never: leave out what a schema
//! forbids.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use serde_json::{Map, Value};

/// Of properties that are made of a list of names, at most.
const NAMES_MAX: usize = 64;

/// Bytes that those of a schema may have in all: each has a schema of its own.
const NAMES_BYTES_MAX: usize = 64 << 10;

/// Words whose value is a schema, a list of schemas or (`items`) either.
const ONE: [&str; 13] = [
    "additionalItems",
    "additionalProperties",
    "allOf",
    "anyOf",
    "contains",
    "else",
    "if",
    "items",
    "not",
    "oneOf",
    "prefixItems",
    "propertyNames",
    "then",
];

/// Words whose values are schemas by name.
const BY_NAME: [&str; 5] =
    ["$defs", "definitions", "dependentSchemas", "patternProperties", "properties"];

/// Words whose values are counts.
const COUNTS: [&str; 6] =
    ["maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties"];

/// What drafts are called.
const DRAFTS: [(&str, &str); 5] = [
    ("draft-04", "http://json-schema.org/draft-04/schema#"),
    ("draft-06", "http://json-schema.org/draft-06/schema#"),
    ("draft-07", "http://json-schema.org/draft-07/schema#"),
    ("2019-09", "https://json-schema.org/draft/2019-09/schema"),
    ("2020-12", "https://json-schema.org/draft/2020-12/schema"),
];

/// Limits of numbers may be from its negative to it: the largest f64 below those of an i64.
const NUMBER_MAX: i64 = 9_223_372_036_854_774_784;

/// Formats that llguidance has, besides those of times.
const FORMATS: [&str; 8] =
    ["duration", "email", "hostname", "ipv4", "ipv6", "unknown", "uri", "uuid"];

/// A day that there is: of months with 31 and 30 days, of February, and its 29th in leap years.
const DATE: &str = concat!(
    r"([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))",
    r"|([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)"
);

/// With a zone.
const TIME: &str =
    r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?([zZ]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])";

/// Formats whose patterns are our own.
static TIMES: LazyLock<[(&str, String); 3]> = LazyLock::new(|| {
    [
        ("date", format!("^{DATE}$")),
        ("time", format!("^{TIME}$")),
        ("date-time", format!("^{DATE}[tT]{TIME}$")),
    ]
});

/// Says it in words that llguidance has.
pub(crate) fn rewrite(schema: &mut Value) {
    // References are followed in what was written.
    let root = schema.clone();
    if let Value::Object(fields) = schema {
        dialect(fields);
    }
    part(schema, &root, &mut { NAMES_BYTES_MAX });
}

fn dialect(fields: &mut Map<String, Value>) {
    let Some(Value::String(named)) = fields.get_mut("$schema") else { return };
    if !named.contains("://json-schema.org/") {
        return;
    }
    match DRAFTS.iter().find(|(draft, _)| named.contains(draft)) {
        Some((_, name)) => *named = (*name).to_owned(),
        None => {
            fields.shift_remove("$schema");
        }
    }
}

/// Whether a pattern is that of a format, whose cost is known.
pub(crate) fn is_format(pattern: &str) -> bool {
    TIMES.iter().any(|(_, ours)| ours == pattern)
}

/// With bytes that are left for properties. Parts come before what they are parts of, which may make many of them.
fn part(schema: &mut Value, root: &Value, left: &mut usize) {
    let fields = match schema {
        Value::Object(fields) => fields,
        Value::Array(parts) => {
            return parts.iter_mut().for_each(|schema| part(schema, root, left));
        }
        _ => return,
    };
    for (word, value) in fields.iter_mut() {
        match value {
            Value::Object(of) if BY_NAME.contains(&word.as_str()) => {
                of.values_mut().for_each(|schema| part(schema, root, left));
            }
            value if ONE.contains(&word.as_str()) => part(value, root, left),
            _ => {}
        }
    }
    if fields.get("uniqueItems") == Some(&Value::Bool(false)) {
        fields.shift_remove("uniqueItems");
    }
    for word in COUNTS {
        if let Some(count) = fields.get_mut(word) {
            whole(count);
        }
    }
    for word in ["minimum", "exclusiveMinimum"] {
        clamp(fields, word, |limit| limit < -(NUMBER_MAX as f64), -NUMBER_MAX);
    }
    for word in ["maximum", "exclusiveMaximum"] {
        clamp(fields, word, |limit| limit > NUMBER_MAX as f64, NUMBER_MAX);
    }
    if constants(fields, root) {
        *fields = std::mem::take(fields)
            .into_iter()
            .map(|(word, value)| (if word == "oneOf" { "anyOf".to_owned() } else { word }, value))
            .collect();
    }
    format(fields);
    names(fields, root, left);
}

/// `1.0` as `1`.
fn whole(count: &mut Value) {
    if let Some(number) = count.as_f64().filter(|_| count.is_f64())
        && number.fract() == 0.0
        && (0.0..=f64::from(u32::MAX)).contains(&number)
    {
        *count = Value::from(number as u64);
    }
}

fn clamp(fields: &mut Map<String, Value>, word: &str, is_beyond: fn(f64) -> bool, limit: i64) {
    if let Some(value) = fields.get_mut(word)
        && value.as_f64().is_some_and(is_beyond)
    {
        *value = limit.into();
    }
}

/// Whether the branches of a `oneOf` are constants, or objects with a property that is one, no two of which are equal.
fn constants(fields: &Map<String, Value>, root: &Value) -> bool {
    let Some(Value::Array(branches)) = fields.get("oneOf") else { return false };
    if fields.contains_key("anyOf") {
        return false;
    }
    let branches: Option<Vec<_>> = branches.iter().map(|branch| follow(branch, root)).collect();
    let Some(branches) = branches else { return false };
    let required = |branch: &Map<String, Value>, name: &Value| {
        branch.get("required").and_then(Value::as_array).is_some_and(|of| of.contains(name))
    };
    let names = branches.first().and_then(|branch| branch.get("required")?.as_array());
    let differ_in = |name: &Value| {
        branches.iter().all(|branch| {
            branch.get("type").is_some_and(|kind| kind == "object") && required(branch, name)
        }) && differ(
            branches
                .iter()
                .map(|branch| branch.get("properties")?.get(name.as_str()?)?.get("const")),
        )
    };
    differ(branches.iter().map(|branch| branch.get("const")))
        || names.is_some_and(|names| names.iter().any(differ_in))
}

/// Whether all are constants that differ.
fn differ<'a>(mut constants: impl Iterator<Item = Option<&'a Value>>) -> bool {
    let mut seen = BTreeSet::new();
    constants.all(|constant| match constant {
        // 1 is 1.0.
        Some(Value::Number(number)) => {
            seen.insert(number.as_f64().map_or_else(|| number.to_string(), |n| n.to_string()))
        }
        Some(value @ (Value::String(_) | Value::Bool(_) | Value::Null)) => {
            seen.insert(value.to_string())
        }
        _ => false,
    })
}

/// A schema, or the one that it refers to and says no more.
fn follow<'a>(schema: &'a Value, root: &'a Value) -> Option<&'a Map<String, Value>> {
    let fields = schema.as_object()?;
    match fields.get("$ref").filter(|_| fields.len() == 1) {
        Some(to) => root.pointer(to.as_str()?.strip_prefix('#')?)?.as_object(),
        None => Some(fields),
    }
}

fn format(fields: &mut Map<String, Value>) {
    let Some(Value::String(format)) = fields.get("format") else { return };
    let ours = TIMES.iter().find(|(name, _)| name == format);
    let is_known = FORMATS.contains(&format.as_str());
    let has_pattern = fields.get("pattern").is_some_and(Value::is_string);
    if ours.is_none() && (is_known || !has_pattern) {
        return;
    }
    fields.shift_remove("format");
    let Some((_, pattern)) = ours else { return };
    if !fields.contains_key("pattern") {
        fields.insert("pattern".to_owned(), pattern.as_str().into());
        return;
    }
    // Both hold.
    let both = fields.entry("allOf").or_insert_with(|| Value::Array(Vec::new()));
    if let Value::Array(both) = both {
        both.push(serde_json::json!({ "pattern": pattern }));
    }
}

/// What `propertyNames` says.
enum Names {
    Any,
    Listed(Vec<String>),
    Pattern(String),
}

fn names(fields: &mut Map<String, Value>, root: &Value, left: &mut usize) {
    let Some(names) = fields.get("propertyNames").and_then(|names| read(names, root)) else {
        return;
    };
    if let Names::Any = names {
        fields.shift_remove("propertyNames");
        return;
    }
    // With those, which schema a name has would take more to say.
    if fields.contains_key("properties") || fields.contains_key("patternProperties") {
        return;
    }
    let of = fields.get("additionalProperties").cloned().unwrap_or(Value::Bool(true));
    let (word, names) = match names {
        Names::Any => return,
        Names::Pattern(pattern) => ("patternProperties", vec![pattern]),
        Names::Listed(names) => {
            let bytes = of.to_string().len() * names.len();
            if names.len() > NAMES_MAX || bytes > *left {
                return;
            }
            *left -= bytes;
            ("properties", names)
        }
    };
    let names = names.into_iter().map(|name| (name, of.clone())).collect();
    fields.shift_remove("propertyNames");
    fields.insert(word.to_owned(), Value::Object(names));
    fields.insert("additionalProperties".to_owned(), Value::Bool(false));
}

fn read(names: &Value, root: &Value) -> Option<Names> {
    if *names == Value::Bool(true) {
        return Some(Names::Any);
    }
    let fields = follow(names, root)?;
    let mut names = Names::Any;
    for (word, value) in fields {
        names = match (word.as_str(), value, names) {
            ("title" | "description" | "$comment", _, names) => names,
            ("type", Value::String(kind), names) if kind == "string" => names,
            ("pattern", Value::String(pattern), Names::Any) => Names::Pattern(pattern.clone()),
            ("const", Value::String(name), Names::Any) => Names::Listed(vec![name.clone()]),
            ("enum", Value::Array(list), Names::Any) => {
                let strings = list.iter().map(|name| Some(name.as_str()?.to_owned()));
                Names::Listed(strings.collect::<Option<_>>()?)
            }
            _ => return None,
        };
    }
    Some(names)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(mut schema: Value, expected: &Value) {
        let before = schema.to_string();
        rewrite(&mut schema);
        // The order of words is the order of properties.
        assert_eq!(schema.to_string(), expected.to_string(), "of {before}");
    }

    #[test]
    fn what_says_nothing_is_left_out() {
        check(
            json!({ "uniqueItems": false, "items": { "uniqueItems": true } }),
            &json!({ "items": { "uniqueItems": true } }),
        );
        check(
            json!({ "type": "object", "propertyNames": { "type": "string" }, "minProperties": 1.0 }),
            &json!({ "type": "object", "minProperties": 1 }),
        );
        // Names of properties and values are no words.
        for same in [
            json!({ "properties": { "uniqueItems": false, "propertyNames": true } }),
            json!({ "const": { "uniqueItems": false, "format": "date" } }),
            json!({ "enum": [{ "minItems": 1.0 }] }),
            json!({ "default": { "uniqueItems": false } }),
            json!({ "minItems": 1.5 }),
        ] {
            check(same.clone(), &same);
        }
    }

    #[test]
    fn names_become_properties() {
        check(
            json!({ "$defs": { "Colour": { "enum": ["red", "blue"], "title": "Colour", "type": "string" } },
                "additionalProperties": { "type": "integer" }, "propertyNames": { "$ref": "#/$defs/Colour" } }),
            &json!({ "$defs": { "Colour": { "enum": ["red", "blue"], "title": "Colour", "type": "string" } },
                "additionalProperties": false,
                "properties": { "red": { "type": "integer" }, "blue": { "type": "integer" } } }),
        );
        check(
            json!({ "propertyNames": { "pattern": "^x" } }),
            &json!({ "patternProperties": { "^x": true }, "additionalProperties": false }),
        );
        let long: Vec<String> = (0..=NAMES_MAX).map(|n| n.to_string()).collect();
        for same in [
            json!({ "propertyNames": { "minLength": 2 } }),
            json!({ "propertyNames": { "pattern": "^x", "enum": ["x"] } }),
            json!({ "propertyNames": { "enum": ["x", 1] } }),
            json!({ "propertyNames": { "$ref": "#/nowhere" } }),
            json!({ "propertyNames": { "enum": long } }),
            json!({ "propertyNames": { "enum": ["a"] }, "additionalProperties": { "const": "x".repeat(NAMES_BYTES_MAX) } }),
            json!({ "propertyNames": { "enum": ["a"] }, "properties": { "a": {}, "b": {} } }),
        ] {
            check(same.clone(), &same);
        }
    }

    #[test]
    fn limits_and_drafts_are_those_that_there_are() {
        check(
            json!({ "$schema": "https://json-schema.org/draft-07/schema", "minimum": -3.5e38, "maximum": u64::MAX }),
            &json!({ "$schema": "http://json-schema.org/draft-07/schema#",
                "minimum": -NUMBER_MAX, "maximum": NUMBER_MAX }),
        );
        check(
            json!({ "$schema": "http://json-schema.org/schema#", "type": "null" }),
            &json!({ "type": "null" }),
        );
        for same in [
            json!({ "minimum": 1e30, "maximum": -1e30 }),
            json!({ "minimum": -9_007_199_254_740_991_i64, "maximum": 9_007_199_254_740_991_i64 }),
            json!({ "$schema": "https://example.com/mine" }),
        ] {
            check(same.clone(), &same);
        }
    }

    #[test]
    fn constants_exclude_each_other() {
        check(
            json!({ "type": "integer", "oneOf": [{ "const": 1, "title": "One" }, { "const": 2 }], "title": "n" }),
            &json!({ "type": "integer", "anyOf": [{ "const": 1, "title": "One" }, { "const": 2 }], "title": "n" }),
        );
        let tagged = |kind: u32| json!({ "type": "object", "properties": { "n": {}, "kind": { "const": kind } }, "required": ["n", "kind"] });
        let (one, two) = (tagged(1), tagged(2));
        check(
            json!({ "$defs": { "one": one }, "oneOf": [{ "$ref": "#/$defs/one" }, two] }),
            &json!({ "$defs": { "one": one }, "anyOf": [{ "$ref": "#/$defs/one" }, two] }),
        );
        let mut loose = two.clone();
        loose["required"] = json!(["n"]);
        let mut any = two.clone();
        any["type"] = json!(["object", "null"]);
        for same in [
            json!({ "oneOf": [one, one] }),
            json!({ "oneOf": [one, loose] }),
            json!({ "oneOf": [one, any] }),
            json!({ "oneOf": [{ "$ref": "#" }, one] }),
            json!({ "oneOf": [{ "const": 1 }, { "const": 1.0 }] }),
            json!({ "oneOf": [{ "const": 1 }, { "type": "null" }] }),
            json!({ "oneOf": [{ "const": {} }, { "const": [] }] }),
            json!({ "oneOf": [{ "const": 1 }], "anyOf": [{}] }),
        ] {
            check(same.clone(), &same);
        }
    }

    /// Each level would have eight times what is in it.
    #[test]
    fn names_in_names_have_a_limit() {
        let names = json!({ "enum": ["a", "b", "c", "d", "e", "f", "g", "h"] });
        let mut schema = json!({ "type": "string" });
        for _ in 0..40 {
            schema = json!({ "propertyNames": names, "additionalProperties": schema });
        }
        rewrite(&mut schema);
        let bytes = schema.to_string().len();
        assert!((NAMES_BYTES_MAX / 8..2 * NAMES_BYTES_MAX).contains(&bytes), "{bytes}");
    }

    #[test]
    fn formats_become_patterns() {
        check(json!({ "format": "nanoid", "pattern": "^x$" }), &json!({ "pattern": "^x$" }));
        for same in [
            json!({ "format": "nanoid" }),
            json!({ "format": "email", "pattern": "@" }),
            json!({ "format": 1, "pattern": "@" }),
        ] {
            check(same.clone(), &same);
        }
        check(json!({ "format": "time" }), &json!({ "pattern": format!("^{TIME}$") }));
        check(
            json!({ "anyOf": [{ "format": "date", "pattern": "^2" }] }),
            &json!({ "anyOf": [{ "pattern": "^2", "allOf": [{ "pattern": format!("^{DATE}$") }] }] }),
        );
    }
}
