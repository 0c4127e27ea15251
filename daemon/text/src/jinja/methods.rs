//! Attributes and methods of values, as Python has them. Those that would change a value are not there.

use std::rc::Rc;

use super::args::Args;
use super::run::Run;
use super::value::{Function, Key, Object, Seq, SeqKind, Value, field};
use super::{Error, Result, ops, strings};

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
const DICT: [&str; 5] = ["copy", "get", "items", "keys", "values"];
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
        Value::Int(number) => match name {
            "real" | "numerator" => Some(Value::Int(*number)),
            "imag" => Some(Value::Int(0)),
            "denominator" => Some(Value::Int(1)),
            "bit_length" => method(),
            _ => None,
        },
        Value::Float(number) => match name {
            "real" => Some(Value::Float(*number)),
            "is_integer" => method(),
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
        Value::Function(function) => match (&**function, name) {
            (
                Function::Macro(..),
                "name" | "arguments" | "catch_kwargs" | "catch_varargs" | "caller",
            ) => method(),
            _ => None,
        },
        _ => None,
    }
}

/// Calls a method.
pub fn call(run: &mut Run<'_>, value: &Value, name: &str, args: Args) -> Result<Value> {
    match value {
        Value::Str(text) => strings::call(run, text, name, args),
        Value::Dict(dict) => match name {
            "get" => {
                let [key, default] = args.bind("get", ["key", "default"])?;
                let Some(key) = key else { return Err(args_missing("get")) };
                Ok(ops::get(dict, &key)?.or(default).unwrap_or(Value::None))
            }
            "copy" => Ok(value.clone()),
            "keys" => view("dict_keys", dict.keys().map(|key| key.0.clone()).collect()),
            "values" => view("dict_values", dict.values().cloned().collect()),
            _ => {
                let pair =
                    |(key, value): (&Key, &Value)| Value::tuple(vec![key.0.clone(), value.clone()]);
                view("dict_items", dict.iter().map(pair).collect())
            }
        },
        Value::Seq(seq) => match name {
            "copy" => Ok(value.clone()),
            "count" => {
                let [item] = args.bind("count", ["value"])?;
                let item = item.ok_or_else(|| args_missing("count"))?;
                Ok(Value::Int(seq.items.iter().filter(|found| **found == item).count() as i128))
            }
            _ => {
                let [item, start, stop] = args.bind("index", ["value", "start", "stop"])?;
                let item = item.ok_or_else(|| args_missing("index"))?;
                let bound = |at: Option<Value>, default: usize| match at.and_then(|at| at.as_int())
                {
                    Some(at) if at < 0 => (at + seq.items.len() as i128).max(0) as usize,
                    Some(at) => at as usize,
                    None => default,
                };
                let (from, to) = (bound(start, 0), bound(stop, seq.items.len()));
                let places = (from..to.min(seq.items.len())).find(|at| seq.items[*at] == item);
                let missing = || {
                    let item = super::text::repr(&item);
                    Error::failed(format!("{item} is not in list"))
                };
                places.map(|at| Value::Int(at as i128)).ok_or_else(missing)
            }
        },
        Value::Int(number) => {
            Ok(Value::Int(i128::from(128 - number.unsigned_abs().leading_zeros())))
        }
        Value::Float(number) => Ok(Value::Bool(number.fract() == 0.0)),
        Value::Object(object) => match (&**object, name) {
            (Object::Loop(l), "changed") => {
                let values = args.positional;
                let changed = l.changed.borrow().as_ref() != Some(&values);
                *l.changed.borrow_mut() = Some(values);
                Ok(Value::Bool(changed))
            }
            (Object::Loop(l), _) => {
                let values = args.positional;
                if values.is_empty() {
                    return Err(Error::failed("no items for cycling given"));
                }
                Ok(values[l.at.get() % values.len()].clone())
            }
            (Object::Cycler { items, at }, "next") => {
                let current = items.get(at.get()).cloned().unwrap_or(Value::None);
                at.set((at.get() + 1) % items.len().max(1));
                Ok(current)
            }
            (Object::Cycler { at, .. }, _) => {
                at.set(0);
                Ok(Value::None)
            }
            _ => Err(Error::failed(format!("'{name}' cannot be called"))),
        },
        _ => Err(Error::failed(format!("'{name}' cannot be called"))),
    }
}

pub fn args_missing(name: &str) -> Error {
    Error::failed(format!("{name}() misses an argument"))
}

fn view(name: &'static str, items: Vec<Value>) -> Result<Value> {
    Ok(Value::Seq(Rc::new(Seq { items, kind: SeqKind::View(name) })))
}

/// A part of a value by a path such as `a.b.0`, as filters take it.
pub fn by_path(value: &Value, path: &Value, default: Option<&Value>) -> Result<Value> {
    let Some(text) = path.as_str() else { return ops::item(value, path) };
    let mut found = value.clone();
    for part in text.split('.') {
        let is_index = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let index =
            part.parse().ok().filter(|_| is_index).map_or_else(|| Value::str(part), Value::Int);
        // As Jinja2 looks it up here: items before attributes.
        found = match (&found, &index) {
            (Value::Dict(dict), Value::Str(name)) if field(dict, &name.text).is_some() => {
                field(dict, &name.text).cloned().unwrap_or(Value::None)
            }
            _ => ops::item(&found, &index)?,
        };
        if let (true, Some(default)) = (found.is_undefined(), default) {
            found = default.clone();
        }
    }
    Ok(found)
}
