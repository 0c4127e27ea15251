//! `'%s' % x`, and how one value is written by a format.

use super::value::{SeqKind, Str, Value, check_text, field};
use super::{Error, Result, text};

/// How one value is written.
#[derive(Debug, Default)]
struct Spec {
    fill: Option<char>,
    align: Option<char>,
    sign: Option<char>,
    /// `z`: what is rounded to zero has no sign.
    keeps_no_negative_zero: bool,
    alternate: bool,
    zero: bool,
    width: usize,
    group: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

/// Digits that a width or a precision may ask for.
const WIDTH_MAX: usize = 1 << 20;

/// `text % value`
pub fn percent(format: &Value, value: &Value) -> Result<Value> {
    let Value::Str(format) = format else { return Ok(Value::None) };
    let values = match value {
        Value::Seq(seq) if is_tuple(seq.kind) => seq.items.clone(),
        other => vec![other.clone()],
    };
    let mut next = values.iter();
    let mut used_name = false;
    let mut out = String::new();
    let mut rest: &str = &format.text;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        let mut named = None;
        if let Some(after) = rest.strip_prefix('(') {
            let Some((name, after)) = after.split_once(')') else {
                return Err(Error::failed("incomplete format key"));
            };
            let Value::Dict(dict) = value else {
                return Err(Error::failed("format requires a mapping"));
            };
            let missing = || Error::failed(format!("there is no '{name}' to format"));
            named = Some(field(dict, name).cloned().ok_or_else(missing)?);
            used_name = true;
            rest = after;
        }
        let missing = || Error::failed("not enough arguments for format string");
        let mut spec = Spec::default();
        rest = percent_flags(rest, &mut spec);
        if let Some(after) = rest.strip_prefix('*') {
            let width = next.next().and_then(Value::as_int).ok_or_else(missing)?;
            if width < 0 {
                spec.align = Some('<');
            }
            spec.width = usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX);
            rest = after;
        } else {
            (spec.width, rest) = digits(rest);
        }
        if let Some(after) = rest.strip_prefix('.') {
            let (precision, after) = digits(after);
            spec.precision = Some(precision);
            rest = after;
        }
        rest = rest.trim_start_matches(['l', 'h', 'L']);
        let Some(kind) = rest.chars().next() else {
            return Err(Error::failed("incomplete format"));
        };
        rest = &rest[kind.len_utf8()..];
        let value = match named {
            Some(value) => value,
            None => next.next().cloned().ok_or_else(missing)?,
        };
        let written = percent_one(kind, &value, spec)?;
        let escape = format.safe && !matches!(&value, Value::Str(text) if text.safe);
        out.push_str(&if escape { text::escape(&written) } else { written });
        check_text(out.len())?;
    }
    out.push_str(rest);
    // What has items by key or place may be left over, but no tuple.
    let leaves = match value {
        Value::Dict(_) | Value::Undefined(_) => true,
        Value::Seq(seq) => !is_tuple(seq.kind) && !matches!(seq.kind, SeqKind::View(_)),
        _ => false,
    };
    if next.next().is_some() && !used_name && !leaves {
        return Err(Error::failed("not all arguments converted during string formatting"));
    }
    Ok(Value::Str(Str { text: out.into(), safe: format.safe }))
}

fn is_tuple(kind: SeqKind) -> bool {
    matches!(kind, SeqKind::Tuple | SeqKind::Group)
}

fn percent_flags<'s>(mut rest: &'s str, spec: &mut Spec) -> &'s str {
    while let Some(flag) = rest.chars().next().filter(|c| matches!(c, '-' | '+' | ' ' | '#' | '0'))
    {
        match flag {
            '-' => spec.align = Some('<'),
            '#' => spec.alternate = true,
            '0' => spec.zero = true,
            sign => spec.sign = Some(sign),
        }
        rest = &rest[1..];
    }
    rest
}

fn digits(text: &str) -> (usize, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (text[..end].parse().unwrap_or(if end == 0 { 0 } else { usize::MAX }), &text[end..])
}

fn percent_one(kind: char, value: &Value, mut spec: Spec) -> Result<String> {
    let default_right = |spec: &mut Spec| {
        spec.align.get_or_insert('>');
    };
    match kind {
        's' | 'r' | 'a' => {
            let written = match kind {
                's' => text::str(value).to_string(),
                'r' => text::repr(value),
                _ => text::ascii(value),
            };
            default_right(&mut spec);
            spec.zero = false;
            aligned(cut(&written, spec.precision), &spec, '>')
        }
        'c' => {
            let c = match value.as_int() {
                Some(code) => u32::try_from(code).ok().and_then(char::from_u32).map(String::from),
                None => value.as_str().filter(|s| s.chars().count() == 1).map(str::to_owned),
            };
            aligned(c.ok_or_else(|| Error::failed("%c requires int or char"))?, &spec, '>')
        }
        'd' | 'i' | 'u' | 'x' | 'X' | 'o' if matches!(value, Value::Large(_)) => {
            Err(Error::too_large())
        }
        'd' | 'i' | 'u' => {
            let Some(number) = value.as_int().or(value.as_float().map(|number| number as i128))
            else {
                return Err(number_needed(kind, value));
            };
            spec.kind = Some('d');
            whole(number, &spec)
        }
        'x' | 'X' | 'o' => {
            let number = value.as_int().ok_or_else(|| number_needed(kind, value))?;
            spec.kind = Some(kind);
            whole(number, &spec)
        }
        'f' | 'F' | 'e' | 'E' | 'g' | 'G' => {
            let number = value.as_float().ok_or_else(|| number_needed(kind, value))?;
            spec.kind = Some(kind);
            float(number, &spec)
        }
        other => Err(Error::failed(format!("unsupported format character '{other}'"))),
    }
}

fn number_needed(kind: char, value: &Value) -> Error {
    Error::failed(format!("%{kind} format: a number is required, not {}", value.type_name()))
}

fn cut(text: &str, precision: Option<usize>) -> String {
    precision.map_or_else(|| text.to_owned(), |most| text.chars().take(most).collect())
}

/// `format(value, spec)`
pub fn one(value: &Value, text: &str) -> Result<String> {
    if text.is_empty() {
        return Ok(text::str(value).to_string());
    }
    let spec = parse(text)?;
    match value {
        Value::Str(own) => string(&own.text, spec),
        Value::Float(number) => float(*number, &spec),
        Value::Large(_) => Err(Error::too_large()),
        other => match other.as_int() {
            Some(number) if matches!(spec.kind, Some('f' | 'F' | 'e' | 'E' | 'g' | 'G' | '%')) => {
                float(number as f64, &spec)
            }
            Some(_) if spec.precision.is_some() => {
                Err(Error::failed("Precision not allowed in integer format specifier"))
            }
            Some(number) => whole(number, &spec),
            None => Err(Error::failed(format!(
                "unsupported format string passed to {}.__format__",
                other.type_name()
            ))),
        },
    }
}

fn string(own: &str, mut spec: Spec) -> Result<String> {
    let numbers_only = spec.sign.is_some()
        || spec.keeps_no_negative_zero
        || spec.alternate
        || spec.group.is_some()
        || spec.align == Some('=')
        || !matches!(spec.kind, None | Some('s'));
    if numbers_only {
        return Err(Error::failed("a format of numbers for a str"));
    }
    if spec.zero {
        spec.fill.get_or_insert('0');
    }
    aligned(cut(own, spec.precision), &spec, '<')
}

fn parse(text: &str) -> Result<Spec> {
    let mut spec = Spec::default();
    let chars: Vec<char> = text.chars().collect();
    let is_align = |at: usize| chars.get(at).is_some_and(|c| matches!(c, '<' | '>' | '^' | '='));
    let mut at = 0;
    if is_align(1) {
        (spec.fill, spec.align, at) = (Some(chars[0]), Some(chars[1]), 2);
    } else if is_align(0) {
        (spec.align, at) = (Some(chars[0]), 1);
    }
    let rest: String = chars[at..].iter().collect();
    let mut rest = rest.as_str();
    if let Some(sign) = rest.chars().next().filter(|c| matches!(c, '+' | '-' | ' ')) {
        spec.sign = Some(sign);
        rest = &rest[1..];
    }
    if let Some(after) = rest.strip_prefix('z') {
        spec.keeps_no_negative_zero = true;
        rest = after;
    }
    if let Some(after) = rest.strip_prefix('#') {
        spec.alternate = true;
        rest = after;
    }
    if let Some(after) = rest.strip_prefix('0') {
        spec.zero = true;
        rest = after;
    }
    (spec.width, rest) = digits(rest);
    if let Some(group) = rest.chars().next().filter(|c| matches!(c, ',' | '_')) {
        spec.group = Some(group);
        rest = &rest[1..];
    }
    if let Some(after) = rest.strip_prefix('.') {
        let (precision, after) = digits(after);
        spec.precision = Some(precision);
        rest = after;
    }
    let mut kinds = rest.chars();
    spec.kind = kinds.next();
    if kinds.next().is_some() {
        return Err(Error::failed("Invalid format specifier"));
    }
    Ok(spec)
}

fn aligned(written: String, spec: &Spec, default: char) -> Result<String> {
    let align = match spec.align.unwrap_or(default) {
        '<' => "ljust",
        '^' => "format",
        _ => "rjust",
    };
    if spec.width > WIDTH_MAX {
        return Err(Error::failed(format!("a width of more than {WIDTH_MAX}")));
    }
    if align == "format" {
        // Unlike `str.center`: the odd one goes to the right.
        let missing = spec.width.saturating_sub(written.chars().count());
        let fill = spec.fill.unwrap_or(' ').to_string();
        return Ok(format!(
            "{}{written}{}",
            fill.repeat(missing / 2),
            fill.repeat(missing - missing / 2)
        ));
    }
    text::pad(&written, spec.width, spec.fill.unwrap_or(' '), align)
}

/// Sign, prefix and digits, filled between sign and digits if asked to.
fn numeric(negative: bool, prefix: &str, digits: &str, spec: &Spec) -> Result<String> {
    let sign = match (negative, spec.sign) {
        (true, _) => "-",
        (false, Some('+')) => "+",
        (false, Some(' ')) => " ",
        _ => "",
    };
    let (head, digits) = (format!("{sign}{prefix}"), grouped(digits, spec.group));
    let fills_inside = spec.align == Some('=') || (spec.zero && spec.align.is_none());
    if fills_inside {
        if spec.width > WIDTH_MAX {
            return Err(Error::failed(format!("a width of more than {WIDTH_MAX}")));
        }
        if let (Some(_), true) = (spec.group, spec.fill.is_none() && spec.zero) {
            return Ok(head.clone()
                + &zeros_grouped(digits, spec.width.saturating_sub(head.len()), spec.group));
        }
        let missing = spec.width.saturating_sub(head.len() + digits.len());
        let fill = spec.fill.unwrap_or(if spec.zero { '0' } else { ' ' });
        return Ok(format!("{head}{}{digits}", fill.to_string().repeat(missing)));
    }
    aligned(format!("{head}{digits}"), spec, '>')
}

/// Digits with zeros before them up to this width, all in groups.
fn zeros_grouped(digits: String, width: usize, group: Option<char>) -> String {
    let own: String = digits.chars().filter(|c| Some(*c) != group).collect();
    // Three of four places are digits of the whole part.
    let mut zeros = width.saturating_sub(digits.len()) * 3 / 4;
    loop {
        let out = grouped(&format!("{}{own}", "0".repeat(zeros)), group);
        if out.len() >= width {
            return out;
        }
        zeros += 1;
    }
}

fn grouped(digits: &str, group: Option<char>) -> String {
    let Some(group) = group else { return digits.to_owned() };
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let (whole, rest) = digits.split_at(end);
    let mut out = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at) % 3 == 0 {
            out.push(group);
        }
        out.push(digit);
    }
    out + rest
}

fn whole(number: i128, spec: &Spec) -> Result<String> {
    if spec.keeps_no_negative_zero {
        return Err(Error::failed("a format of floats for a whole number"));
    }
    let size = number.unsigned_abs();
    let (prefix, digits) = match spec.kind {
        None | Some('d' | 'n') => ("", size.to_string()),
        Some('x') => ("0x", format!("{size:x}")),
        Some('X') => ("0X", format!("{size:X}")),
        Some('o') => ("0o", format!("{size:o}")),
        Some('b') => ("0b", format!("{size:b}")),
        Some('c') => {
            let c = u32::try_from(number).ok().and_then(char::from_u32);
            let c = c.ok_or_else(|| Error::failed("%c arg not in range"))?;
            return aligned(c.to_string(), spec, '<');
        }
        Some(other) => {
            return Err(Error::failed(format!("Unknown format code '{other}' for a number")));
        }
    };
    numeric(number < 0, if spec.alternate { prefix } else { "" }, &digits, spec)
}

fn float(number: f64, spec: &Spec) -> Result<String> {
    let precision = spec.precision.unwrap_or(6).min(512);
    let size = number.abs();
    let digits = match spec.kind {
        _ if number.is_nan() => "nan".to_owned(),
        _ if number.is_infinite() => "inf".to_owned(),
        Some('f' | 'F') => format!("{size:.precision$}"),
        Some('%') => format!("{:.precision$}%", size * 100.0),
        Some('e') => exponent(size, precision),
        Some('E') => exponent(size, precision).to_uppercase(),
        None if spec.precision.is_none() => text::float(size),
        None | Some('g' | 'G' | 'n') => general(size, precision.max(1), spec.kind.is_none()),
        Some(other) => {
            return Err(Error::failed(format!("Unknown format code '{other}' for a float")));
        }
    };
    let digits = if spec.kind == Some('G') { digits.to_uppercase() } else { digits };
    let zero = !digits.contains(|c: char| c.is_ascii_digit() && c != '0');
    let unsigned = number.is_nan() || zero && spec.keeps_no_negative_zero && number.is_finite();
    numeric(number.is_sign_negative() && !unsigned, "", &digits, spec)
}

fn exponent(size: f64, precision: usize) -> String {
    let written = format!("{size:.precision$e}");
    let (digits, exponent) = written.split_once('e').unwrap_or((&written, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

fn general(size: f64, precision: usize, keeps_point: bool) -> String {
    let written = format!("{size:.*e}", precision - 1);
    let power: i32 = written.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    let trim = |digits: &str| match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => digits.to_owned(),
    };
    if power < -4 || power >= precision as i32 {
        let written = exponent(size, precision - 1);
        let (digits, tail) = written.split_once('e').unwrap_or((&written, "+00"));
        return format!("{}e{tail}", trim(digits));
    }
    let places = usize::try_from(precision as i32 - 1 - power).unwrap_or(0);
    let digits = trim(&format!("{size:.places$}"));
    if keeps_point && !digits.contains('.') { digits + ".0" } else { digits }
}
