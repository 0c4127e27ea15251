//! How many ways the alternatives of a schema go together in one place.
//!
//! llguidance makes of each place one list of alternatives: of `allOf` with two alternatives in each of 20 items a million, each a copy
//! of all that it is merged of. It has a limit of its own, which is too late for large copies.
//!
//! Owns: counting them before anybody merges. Must never: look at more than [`LOOKS_MAX`] schemas.

use std::collections::HashMap;

use serde_json::{Map, Value};

/// Schemas that are looked at; of one that is referred to, the first time counts for all.
const LOOKS_MAX: usize = 1_000_000;
/// References that follow references, and schemas inside schemas of one place.
const DEPTH_MAX: usize = 2048;

/// The most ways of a place, or more than `limit` where counting them takes too long.
pub(crate) fn most(root: &Value, limit: usize) -> usize {
    let mut count = Count { root, known: HashMap::new(), looks: 0, limit };
    count.places(root)
}

struct Count<'a> {
    root: &'a Value,
    /// Ways of what was referred to; 1 while they are counted, so that circles end.
    known: HashMap<&'a str, usize>,
    looks: usize,
    limit: usize,
}

impl<'a> Count<'a> {
    /// Of all places in a part of a schema.
    fn places(&mut self, schema: &'a Value) -> usize {
        let inner = match schema {
            Value::Object(fields) => {
                let here = if merges(fields) { self.ways(schema, 0) } else { 1 };
                fields.values().map(|value| self.places(value)).max().unwrap_or(1).max(here)
            }
            Value::Array(items) => items.iter().map(|item| self.places(item)).max().unwrap_or(1),
            _ => 1,
        };
        if self.looks > LOOKS_MAX { self.limit + 1 } else { inner }
    }

    /// Of one place.
    fn ways(&mut self, schema: &'a Value, depth: usize) -> usize {
        self.looks += 1;
        let Value::Object(fields) = schema else { return 1 };
        if depth == DEPTH_MAX || self.looks > LOOKS_MAX {
            return 1;
        }
        let mut ways = 1_usize;
        for key in ["anyOf", "oneOf"] {
            if let Some(Value::Array(branches)) = fields.get(key) {
                let sum: usize = branches
                    .iter()
                    .map(|branch| self.ways(branch, depth + 1))
                    .fold(0, usize::saturating_add);
                ways = ways.saturating_mul(sum.max(1));
            }
        }
        if let Some(Value::Array(items)) = fields.get("allOf") {
            for item in items {
                ways = ways.saturating_mul(self.ways(item, depth + 1));
                if ways > self.limit {
                    return ways;
                }
            }
        }
        let target = fields.get("$ref").and_then(Value::as_str).and_then(|at| at.strip_prefix('#'));
        if let Some(at) = target {
            ways = ways.saturating_mul(self.referred(at, depth + 1));
        }
        ways
    }
}

impl<'a> Count<'a> {
    /// Of what a reference names.
    fn referred(&mut self, at: &'a str, depth: usize) -> usize {
        if let Some(&ways) = self.known.get(at) {
            return ways;
        }
        let Some(target) = self.root.pointer(at) else { return 1 };
        self.known.insert(at, 1);
        let ways = self.ways(target, depth);
        self.known.insert(at, ways);
        ways
    }
}

/// Whether a schema puts others together.
fn merges(fields: &Map<String, Value>) -> bool {
    let has = |key: &&str| fields.contains_key(*key);
    fields.contains_key("allOf")
        || ["anyOf", "oneOf", "$ref"].iter().filter(|key| has(key)).count() > 1
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(schema: &Value) -> usize {
        most(schema, 512)
    }

    #[test]
    fn alternatives_multiply_where_they_are_put_together() {
        let two = json!({"oneOf": [{"const": 1}, {"const": 2}]});
        assert_eq!(of(&json!({"anyOf": [two, two, two]})), 1, "each is one of them");
        assert_eq!(of(&json!({"properties": {"a": two, "b": two}})), 1, "these are two places");
        assert_eq!(of(&json!({"allOf": [two, two, two]})), 8);
        assert_eq!(of(&json!({"allOf": [{"anyOf": [two, two]}, two]})), 8);
        assert_eq!(
            of(&json!({"$defs": {"t": two}, "$ref": "#/$defs/t", "anyOf": [{}, {}, {}]})),
            6
        );
        assert!(of(&json!({"allOf": vec![&two; 40]})) > 512);
        assert!(of(&json!({"items": {"allOf": vec![&two; 40]}})) > 512, "wherever it is");
    }

    #[test]
    fn circles_and_towers_of_references_end() {
        let circle = json!({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {"type": "object"}]}}, "$ref": "#/$defs/a"});
        assert_eq!(of(&circle), 1);
        let tower = |last: Value| {
            let mut defs = Map::from_iter([("40".to_owned(), last)]);
            for level in 0..40 {
                let next = json!({"$ref": format!("#/$defs/{}", level + 1)});
                defs.insert(level.to_string(), json!({"allOf": [next, next]}));
            }
            json!({"$defs": defs, "$ref": "#/$defs/0"})
        };
        let began = std::time::Instant::now();
        assert_eq!(of(&tower(json!({"type": "object"}))), 1);
        assert!(of(&tower(json!({"anyOf": [{}, {}]}))) > 512);
        assert!(began.elapsed() < std::time::Duration::from_secs(1));
    }
}
