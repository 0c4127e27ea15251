//! Values as text: Python's `str` and `repr`.

use std::rc::Rc;

use super::Result;
use super::value::{Function, Object, SeqKind, Value, check_text};

/// Containers inside each other that are written out.
pub const DEPTH_MAX: u32 = 100;

/// `str(value)`
pub fn str(value: &Value) -> Rc<str> {
    match value {
        Value::Str(text) => Rc::clone(&text.text),
        Value::Undefined(_) => "".into(),
        other => repr(other).into(),
    }
}

/// Appends `str(value)`.
pub fn write(value: &Value, out: &mut String) {
    match value {
        Value::Str(text) => out.push_str(&text.text),
        Value::Undefined(_) => {}
        other => write_repr(other, 0, out),
    }
}

/// `repr(value)`
pub fn repr(value: &Value) -> String {
    let mut out = String::new();
    write_repr(value, 0, &mut out);
    out
}

/// `ascii(value)`
pub fn ascii(value: &Value) -> String {
    let mut out = String::new();
    for c in repr(value).chars() {
        if c.is_ascii() { out.push(c) } else { escape_code(c, &mut out) }
    }
    out
}

fn escape_code(c: char, out: &mut String) {
    use std::fmt::Write;
    let code = c as u32;
    let _ = match code {
        0..=0xff => write!(out, "\\x{code:02x}"),
        0x100..=0xffff => write!(out, "\\u{code:04x}"),
        _ => write!(out, "\\U{code:08x}"),
    };
}

fn write_repr(value: &Value, depth: u32, out: &mut String) {
    use std::fmt::Write;
    if depth > DEPTH_MAX {
        return out.push_str("...");
    }
    match value {
        Value::Undefined(_) => out.push_str("Undefined"),
        Value::None => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Int(value) => {
            let _ = write!(out, "{value}");
        }
        Value::Large(digits) => out.push_str(digits),
        Value::Float(value) => out.push_str(&float(*value)),
        Value::Str(text) if text.safe => {
            out.push_str("Markup(");
            quote(&text.text, out);
            out.push(')');
        }
        Value::Str(text) => quote(&text.text, out),
        Value::Seq(seq) => {
            let (open, close) = match seq.kind {
                SeqKind::List => ("[", "]"),
                SeqKind::Tuple | SeqKind::Group => {
                    ("(", if seq.items.len() == 1 { ",)" } else { ")" })
                }
                SeqKind::View(name) => {
                    out.push_str(name);
                    ("([", "])")
                }
                SeqKind::Range => {
                    let bound = |at: Option<&Value>| at.and_then(Value::as_int).unwrap_or(0);
                    let (first, last) = (bound(seq.items.first()), bound(seq.items.last()));
                    let step =
                        if seq.items.len() > 1 { bound(seq.items.get(1)) - first } else { 1 };
                    let end = if seq.items.is_empty() { 0 } else { last + step };
                    let _ = match step {
                        1 => write!(out, "range({first}, {end})"),
                        _ => write!(out, "range({first}, {end}, {step})"),
                    };
                    return;
                }
            };
            out.push_str(open);
            for (at, item) in seq.items.iter().enumerate() {
                if at > 0 {
                    out.push_str(", ");
                }
                write_repr(item, depth + 1, out);
            }
            out.push_str(close);
        }
        Value::Dict(dict) => {
            out.push('{');
            for (at, (key, value)) in dict.iter().enumerate() {
                if at > 0 {
                    out.push_str(", ");
                }
                write_repr(&key.0, depth + 1, out);
                out.push_str(": ");
                write_repr(value, depth + 1, out);
            }
            out.push('}');
        }
        Value::Generator(_) => out.push_str("<generator object>"),
        Value::Object(object) => match &**object {
            Object::Namespace(names) => {
                out.push_str("<Namespace {");
                for (at, (name, value)) in names.borrow().iter().enumerate() {
                    if at > 0 {
                        out.push_str(", ");
                    }
                    quote(name, out);
                    out.push_str(": ");
                    write_repr(value, depth + 1, out);
                }
                out.push_str("}>");
            }
            Object::Loop(l) => {
                let _ = write!(out, "<LoopContext {}/{}>", l.at.get() + 1, l.items.len());
            }
            Object::Cycler { .. } => out.push_str("<Cycler>"),
            Object::Joiner { .. } => out.push_str("<Joiner>"),
        },
        Value::Function(function) => match &**function {
            Function::Global(name) => {
                let _ = write!(out, "<function {name}>");
            }
            Function::Method(..) => out.push_str("<built-in method>"),
            Function::Macro(_, _, own) => {
                out.push_str("<Macro ");
                match &*own.name {
                    "" => out.push_str("anonymous"),
                    name => quote(name, out),
                }
                out.push('>');
            }
        },
    }
}

/// A text in quotes, as Python chooses and escapes them.
fn quote(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) => out.push(c),
            c => escape_code(c, out),
        }
    }
    out.push(quote);
}

/// Python's `str.isprintable`, for the characters that matter: neither control, nor a space other than ASCII's, nor
/// of a kind that has no glyph.
pub fn is_printable(c: char) -> bool {
    match c {
        ' ' => true,
        c if c.is_control() || c.is_whitespace() => false,
        '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' => {
            false
        }
        '\u{e000}'..='\u{f8ff}'
        | '\u{feff}'
        | '\u{fff0}'..='\u{fffb}'
        | '\u{fffe}'..='\u{ffff}' => false,
        '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}' => false,
        '\u{e0000}'..='\u{e0fff}' | '\u{f0000}'..='\u{10ffff}' => false,
        _ => true,
    }
}

/// `repr(float)`: the shortest digits that read back the same, in scientific notation when the
/// exponent is below -4 or above 15.
pub fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = value.to_string();
    if plain.contains('.') { plain } else { plain + ".0" }
}

/// HTML's five characters, as markupsafe escapes them.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    out
}

/// A text filled up to a width: `ljust`, `rjust` or `center`.
pub fn pad(s: &str, width: usize, fill: char, how: &str) -> Result<String> {
    check_text(width)?;
    let missing = width.saturating_sub(s.chars().count());
    let left = match how {
        "ljust" => 0,
        "rjust" => missing,
        // As CPython: the odd one goes to the left where the width is odd.
        _ => missing / 2 + (missing & width & 1),
    };
    let fill_with = |count: usize| std::iter::repeat_n(fill, count);
    Ok(fill_with(left).chain(s.chars()).chain(fill_with(missing - left)).collect())
}
