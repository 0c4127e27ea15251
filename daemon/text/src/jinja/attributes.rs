//! Attributes of values that are no items, as Python and Jinja2 have them. Those that would change a value are not
//! there.

use super::value::{Function, Object, SeqKind, Value};

const STRING: [&str; 42] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
];
const STRING_MORE: [&str; 4] = ["translate", "upper", "zfill", "encode"];
const DICT: [&str; 6] = ["copy", "fromkeys", "get", "items", "keys", "values"];
const INT: [&str; 4] = ["as_integer_ratio", "bit_count", "bit_length", "conjugate"];
const LIST: [&str; 3] = ["copy", "count", "index"];
const LOOP: [&str; 2] = ["changed", "cycle"];

/// An attribute that is not an item: a method, or what an object of Jinja2's own has.
pub fn attribute(value: &Value, name: &str) -> Option<Value> {
    let method = || Some(value.method(name));
    match value {
        Value::Str(_) if STRING.contains(&name) || STRING_MORE.contains(&name) => method(),
        Value::Dict(_) if DICT.contains(&name) => method(),
        Value::Seq(seq) => match (seq.kind, name) {
            (SeqKind::Group, "grouper") => seq.items.first().cloned(),
            (SeqKind::Group, "list") => seq.items.get(1).cloned(),
            (SeqKind::List, name) if LIST.contains(&name) => method(),
            (SeqKind::Tuple | SeqKind::Group | SeqKind::Range, "count" | "index") => method(),
            _ => None,
        },
        Value::Int(_) | Value::Bool(_) => match name {
            "real" | "numerator" => value.as_int().map(Value::Int),
            "imag" => Some(Value::Int(0)),
            "denominator" => Some(Value::Int(1)),
            name if INT.contains(&name) => method(),
            _ => None,
        },
        Value::Float(number) => match name {
            "real" => Some(Value::Float(*number)),
            "imag" => Some(Value::Float(0.0)),
            "is_integer" | "conjugate" => method(),
            _ => None,
        },
        Value::Object(object) => match &**object {
            Object::Namespace(names) => names.borrow().get(name).cloned(),
            Object::Loop(_) if LOOP.contains(&name) => method(),
            Object::Loop(l) => {
                let (at, length) = (l.at.get(), l.items.len());
                let whole = |number: usize| Some(Value::Int(number as i128));
                match name {
                    "index" => whole(at + 1),
                    "index0" => whole(at),
                    "revindex" => whole(length - at),
                    "revindex0" => whole(length - at - 1),
                    "first" => Some(Value::Bool(at == 0)),
                    "last" => Some(Value::Bool(at + 1 == length)),
                    "length" => whole(length),
                    "depth" => whole(l.depth + 1),
                    "depth0" => whole(l.depth),
                    "previtem" => Some(match at.checked_sub(1) {
                        Some(before) => l.items[before].clone(),
                        None => Value::undefined("there is no previous item; it"),
                    }),
                    "nextitem" => Some(match l.items.get(at + 1) {
                        Some(next) => next.clone(),
                        None => Value::undefined("there is no next item; it"),
                    }),
                    _ => None,
                }
            }
            Object::Cycler { items, at } => match name {
                "current" => items.get(at.get()).cloned(),
                "next" | "reset" => method(),
                _ => None,
            },
            Object::Joiner { .. } => None,
        },
        Value::Function(function) => match &**function {
            Function::Macro(_, _, own) => match name {
                "name" if own.name.is_empty() => Some(Value::None),
                "name" => Some(Value::str(&*own.name)),
                "arguments" => {
                    let names = own.parameters.iter().map(|(name, _)| Value::str(&**name));
                    Some(Value::tuple(names.collect()))
                }
                "catch_kwargs" => Some(Value::Bool(own.uses.kwargs)),
                "catch_varargs" => Some(Value::Bool(own.uses.varargs)),
                "caller" => Some(Value::Bool(own.uses.caller)),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}
