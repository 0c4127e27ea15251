//! What a tool's schema says of its arguments, where a dialect does not write them as JSON.
//!
//! Owns: reading fields out of a schema, and cutting one out of its document. Must never: refuse what it does not know; that is any
//! value.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// References that follow references, and schemas inside schemas.
pub(crate) const DEPTH_MAX: usize = 32;

/// Fields of an object.
pub(crate) const FIELDS_MAX: usize = 1_000;
/// Schemas that are looked at for the fields of one object, each as often as it is referred to.
const LOOKS_MAX: usize = 5_000;

/// A field of an object.
pub(crate) struct Field<'a> {
    pub(crate) name: &'a str,
    pub(crate) schema: &'a Value,
    pub(crate) required: bool,
}

/// The fields of an object.
#[derive(Default)]
pub(crate) struct Fields<'a> {
    pub(crate) named: Vec<Field<'a>>,
    /// What others may be, where the schema allows them in so many words.
    pub(crate) others: Option<&'a Value>,
}

static ANY: Value = Value::Bool(true);

/// Those of a schema in its document.
///
/// # Errors
/// There are too many.
pub(crate) fn fields<'a>(root: &'a Value, schema: &'a Value) -> Result<Fields<'a>, String> {
    let (mut fields, mut left) = (Fields::default(), LOOKS_MAX);
    add(root, schema, (true, 0), &mut left, &mut fields);
    match left == 0 || fields.named.len() > FIELDS_MAX {
        true => Err(format!("an object of too many parts; the limit is {FIELDS_MAX} fields")),
        false => Ok(fields),
    }
}

fn add<'a>(
    root: &'a Value,
    schema: &'a Value,
    (all, depth): (bool, usize),
    left: &mut usize,
    fields: &mut Fields<'a>,
) {
    let Value::Object(schema) = schema else { return };
    *left = left.saturating_sub(1);
    if depth == DEPTH_MAX || *left == 0 || fields.named.len() > FIELDS_MAX {
        return;
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    for (name, schema) in properties.into_iter().flatten().take(FIELDS_MAX + 1) {
        if !fields.named.iter().any(|field| field.name == name) {
            fields.named.push(Field { name, schema, required: false });
        }
    }
    if let Some(others @ (Value::Bool(true) | Value::Object(_))) =
        schema.get("additionalProperties")
    {
        fields.others = fields.others.or(Some(others));
    }
    if let Some(target) = schema.get("$ref").and_then(|at| target(root, at)) {
        add(root, target, (all, depth + 1), left, fields);
    }
    for (key, all) in [("allOf", all), ("anyOf", false), ("oneOf", false)] {
        for branch in schema.get(key).and_then(Value::as_array).into_iter().flatten() {
            add(root, branch, (all, depth + 1), left, fields);
        }
    }
    let required = schema.get("required").and_then(Value::as_array);
    for name in required.into_iter().flatten().take(FIELDS_MAX + 1) {
        let Some(name) = name.as_str().filter(|_| all) else { continue };
        match fields.named.iter_mut().find(|field| field.name == name) {
            Some(field) => field.required = true,
            None => fields.named.push(Field { name, schema: &ANY, required: true }),
        }
    }
}

/// What a reference leads to in its document.
pub(crate) fn target<'a>(root: &'a Value, reference: &Value) -> Option<&'a Value> {
    root.pointer(reference.as_str()?.strip_prefix('#')?)
}

/// A schema behind its references, up to the first that says more than where to look.
pub(crate) fn resolved<'a>(root: &'a Value, mut schema: &'a Value) -> &'a Value {
    for _ in 0..DEPTH_MAX {
        match schema.get("$ref").and_then(|at| target(root, at)) {
            Some(target) => schema = target,
            None => break,
        }
    }
    schema
}

/// A schema as a document of its own: with what it refers to, and no more of the document that it is from.
pub(crate) fn alone(root: &Value, schema: &Value) -> Value {
    let mut names = BTreeMap::new();
    let mut schema = schema.clone();
    let mut open = renamed(&mut schema, &mut names);
    let mut definitions = Map::new();
    while let Some((reference, name)) = open.pop() {
        let Some(target) = target(root, &reference) else { continue };
        let mut target = target.clone();
        open.extend(renamed(&mut target, &mut names));
        definitions.insert(name, target);
    }
    if definitions.is_empty() {
        return schema;
    }
    match &mut schema {
        Value::Object(fields) => {
            fields.insert("$defs".to_owned(), definitions.into());
        }
        _ => schema = json!({ "$defs": definitions, "allOf": [schema] }),
    }
    schema
}

/// Gives what a schema refers to in its document other names, and says which are new.
fn renamed(schema: &mut Value, names: &mut BTreeMap<String, String>) -> Vec<(Value, String)> {
    let mut new = Vec::new();
    match schema {
        Value::Object(fields) => {
            // No reference can lead there any more.
            fields.remove("$defs");
            fields.remove("definitions");
            for (key, value) in fields {
                match value {
                    Value::String(at) if key == "$ref" && at.starts_with('#') => {
                        let count = names.len();
                        let name = names.entry(at.clone()).or_insert_with(|| {
                            new.push((at.clone().into(), format!("d{count}")));
                            format!("d{count}")
                        });
                        *value = format!("#/$defs/{name}").into();
                    }
                    _ => new.extend(renamed(value, names)),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| new.extend(renamed(item, names))),
        _ => {}
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_takes_along_what_it_refers_to() {
        let root = json!({
            "$defs": {"A": {"items": {"$ref": "#/$defs/B"}}, "B": {"anyOf": [{"$ref": "#/$defs/A"}, {"type": "null"}]},
                "C": {"type": "string"}},
            "properties": {"a": {"$ref": "#/$defs/A"}, "b": {"type": "integer"}, "c": {"$ref": "#/properties/b"}},
        });
        let of = |name: &str| alone(&root, &root["properties"][name]);
        assert_eq!(
            of("a"),
            json!({"$ref": "#/$defs/d0", "$defs": {"d0": {"items": {"$ref": "#/$defs/d1"}},
                "d1": {"anyOf": [{"$ref": "#/$defs/d0"}, {"type": "null"}]}}})
        );
        assert_eq!(of("b"), json!({"type": "integer"}));
        assert_eq!(of("c"), json!({"$ref": "#/$defs/d0", "$defs": {"d0": {"type": "integer"}}}));
    }

    #[test]
    fn fields_come_from_all_parts_of_a_schema() {
        let root = json!({
            "$defs": {"More": {"properties": {"b": {}, "c": {}}, "required": ["b"]}},
            "properties": {"a": {}}, "required": ["a", "z"],
            "allOf": [{"$ref": "#/$defs/More"}],
            "anyOf": [{"properties": {"d": {}}, "required": ["d"]}],
        });
        let all = fields(&root, &root).unwrap();
        let all: Vec<_> = all.named.iter().map(|field| (field.name, field.required)).collect();
        assert_eq!(all, [("a", true), ("b", true), ("c", false), ("d", false), ("z", true)]);
        let others = |schema: Value| fields(&root, &schema).unwrap().others.is_some();
        assert!(!others(json!({"additionalProperties": false})));
        assert!(others(json!({"additionalProperties": {}})));
    }

    #[test]
    fn fields_are_looked_for_to_an_end() {
        let itself = json!({"allOf": vec![json!({"$ref": "#"}); 10]});
        assert!(fields(&itself, &itself).is_err());
        let named: Map<_, _> = (0..=FIELDS_MAX).map(|n| (n.to_string(), json!({}))).collect();
        let many = json!({ "properties": named });
        assert!(fields(&many, &many).is_err());
    }
}
