//! `json.dumps`, as transformers' `tojson` calls it: what is not ASCII stays, keys keep their order.

use super::args::{Args, count_or, is_set};
use super::value::{Key, TEXT_BYTES_MAX, Value};
use super::{Error, Result, text};

/// Containers inside each other at most.
const DEPTH_MAX: usize = 200;

struct Dumps {
    ascii: bool,
    sort: bool,
    indent: Option<String>,
    item: String,
    key: String,
    out: String,
}

/// The filter `tojson`.
pub fn dumps(value: &Value, args: Args) -> Result<Value> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ascii, indent, separators, sort] = args.bind("tojson", names)?;
    let indent = match indent {
        None | Some(Value::None) => None,
        Some(Value::Str(text)) => Some(text.text.to_string()),
        Some(count) => {
            let count = count_or(Some(count), 0)?;
            Some(" ".repeat(count.min(64)))
        }
    };
    let (mut item, mut key) =
        (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned());
    if let Some(separators) = separators.filter(|given| !matches!(given, Value::None)) {
        match &separators.items()?[..] {
            [Value::Str(first), Value::Str(second)] => {
                (item, key) = (first.text.to_string(), second.text.to_string());
            }
            _ => return Err(Error::failed("separators takes two strings")),
        }
    }
    let (ascii, sort) = (is_set(ascii, false), is_set(sort, false));
    let mut dumps = Dumps { ascii, sort, indent, item, key, out: String::new() };
    dumps.write(value, 0)?;
    Ok(Value::str(dumps.out))
}

/// A value as JSON, as Python writes it by default but for what is not ASCII.
pub fn plain(value: &Value) -> String {
    match dumps(value, Args::default()) {
        Ok(Value::Str(text)) => text.text.to_string(),
        _ => String::new(),
    }
}

impl Dumps {
    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            (0..depth).for_each(|_| self.out.push_str(indent));
        }
    }

    fn write(&mut self, value: &Value, depth: usize) -> Result<()> {
        if depth > DEPTH_MAX {
            return Err(Error::failed(
                "maximum recursion depth exceeded while encoding a JSON object",
            ));
        }
        if self.out.len() > TEXT_BYTES_MAX {
            return Err(Error::failed("the JSON is too long"));
        }
        match value {
            Value::None => self.out.push_str("null"),
            Value::Bool(value) => self.out.push_str(if *value { "true" } else { "false" }),
            Value::Int(value) => self.out.push_str(&value.to_string()),
            Value::Large(digits) => self.out.push_str(digits),
            Value::Float(value) => self.out.push_str(&float(*value)),
            Value::Str(text) => self.string(&text.text),
            Value::Seq(seq)
                if !matches!(
                    seq.kind,
                    super::value::SeqKind::View(_) | super::value::SeqKind::Range
                ) =>
            {
                if seq.items.is_empty() {
                    self.out.push_str("[]");
                    return Ok(());
                }
                self.out.push('[');
                for (at, item) in seq.items.iter().enumerate() {
                    if at > 0 {
                        self.out.push_str(&self.item.clone());
                    }
                    self.line(depth + 1);
                    self.write(item, depth + 1)?;
                }
                self.line(depth);
                self.out.push(']');
            }
            Value::Dict(dict) => {
                if dict.is_empty() {
                    self.out.push_str("{}");
                    return Ok(());
                }
                let mut fields: Vec<(&Key, &Value)> = dict.iter().collect();
                if self.sort {
                    fields.sort_by_key(|(key, _)| text::str(&key.0));
                }
                self.out.push('{');
                for (at, (key, value)) in fields.into_iter().enumerate() {
                    if at > 0 {
                        self.out.push_str(&self.item.clone());
                    }
                    self.line(depth + 1);
                    match &key.0 {
                        Value::Str(text) => self.string(&text.text),
                        Value::Float(number) => self.string(&float(*number)),
                        Value::Bool(value) => self.string(if *value { "true" } else { "false" }),
                        Value::None => self.string("null"),
                        Value::Int(number) => self.string(&number.to_string()),
                        Value::Large(digits) => self.string(digits),
                        other => return Err(not_json(other)),
                    }
                    self.out.push_str(&self.key.clone());
                    self.write(value, depth + 1)?;
                }
                self.line(depth);
                self.out.push('}');
            }
            other => return Err(not_json(other)),
        }
        Ok(())
    }

    fn string(&mut self, text: &str) {
        use std::fmt::Write;
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\x08' => self.out.push_str("\\b"),
                '\x0c' => self.out.push_str("\\f"),
                c if c < ' ' => {
                    let _ = write!(self.out, "\\u{:04x}", c as u32);
                }
                c if self.ascii && (c > '~') => {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

fn float(value: f64) -> String {
    match value {
        value if value.is_nan() => "NaN".to_owned(),
        value if value.is_infinite() => {
            if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
        }
        value => text::float(value),
    }
}

fn not_json(value: &Value) -> Error {
    Error::failed(format!("Object of type {} is not JSON serializable", value.type_name()))
}
