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

/// The same of all schemas of a grammar.
const ALL_NAMES_BYTES_MAX: usize = 256 << 10;

/// Looks at what stands elsewhere, for all schemas of a grammar. What is beyond stays as it is.
const LOOKS_MAX: usize = 200_000;

/// What rewriting the schemas of a grammar may still take.
pub(crate) struct Budget {
    names_bytes: usize,
    looks: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Budget { names_bytes: ALL_NAMES_BYTES_MAX, looks: LOOKS_MAX }
    }
}

impl Budget {
    /// Whether so much may be looked at.
    fn look(&mut self, count: usize) -> bool {
        self.looks = self.looks.saturating_sub(count);
        self.looks > 0
    }

    /// The same of a text, which may be long.
    fn look_at(&mut self, text: &str) -> bool {
        self.look(1 + text.len() / 16)
    }
}

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
pub(crate) fn rewrite(schema: &mut Value, budget: &mut Budget) {
    // References are followed in what was written.
    let root = schema.clone();
    if let Value::Object(fields) = schema {
        dialect(fields);
    }
    let had = budget.names_bytes.min(NAMES_BYTES_MAX);
    let mut left = Budget { names_bytes: had, looks: budget.looks };
    part(schema, &root, &mut left);
    budget.names_bytes -= had - left.names_bytes;
    budget.looks = left.looks;
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

/// Parts come before what they are parts of, which may make many of them.
fn part(schema: &mut Value, root: &Value, left: &mut Budget) {
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
    if constants(fields, root, left) {
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
fn constants(fields: &Map<String, Value>, root: &Value, left: &mut Budget) -> bool {
    let Some(Value::Array(branches)) = fields.get("oneOf") else { return false };
    if fields.contains_key("anyOf") {
        return false;
    }
    let branches: Option<Vec<_>> =
        branches.iter().map(|branch| follow(branch, root, left)).collect();
    let Some(branches) = branches else { return false };
    if differ(branches.iter().map(|branch| branch.get("const")), left) {
        return true;
    }
    let Some(first) = branches.first() else { return false };
    let properties = first.get("properties").and_then(Value::as_object);
    properties.into_iter().flatten().any(|(name, property)| {
        left.look(1)
            && property.get("const").is_some()
            && branches.iter().all(|branch| is_required(branch, name, left))
            && differ(
                branches.iter().map(|branch| branch.get("properties")?.get(name)?.get("const")),
                left,
            )
    })
}

/// Whether it is an object that has this property.
fn is_required(branch: &Map<String, Value>, name: &str, left: &mut Budget) -> bool {
    let required = branch.get("required").and_then(Value::as_array);
    branch.get("type").is_some_and(|kind| kind == "object")
        && required.into_iter().flatten().any(|other| left.look_at(name) && other == name)
}

/// Whether all are constants that differ.
fn differ<'a>(mut constants: impl Iterator<Item = Option<&'a Value>>, left: &mut Budget) -> bool {
    let mut seen = BTreeSet::new();
    constants.all(|constant| match constant {
        // 1 is 1.0.
        Some(Value::Number(number)) if left.look(1) => {
            seen.insert(number.as_f64().map_or_else(|| number.to_string(), |n| n.to_string()))
        }
        Some(value @ (Value::String(_) | Value::Bool(_) | Value::Null))
            if left.look_at(value.as_str().unwrap_or_default()) =>
        {
            seen.insert(value.to_string())
        }
        _ => false,
    })
}

/// A schema, or the one that it refers to and says no more.
fn follow<'a>(
    schema: &'a Value,
    root: &'a Value,
    left: &mut Budget,
) -> Option<&'a Map<String, Value>> {
    let fields = schema.as_object().filter(|_| left.look(1))?;
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

fn names(fields: &mut Map<String, Value>, root: &Value, left: &mut Budget) {
    let Some(names) = fields.get("propertyNames").and_then(|names| read(names, root, left)) else {
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
    let any = Value::Bool(true);
    let of = fields.get("additionalProperties").unwrap_or(&any);
    if let Names::Listed(names) = &names {
        let each = left.names_bytes / names.len().max(1);
        let mut rest = each;
        let fits = spend(of, &mut rest).is_some();
        if !left.look((each - rest) / 16) || !fits {
            return;
        }
        left.names_bytes -= (each - rest) * names.len();
    }
    let of = fields.get_mut("additionalProperties").map_or(Value::Bool(true), Value::take);
    let (word, of) = match names {
        Names::Any => return,
        Names::Pattern(pattern) => ("patternProperties", [(pattern, of)].into_iter().collect()),
        Names::Listed(names) => {
            ("properties", names.into_iter().map(|name| (name, of.clone())).collect())
        }
    };
    fields.shift_remove("propertyNames");
    fields.insert(word.to_owned(), Value::Object(of));
    fields.insert("additionalProperties".to_owned(), Value::Bool(false));
}

/// Takes from `left` the bytes that a value's text has, about, and stops where there are not so many.
fn spend(value: &Value, left: &mut usize) -> Option<()> {
    let bytes = match value {
        Value::String(text) => text.len() + 2,
        Value::Array(items) => items.len() + 2,
        Value::Object(fields) => 4 * fields.len() + 2,
        _ => 4,
    };
    *left = left.checked_sub(bytes)?;
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| spend(item, left)),
        Value::Object(fields) => fields.iter().try_for_each(|(key, value)| {
            *left = left.checked_sub(key.len())?;
            spend(value, left)
        }),
        _ => Some(()),
    }
}

fn read(names: &Value, root: &Value, left: &mut Budget) -> Option<Names> {
    if *names == Value::Bool(true) {
        return Some(Names::Any);
    }
    let fields = follow(names, root, left)?;
    let mut names = Names::Any;
    for (word, value) in fields {
        left.look(1).then_some(())?;
        names = match (word.as_str(), value, names) {
            ("title" | "description" | "$comment", _, names) => names,
            ("type", Value::String(kind), names) if kind == "string" => names,
            ("pattern", Value::String(pattern), Names::Any) if left.look_at(pattern) => {
                Names::Pattern(pattern.clone())
            }
            ("const", Value::String(name), Names::Any) if left.look_at(name) => {
                Names::Listed(vec![name.clone()])
            }
            ("enum", Value::Array(list), Names::Any) if list.len() <= NAMES_MAX => {
                let strings = list
                    .iter()
                    .map(|name| name.as_str().filter(|name| left.look_at(name)).map(str::to_owned));
                Names::Listed(strings.collect::<Option<_>>()?)
            }
            _ => return None,
        };
    }
    Some(names)
}

#[cfg(test)]
mod tests;
