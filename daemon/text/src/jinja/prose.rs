//! Jinja2's filters of texts.

use super::args::{Args, count_or, int_or, is_set, text_of, wrong};
use super::case::capitalize;
use super::strings::{lines, replace, stripped};
use super::value::{Str, Value, check_text};
use super::{Error, Result, text};

/// `own` is the text of `value`.
pub fn apply(name: &str, own: &Str, value: &Value, args: Args) -> Result<Value> {
    let s: &str = &own.text;
    let plain = |args: Args| args.bind(name, []).map(|[]: [Option<Value>; 0]| ());
    let made = |text: String| {
        check_text(text.len())?;
        Ok(Value::Str(Str { text: text.into(), safe: own.safe }))
    };
    match name {
        "upper" => plain(args).and_then(|()| made(s.to_uppercase())),
        "lower" => plain(args).and_then(|()| made(s.to_lowercase())),
        "capitalize" => plain(args).and_then(|()| made(capitalize(s))),
        "title" => plain(args).and_then(|()| made(title(s))),
        "trim" => {
            let [chars] = args.bind("trim", ["chars"])?;
            let chars = chars.filter(|chars| !matches!(chars, Value::None));
            made(stripped(s, chars, true, true)?.to_owned())
        }
        "center" => {
            let [width] = args.bind("center", ["width"])?;
            made(text::pad(s, count_or(width, 80)?, ' ', "center")?)
        }
        "replace" => {
            let [old, new, most] = args.bind("replace", ["old", "new", "count"])?;
            let word =
                |value: Option<Value>| value.map_or_else(|| "".into(), |value| text::str(&value));
            Ok(Value::str(replace(s, &word(old), &word(new), int_or(most, -1)?)?))
        }
        "indent" | "wordwrap" if !matches!(value, Value::Str(_)) => Err(wrong(name, value)),
        "indent" => indent(s, args).and_then(made),
        "truncate" => {
            let [length, kill, end, leeway] =
                args.bind("truncate", ["length", "killwords", "end", "leeway"])?;
            let (length, leeway) = (count_or(length, 255)?, count_or(leeway, 5)?);
            let end = end.map_or_else(|| "...".into(), |end| text::str(&end));
            let size = end.chars().count();
            if length < size {
                return Err(Error::failed(format!("expected length >= {size}, got {length}")));
            }
            if value.length()? <= length.saturating_add(leeway) {
                return Ok(value.clone());
            }
            if !matches!(value, Value::Str(_)) {
                return Err(wrong(name, value));
            }
            let head: String = s.chars().take(length - size).collect();
            let head = match head.rfind(' ') {
                Some(at) if !is_set(kill, false) => &head[..at],
                _ => &head,
            };
            made(format!("{head}{end}"))
        }
        "wordcount" => {
            plain(args)?;
            let words = s.split(|c: char| c != '_' && !c.is_alphanumeric());
            Ok(Value::Int(words.filter(|word| !word.is_empty()).count() as i128))
        }
        "wordwrap" => {
            let names = ["width", "break_long_words", "wrapstring", "break_on_hyphens"];
            let [width, long, wrap, hyphens] = args.bind("wordwrap", names)?;
            let wrap = match wrap {
                None | Some(Value::None) => "\n".into(),
                Some(wrap) => text::str(&wrap),
            };
            let width = count_or(width, 79)?;
            if width == 0 && !s.is_empty() {
                return Err(Error::failed("invalid width 0 (must be > 0)"));
            }
            let (long, hyphens) = (is_set(long, true), is_set(hyphens, true));
            let wrapped = lines(s, false)
                .into_iter()
                .map(|line| wrap_line(line, width, long, hyphens).join(&wrap));
            made(wrapped.collect::<Vec<_>>().join(&wrap))
        }
        "striptags" => {
            plain(args)?;
            Ok(Value::str(strip_tags(s)))
        }
        "urlencode" => {
            plain(args)?;
            urlencode(value)
        }
        "urlize" => Err(Error::failed("the filter urlize is not supported")),
        other => Err(Error::failed(format!("No filter named '{other}'."))),
    }
}

/// Words begin after white space and some punctuation; the rest of each is made lower case.
fn title(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    let mut starts = true;
    for c in s.chars() {
        let splits = c.is_whitespace() || matches!(c, '-' | '(' | '{' | '[' | '<');
        if starts && !splits {
            out.extend(c.to_uppercase());
        } else {
            out.extend(c.to_lowercase());
        }
        starts = splits;
    }
    out
}

fn indent(s: &str, args: Args) -> Result<String> {
    let [width, first, blank] = args.bind("indent", ["width", "first", "blank"])?;
    let indention = match width {
        Some(Value::Str(text)) => text.text.to_string(),
        width => " ".repeat(count_or(width, 4)?.min(1 << 16)),
    };
    let s = format!("{s}\n");
    check_text(s.len().saturating_add(s.matches('\n').count().saturating_mul(indention.len())))?;
    let lines = lines(&s, false);
    let out = if is_set(blank, false) {
        lines.join(&format!("\n{indention}"))
    } else {
        let mut out = lines.first().copied().unwrap_or_default().to_owned();
        for line in lines.iter().skip(1) {
            out.push('\n');
            if !line.is_empty() {
                out.push_str(&indention);
            }
            out.push_str(line);
        }
        out
    };
    Ok(if is_set(first, false) { indention + &out } else { out })
}

/// Python's `textwrap` with white space kept as it is, but dropped at the ends of lines.
fn wrap_line(line: &str, width: usize, break_long: bool, hyphens: bool) -> Vec<String> {
    let mut chunks = chunks(line, hyphens);
    chunks.reverse();
    let size = |text: &str| text.chars().count();
    let mut lines: Vec<String> = Vec::new();
    while let Some(next) = chunks.last() {
        if next.trim().is_empty() && !lines.is_empty() {
            chunks.pop();
            if chunks.is_empty() {
                break;
            }
        }
        let (mut own, mut length) = (Vec::new(), 0);
        while let Some(next) = chunks.last() {
            if length + size(next) > width {
                break;
            }
            length += size(next);
            own.extend(chunks.pop());
        }
        if let Some(next) = chunks.pop_if(|next| size(next) > width) {
            let room = width.saturating_sub(length).max(usize::from(own.is_empty()));
            if break_long {
                let cut = next.char_indices().nth(room).map_or(next.len(), |(at, _)| at);
                let (head, tail) = next.split_at(cut);
                own.push(head.to_owned());
                chunks.push(tail.to_owned());
            } else if own.is_empty() {
                own.push(next);
            } else {
                chunks.push(next);
            }
        }
        if own.last().is_some_and(|last| last.trim().is_empty()) {
            own.pop();
        }
        if !own.is_empty() {
            lines.push(own.concat());
        }
    }
    lines
}

/// Words and the white space between them; after a hyphen inside a word another begins.
fn chunks(line: &str, hyphens: bool) -> Vec<String> {
    let mut chunks: Vec<String> = Vec::new();
    let mut current = String::new();
    let chars: Vec<char> = line.chars().collect();
    for (at, c) in chars.iter().enumerate() {
        let blank = c.is_whitespace();
        let was_blank = current.chars().next_back().map(char::is_whitespace);
        if was_blank.is_some_and(|was| was != blank) {
            chunks.push(std::mem::take(&mut current));
        }
        current.push(*c);
        let letters = |range: std::ops::Range<usize>| {
            chars.get(range).is_some_and(|part| part.iter().all(|c| c.is_alphabetic()))
        };
        if hyphens && *c == '-' && at >= 2 && letters(at - 2..at) && letters(at + 1..at + 3) {
            chunks.push(std::mem::take(&mut current));
        }
    }
    if !current.is_empty() {
        chunks.push(current);
    }
    chunks
}

fn strip_tags(s: &str) -> String {
    let mut out = String::new();
    let mut rest = s;
    while let Some(at) = rest.find('<') {
        let end = if rest[at..].starts_with("<!--") { "-->" } else { ">" };
        let Some(close) = rest[at..].find(end) else { break };
        out.push_str(&rest[..at]);
        rest = &rest[at + close + end.len()..];
    }
    out.push_str(rest);
    let out = out.split_whitespace().collect::<Vec<_>>().join(" ");
    let entities = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#34;", "\""),
        ("&#39;", "'"),
        ("&amp;", "&"),
    ];
    entities.iter().fold(out, |out, (from, to)| out.replace(from, to))
}

fn quote(text: &str, safe: &str, out: &mut String) {
    use std::fmt::Write;
    for byte in text.bytes() {
        let c = byte as char;
        if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '~') || safe.contains(c) {
            out.push(c);
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

fn urlencode(value: &Value) -> Result<Value> {
    let mut out = String::new();
    let pairs: Vec<(Value, Value)> = match value {
        Value::Dict(dict) => {
            dict.iter().map(|(key, value)| (key.0.clone(), value.clone())).collect()
        }
        Value::Seq(seq) => {
            let mut pairs = Vec::new();
            for item in &seq.items {
                let [key, value] = &item.items()?[..] else {
                    return Err(Error::failed("urlencode takes pairs"));
                };
                pairs.push((key.clone(), value.clone()));
            }
            pairs
        }
        other => {
            quote(&text::str(other), "/", &mut out);
            return Ok(Value::str(out));
        }
    };
    for (at, (key, value)) in pairs.iter().enumerate() {
        if at > 0 {
            out.push('&');
        }
        for (part, end) in [(key, "="), (value, "")] {
            let mut own = String::new();
            quote(&text_of(Some(Value::str(text::str(part))), "urlencode")?, "", &mut own);
            out.push_str(&own.replace("%20", "+"));
            out.push_str(end);
        }
    }
    Ok(Value::str(out))
}
