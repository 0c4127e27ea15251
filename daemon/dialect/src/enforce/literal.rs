//! The rules of values in a notation that is not JSON: Python's literals, and Gemma 4's.
//!
//! ```text
//!   city="Paris", days=[1, 2], deep={"a": True}          city:<|"|>Paris<|"|>,days:[1,2],deep:{a:true}
//! ```
//!
//! Types, fields, and texts to choose from are enforced; lengths, bounds and patterns are not. Fields come in the schema's order.
//!
//! Owns: what a schema means in them. Must never: write more than [`PARTS_MAX`] parts or [`RULES_DEEP_MAX`] rules inside rules, since
//! compiling them takes of a stack.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::lark::{Lark, string};
use super::schema::{ALL_LOOKS_MAX, ANY, DEPTH_MAX, Field, Fields, fields, looks, spend, target};

/// Parts of all schemas of a request, where 16 bytes of a value to choose count as one.
const PARTS_MAX: usize = 20_000;
/// Rules inside rules.
const RULES_DEEP_MAX: usize = 1_000;

const TOO_MANY: &str = "a schema of too many parts";
const QUOTE: &str = "<|\"|>";
const INTEGER: &str = "/-?(0|[1-9][0-9]{0,17})/";
const NUMBER: &str = r"/-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?([eE][+\-]?[0-9]{1,2})?/";
const NAME: &str = "/[A-Za-z_][A-Za-z0-9_]{0,63}/";

/// A way to write values.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Notation {
    Python,
    Gemma,
}

/// Writes values of one request.
pub(super) struct Literals {
    notation: Notation,
    left: usize,
    /// Looks for fields that are left.
    looks: usize,
    /// Rules of what was referred to, of the tool at hand.
    references: HashMap<String, String>,
    any: Option<String>,
}

impl Literals {
    pub(super) fn new(notation: Notation) -> Literals {
        let references = HashMap::new();
        Literals { notation, left: PARTS_MAX, looks: ALL_LOOKS_MAX, references, any: None }
    }

    /// The arguments of a tool: in braces, or by keyword and without anything around them.
    pub(super) fn arguments(
        &mut self,
        root: &Value,
        lark: &mut Lark<'_>,
    ) -> Result<String, String> {
        self.references.clear();
        let object = root.as_object().ok_or("no schema of an object")?;
        let fields = fields(root, object, &mut self.looks)?;
        self.fields(root, &fields, self.notation == Notation::Python, 0, lark)
    }

    fn take(&mut self, parts: usize) -> Result<(), String> {
        self.left = self.left.checked_sub(parts).ok_or(TOO_MANY)?;
        Ok(())
    }

    fn is_python(&self) -> bool {
        self.notation == Notation::Python
    }

    fn value(
        &mut self,
        root: &Value,
        schema: &Value,
        depth: (usize, usize),
        lark: &mut Lark<'_>,
    ) -> Result<String, String> {
        let (nested, rules) = depth;
        self.take(1)?;
        // Its words are those that whoever asks next is told.
        lark.check()?;
        if rules > RULES_DEEP_MAX {
            return Err("a schema that is too deep".to_owned());
        }
        let Value::Object(schema) = schema else { return Ok(self.any(lark)) };
        if nested == DEPTH_MAX {
            return Ok(self.any(lark));
        }
        let depth = (nested + 1, rules + 1);
        if let Some(Value::String(reference)) = schema.get("$ref") {
            self.take(looks(reference) - 1)?;
            if let Some(name) = self.references.get(reference) {
                return Ok(name.clone());
            }
            let Some(target) = target(root, reference) else { return Ok(self.any(lark)) };
            let name = lark.reserve();
            self.references.insert(reference.clone(), name.clone());
            // A reference that leads to itself allows nothing, and so anything may stand there.
            let body = match target.get("$ref") {
                Some(Value::String(next)) if self.references.contains_key(next) => self.any(lark),
                _ => self.value(root, target, depth, lark)?,
            };
            lark.define(&name, &body);
            return Ok(name);
        }
        let one = schema.get("const").map(std::slice::from_ref);
        if let Some(values) = one.or_else(|| schema.get("enum")?.as_array().map(Vec::as_slice)) {
            let mut bytes = self.left * 16;
            let fits = values.iter().try_for_each(|value| {
                bytes = bytes.checked_sub(16)?;
                spend(value, &mut bytes)
            });
            fits.ok_or(TOO_MANY)?;
            self.left = bytes / 16;
            let values: Result<Vec<String>, String> =
                values.iter().map(|value| self.constant(value, lark)).collect();
            return Ok(lark.rule(values?.join(" | ")));
        }
        match schema.get("type") {
            Some(Value::String(name)) => self.typed(root, name, schema, depth, lark),
            Some(Value::Array(names)) => {
                self.take(names.len())?;
                let names = names.iter().filter_map(Value::as_str);
                let all: Result<Vec<String>, String> =
                    names.map(|name| self.typed(root, name, schema, depth, lark)).collect();
                Ok(lark.rule(all?.join(" | ")))
            }
            _ => self.untyped(root, schema, depth, lark),
        }
    }

    fn untyped(
        &mut self,
        root: &Value,
        schema: &Map<String, Value>,
        depth: (usize, usize),
        lark: &mut Lark<'_>,
    ) -> Result<String, String> {
        let branches = ["anyOf", "oneOf"].into_iter().find_map(|key| schema.get(key)?.as_array());
        if schema.contains_key("properties") {
            return self.typed(root, "object", schema, depth, lark);
        }
        if schema.contains_key("items") {
            return self.typed(root, "array", schema, depth, lark);
        }
        if let Some(branches) = branches.filter(|branches| !branches.is_empty()) {
            let all: Result<Vec<String>, String> =
                branches.iter().map(|branch| self.value(root, branch, depth, lark)).collect();
            return Ok(lark.rule(all?.join(" | ")));
        }
        match schema.get("allOf").and_then(Value::as_array).map(Vec::as_slice) {
            Some([only]) => self.value(root, only, depth, lark),
            Some([first, ..]) => {
                let objects = fields(root, schema, &mut self.looks)?;
                if objects.named.is_empty() {
                    return self.value(root, first, depth, lark);
                }
                self.object(root, &objects, depth, lark)
            }
            _ => Ok(self.any(lark)),
        }
    }

    fn typed(
        &mut self,
        root: &Value,
        name: &str,
        schema: &Map<String, Value>,
        depth: (usize, usize),
        lark: &mut Lark<'_>,
    ) -> Result<String, String> {
        Ok(match name {
            "string" => self.string(lark),
            "integer" => lark.terminal(INTEGER.to_owned()),
            "number" => lark.terminal(NUMBER.to_owned()),
            "boolean" => format!("({} | {})", self.word("true"), self.word("false")),
            "null" => self.word("null"),
            "array" => {
                let item = match schema.get("items") {
                    Some(items) => self.value(root, items, depth, lark)?,
                    None => self.any(lark),
                };
                let least = schema.get("minItems").and_then(Value::as_u64).unwrap_or(0);
                self.list(&item, least > 0, lark)
            }
            "object" => {
                let mut fields = fields(root, schema, &mut self.looks)?;
                if fields.named.is_empty() && !schema.contains_key("additionalProperties") {
                    fields.others = Some(&ANY);
                }
                self.object(root, &fields, depth, lark)?
            }
            _ => self.any(lark),
        })
    }

    fn object(
        &mut self,
        root: &Value,
        all: &Fields<'_>,
        depth: (usize, usize),
        lark: &mut Lark<'_>,
    ) -> Result<String, String> {
        self.nested_fields(root, all, false, depth, lark)
    }

    fn fields(
        &mut self,
        root: &Value,
        all: &Fields<'_>,
        by_keyword: bool,
        rules: usize,
        lark: &mut Lark<'_>,
    ) -> Result<String, String> {
        self.nested_fields(root, all, by_keyword, (0, rules), lark)
    }

    /// Fields, each with or without a separator before it: a rule for what may follow each of them.
    fn nested_fields(
        &mut self,
        root: &Value,
        all: &Fields<'_>,
        by_keyword: bool,
        (nested, rules): (usize, usize),
        lark: &mut Lark<'_>,
    ) -> Result<String, String> {
        let separator = string(if self.is_python() { ", " } else { "," });
        let between = string(match (self.is_python(), by_keyword) {
            (true, true) => "=",
            (true, false) => ": ",
            (false, _) => ":",
        });
        let mut written = Vec::new();
        for (at, Field { name, schema, required }) in all.named.iter().enumerate() {
            let value = self.value(root, schema, (nested + 1, rules + at + 1), lark)?;
            let key = self.key(name, by_keyword, lark)?;
            written.push((format!("{key} {between} {value}"), *required));
        }
        // From the end: what follows where something stands before it, and where nothing does.
        let (mut behind, mut first) = (string(""), string(""));
        if let Some(schema) = all.others {
            let value = self.value(root, schema, (nested + 1, rules + written.len() + 1), lark)?;
            let key = match by_keyword || !self.is_python() {
                true => lark.terminal(NAME.to_owned()),
                false => self.string(lark),
            };
            let other = lark.rule(format!("{key} {between} {value}"));
            behind = lark.rule(format!("({separator} {other})*"));
            first = lark.rule(format!("({other} {behind})?"));
        }
        for (field, required) in written.iter().rev() {
            let field = lark.rule(field.clone());
            let (with, alone) =
                (format!("{separator} {field} {behind}"), format!("{field} {behind}"));
            if *required {
                (behind, first) = (lark.rule(with), lark.rule(alone));
            } else {
                first = lark.rule(format!("{alone} | {first}"));
                behind = lark.rule(format!("{with} | {behind}"));
            }
        }
        Ok(if by_keyword { first } else { format!("\"{{\" {first} \"}}\"") })
    }

    fn key(&self, name: &str, by_keyword: bool, lark: &Lark<'_>) -> Result<String, String> {
        let mut chars = name.chars();
        let begins = chars.next().is_some_and(|char| char.is_ascii_alphabetic() || char == '_');
        let plain = begins && chars.all(|char| char.is_ascii_alphanumeric() || char == '_');
        match self.notation {
            _ if name.len() > 200 => {
                Err(format!("an argument {name:.40?}.., whose name is too long"))
            }
            Notation::Python if !by_keyword => Ok(string(&string(name))),
            _ if plain => Ok(string(name)),
            Notation::Gemma if !name.contains(QUOTE) && !name.is_empty() && name.trim() == name => {
                Ok(format!("{0} {1} {0}", lark.text(QUOTE), string(name)))
            }
            _ => Err(format!("an argument {name:?}, whose name its notation cannot write")),
        }
    }

    fn constant(&self, value: &Value, lark: &Lark<'_>) -> Result<String, String> {
        let pair = |key: &str, value: &Value| {
            let between = string(if self.is_python() { ": " } else { ":" });
            Ok(format!("{} {between} {}", self.key(key, false, lark)?, self.constant(value, lark)?))
        };
        let join = |all: Result<Vec<String>, String>, begin: &str, end: &str| {
            let separator = string(if self.is_python() { ", " } else { "," });
            Ok(format!("\"{begin}\" {} \"{end}\"", all?.join(&format!(" {separator} "))))
        };
        match value {
            Value::Null => Ok(self.word("null")),
            Value::Bool(value) => Ok(self.word(if *value { "true" } else { "false" })),
            Value::Number(number) => Ok(string(&number.to_string())),
            Value::String(text) if self.is_python() => Ok(string(&string(text))),
            Value::String(text) if text.contains(QUOTE) => {
                Err(format!("a text {text:.40?} that its notation cannot write"))
            }
            Value::String(text) => Ok(format!("{0} {1} {0}", lark.text(QUOTE), string(text))),
            Value::Array(items) => {
                join(items.iter().map(|item| self.constant(item, lark)).collect(), "[", "]")
            }
            Value::Object(fields) => {
                join(fields.iter().map(|(key, value)| pair(key, value)).collect(), "{", "}")
            }
        }
    }

    fn word(&self, word: &str) -> String {
        string(match word {
            "true" if self.is_python() => "True",
            "false" if self.is_python() => "False",
            "null" if self.is_python() => "None",
            other => other,
        })
    }

    fn string(&self, lark: &mut Lark<'_>) -> String {
        if self.is_python() {
            let of =
                |quote: &str| format!(r#"{quote}([^{quote}\\\x00-\x1f]|\\[{quote}\\nt])*{quote}"#);
            return lark.terminal(format!("/{}|{}/", of("\""), of("'")));
        }
        let quote = lark.text(QUOTE);
        let text = lark.until(&[], QUOTE);
        lark.rule(format!("{quote} {text}"))
    }

    fn list(&self, item: &str, least_one: bool, lark: &mut Lark<'_>) -> String {
        let separator = string(if self.is_python() { ", " } else { "," });
        let items = lark.rule(format!("{item} ({separator} {item})*"));
        let maybe = if least_one { "" } else { "?" };
        format!("\"[\" {items}{maybe} \"]\"")
    }

    /// Any value.
    fn any(&mut self, lark: &mut Lark<'_>) -> String {
        if let Some(any) = &self.any {
            return any.clone();
        }
        let any = lark.reserve();
        self.any = Some(any.clone());
        let between = string(if self.is_python() { ": " } else { ":" });
        let separator = string(if self.is_python() { ", " } else { "," });
        let text = self.string(lark);
        let key = if self.is_python() { text.clone() } else { lark.terminal(NAME.to_owned()) };
        let pair = format!("{key} {between} {any}");
        let list = self.list(&any, false, lark);
        let words = ["true", "false", "null"].map(|word| self.word(word)).join(" | ");
        let number = lark.terminal(NUMBER.to_owned());
        let object = format!("\"{{\" ({pair} ({separator} {pair})*)? \"}}\"");
        lark.define(&any, &format!("{text} | {number} | {words} | {list} | {object}"));
        any
    }
}
