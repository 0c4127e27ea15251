//! Jinja2's tests: `x is ...`.

use super::args::{Args, args_missing};
use super::ast::{Binary, Compare};
use super::run::Run;
use super::value::{SeqKind, Value};
use super::{Error, Result, names, ops};

/// `value is name(args)`
pub fn check(run: &mut Run<'_>, name: &str, value: &Value, args: Args) -> Result<bool> {
    run.pay(1)?;
    let alone = |args: Args| args.bind(name, []).map(|[]: [Option<Value>; 0]| ());
    let compare = |op: Compare, args: Args| {
        let [other] = args.bind(name, ["other"])?;
        ops::compare(op, value, &other.ok_or_else(|| args_missing(name))?)
    };
    let rest = |by: &Value| ops::binary(Binary::Mod, value, by);
    match name {
        "eq" | "==" | "equalto" => return compare(Compare::Eq, args),
        "ne" | "!=" => return compare(Compare::Ne, args),
        "lt" | "<" | "lessthan" => return compare(Compare::Lt, args),
        "le" | "<=" => return compare(Compare::Le, args),
        "gt" | ">" | "greaterthan" => return compare(Compare::Gt, args),
        "ge" | ">=" => return compare(Compare::Ge, args),
        "in" => return compare(Compare::In, args),
        "divisibleby" => {
            let [by] = args.bind(name, ["num"])?;
            return Ok(rest(&by.ok_or_else(|| args_missing(name))?)? == Value::Int(0));
        }
        "sameas" => {
            let [other] = args.bind(name, ["other"])?;
            return Ok(same(value, &other.ok_or_else(|| args_missing(name))?));
        }
        _ => alone(args)?,
    }
    Ok(match name {
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_) | Value::Large(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => matches!(value, Value::Large(_)) || value.as_float().is_some(),
        "string" => matches!(value, Value::Str(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        "iterable" => value.is_iterable(),
        // What has a length and items by index.
        "sequence" => match value {
            Value::Str(_) | Value::Dict(_) => true,
            // An undefined value has a length, and its `__getitem__` is found as its class's.
            Value::Undefined(_) => true,
            Value::Seq(seq) => !matches!(seq.kind, SeqKind::View(_)),
            _ => false,
        },
        "callable" => match value {
            Value::Function(_) | Value::Undefined(_) => true,
            Value::Object(object) => matches!(
                &**object,
                super::value::Object::Joiner { .. } | super::value::Object::Loop(_)
            ),
            _ => false,
        },
        "escaped" => matches!(value, Value::Str(text) if text.safe),
        "odd" => rest(&Value::Int(2))? == Value::Int(1),
        "even" => rest(&Value::Int(2))? == Value::Int(0),
        "lower" => {
            let text = super::text::str(value);
            text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase)
        }
        "upper" => {
            let text = super::text::str(value);
            text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase)
        }
        "filter" => value.as_str().is_some_and(names::is_filter),
        "test" => value.as_str().is_some_and(names::is_test),
        other => return Err(Error::failed(format!("No test named '{other}'."))),
    })
}

/// Python's `is`.
fn same(a: &Value, b: &Value) -> bool {
    use std::rc::Rc;
    match (a, b) {
        (Value::Seq(a), Value::Seq(b)) => Rc::ptr_eq(a, b),
        (Value::Dict(a), Value::Dict(b)) => Rc::ptr_eq(a, b),
        (Value::Str(a), Value::Str(b)) => a.text == b.text,
        _ => std::mem::discriminant(a) == std::mem::discriminant(b) && a == b,
    }
}
