//! Python's operators.

use std::cmp::Ordering;
use std::rc::Rc;

use super::ast::{Binary, Compare};
use super::value::{Seq, SeqKind, Str, Value, check_items, check_text, field, whole_part};
use super::{Error, Result, attributes, format, text};

fn unsupported(op: &str, a: &Value, b: &Value) -> Error {
    if a.is_undefined() {
        return a.undefined_error();
    }
    if b.is_undefined() {
        return b.undefined_error();
    }
    let (a, b) = (a.type_name(), b.type_name());
    Error::failed(format!("unsupported operand type(s) for {op}: '{a}' and '{b}'"))
}

pub fn binary(op: Binary, a: &Value, b: &Value) -> Result<Value> {
    match op {
        Binary::Add => add(a, b),
        Binary::Mul => multiply(a, b),
        Binary::Mod if matches!(a, Value::Str(_)) => format::percent(a, b),
        _ => number(op, a, b),
    }
}

fn add(a: &Value, b: &Value) -> Result<Value> {
    match (a, b) {
        (Value::Str(x), Value::Str(y)) => join(x, y),
        (Value::Str(_), other) if !other.is_undefined() => Err(Error::failed(format!(
            "can only concatenate str (not \"{}\") to str",
            other.type_name()
        ))),
        (Value::Seq(x), Value::Seq(y)) if x.kind == y.kind && adds(x.kind) => {
            check_items(x.items.len() + y.items.len())?;
            let items = x.items.iter().chain(&y.items).cloned().collect();
            Ok(Value::Seq(Rc::new(Seq { items, kind: x.kind })))
        }
        _ => number(Binary::Add, a, b),
    }
}

fn adds(kind: SeqKind) -> bool {
    matches!(kind, SeqKind::List | SeqKind::Tuple)
}

/// Two texts as one; next to `Markup` the other is escaped.
fn join(a: &Str, b: &Str) -> Result<Value> {
    check_text(a.text.len() + b.text.len())?;
    let safe = a.safe || b.safe;
    let part = |s: &Str| -> Rc<str> {
        if safe && !s.safe { text::escape(&s.text).into() } else { Rc::clone(&s.text) }
    };
    let joined: Rc<str> = format!("{}{}", part(a), part(b)).into();
    Ok(Value::Str(Str { text: joined, safe }))
}

fn multiply(a: &Value, b: &Value) -> Result<Value> {
    let times = |count: i128| usize::try_from(count.max(0)).unwrap_or(usize::MAX);
    match (a, b) {
        (Value::Str(s), n) | (n, Value::Str(s)) if n.as_int().is_some() => {
            let count = times(n.as_int().unwrap_or(0));
            check_text(s.text.len().saturating_mul(count))?;
            let text = s.text.repeat(if s.text.is_empty() { 0 } else { count });
            Ok(Value::Str(Str { text: text.into(), safe: s.safe }))
        }
        (Value::Seq(s), n) | (n, Value::Seq(s)) if n.as_int().is_some() && adds(s.kind) => {
            let count = times(n.as_int().unwrap_or(0));
            check_items(s.items.len().saturating_mul(count))?;
            let count = if s.items.is_empty() { 0 } else { count };
            let items = (0..count).flat_map(|_| s.items.iter().cloned()).collect();
            Ok(Value::Seq(Rc::new(Seq { items, kind: s.kind })))
        }
        _ => number(Binary::Mul, a, b),
    }
}

fn sign(op: Binary) -> &'static str {
    match op {
        Binary::Add => "+",
        Binary::Sub => "-",
        Binary::Mul => "*",
        Binary::Div => "/",
        Binary::FloorDiv => "//",
        Binary::Mod => "%",
        Binary::Pow => "** or pow()",
    }
}

fn number(op: Binary, a: &Value, b: &Value) -> Result<Value> {
    let by_zero = || Error::failed("division by zero");
    if let (Some(x), Some(y)) = (a.as_int(), b.as_int()) {
        let whole = match op {
            Binary::Add => x.checked_add(y),
            Binary::Sub => x.checked_sub(y),
            Binary::Mul => x.checked_mul(y),
            Binary::FloorDiv | Binary::Mod | Binary::Div if y == 0 => return Err(by_zero()),
            Binary::FloorDiv => Some(floor_div(x, y)),
            Binary::Mod => Some(x - floor_div(x, y) * y),
            Binary::Div => return Ok(Value::Float(x as f64 / y as f64)),
            Binary::Pow if y < 0 && x == 0 => return Err(by_zero()),
            Binary::Pow if y < 0 => return Ok(Value::Float((x as f64).powf(y as f64))),
            Binary::Pow => u32::try_from(y).ok().and_then(|y| x.checked_pow(y)),
        };
        return whole.map(Value::Int).ok_or_else(Error::too_large);
    }
    if matches!(a, Value::Large(_)) || matches!(b, Value::Large(_)) {
        return Err(Error::too_large());
    }
    let (Some(x), Some(y)) = (a.as_float(), b.as_float()) else {
        return Err(unsupported(sign(op), a, b));
    };
    Ok(Value::Float(match op {
        Binary::Add => x + y,
        Binary::Sub => x - y,
        Binary::Mul => x * y,
        Binary::Div | Binary::FloorDiv | Binary::Mod if y == 0.0 => return Err(by_zero()),
        Binary::Div => x / y,
        Binary::FloorDiv => float_div_mod(x, y).0,
        Binary::Mod => float_div_mod(x, y).1,
        Binary::Pow if x == 0.0 && y < 0.0 => return Err(by_zero()),
        Binary::Pow if x < 0.0 && y.is_finite() && y.fract() != 0.0 => {
            return Err(Error::failed("complex numbers are not supported"));
        }
        Binary::Pow => match x.powf(y) {
            power if power.is_infinite() && x.is_finite() && y.is_finite() => {
                return Err(Error::failed("Numerical result out of range"));
            }
            power => power,
        },
    }))
}

/// Quotient and rest as CPython has them (`float_divmod` of floatobject.c).
fn float_div_mod(x: f64, y: f64) -> (f64, f64) {
    let mut rest = x % y;
    let mut quotient = (x - rest) / y;
    if rest == 0.0 {
        rest = 0.0_f64.copysign(y);
    } else if (y < 0.0) != (rest < 0.0) {
        rest += y;
        quotient -= 1.0;
    }
    if quotient == 0.0 {
        return (0.0_f64.copysign(x / y), rest);
    }
    let floor = quotient.floor();
    (if quotient - floor > 0.5 { floor + 1.0 } else { floor }, rest)
}

fn floor_div(x: i128, y: i128) -> i128 {
    let quotient = x.wrapping_div(y);
    if x % y != 0 && (x < 0) != (y < 0) { quotient - 1 } else { quotient }
}

pub fn negative(value: &Value) -> Result<Value> {
    match value {
        Value::Float(value) => Ok(Value::Float(-value)),
        Value::Large(digits) => Ok(match digits.strip_prefix('-') {
            Some(positive) => Value::int(positive),
            None => Value::int(&format!("-{digits}")),
        }),
        other => match other.as_int().and_then(i128::checked_neg) {
            Some(value) => Ok(Value::Int(value)),
            None if other.is_undefined() => Err(other.undefined_error()),
            None => {
                Err(Error::failed(format!("bad operand type for unary -: '{}'", other.type_name())))
            }
        },
    }
}

pub fn positive(value: &Value) -> Result<Value> {
    match value {
        Value::Float(_) | Value::Large(_) => Ok(value.clone()),
        other => match other.as_int() {
            Some(value) => Ok(Value::Int(value)),
            None if other.is_undefined() => Err(other.undefined_error()),
            None => {
                Err(Error::failed(format!("bad operand type for unary +: '{}'", other.type_name())))
            }
        },
    }
}

pub fn compare(op: Compare, a: &Value, b: &Value) -> Result<bool> {
    let (sign, fits): (&str, fn(Ordering) -> bool) = match op {
        Compare::Eq => return Ok(a == b),
        Compare::Ne => return Ok(a != b),
        Compare::In => return contains(b, a),
        Compare::NotIn => return Ok(!contains(b, a)?),
        Compare::Lt => ("<", Ordering::is_lt),
        Compare::Le => ("<=", Ordering::is_le),
        Compare::Gt => (">", Ordering::is_gt),
        Compare::Ge => (">=", Ordering::is_ge),
    };
    match order(a, b) {
        Ok(order) => Ok(order.is_some_and(fits)),
        Err(()) if a.is_undefined() => Err(a.undefined_error()),
        Err(()) if b.is_undefined() => Err(b.undefined_error()),
        Err(()) => {
            let (a, b) = (a.type_name(), b.type_name());
            Err(Error::failed(format!(
                "'{sign}' not supported between instances of '{a}' and '{b}'"
            )))
        }
    }
}

/// Python's order; `None` for what has none (`nan`), an error for what cannot be compared.
pub fn order(a: &Value, b: &Value) -> std::result::Result<Option<Ordering>, ()> {
    match (a, b) {
        (Value::Str(x), Value::Str(y)) => Ok(Some(x.text.cmp(&y.text))),
        (Value::Seq(x), Value::Seq(y)) => {
            for (x, y) in x.items.iter().zip(&y.items) {
                if x != y {
                    return order(x, y);
                }
            }
            Ok(Some(x.items.len().cmp(&y.items.len())))
        }
        (Value::Large(x), Value::Large(y)) => Ok(Some(order_of_digits(x, y))),
        (Value::Large(x), Value::Float(y)) if y.is_finite() => {
            Ok(Some(order_of_digits(x, &whole_part(*y))))
        }
        (Value::Float(x), Value::Large(y)) if x.is_finite() => {
            Ok(Some(order_of_digits(&whole_part(*x), y)))
        }
        (Value::Large(_), Value::Float(y)) => Ok(0.0.partial_cmp(y)),
        (Value::Float(x), Value::Large(_)) => Ok(x.partial_cmp(&0.0)),
        (Value::Large(x), y) if y.as_int().is_some() => Ok(Some(order_of_digits(x, "0"))),
        (x, Value::Large(y)) if x.as_int().is_some() => Ok(Some(order_of_digits("0", y))),
        _ => match (a.as_int(), b.as_int()) {
            (Some(x), Some(y)) => Ok(Some(x.cmp(&y))),
            _ => match (a.as_float(), b.as_float()) {
                (Some(x), Some(y)) => Ok(x.partial_cmp(&y)),
                _ => Err(()),
            },
        },
    }
}

/// The order of two integers, from their digits.
fn order_of_digits(x: &str, y: &str) -> Ordering {
    let longer = |x: &str, y: &str| x.len().cmp(&y.len()).then_with(|| x.cmp(y));
    match (x.strip_prefix('-'), y.strip_prefix('-')) {
        (None, None) => longer(x, y),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (Some(x), Some(y)) => longer(y, x),
    }
}

/// `item in container`
pub fn contains(container: &Value, item: &Value) -> Result<bool> {
    match container {
        Value::Str(text) => match item {
            Value::Str(part) => Ok(text.text.contains(&*part.text)),
            other if other.is_undefined() => Err(other.undefined_error()),
            other => Err(Error::failed(format!(
                "'in <string>' requires string as left operand, not {}",
                other.type_name()
            ))),
        },
        Value::Dict(dict) => Ok(dict.contains_key(&item.key()?)),
        Value::Seq(seq) => Ok(seq.items.contains(item)),
        Value::Undefined(_) => Ok(false),
        Value::Generator(left) => Ok(left.borrow_mut().any(|found| found == *item)),
        other => {
            Err(Error::failed(format!("argument of type '{}' is not iterable", other.type_name())))
        }
    }
}

/// `value.name`: a method or an attribute, else an item.
pub fn attribute(value: &Value, name: &str) -> Result<Value> {
    if value.is_undefined() {
        return Err(value.undefined_error());
    }
    if let Some(found) = attributes::attribute(value, name) {
        return Ok(found);
    }
    let found = match value {
        Value::Dict(dict) => field(dict, name).cloned(),
        _ => None,
    };
    Ok(found.unwrap_or_else(|| missing(value, name)))
}

fn missing(value: &Value, name: &str) -> Value {
    match value {
        Value::None => Value::undefined(&format!("'None' has no attribute '{name}'; it")),
        other => Value::undefined(&format!(
            "'{} object' has no attribute '{name}'; it",
            other.type_name()
        )),
    }
}

/// `value[index]`: an item, else an attribute.
pub fn item(value: &Value, index: &Value) -> Result<Value> {
    if value.is_undefined() {
        return Err(value.undefined_error());
    }
    let found = match value {
        Value::Dict(dict) => index.key().ok().and_then(|key| dict.get(&key).cloned()),
        Value::Seq(seq) if !matches!(seq.kind, SeqKind::View(_)) => {
            place(index, seq.items.len()).map(|at| seq.items[at].clone())
        }
        Value::Str(text) => place(index, text.text.chars().count())
            .and_then(|at| text.text.chars().nth(at))
            .map(|c| Value::str(c.to_string())),
        _ => None,
    };
    if let Some(found) = found {
        return Ok(found);
    }
    match index.as_str() {
        Some(name) => {
            Ok(attributes::attribute(value, name).unwrap_or_else(|| missing(value, name)))
        }
        None => Ok(Value::undefined(&format!(
            "{} object has no element {}; it",
            value.type_name(),
            text::repr(index)
        ))),
    }
}

fn place(index: &Value, length: usize) -> Option<usize> {
    let index = index.as_int()?;
    let at = if index < 0 { index + length as i128 } else { index };
    usize::try_from(at).ok().filter(|at| *at < length)
}

/// `value[start:stop:step]`
pub fn slice(value: &Value, bounds: [Option<i128>; 3]) -> Result<Value> {
    if value.is_undefined() {
        return Err(value.undefined_error());
    }
    let [start, stop, step] = bounds;
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(Error::failed("slice step cannot be zero"));
    }
    match value {
        // The usual case needs no list of characters.
        Value::Str(text) if step == 1 && text.text.is_ascii() => {
            let (from, to) = bounds_of(start, stop, text.text.len());
            let part: &str = &text.text[from..to.max(from)];
            Ok(Value::Str(Str { text: part.into(), safe: text.safe }))
        }
        Value::Str(text) => {
            let chars: Vec<char> = text.text.chars().collect();
            let part: String = places(start, stop, step, chars.len()).map(|at| chars[at]).collect();
            Ok(Value::Str(Str { text: part.into(), safe: text.safe }))
        }
        Value::Seq(seq) if !matches!(seq.kind, SeqKind::View(_)) => {
            let places = places(start, stop, step, seq.items.len());
            let items = places.map(|at| seq.items[at].clone()).collect();
            let kind = if seq.kind == SeqKind::Group { SeqKind::Tuple } else { seq.kind };
            Ok(Value::Seq(Rc::new(Seq { items, kind })))
        }
        Value::Dict(_) => Err(Error::failed("unhashable type: 'slice'")),
        other => Err(Error::failed(format!("'{}' object is not subscriptable", other.type_name()))),
    }
}

fn bounds_of(start: Option<i128>, stop: Option<i128>, length: usize) -> (usize, usize) {
    let length = length as i128;
    let place = |at: i128| (if at < 0 { at + length } else { at }).clamp(0, length) as usize;
    (start.map_or(0, place), stop.map_or(length as usize, place))
}

fn places(
    start: Option<i128>,
    stop: Option<i128>,
    step: i128,
    length: usize,
) -> impl Iterator<Item = usize> {
    let length = length as i128;
    let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let place = |at: i128| (if at < 0 { at + length } else { at }).clamp(low, high);
    let from = start.map_or(if step > 0 { low } else { high }, place);
    let to = stop.map_or(if step > 0 { high } else { low }, place);
    let mut at = from;
    std::iter::from_fn(move || {
        let inside = if step > 0 { at < to } else { at > to };
        let found = inside.then_some(at as usize);
        at = at.saturating_add(step);
        found
    })
}
