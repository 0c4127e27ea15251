//! The rules of a tool's arguments, as JSON or as text between tags.
//!
//! Owns: what a tool without a schema may be called with. Must never: know which dialect it writes for.

use serde_json::{Value, json};

use super::Enforced;
use super::lark::{Lark, quoted, string};
use super::schema::{Fields, alone, fields, resolved};
use crate::tools::{Tools, Types};

/// A key of llguidance's, whose field `lenient` the compiler of grammars reads and nothing else: a client's own is replaced.
const OPTIONS: &str = "x-guidance";

/// What a schema says, or any object; no argument at all of a strict tool that has no schema.
pub(super) fn parameters(tool: &Enforced<'_>) -> Result<Value, String> {
    let mut schema = match &tool.tool.parameters {
        Value::Object(fields) if !fields.is_empty() => fields.clone(),
        Value::Bool(false) => return Err(format!("tool {:?} takes no arguments", tool.tool.name)),
        _ => Default::default(),
    };
    if schema.is_empty() && tool.strict {
        schema.insert("additionalProperties".to_owned(), false.into());
    }
    if schema.is_empty() {
        schema.insert("additionalProperties".to_owned(), true.into());
    }
    schema.insert("type".to_owned(), "object".into());
    Ok(schema.into())
}

/// As JSON.
pub(super) fn as_json(tool: &Enforced<'_>, lark: &mut Lark<'_>) -> Result<String, String> {
    Ok(json(parameters(tool)?, tool.strict, lark))
}

fn json(mut schema: Value, strict: bool, lark: &mut Lark<'_>) -> String {
    if !schema.is_object() {
        schema = json!({ "allOf": [schema] });
    }
    schema[OPTIONS] = json!({ "lenient": !strict });
    lark.rule(format!("%json {schema}"))
}

/// The tags around an argument.
pub(super) struct Tags {
    pub(super) open: &'static str,
    pub(super) middle: &'static str,
    pub(super) close: &'static str,
    /// What ends all of the call: a value has it as little as its own closing tag.
    pub(super) end: String,
}

/// Each as text between tags.
pub(super) fn tagged(
    tool: &Enforced<'_>,
    tags: &Tags,
    lark: &mut Lark<'_>,
) -> Result<String, String> {
    let root = parameters(tool)?;
    // As the parser sees them.
    let types = Tools::new(std::slice::from_ref(tool.tool));
    let name = &tool.tool.name;
    let Fields { named, others } = fields(&root, &root);
    let mut all = Vec::new();
    for field in &named {
        let key = field.name;
        let odd = |char: char| char.is_control() || "<>{}\"'".contains(char);
        if key.is_empty() || key.trim() != key || key.len() > 200 || key.contains(odd) {
            return Err(format!(
                "tool {name:?} has an argument {key:?}, whose name its tag cannot hold"
            ));
        }
        let value = value(&root, field.schema, types.types(name, key), tool.strict, tags, lark)
            .ok_or_else(|| {
                format!("tool {name:?} has no value of {key:?} that its tags can hold")
            })?;
        let open = lark.text(&format!("{}{key}{}", tags.open, tags.middle));
        let argument = lark.rule(format!("{open} {value}"));
        all.push(if field.required { argument } else { format!("{argument}?") });
    }
    if let Some(schema) = others {
        let known: Vec<String> = named.iter().map(|field| quoted(field.name)).collect();
        let but =
            if known.is_empty() { String::new() } else { format!(" & ~/{}/", known.join("|")) };
        let key = lark.terminal(format!("/[A-Za-z_][A-Za-z0-9_-]{{0,63}}/{but}"));
        let types = types.types(name, "");
        if let Some(value) = value(&root, schema, types, tool.strict, tags, lark) {
            let (open, middle) = (lark.text(tags.open), lark.text(tags.middle));
            let argument = lark.rule(format!("{open} {key} {middle} {value}"));
            all.push(format!("{argument}*"));
        }
    }
    Ok(lark.rule(if all.is_empty() { string("") } else { all.join(" ") }))
}

/// A value with its closing tag.
fn value(
    root: &Value,
    schema: &Value,
    types: Types,
    strict: bool,
    tags: &Tags,
    lark: &mut Lark<'_>,
) -> Option<String> {
    let close = lark.text(tags.close);
    if !types.has(Types::STRING) {
        return Some(format!("{} {close}", json(alone(root, schema), strict, lark)));
    }
    let tag = tags.close.trim();
    let schema = resolved(root, schema);
    let one = schema.get("const").map(std::slice::from_ref);
    let values = one.or_else(|| schema.get("enum")?.as_array().map(Vec::as_slice));
    let Some(values) = values else {
        let words: Vec<String> = tags.end.split_whitespace().map(quoted).collect();
        return Some(lark.until(&[quoted(tag), words.join(r"\s*")], tags.close));
    };
    let texts = values.iter().map(|value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    });
    let texts: Vec<String> = texts.filter(|text| !text.contains(tag)).map(|t| string(&t)).collect();
    (!texts.is_empty()).then(|| format!("({}) {close}", texts.join(" | ")))
}
