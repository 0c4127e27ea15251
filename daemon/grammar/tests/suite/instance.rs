//! An instance as a model would write it: keys in the order of its schema, compact and as Python's `json.dumps` does.
//!
//! Owns: the two texts of an instance. Must never: judge it.

use serde_json::Value;

/// The compact text, and the one with spaces behind commas and colons.
pub fn texts(schema: &Value, instance: &Value) -> [String; 2] {
    let mut order = Vec::new();
    names(schema, schema, &mut Vec::new(), &mut order);
    let mut texts = [String::new(), String::new()];
    write(instance, &order, [",", ":"], &mut texts[0]);
    write(instance, &order, [", ", ": "], &mut texts[1]);
    texts
}

/// Names of properties in the order in which the schema has them, those that are only required behind. What a reference leads to
/// comes where the reference stands.
fn names<'a>(
    schema: &'a Value,
    root: &'a Value,
    followed: &mut Vec<&'a str>,
    order: &mut Vec<String>,
) {
    match schema {
        Value::Object(fields) => {
            for (word, value) in fields {
                match (word.as_str(), value) {
                    ("properties", Value::Object(of)) => {
                        of.keys().for_each(|name| add(name, order));
                    }
                    ("const" | "enum", value) => literal(value, order),
                    ("propertyNames", Value::Object(of)) => {
                        let listed = of.get("enum").and_then(Value::as_array);
                        let listed = listed.into_iter().flatten().filter_map(Value::as_str);
                        listed.for_each(|name| add(name, order));
                    }
                    ("$ref", Value::String(to)) if !followed.contains(&to.as_str()) => {
                        followed.push(to);
                        let to = to.strip_prefix('#').and_then(|place| root.pointer(place));
                        to.into_iter().for_each(|to| names(to, root, followed, order));
                    }
                    _ => {}
                }
            }
            if let Some(Value::Array(names)) = fields.get("required") {
                names.iter().filter_map(Value::as_str).for_each(|name| add(name, order));
            }
            let is_applied = |word: &str| !["$defs", "definitions"].contains(&word);
            let applied = fields.iter().filter(|(word, _)| is_applied(word));
            applied.for_each(|(_, value)| names(value, root, followed, order));
        }
        Value::Array(items) => {
            items.iter().for_each(|item| names(item, root, followed, order));
        }
        _ => {}
    }
}

fn add(name: &str, order: &mut Vec<String>) {
    if !order.iter().any(|known| known == name) {
        order.push(name.to_owned());
    }
}

fn literal(value: &Value, order: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                add(name, order);
                literal(value, order);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| literal(item, order)),
        _ => {}
    }
}

fn write(value: &Value, order: &[String], [comma, colon]: [&str; 2], text: &mut String) {
    match value {
        Value::Object(fields) => {
            let mut names: Vec<&String> = fields.keys().collect();
            names.sort_by_key(|name| {
                order.iter().position(|known| known == *name).unwrap_or(usize::MAX)
            });
            text.push('{');
            for (at, name) in names.into_iter().enumerate() {
                text.push_str(if at > 0 { comma } else { "" });
                text.push_str(&Value::from(name.as_str()).to_string());
                text.push_str(colon);
                write(&fields[name], order, [comma, colon], text);
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (at, item) in items.iter().enumerate() {
                text.push_str(if at > 0 { comma } else { "" });
                write(item, order, [comma, colon], text);
            }
            text.push(']');
        }
        scalar => text.push_str(&scalar.to_string()),
    }
}
