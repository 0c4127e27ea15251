//! `'{}'.format(x)`.

use std::sync::Arc;

use super::value::{Str, Value, check_text};
use super::{Error, Result, format, ops, text};

/// `text.format(*args, **kwargs)`
pub fn brace(own: &Str, positional: &[Value], keyword: &[(Arc<str>, Value)]) -> Result<Value> {
    let mut auto = 0;
    let out = brace_text(&own.text, positional, keyword, &mut auto, own.safe, 0)?;
    Ok(Value::Str(Str { text: out.into(), safe: own.safe }))
}

fn brace_text(
    source: &str,
    positional: &[Value],
    keyword: &[(Arc<str>, Value)],
    auto: &mut usize,
    safe: bool,
    depth: u32,
) -> Result<String> {
    if depth > 2 {
        return Err(Error::failed("Max string recursion exceeded"));
    }
    let mut out = String::new();
    let mut rest = source;
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            out.push_str(brace);
            rest = after;
            continue;
        }
        if brace == "}" {
            return Err(Error::failed("Single '}' encountered in format string"));
        }
        let mut open = 1;
        let end = rest.find(|c| {
            open += match c {
                '{' => 1,
                '}' => -1,
                _ => 0,
            };
            open == 0
        });
        let Some(end) = end else {
            return Err(Error::failed("Single '{' encountered in format string"));
        };
        let field = &rest[..end];
        rest = &rest[end + 1..];
        let (name, spec) = field.split_once(':').unwrap_or((field, ""));
        let (name, conversion) = match name.split_once('!') {
            Some((name, conversion)) => (name, conversion),
            None => (name, ""),
        };
        let value = lookup(name, positional, keyword, auto)?;
        let spec = brace_text(spec, positional, keyword, auto, false, depth + 1)?;
        let value = match conversion {
            "" => value,
            "s" => Value::str(text::str(&value)),
            "r" => Value::str(text::repr(&value)),
            "a" => Value::str(text::ascii(&value)),
            other => return Err(Error::failed(format!("Unknown conversion specifier {other}"))),
        };
        let written = format::one(&value, &spec)?;
        let escape = safe && !matches!(&value, Value::Str(text) if text.safe);
        out.push_str(&if escape { text::escape(&written) } else { written });
        check_text(out.len())?;
    }
    out.push_str(rest);
    Ok(out)
}

fn lookup(
    name: &str,
    positional: &[Value],
    keyword: &[(Arc<str>, Value)],
    auto: &mut usize,
) -> Result<Value> {
    let end = name.find(['.', '[']).unwrap_or(name.len());
    let (first, mut path) = name.split_at(end);
    let missing = || Error::failed(format!("there is no '{first}' to format"));
    let mut value = if first.is_empty() {
        *auto += 1;
        positional.get(*auto - 1).cloned().ok_or_else(missing)?
    } else if let Ok(index) = first.parse::<usize>() {
        positional.get(index).cloned().ok_or_else(missing)?
    } else {
        keyword
            .iter()
            .find(|(known, _)| **known == *first)
            .map(|(_, v)| v.clone())
            .ok_or_else(missing)?
    };
    while !path.is_empty() {
        if let Some(rest) = path.strip_prefix('.') {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            value = ops::attribute(&value, &rest[..end])?;
            path = &rest[end..];
        } else if let Some((index, rest)) = path[1..].split_once(']') {
            let index = index.parse().map_or_else(|_| Value::str(index), Value::Int);
            value = ops::item(&value, &index)?;
            path = rest;
        } else {
            return Err(Error::failed("Missing ']' in format string"));
        }
    }
    Ok(value)
}
