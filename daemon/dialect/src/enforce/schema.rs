//! What a tool's schema says of its arguments, where a dialect does not write them as JSON.
//!
//! Owns: reading fields out of a schema, and cutting one out of its document. Must never: refuse what it does not know; that is any
//! value.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};

/// References that follow references, and schemas inside schemas.
pub(crate) const DEPTH_MAX: usize = 32;

/// Fields of an object.
pub(crate) const FIELDS_MAX: usize = 1_000;
/// Looks for the fields of one object: at schemas, their properties and the names that they require, each as often as it is
/// referred to.
const LOOKS_MAX: usize = 20_000;
/// Those of a request.
pub(super) const ALL_LOOKS_MAX: usize = 100_000;

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

/// What any value is.
pub(super) static ANY: Value = Value::Bool(true);

/// What looking at a text takes: a long one is many looks.
pub(super) fn looks(text: &str) -> usize {
    1 + text.len() / 16
}

/// Those of a schema in its document. `looks`: how many are left to the request.
///
/// # Errors
/// There are too many.
pub(super) fn fields<'a>(
    root: &'a Value,
    schema: &'a Map<String, Value>,
    looks: &mut usize,
) -> Result<Fields<'a>, String> {
    let had = LOOKS_MAX.min(*looks);
    let mut search = Search { root, left: had, fields: Fields::default(), places: HashMap::new() };
    search.add(schema, true, 0);
    *looks -= had - search.left;
    match search.left == 0 || search.fields.named.len() > FIELDS_MAX {
        true => Err(format!("an object of too many parts; the limit is {FIELDS_MAX} fields")),
        false => Ok(search.fields),
    }
}

/// Looking for the fields of one object.
struct Search<'a> {
    root: &'a Value,
    left: usize,
    fields: Fields<'a>,
    /// Where each stands among those that are named.
    places: HashMap<&'a str, usize>,
}

impl<'a> Search<'a> {
    /// `all`: whether the schema holds in any case.
    fn add(&mut self, schema: &'a Map<String, Value>, all: bool, depth: usize) {
        self.left = self.left.saturating_sub(1);
        if depth == DEPTH_MAX {
            return;
        }
        for (name, schema) in
            schema.get("properties").and_then(Value::as_object).into_iter().flatten()
        {
            if self.field(name, schema).is_none() {
                return;
            }
        }
        if let Some(others @ (Value::Bool(true) | Value::Object(_))) =
            schema.get("additionalProperties")
        {
            self.fields.others = self.fields.others.or(Some(others));
        }
        if let Some(Value::String(at)) = schema.get("$ref") {
            self.left = self.left.saturating_sub(looks(at));
            if let Some(Value::Object(target)) = target(self.root, at) {
                self.add(target, all, depth + 1);
            }
        }
        for (key, all) in [("allOf", all), ("anyOf", false), ("oneOf", false)] {
            for branch in schema.get(key).and_then(Value::as_array).into_iter().flatten() {
                if self.left == 0 {
                    return;
                }
                if let Value::Object(branch) = branch {
                    self.add(branch, all, depth + 1);
                }
            }
        }
        let required = schema.get("required").and_then(Value::as_array).filter(|_| all);
        for name in required.into_iter().flatten().filter_map(Value::as_str) {
            match self.field(name, &ANY) {
                Some(field) => field.required = true,
                None => return,
            }
        }
    }

    /// The field of this name, with this schema if it is new; `None`: there was too much to look at.
    fn field(&mut self, name: &'a str, schema: &'a Value) -> Option<&mut Field<'a>> {
        self.left = self.left.saturating_sub(looks(name));
        let named = &mut self.fields.named;
        if self.left == 0 || named.len() > FIELDS_MAX {
            return None;
        }
        let at = *self.places.entry(name).or_insert_with(|| {
            named.push(Field { name, schema, required: false });
            named.len() - 1
        });
        named.get_mut(at)
    }
}

/// What a reference leads to in its document.
pub(crate) fn target<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    root.pointer(reference.strip_prefix('#')?)
}

/// A schema behind its references, up to the first that says more than where to look, or where no look is left.
pub(super) fn resolved<'a>(root: &'a Value, mut schema: &'a Value, left: &mut usize) -> &'a Value {
    for _ in 0..DEPTH_MAX {
        let Some(Value::String(at)) = schema.get("$ref") else { break };
        *left = left.saturating_sub(looks(at));
        match target(root, at).filter(|_| *left > 0) {
            Some(target) => schema = target,
            None => break,
        }
    }
    schema
}

/// Takes from `left` the bytes that a value's text has at least, and stops where there are not so many.
pub(super) fn spend(value: &Value, left: &mut usize) -> Option<()> {
    spend_own(value, left)?;
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| spend(item, left)),
        Value::Object(fields) => fields.iter().try_for_each(|(key, value)| {
            spend_key(key, left)?;
            spend(value, left)
        }),
        _ => Some(()),
    }
}

/// The same without what is in it.
pub(super) fn spend_own(value: &Value, left: &mut usize) -> Option<()> {
    let bytes = match value {
        Value::String(text) => text.len() + 2,
        Value::Null | Value::Bool(_) => 4,
        Value::Number(_) => 1,
        Value::Array(_) | Value::Object(_) => 2,
    };
    *left = left.checked_sub(bytes)?;
    Some(())
}

/// The same of the key of a field.
pub(super) fn spend_key(key: &str, left: &mut usize) -> Option<()> {
    *left = left.checked_sub(key.len() + 3)?;
    Some(())
}

/// A schema as a document of its own: with what it refers to, and no more of the document that it is from. `None`: its text would
/// have more than `left` bytes.
pub(super) fn alone(root: &Value, schema: &Value, left: usize) -> Option<Value> {
    let mut cut = Cut { names: BTreeMap::new(), open: Vec::new(), left };
    let mut schema = cut.copy(schema)?;
    let mut definitions = Map::new();
    while let Some((reference, name)) = cut.open.pop() {
        let Some(target) = target(root, reference) else { continue };
        spend_key(&name, &mut cut.left)?;
        definitions.insert(name, cut.copy(target)?);
    }
    if definitions.is_empty() {
        return Some(schema);
    }
    match &mut schema {
        Value::Object(fields) => {
            fields.insert("$defs".to_owned(), definitions.into());
        }
        _ => schema = json!({ "$defs": definitions, "allOf": [schema] }),
    }
    Some(schema)
}

/// Cutting a schema out of its document.
struct Cut<'a> {
    /// New names by the references that led there.
    names: BTreeMap<&'a str, String>,
    /// Those whose targets are not there yet.
    open: Vec<(&'a str, String)>,
    /// Bytes that may still be copied.
    left: usize,
}

impl<'a> Cut<'a> {
    /// A copy, in which what it refers to has other names.
    fn copy(&mut self, schema: &'a Value) -> Option<Value> {
        spend_own(schema, &mut self.left)?;
        Some(match schema {
            Value::Object(fields) => {
                let mut copy = Map::new();
                // No reference can lead there any more.
                let kept = |key: &str| key != "$defs" && key != "definitions";
                for (key, value) in fields.iter().filter(|(key, _)| kept(key)) {
                    spend_key(key, &mut self.left)?;
                    let value = match value {
                        Value::String(at) if key == "$ref" && at.starts_with('#') => {
                            spend_own(value, &mut self.left)?;
                            self.name(at).into()
                        }
                        _ => self.copy(value)?,
                    };
                    copy.insert(key.clone(), value);
                }
                copy.into()
            }
            Value::Array(items) => {
                Value::Array(items.iter().map(|item| self.copy(item)).collect::<Option<_>>()?)
            }
            other => other.clone(),
        })
    }

    /// How a reference is written now.
    fn name(&mut self, at: &'a str) -> String {
        let (count, open) = (self.names.len(), &mut self.open);
        let name = self.names.entry(at).or_insert_with(|| {
            open.push((at, format!("d{count}")));
            format!("d{count}")
        });
        format!("#/$defs/{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of<'a>(root: &'a Value, schema: &'a Value) -> Result<Fields<'a>, String> {
        fields(root, schema.as_object().unwrap(), &mut { ALL_LOOKS_MAX })
    }

    #[test]
    fn a_schema_takes_along_what_it_refers_to() {
        let root = json!({
            "$defs": {"A": {"items": {"$ref": "#/$defs/B"}}, "B": {"anyOf": [{"$ref": "#/$defs/A"}, {"type": "null"}]},
                "C": {"type": "string"}},
            "properties": {"a": {"$ref": "#/$defs/A"}, "b": {"type": "integer"}, "c": {"$ref": "#/properties/b"}},
        });
        let of = |name: &str| alone(&root, &root["properties"][name], 1_000).unwrap();
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
        let all = of(&root, &root).unwrap();
        let all: Vec<_> = all.named.iter().map(|field| (field.name, field.required)).collect();
        assert_eq!(all, [("a", true), ("b", true), ("c", false), ("d", false), ("z", true)]);
        let others = |schema: Value| of(&root, &schema).unwrap().others.is_some();
        assert!(!others(json!({"additionalProperties": false})));
        assert!(others(json!({"additionalProperties": {}})));
    }

    #[test]
    fn fields_are_looked_for_to_an_end() {
        let itself = json!({"allOf": vec![json!({"$ref": "#"}); 10]});
        assert!(of(&itself, &itself).is_err());
        let named: Map<_, _> = (0..=FIELDS_MAX).map(|n| (n.to_string(), json!({}))).collect();
        let many = json!({ "properties": named });
        assert!(of(&many, &many).is_err());
        let few = json!({"properties": {"a": {}, "b": {}}});
        let (mut left, few) = (6, few.as_object().unwrap());
        assert!(fields(&ANY, few, &mut left).is_ok() && left == 3);
        assert!(fields(&ANY, few, &mut left).is_err() && left == 0);
    }

    /// Each level of a chain has all that follow in it.
    #[test]
    fn no_more_is_copied_than_may_be_written() {
        let mut root = json!({"$defs": {"60": {"const": "x".repeat(1_000)}}});
        for level in 0..60 {
            let next = json!({"items": {"$ref": format!("#/$defs/{}", level + 1)}});
            root["$defs"][level.to_string()] = next;
        }
        let of = |left| alone(&root, &json!({"$ref": "#/$defs/0"}), left);
        let bytes = of(1 << 20).unwrap().to_string().len();
        assert!(of(bytes).is_some() && of(bytes / 2).is_none(), "{bytes}");
        // What is left out costs nothing.
        assert!(alone(&root, &root, 2).is_some());
    }
}
