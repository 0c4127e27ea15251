//! The rules of a tool's arguments, as JSON or as text between tags.
//!
//! Owns: what a tool without a schema may be called with. Must never: know which dialect it writes for.

use serde_json::{Map, Value, json};

use super::Enforced;
use super::lark::{LARK_BYTES_MAX, Lark, quoted, string, too_long};
use super::schema::{Fields, alone, fields, resolved, spend, spend_key, spend_own};
use crate::tools::{Tools, Types};

/// A key of llguidance's, whose field `lenient` the compiler of grammars reads and nothing else: a client's own is replaced.
const OPTIONS: &str = "x-guidance";

/// Keywords that say nothing of a value.
const FOR_PEOPLE: [&str; 5] = ["description", "title", "default", "examples", "$comment"];
/// Keywords of objects whose keys are names.
const OF_NAMES: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];

/// What a schema says, or any object; no argument at all of a strict tool that has no schema.
pub(super) fn parameters(tool: &Enforced<'_>) -> Result<Value, String> {
    let given = match &tool.tool.parameters {
        given @ Value::Object(fields) if !fields.is_empty() => Some(given),
        Value::Bool(false) => return Err(format!("tool {:?} takes no arguments", tool.tool.name)),
        _ => None,
    };
    let mut schema = match given {
        Some(given) => bare(given, true, &mut { LARK_BYTES_MAX }).ok_or_else(too_long)?,
        None => json!({ "additionalProperties": !tool.strict }),
    };
    schema["type"] = "object".into();
    Ok(schema)
}

/// A copy without what only people read, which is most of many schemas. `is_schema`: its keys are keywords, not names. `None`: its
/// text would have more than `left` bytes.
fn bare(value: &Value, is_schema: bool, left: &mut usize) -> Option<Value> {
    spend_own(value, left)?;
    Some(match value {
        Value::Object(fields) => {
            let mut copy = Map::new();
            for (key, value) in fields {
                if is_schema && FOR_PEOPLE.contains(&key.as_str()) {
                    continue;
                }
                spend_key(key, left)?;
                let value = match key.as_str() {
                    "const" | "enum" if is_schema => {
                        spend(value, left)?;
                        value.clone()
                    }
                    _ => bare(value, !(is_schema && OF_NAMES.contains(&key.as_str())), left)?,
                };
                copy.insert(key.clone(), value);
            }
            copy.into()
        }
        Value::Array(items) => {
            Value::Array(items.iter().map(|item| bare(item, true, left)).collect::<Option<_>>()?)
        }
        other => other.clone(),
    })
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

/// Each as text between tags, of types as the parser sees them. `looks`: how many are left to the request.
pub(super) fn tagged(
    tool: &Enforced<'_>,
    types: &Tools,
    tags: &Tags,
    looks: &mut usize,
    lark: &mut Lark<'_>,
) -> Result<String, String> {
    let root = parameters(tool)?;
    let name = &tool.tool.name;
    let told = |what: String| format!("tool {name:?} has {what}");
    let Fields { named, others } = match &root {
        Value::Object(object) => fields(&root, object, looks).map_err(told)?,
        _ => Fields::default(),
    };
    let mut all = Vec::new();
    for field in &named {
        let key = field.name;
        let odd = |char: char| char.is_control() || "<>{}\"'".contains(char);
        if key.is_empty() || key.trim() != key || key.len() > 200 || key.contains(odd) {
            return Err(format!(
                "tool {name:?} has an argument {key:?}, whose name its tag cannot hold"
            ));
        }
        let types = types.types(name, key);
        let value = match types.has(Types::STRING) {
            true => text(resolved(&root, field.schema, looks), tags, lark).ok_or_else(|| {
                format!("tool {name:?} has no value of {key:?} that its tags can hold")
            })?,
            false => other(&root, field.schema, tool.strict, tags, lark)?,
        };
        lark.check()?;
        let open = lark.text(&format!("{}{key}{}", tags.open, tags.middle));
        let argument = lark.rule(format!("{open} {value}"));
        all.push(if field.required { argument } else { format!("{argument}?") });
    }
    if let Some(schema) = others {
        let known: Vec<String> = named.iter().map(|field| quoted(field.name)).collect();
        let but =
            if known.is_empty() { String::new() } else { format!(" & ~/{}/", known.join("|")) };
        let key = lark.terminal(format!("/[A-Za-z_][A-Za-z0-9_-]{{0,63}}/{but}"));
        let value = match types.types(name, "").has(Types::STRING) {
            true => text(resolved(&root, schema, looks), tags, lark),
            false => Some(other(&root, schema, tool.strict, tags, lark)?),
        };
        if let Some(value) = value {
            let (open, middle) = (lark.text(tags.open), lark.text(tags.middle));
            let argument = lark.rule(format!("{open} {key} {middle} {value}"));
            all.push(format!("{argument}*"));
        }
    }
    Ok(lark.rule(if all.is_empty() { string("") } else { all.join(" ") }))
}

/// A value that is no text, with its closing tag.
fn other(
    root: &Value,
    schema: &Value,
    strict: bool,
    tags: &Tags,
    lark: &mut Lark<'_>,
) -> Result<String, String> {
    let schema = alone(root, schema, lark.room()).ok_or_else(too_long)?;
    Ok(format!("{} {}", json(schema, strict, lark), lark.text(tags.close)))
}

/// A text with its closing tag, or one of those that the schema lists; `None`: its tags can hold none of them.
fn text(schema: &Value, tags: &Tags, lark: &mut Lark<'_>) -> Option<String> {
    let close = lark.text(tags.close);
    let tag = tags.close.trim();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::Tool;

    #[test]
    fn what_only_people_read_is_left_out_and_names_are_not() {
        let schema = json!({
            "title": "T", "description": "d", "properties": {
                "description": {"type": "string", "description": "d", "default": {"title": 1}},
                "title": {"enum": [{"title": "x"}], "examples": [1]},
                "inner": {"anyOf": [{"title": "A", "properties": {"default": {"$comment": "c"}}}]}},
            "$defs": {"title": {"title": "t"}},
        });
        let tool = Tool { name: "f".into(), parameters: schema };
        assert_eq!(
            parameters(&Enforced { tool: &tool, strict: true }).unwrap(),
            json!({
                "type": "object", "properties": {
                    "description": {"type": "string"}, "title": {"enum": [{"title": "x"}]},
                    "inner": {"anyOf": [{"properties": {"default": {}}}]}},
                "$defs": {"title": {}},
            })
        );
    }

    #[test]
    fn a_tool_without_a_schema_takes_any_object_or_none() {
        for parameters in [Value::Null, json!({}), json!(true)] {
            let tool = Tool { name: "f".into(), parameters };
            let of = |strict| self::parameters(&Enforced { tool: &tool, strict }).unwrap();
            assert_eq!(of(false), json!({"type": "object", "additionalProperties": true}));
            assert_eq!(of(true), json!({"type": "object", "additionalProperties": false}));
        }
        let tool = Tool { name: "f".into(), parameters: false.into() };
        assert!(
            parameters(&Enforced { tool: &tool, strict: false }).unwrap_err().contains("\"f\"")
        );
    }
}
