//! Jinja2's filters: those of single values. Those of lists are in `lists`, of texts in `prose`.

use minisgl_proto::integers;

use super::args::{Args, int_or, is_set, wrong};
use super::run::Run;
use super::value::{Dict, Key, Str, Value};
use super::{Error, Result, attributes, format, json, lists, names, prose, text};

/// `value | name(args)`
pub fn apply(run: &mut Run<'_>, name: &str, value: Value, args: Args) -> Result<Value> {
    run.pay(1)?;
    match name {
        "abs" => match &value {
            Value::Float(number) => Ok(Value::Float(number.abs())),
            Value::Large(digits) => Ok(Value::int(digits.trim_start_matches('-'))),
            other => {
                let number = other.as_int().and_then(i128::checked_abs);
                number.map(Value::Int).ok_or_else(|| wrong("abs", other))
            }
        },
        "attr" => {
            let [name] = args.bind("attr", ["name"])?;
            let name = text::str(&name.unwrap_or(Value::None));
            let missing = || {
                Value::undefined(&format!(
                    "'{} object' has no attribute '{name}'; it",
                    value.type_name()
                ))
            };
            Ok(attributes::attribute(&value, &name).unwrap_or_else(missing))
        }
        "d" | "default" => {
            let [default, boolean] = args.bind("default", ["default_value", "boolean"])?;
            let replaces = value.is_undefined() || is_set(boolean, false) && !value.is_true();
            Ok(if replaces { default.unwrap_or_else(|| Value::str("")) } else { value })
        }
        "e" | "escape" => Ok(match &value {
            Value::Str(text) if text.safe => value,
            other => Value::safe(text::escape(&text::str(other))),
        }),
        "forceescape" => Ok(Value::safe(text::escape(&text::str(&value)))),
        "safe" => Ok(Value::safe(text::str(&value))),
        "string" => Ok(match &value {
            Value::Str(_) => value,
            other => Value::str(text::str(other)),
        }),
        "float" => {
            let [default] = args.bind("float", ["default"])?;
            let default = default.unwrap_or(Value::Float(0.0));
            if value.is_undefined() {
                return Err(value.undefined_error());
            }
            Ok(match &value {
                Value::Str(text) => parse_float(&text.text).map_or(default, Value::Float),
                Value::Large(_) => Value::Float(value.as_float().ok_or_else(Error::too_large)?),
                other => other.as_float().map_or(default, Value::Float),
            })
        }
        "int" => {
            let [default, base] = args.bind("int", ["default", "base"])?;
            let default = default.unwrap_or(Value::Int(0));
            if value.is_undefined() {
                return Err(value.undefined_error());
            }
            // Asked of texts alone, and then what is no number is as no text of one.
            let base = base.map_or(Some(10), |base| base.as_int());
            Ok(match &value {
                Value::Str(text) => base
                    .and_then(|base| parse_int(&text.text, base))
                    .or_else(|| {
                        let number = parse_float(&text.text).filter(|n| n.is_finite());
                        number.map(|n| Value::Int(n as i128))
                    })
                    .unwrap_or(default),
                Value::Large(_) => value,
                Value::Float(number) if number.is_finite() => Value::Int(*number as i128),
                other => other.as_int().map_or(default, Value::Int),
            })
        }
        "round" => round(&value, args),
        "filesizeformat" => {
            let [binary] = args.bind("filesizeformat", ["binary"])?;
            let number = match &value {
                Value::Str(text) => parse_float(&text.text),
                other => other.as_float(),
            };
            Ok(Value::str(file_size(
                number.ok_or_else(|| wrong("filesizeformat", &value))?,
                is_set(binary, false),
            )))
        }
        "format" => {
            let Args { positional, keyword } = args;
            let by_name = || {
                let field = |(name, value): &(std::sync::Arc<str>, Value)| {
                    (Key(Value::str(&**name)), value.clone())
                };
                Value::dict(keyword.iter().map(field).collect::<Dict>())
            };
            let given = if keyword.is_empty() { Value::tuple(positional) } else { by_name() };
            let own = match &value {
                Value::Str(text) => Value::Str(text.clone()),
                other => Value::str(text::str(other)),
            };
            format::percent(&own, &given)
        }
        "items" => {
            let [] = args.bind("items", [])?;
            match &value {
                Value::Undefined(_) => Ok(Value::generator(Vec::new())),
                Value::Dict(dict) => {
                    let pair = |(key, value): (&Key, &Value)| {
                        Value::tuple(vec![key.0.clone(), value.clone()])
                    };
                    Ok(Value::generator(dict.iter().map(pair).collect()))
                }
                _ => Err(Error::failed("Can only get item pairs from a mapping.")),
            }
        }
        "count" | "length" => Ok(Value::Int(value.length()? as i128)),
        "pprint" => Ok(Value::str(text::repr(&lists::with_sorted_keys(&value, 0)))),
        "tojson" => json::dumps(&value, args),
        "map" => map(run, &value, args),
        _ if lists::has(name) => lists::apply(run, name, value, args),
        _ if names::is_filter(name) => {
            let own = match &value {
                Value::Str(text) => text.clone(),
                other => Str { text: text::str(other), safe: false },
            };
            run.pay(own.text.len())?;
            prose::apply(name, &own, &value, args)
        }
        other => Err(Error::failed(format!("No filter named '{other}'."))),
    }
}

fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim().replace('_', "");
    let plain = text.trim_start_matches(['+', '-']).to_ascii_lowercase();
    let fits = plain.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        || matches!(plain.as_str(), "inf" | "infinity" | "nan");
    if fits { text.parse().ok() } else { None }
}

fn parse_int(text: &str, base: i128) -> Option<Value> {
    let text = text.trim().replace('_', "").to_ascii_lowercase();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(&text)),
    };
    let prefixed = |prefix: &str, own: i128| {
        (base == own || base == 0).then(|| digits.strip_prefix(prefix)).flatten()
    };
    let (digits, base) = if let Some(digits) = prefixed("0x", 16) {
        (digits, 16)
    } else if let Some(digits) = prefixed("0o", 8) {
        (digits, 8)
    } else if let Some(digits) = prefixed("0b", 2) {
        (digits, 2)
    } else {
        (digits, if base == 0 { 10 } else { base })
    };
    let base = u32::try_from(base).ok().filter(|base| (2..=36).contains(base))?;
    if digits.starts_with(['+', '-']) {
        return None;
    }
    if let Ok(number) = i128::from_str_radix(digits, base) {
        return Some(Value::Int(if negative { -number } else { number }));
    }
    let is_decimal = base == 10 && digits.bytes().all(|byte| byte.is_ascii_digit());
    if !is_decimal || digits.is_empty() || digits.len() > integers::DIGITS_MAX {
        return None;
    }
    let sign = if negative { "-" } else { "" };
    Some(Value::int(&format!("{sign}{}", digits.trim_start_matches('0'))))
}

fn round(value: &Value, args: Args) -> Result<Value> {
    let [precision, method] = args.bind("round", ["precision", "method"])?;
    let precision = int_or(precision, 0)?.clamp(-300, 300) as i32;
    if matches!(value, Value::Large(_)) {
        return Err(Error::too_large());
    }
    let number = value.as_float().ok_or_else(|| wrong("round", value))?;
    let method = method.map_or_else(|| "common".into(), |method| text::str(&method));
    let scale = 10f64.powi(precision);
    if let (Some(number), "common", ..0) = (value.as_int(), &*method, precision) {
        return Ok(Value::Int(round_to_ten(number, precision.unsigned_abs())));
    }
    let rounded = match &*method {
        // Python's round(): the nearest decimal, from the exact value.
        "common" if (0..=300).contains(&precision) => {
            format!("{number:.*}", precision as usize).parse().unwrap_or(number)
        }
        "common" => (number * scale).round_ties_even() / scale,
        // Of whole numbers, which have no negative zero.
        "ceil" => ((number * scale).ceil() + 0.0) / scale,
        "floor" => ((number * scale).floor() + 0.0) / scale,
        _ => return Err(Error::failed("method must be common, ceil or floor")),
    };
    // A whole number stays one where Python's round() keeps it.
    Ok(match (value.as_int(), &*method) {
        (Some(number), "common") => Value::Int(number),
        _ => Value::Float(rounded),
    })
}

/// Whole tens, hundreds and so on; half goes to the even one.
fn round_to_ten(number: i128, zeros: u32) -> i128 {
    let Some(unit) = 10_i128.checked_pow(zeros) else { return 0 };
    let (low, rest) = (number.div_euclid(unit), number.rem_euclid(unit));
    let up = match (rest * 2).cmp(&unit) {
        std::cmp::Ordering::Equal => low % 2 != 0,
        order => order.is_gt(),
    };
    (low + i128::from(up)).saturating_mul(unit)
}

fn file_size(bytes: f64, binary: bool) -> String {
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    let units = match binary {
        true => ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"],
        false => ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"],
    };
    if bytes == 1.0 {
        return "1 Byte".to_owned();
    }
    if bytes < base {
        return format!("{} Bytes", bytes as i128);
    }
    let mut at = 0;
    while at + 1 < units.len() && bytes >= base.powi(at as i32 + 2) {
        at += 1;
    }
    format!("{:.1} {}", bytes / base.powi(at as i32 + 1), units[at])
}

fn map(run: &mut Run<'_>, value: &Value, mut args: Args) -> Result<Value> {
    // As Jinja2: what is false has no items, `none` among it.
    let items = if value.is_true() { value.items()? } else { Vec::new() };
    if args.positional.is_empty() {
        let [attribute, default] = args.bind("map", ["attribute", "default"])?;
        let Some(attribute) = attribute else {
            return Err(Error::failed("map requires a filter argument"));
        };
        let found = items.iter().map(|item| lists::by(item, Some(&attribute), default.as_ref()));
        return Ok(Value::generator(found.collect::<Result<_>>()?));
    }
    let name = text::str(&args.positional.remove(0));
    let mut out = Vec::with_capacity(items.len());
    for item in items {
        let own = Args { positional: args.positional.clone(), keyword: args.keyword.clone() };
        out.push(apply(run, &name, item, own)?);
    }
    Ok(Value::generator(out))
}
