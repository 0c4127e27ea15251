//! Methods of Python's `str`.

use std::rc::Rc;

use super::args::{Args, args_missing, count_or, int_or, is_set, text_of};
use super::run::Run;
use super::value::{Str, Value, check_items, check_text};
use super::{Error, Result, brace, case, text};

pub fn call(run: &mut Run<'_>, own: &Str, name: &str, args: Args) -> Result<Value> {
    let s: &str = &own.text;
    run.pay(s.len())?;
    // Methods of Markup give Markup.
    let made = |text: String| {
        check_text(text.len())?;
        Ok(Value::Str(Str { text: text.into(), safe: own.safe }))
    };
    let plain = |args: Args| args.bind(name, []).map(|[]: [Option<Value>; 0]| ());
    let all = |test: fn(char) -> bool| Value::Bool(!s.is_empty() && s.chars().all(test));
    match name {
        "upper" => plain(args).and_then(|()| made(s.to_uppercase())),
        "lower" => plain(args).and_then(|()| made(s.to_lowercase())),
        "casefold" => plain(args).and_then(|()| made(case::casefold(s))),
        "capitalize" => plain(args).and_then(|()| made(case::capitalize(s))),
        "title" => plain(args).and_then(|()| made(case::title(s))),
        "swapcase" => plain(args).and_then(|()| made(case::swapcase(s))),
        "strip" => strip(s, name, args, true, true).and_then(made),
        "lstrip" => strip(s, name, args, true, false).and_then(made),
        "rstrip" => strip(s, name, args, false, true).and_then(made),
        "center" | "ljust" | "rjust" => {
            let [width, fill] = args.bind(name, ["width", "fillchar"])?;
            let width = count_or(width, 0)?;
            let fill = fill.and_then(|fill| fill.as_str().and_then(|fill| fill.chars().next()));
            made(text::pad(s, width, fill.unwrap_or(' '), name)?)
        }
        "zfill" => {
            let [width] = args.bind(name, ["width"])?;
            let width = count_or(width, 0)?;
            check_text(width)?;
            let missing = width.saturating_sub(s.chars().count());
            let (sign, digits) = match s.chars().next() {
                Some('+' | '-') => s.split_at(1),
                _ => ("", s),
            };
            made(format!("{sign}{}{digits}", "0".repeat(missing)))
        }
        "expandtabs" => {
            let [size] = args.bind(name, ["tabsize"])?;
            let size = count_or(size, 8)?;
            check_text(s.matches('\t').count().saturating_mul(size))?;
            made(expand_tabs(s, size))
        }
        "replace" => {
            let [old, new, count] = args.bind(name, ["old", "new", "count"])?;
            let (old, new) = (text_of(old, name)?, text_of(new, name)?);
            let count = int_or(count, -1)?;
            made(replace(s, &old, &new, count)?)
        }
        "removeprefix" => {
            let [prefix] = args.bind(name, ["prefix"])?;
            let prefix = text_of(prefix, name)?;
            made(s.strip_prefix(&*prefix).unwrap_or(s).to_owned())
        }
        "removesuffix" => {
            let [suffix] = args.bind(name, ["suffix"])?;
            let suffix = text_of(suffix, name)?;
            made(s.strip_suffix(&*suffix).unwrap_or(s).to_owned())
        }
        "startswith" | "endswith" => starts_or_ends(s, name, args),
        "find" | "rfind" | "index" | "rindex" | "count" => search(s, name, args),
        "split" | "rsplit" => split(s, name, args, own.safe),
        "splitlines" => {
            let [keep] = args.bind(name, ["keepends"])?;
            let keep = is_set(keep, false);
            Ok(Value::list(lines(s, keep).into_iter().map(Value::str).collect()))
        }
        "partition" | "rpartition" => {
            let [separator] = args.bind(name, ["sep"])?;
            let separator = text_of(separator, name)?;
            if separator.is_empty() {
                return Err(Error::failed("empty separator"));
            }
            let at = if name == "partition" { s.find(&*separator) } else { s.rfind(&*separator) };
            let parts = match at {
                Some(at) => [&s[..at], &separator, &s[at + separator.len()..]],
                None if name == "partition" => [s, "", ""],
                None => ["", "", s],
            };
            Ok(Value::tuple(parts.iter().map(|part| Value::str(*part)).collect()))
        }
        "join" => {
            let [items] = args.bind(name, ["iterable"])?;
            let items = items.ok_or_else(|| args_missing(name))?.items()?;
            let mut out = String::new();
            for (at, item) in items.iter().enumerate() {
                let Some(part) = item.as_str() else {
                    return Err(Error::failed(format!(
                        "sequence item {at}: expected str instance, {} found",
                        item.type_name()
                    )));
                };
                check_text(out.len() + s.len() + part.len())?;
                if at > 0 {
                    out.push_str(s);
                }
                out.push_str(part);
            }
            made(out)
        }
        "format" => brace::brace(own, &args.positional, &args.keyword),
        "format_map" => {
            let [map] = args.bind(name, ["mapping"])?;
            let Some(Value::Dict(dict)) = map else {
                return Err(Error::failed("format_map() needs a mapping"));
            };
            let keyword: Vec<_> = dict
                .iter()
                .filter_map(|(key, value)| Some((key.0.as_str()?.into(), value.clone())))
                .collect();
            brace::brace(own, &[], &keyword)
        }
        "isalnum" => Ok(all(char::is_alphanumeric)),
        "isalpha" => Ok(all(char::is_alphabetic)),
        "isascii" => Ok(Value::Bool(s.is_ascii())),
        "isdecimal" => Ok(all(is_decimal)),
        "isdigit" => {
            Ok(all(|c| is_decimal(c) || matches!(c, '²' | '³' | '¹' | '⁰'..='⁹' | '₀'..='₉')))
        }
        "isnumeric" => Ok(all(char::is_numeric)),
        "isspace" => Ok(all(|c| c.is_whitespace() || matches!(c, '\x1c'..='\x1f'))),
        "isprintable" => Ok(Value::Bool(s.chars().all(text::is_printable))),
        "isidentifier" => {
            let mut chars = s.chars();
            let first = chars.next().is_some_and(|c| c == '_' || c.is_alphabetic());
            Ok(Value::Bool(first && chars.all(|c| c == '_' || c.is_alphanumeric())))
        }
        "islower" => {
            Ok(Value::Bool(s.chars().any(char::is_lowercase) && !s.chars().any(char::is_uppercase)))
        }
        "isupper" => {
            Ok(Value::Bool(s.chars().any(char::is_uppercase) && !s.chars().any(char::is_lowercase)))
        }
        "istitle" => Ok(Value::Bool(s.chars().any(char::is_alphabetic) && case::title(s) == s)),
        other => Err(Error::failed(format!("str.{other} is not supported"))),
    }
}

fn is_decimal(c: char) -> bool {
    // Digits of the scripts that have their own, which come in tens.
    const ZEROS: [char; 12] = ['0', '٠', '۰', '߀', '०', '০', '੦', '૦', '୦', '௦', '๐', '０'];
    ZEROS.iter().any(|zero| (*zero as u32..*zero as u32 + 10).contains(&(c as u32)))
}

/// White space, as Python's `str.strip` and `str.split` see it.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1c'..='\x1f')
}

fn strip(s: &str, name: &str, args: Args, start: bool, end: bool) -> Result<String> {
    let [chars] = args.bind(name, ["chars"])?;
    Ok(stripped(s, chars.filter(|chars| !matches!(chars, Value::None)), start, end)?.to_owned())
}

pub fn stripped(s: &str, chars: Option<Value>, start: bool, end: bool) -> Result<&str> {
    let set = match chars {
        Some(chars) => Some(text_of(Some(chars), "strip")?),
        None => None,
    };
    let goes = |c: char| set.as_ref().map_or_else(|| is_space(c), |set| set.contains(c));
    let s = if start { s.trim_start_matches(goes) } else { s };
    Ok(if end { s.trim_end_matches(goes) } else { s })
}

fn expand_tabs(s: &str, size: usize) -> String {
    let (mut out, mut column) = (String::new(), 0);
    for c in s.chars() {
        match c {
            '\t' => {
                let spaces = if size == 0 { 0 } else { size - column % size };
                out.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            '\n' | '\r' => {
                out.push(c);
                column = 0;
            }
            c => {
                out.push(c);
                column += 1;
            }
        }
    }
    out
}

/// `count` below zero: all of them.
pub fn replace(s: &str, old: &str, new: &str, count: i128) -> Result<String> {
    let most = usize::try_from(count).unwrap_or(usize::MAX);
    let found = if old.is_empty() { s.chars().count() + 1 } else { s.matches(old).count() };
    check_text(s.len().saturating_add(found.min(most).saturating_mul(new.len())))?;
    Ok(if count < 0 { s.replace(old, new) } else { s.replacen(old, new, most) })
}

/// The part of a text between two places in characters, and in which byte it begins; `None` where there is none.
fn part(s: &str, start: Option<Value>, end: Option<Value>) -> Result<Option<(usize, &str)>> {
    let length = s.chars().count() as i128;
    let place = |at: i128| if at < 0 { (at + length).max(0) } else { at };
    let start = place(int_or(start, 0)?);
    let end = place(int_or(end, length)?).min(length);
    if start > length || start > end {
        return Ok(None);
    }
    let byte = |at: i128| s.char_indices().nth(at as usize).map_or(s.len(), |(byte, _)| byte);
    let from = byte(start);
    Ok(Some((from, &s[from..byte(end)])))
}

fn starts_or_ends(s: &str, name: &str, args: Args) -> Result<Value> {
    let [what, start, end] = args.bind(name, ["prefix", "start", "end"])?;
    let choices = match &what {
        Some(Value::Seq(seq)) => seq.items.clone(),
        other => vec![other.clone().unwrap_or(Value::None)],
    };
    let Some((_, s)) = part(s, start, end)? else { return Ok(Value::Bool(false)) };
    for choice in choices {
        let choice = text_of(Some(choice), name)?;
        if if name == "startswith" { s.starts_with(&*choice) } else { s.ends_with(&*choice) } {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}

fn search(s: &str, name: &str, args: Args) -> Result<Value> {
    let [what, start, end] = args.bind(name, ["sub", "start", "end"])?;
    let what = text_of(what, name)?;
    let inside = part(s, start, end)?;
    if name == "count" {
        let count = inside.map_or(0, |(_, part)| match what.is_empty() {
            true => part.chars().count() + 1,
            false => part.matches(&*what).count(),
        });
        return Ok(Value::Int(count as i128));
    }
    let found = inside.and_then(|(from, part)| {
        let at = if name.starts_with('r') { part.rfind(&*what) } else { part.find(&*what) };
        at.map(|at| s[..from + at].chars().count() as i128)
    });
    match found {
        Some(at) => Ok(Value::Int(at)),
        None if name.ends_with("find") => Ok(Value::Int(-1)),
        None => Err(Error::failed("substring not found")),
    }
}

fn split(s: &str, name: &str, args: Args, safe: bool) -> Result<Value> {
    let [separator, most] = args.bind(name, ["sep", "maxsplit"])?;
    let most = usize::try_from(int_or(most, -1)?).unwrap_or(usize::MAX);
    let from_right = name == "rsplit";
    let parts: Vec<&str> = match separator {
        None | Some(Value::None) => split_blank(s, most, from_right),
        separator => {
            let separator = text_of(separator, name)?;
            if separator.is_empty() {
                return Err(Error::failed("empty separator"));
            }
            let pieces = most.saturating_add(1);
            if from_right {
                let mut parts: Vec<&str> = s.rsplitn(pieces, &*separator).collect();
                parts.reverse();
                parts
            } else {
                s.splitn(pieces, &*separator).collect()
            }
        }
    };
    check_items(parts.len())?;
    let value = |part: &str| Value::Str(Str { text: Rc::from(part), safe });
    Ok(Value::list(parts.into_iter().map(value).collect()))
}

fn split_blank(s: &str, most: usize, from_right: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest =
        if from_right { s.trim_end_matches(is_space) } else { s.trim_start_matches(is_space) };
    while !rest.is_empty() {
        if parts.len() == most {
            // The far side keeps its white space.
            parts.push(rest);
            break;
        }
        let at = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(at) = at else {
            parts.push(rest);
            break;
        };
        if from_right {
            let blank = rest[at..].chars().next().map_or(1, char::len_utf8);
            parts.push(&rest[at + blank..]);
            rest = rest[..at].trim_end_matches(is_space);
        } else {
            parts.push(&rest[..at]);
            rest = rest[at..].trim_start_matches(is_space);
        }
    }
    if from_right {
        parts.reverse();
    }
    parts
}

/// `str.splitlines`
pub fn lines(s: &str, keep: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = s;
    let ends = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    while !rest.is_empty() {
        let Some(at) = rest.find(ends) else {
            lines.push(rest);
            break;
        };
        let mut end = at + rest[at..].chars().next().map_or(1, char::len_utf8);
        if rest[at..].starts_with("\r\n") {
            end += 1;
        }
        lines.push(if keep { &rest[..end] } else { &rest[..at] });
        rest = &rest[end..];
    }
    lines
}
