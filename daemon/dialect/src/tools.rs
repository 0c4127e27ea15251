//! The tools of a request, as far as reading calls needs them: names, and which JSON types an argument may have.
//!
//! Owns: reading types out of JSON schemas. Must never: judge a call by its schema, which is the client's part.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// A function that the model may call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// The JSON schema of its arguments; `null` where the request has none.
    pub parameters: Value,
}

/// References that follow references, and schemas inside schemas, up to this depth.
const DEPTH_MAX: u32 = 16;
/// Looks for one tool: at schemas, each as often as it is referred to, where [`PER_LOOK`] values, names or bytes of a name count as
/// one more. What is beyond may be any type.
const LOOKS_MAX: usize = 20_000;
/// Those for all tools of a request.
const ALL_LOOKS_MAX: usize = 100_000;
/// See there.
const PER_LOOK: usize = 16;

/// The JSON types that a value may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Types(u8);

impl Types {
    pub(crate) const STRING: Types = Types(1);
    pub(crate) const NUMBER: Types = Types(2);
    pub(crate) const INTEGER: Types = Types(4);
    pub(crate) const BOOLEAN: Types = Types(8);
    pub(crate) const NULL: Types = Types(16);
    pub(crate) const OBJECT: Types = Types(32);
    pub(crate) const ARRAY: Types = Types(64);
    pub(crate) const ANY: Types = Types(127);

    /// Whether one of the others' types is among them.
    pub(crate) fn has(self, other: Types) -> bool {
        self.0 & other.0 != 0
    }

    pub(crate) fn or(self, other: Types) -> Types {
        Types(self.0 | other.0)
    }

    fn and(self, other: Types) -> Types {
        Types(self.0 & other.0)
    }

    fn named(name: &str) -> Types {
        match name {
            "string" => Types::STRING,
            "number" => Types::NUMBER.or(Types::INTEGER),
            "integer" => Types::INTEGER,
            "boolean" => Types::BOOLEAN,
            "null" => Types::NULL,
            "object" => Types::OBJECT,
            "array" => Types::ARRAY,
            _ => Types::STRING,
        }
    }

    /// The type of a value.
    pub(crate) fn of(value: &Value) -> Types {
        match value {
            Value::Null => Types::NULL,
            Value::Bool(_) => Types::BOOLEAN,
            // 5.0 is an integer in JSON Schema.
            Value::Number(number) if number.is_f64() => match number.as_f64() {
                Some(number) if number.fract() == 0.0 => Types::NUMBER.or(Types::INTEGER),
                _ => Types::NUMBER,
            },
            Value::Number(_) => Types::NUMBER.or(Types::INTEGER),
            Value::String(_) => Types::STRING,
            Value::Array(_) => Types::ARRAY,
            Value::Object(_) => Types::OBJECT,
        }
    }
}

/// All tools of a request.
#[derive(Clone, Debug, Default)]
pub struct Tools {
    by_name: BTreeMap<String, Arguments>,
}

/// The arguments of one.
#[derive(Clone, Debug, Default)]
struct Arguments {
    types: BTreeMap<String, Types>,
    /// Those of arguments that the schema does not name.
    others: Option<Types>,
}

impl Tools {
    /// Reads the schemas. Of two tools of one name the first counts. What a schema does not say, or says in a way that
    /// is not read (a reference to another document), leaves an argument any type.
    pub fn new(tools: &[Tool]) -> Tools {
        Tools::of(tools.iter())
    }

    /// The same.
    pub(crate) fn of<'a>(tools: impl Iterator<Item = &'a Tool>) -> Tools {
        let mut by_name = BTreeMap::new();
        let mut all = ALL_LOOKS_MAX;
        for tool in tools {
            by_name.entry(tool.name.clone()).or_insert_with(|| {
                let mut arguments = Arguments::default();
                let had = LOOKS_MAX.min(all);
                let mut schemas = Schemas { root: &tool.parameters, left: had };
                schemas.arguments(&tool.parameters, 0, &mut arguments);
                all -= had - schemas.left;
                arguments
            });
        }
        Tools { by_name }
    }

    /// Whether one has this name.
    pub fn knows(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// What an argument may be: anything where no schema names it, since templates write what is no string as JSON.
    pub(crate) fn types(&self, tool: &str, argument: &str) -> Types {
        let Some(arguments) = self.by_name.get(tool) else { return Types::ANY };
        let named = arguments.types.get(argument).copied().or(arguments.others);
        named.unwrap_or(Types::ANY)
    }
}

/// The schemas of one tool.
struct Schemas<'a> {
    root: &'a Value,
    /// Looks that are left.
    left: usize,
}

impl<'a> Schemas<'a> {
    /// A schema, if it is one and there is room.
    fn look(&mut self, schema: &'a Value, depth: u32) -> Option<&'a Map<String, Value>> {
        self.left = self.left.checked_sub(1)?;
        schema.as_object().filter(|_| depth < DEPTH_MAX)
    }

    /// Whether there is room for so many values, names or bytes.
    fn has_room(&mut self, count: usize) -> bool {
        self.left = self.left.saturating_sub(count / PER_LOOK);
        self.left > 0
    }

    fn reference(&mut self, schema: &Map<String, Value>) -> Option<&'a Value> {
        let at = schema.get("$ref")?.as_str()?.strip_prefix('#')?;
        if self.has_room(at.len()) { self.root.pointer(at) } else { None }
    }

    /// Reads the arguments that a schema names.
    fn arguments(&mut self, schema: &'a Value, depth: u32, arguments: &mut Arguments) {
        let Some(schema) = self.look(schema, depth) else { return };
        if let Some(target) = self.reference(schema) {
            self.arguments(target, depth + 1, arguments);
        }
        if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
            for (name, schema) in properties {
                let types = match self.has_room(name.len()) {
                    true => self.types(schema, depth + 1),
                    false => Types::ANY,
                };
                let known = arguments.types.entry(name.clone()).or_insert(types);
                *known = known.or(types);
            }
        }
        if let Some(others @ Value::Object(_)) = schema.get("additionalProperties") {
            arguments.others = Some(self.types(others, depth + 1));
        }
        for branches in ["anyOf", "oneOf", "allOf"] {
            for branch in schema.get(branches).and_then(Value::as_array).into_iter().flatten() {
                self.arguments(branch, depth + 1, arguments);
            }
        }
    }

    /// The types that a schema allows, no fewer.
    fn types(&mut self, schema: &'a Value, depth: u32) -> Types {
        let Some(schema) = self.look(schema, depth) else { return Types::ANY };
        let mut allowed = match schema.get("type") {
            Some(Value::String(name)) => Types::named(name),
            Some(Value::Array(names)) if self.has_room(names.len()) => {
                let names = names.iter().filter_map(Value::as_str);
                names.fold(Types(0), |types, name| types.or(Types::named(name)))
            }
            _ => Types::ANY,
        };
        if let Some(target) = self.reference(schema) {
            allowed = allowed.and(self.types(target, depth + 1));
        }
        let constant = schema.get("const").map(std::slice::from_ref);
        let values = constant.or_else(|| schema.get("enum")?.as_array().map(Vec::as_slice));
        if let Some(values) = values.filter(|values| self.has_room(values.len())) {
            let any = values.iter().map(Types::of).fold(Types(0), Types::or);
            allowed = allowed.and(any);
        }
        for branches in ["anyOf", "oneOf"] {
            if let Some(branches) = schema.get(branches).and_then(Value::as_array) {
                let any = branches.iter().map(|branch| self.types(branch, depth + 1));
                allowed = allowed.and(any.fold(Types(0), Types::or));
            }
        }
        for branch in schema.get("allOf").and_then(Value::as_array).into_iter().flatten() {
            allowed = allowed.and(self.types(branch, depth + 1));
        }
        if allowed == Types(0) { Types::ANY } else { allowed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn types_are_those_of_the_schema() {
        let parameters = json!({
            "$defs": {"Id": {"type": "integer"}, "Loop": {"$ref": "#/$defs/Loop"}},
            "properties": {
                "plain": {"type": "string"}, "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "two": {"type": ["number", "null"]}, "id": {"$ref": "#/$defs/Id"}, "loop": {"$ref": "#/$defs/Loop"},
                "kind": {"enum": ["a", "b"]}, "none": {}, "all": {"allOf": [{"type": "array"}]},
            },
            "anyOf": [{"properties": {"extra": {"type": "boolean"}}}],
        });
        let tools = Tools::new(&[Tool { name: "f".into(), parameters }]);
        let types = |name| tools.types("f", name);
        assert_eq!(types("plain"), Types::STRING);
        assert_eq!(types("maybe"), Types::STRING.or(Types::NULL));
        assert_eq!(types("two"), Types::NUMBER.or(Types::INTEGER).or(Types::NULL));
        assert_eq!(types("id"), Types::INTEGER);
        assert_eq!(types("loop"), Types::ANY);
        assert_eq!(types("kind"), Types::STRING);
        assert_eq!(types("none"), Types::ANY);
        assert_eq!(types("all"), Types::ARRAY);
        assert_eq!(types("extra"), Types::BOOLEAN);
        assert_eq!(types("unknown"), Types::ANY);
        assert!(tools.knows("f") && !tools.knows("g"));
    }

    #[test]
    fn schemas_that_refer_to_themselves_many_times_end() {
        let branch = json!({"$ref": "#"});
        let many = json!({"anyOf": vec![branch.clone(); 50], "allOf": vec![branch.clone(); 50],
            "properties": {"a": {"anyOf": vec![branch; 50]}, "b": {"type": "string"}}});
        let began = std::time::Instant::now();
        let tools = Tools::new(&[Tool { name: "f".into(), parameters: many }]);
        assert!(began.elapsed() < std::time::Duration::from_secs(1), "{:?}", began.elapsed());
        assert_eq!(tools.types("f", "a"), Types::ANY);
    }

    #[test]
    fn values_that_are_referred_to_many_times_are_looked_at_to_an_end() {
        let values = json!({"enum": vec![1; 30_000]});
        let (a, b) = (json!({"$ref": "#/$defs/a"}), json!({"$ref": "#/$defs/b"}));
        let parameters = json!({"$defs": {"a": values, "b": {"anyOf": vec![a.clone(); 100]}},
            "properties": {"first": a, "many": {"anyOf": vec![b; 100]}}});
        let tool = |n: usize| Tool { name: format!("f{n}"), parameters: parameters.clone() };
        let tools: Vec<Tool> = (0..20).map(tool).collect();
        let began = std::time::Instant::now();
        let tools = Tools::new(&tools);
        assert!(began.elapsed() < std::time::Duration::from_millis(200), "{:?}", began.elapsed());
        assert!(!tools.types("f0", "first").has(Types::STRING));
        // Beyond the limit of all.
        assert_eq!(tools.types("f19", "first"), Types::ANY);
    }
}
