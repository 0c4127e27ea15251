//! The fields of a structural tag's formats.
//!
//! Owns: their forms, and the words where one is not of its form. Must never: write a grammar.

use serde_json::{Map, Value};

/// Triggers, or texts that must not come, of one format.
const TEXTS_MAX: usize = 64;

/// A tag's texts and what is between them.
pub(super) struct Tag<'a> {
    pub(super) begin: &'a str,
    pub(super) content: &'a Value,
    pub(super) ends: Vec<String>,
}

/// How what comes there begins, where that is a text.
pub(super) fn begin_of(format: &Value) -> Option<&str> {
    let key = match format.get("type").and_then(Value::as_str) {
        Some("const_string") => "value",
        Some("tag") => "begin",
        _ => return None,
    };
    format.get(key).and_then(Value::as_str)
}

pub(super) fn tag_of(fields: &Map<String, Value>) -> Result<Tag<'_>, String> {
    let begin = text_of(fields, "begin")?;
    let content = fields.get("content").ok_or("a tag needs \"content\"")?;
    let ends = match fields.get("end") {
        Some(Value::Array(_)) => texts_of(fields, "end")?,
        _ => vec![text_of(fields, "end")?.to_owned()],
    };
    if ends.is_empty() {
        return Err("a tag needs an \"end\"".into());
    }
    Ok(Tag { begin, content, ends })
}

pub(super) fn tags_of(fields: &Map<String, Value>) -> Result<Vec<Tag<'_>>, String> {
    let tags = list(fields, "tags")?;
    if tags.is_empty() {
        return Err("\"tags\" is empty".into());
    }
    let tag = |tag: &'_ Value| tag.as_object().is_some();
    if !tags.iter().all(tag) {
        return Err("each of \"tags\" is an object".into());
    }
    tags.iter().filter_map(Value::as_object).map(tag_of).collect()
}

pub(super) fn list<'a>(fields: &'a Map<String, Value>, key: &str) -> Result<&'a [Value], String> {
    match fields.get(key) {
        Some(Value::Array(list)) => Ok(list),
        _ => Err(format!("\"{key}\" must be a list")),
    }
}

pub(super) fn text_of<'a>(fields: &'a Map<String, Value>, key: &str) -> Result<&'a str, String> {
    match fields.get(key) {
        Some(Value::String(text)) => Ok(text),
        _ => Err(format!("\"{key}\" must be a text")),
    }
}

pub(super) fn texts_of(fields: &Map<String, Value>, key: &str) -> Result<Vec<String>, String> {
    let list = match fields.get(key) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) if list.len() <= TEXTS_MAX => list,
        _ => return Err(format!("\"{key}\" must be a list of texts, of {TEXTS_MAX} at most")),
    };
    let texts = list.iter().map(|text| text.as_str().map(str::to_owned));
    texts.collect::<Option<_>>().ok_or_else(|| format!("\"{key}\" must be a list of texts"))
}

pub(super) fn flag(fields: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match fields.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => Err(format!("\"{key}\" is true or false")),
    }
}

/// What would be passed over may not be asked for.
pub(super) fn only_null(fields: &Map<String, Value>, keys: &[&str]) -> Result<(), String> {
    match keys.iter().find(|key| fields.get(**key).is_some_and(|value| !value.is_null())) {
        Some(key) => Err(format!("\"{key}\" is not supported")),
        None => Ok(()),
    }
}
