//! Structural tags: free text in which tags stand whose contents have a form, as xgrammar, vLLM and SGLang take them, as llguidance's Lark.
//!
//! ```text
//!   {"type": "structural_tag", "structures": [{"begin", "schema", "end"}, ..], "triggers": [..]}      the older form
//!   {"type": "structural_tag", "format": {"type": "triggered_tags", "triggers": [..], "tags": [..]}}   and the newer one
//!
//!   start: (u0 (r1 | r2))* T3        u0: text up to a trigger, with it    r1: the rest of a tag    T3: text without a trigger
//! ```
//!
//! What a format is depends on what follows it: any text goes up to the end of the tag that it is in, and what a regular expression matches
//! may go on as the text behind it begins. So a format is written with the text that follows it ([`Then`]).
//!
//! Owns: that form, and what of it cannot be served. Must never: take a schema's options at a client's word.

mod fields;

use std::collections::HashMap;
use std::fmt::Write;

use serde_json::{Map, Value, json};

use crate::lark::OPTIONS;
use crate::limits::Limits;
use crate::text::{literal, quoted};
use fields::{Tag, begin_of, flag, list, only_null, tag_of, tags_of, text_of, texts_of};

/// Formats in formats, at most.
const DEPTH_MAX: usize = 16;

/// The token of just this text that no text stands for, where the vocabulary has one.
pub(crate) type Special<'a> = dyn Fn(&str) -> Option<u32> + 'a;

/// Texts of special tokens that markers consist of, as models' own do.
const SPECIAL_CHARS_MAX: usize = 64;

/// What comes behind a format.
#[derive(Clone, Copy)]
enum Then<'a> {
    /// Nothing: the output ends.
    End,
    /// One of these texts, which is written with the format.
    Texts(&'a [String]),
    /// Anything else.
    More,
}

/// The same in Lark.
///
/// # Errors
/// It is none, or is more than can be served; the text says what and where.
pub(crate) fn to_lark(
    tag: &Value,
    special: &Special<'_>,
    limits: &Limits,
) -> Result<String, String> {
    let fields = tag.as_object().ok_or("a structural tag is an object")?;
    let mut writer =
        Writer { text: String::new(), rules: HashMap::new(), bytes: 0, chars: 0, special, limits };
    let start = match (fields.get("format"), fields.get("structures")) {
        (Some(format), None) => writer.format(format, Then::End, 0)?,
        (None, Some(_)) => {
            let format = from_older(fields)?;
            writer.format(&format, Then::End, 0)?
        }
        (Some(_), Some(_)) => return Err("it has \"format\" and \"structures\"; send one".into()),
        (None, None) => {
            return Err("it needs \"format\", or \"structures\" and \"triggers\"".into());
        }
    };
    Ok(format!("start: {start}\n{}", writer.text))
}

/// The older form in the words of the newer.
fn from_older(fields: &Map<String, Value>) -> Result<Value, String> {
    let tags = list(fields, "structures")?.iter().map(|tag| {
        let tag = tag.as_object().ok_or("each of \"structures\" is an object")?;
        let schema = tag.get("schema").ok_or("each of \"structures\" needs a \"schema\"")?;
        let schema = match schema {
            Value::String(text) => {
                serde_json::from_str(text).map_err(|error| format!("\"schema\": {error}"))?
            }
            _ => schema.clone(),
        };
        Ok(json!({
            "begin": tag.get("begin"),
            "content": {"type": "json_schema", "json_schema": schema},
            "end": tag.get("end"),
        }))
    });
    let tags: Vec<Value> = tags.collect::<Result<_, String>>()?;
    Ok(json!({"type": "triggered_tags", "triggers": fields.get("triggers"), "tags": tags}))
}

struct Writer<'a> {
    text: String,
    /// Rules by what they are.
    rules: HashMap<String, String>,
    /// Bytes of texts so far, and of regular expressions.
    bytes: usize,
    chars: usize,
    special: &'a Special<'a>,
    limits: &'a Limits,
}

impl Writer<'_> {
    /// A format and what follows it, as an expression.
    fn format(&mut self, format: &Value, then: Then<'_>, depth: usize) -> Result<String, String> {
        if depth > DEPTH_MAX {
            return Err(format!("formats stand in each other more than {DEPTH_MAX} deep"));
        }
        let limit = self.limits.definitions;
        if self.rules.len() > limit {
            return Err(format!("its formats make more than {limit} rules; the limit is {limit}"));
        }
        let fields = format.as_object().ok_or("a format is an object")?;
        let kind = match fields.get("type") {
            Some(Value::String(kind)) => kind.as_str(),
            None if fields.contains_key("begin") => "tag",
            _ => return Err("a format needs a \"type\"".into()),
        };
        match kind {
            "const_string" => {
                let value = text_of(fields, "value")?;
                let value = self.texts(&[value.to_owned()])?;
                self.followed(value, then)
            }
            "json_schema" => {
                let rule = self.schema(fields)?;
                self.followed(rule, then)
            }
            "regex" => self.pattern(text_of(fields, "pattern")?, then),
            "any_text" => {
                only_null(fields, &["max_tokens", "max_chars"])?;
                let excludes = texts_of(fields, "excludes")?;
                self.any_text(&excludes, then)
            }
            "sequence" => self.sequence(list(fields, "elements")?, then, depth),
            "or" => {
                let elements = list(fields, "elements")?;
                let each = elements.iter().map(|element| self.format(element, then, depth + 1));
                let each = each.collect::<Result<Vec<_>, _>>()?;
                Ok(self.rule("", &each.join(" | ")))
            }
            "tag" => {
                let tag = tag_of(fields)?;
                let tag = self.tag(&tag, tag.begin, depth)?;
                self.followed(tag, then)
            }
            "triggered_tags" => self.triggered(fields, then, depth),
            "tags_with_separator" => self.separated(fields, then, depth),
            "optional" | "star" | "plus" => {
                let content = self.content(fields, depth)?;
                let sign = match kind {
                    "optional" => "?",
                    "star" => "*",
                    _ => "+",
                };
                self.followed(format!("{content}{sign}"), then)
            }
            "repeat" => {
                let content = self.content(fields, depth)?;
                let limit = self.limits.definitions as u64;
                let count = |key: &str| {
                    let count = fields.get(key).and_then(Value::as_u64);
                    count.filter(|&count| count <= limit).ok_or_else(|| {
                        format!("a \"repeat\" needs \"{key}\", a number of 0 to {limit}")
                    })
                };
                let (min, max) = (count("min")?, count("max")?);
                if min > max {
                    return Err(format!("a \"repeat\" is of {min} to {max} times"));
                }
                self.followed(format!("{content}{{{min},{max}}}"), then)
            }
            other => Err(format!(
                "formats of type {other:?} are not supported; const_string, json_schema, regex, any_text, sequence, or, tag, \
                 triggered_tags, tags_with_separator, optional, star, plus and repeat are"
            )),
        }
    }

    /// What is in a repeated format, as a rule of its own.
    fn content(&mut self, fields: &Map<String, Value>, depth: usize) -> Result<String, String> {
        let content = fields.get("content").ok_or("a repeated format needs \"content\"")?;
        let content = self.format(content, Then::More, depth + 1)?;
        Ok(self.rule("", &content))
    }

    /// Formats one after the other. A text that one begins with is written with the one before, which has to know it.
    fn sequence(
        &mut self,
        elements: &[Value],
        then: Then<'_>,
        depth: usize,
    ) -> Result<String, String> {
        if elements.is_empty() {
            return self.followed(String::new(), then);
        }
        let (mut pieces, mut begun) = (Vec::with_capacity(elements.len()), false);
        for (at, element) in elements.iter().enumerate() {
            let next = elements.get(at + 1);
            let begin = next.and_then(begin_of).filter(|begin| !begin.is_empty());
            let begins: Vec<String> = begin.map(str::to_owned).into_iter().collect();
            let behind = match next {
                None => then,
                Some(_) if begins.is_empty() => Then::More,
                Some(_) => Then::Texts(&begins),
            };
            pieces.push(match begun {
                true => self.rest(element, behind, depth + 1)?,
                false => self.format(element, behind, depth + 1)?,
            });
            begun = !begins.is_empty();
        }
        Ok(pieces.join(" "))
    }

    /// What is behind the text that a format begins with, as [`begin_of`] says.
    fn rest(&mut self, format: &Value, then: Then<'_>, depth: usize) -> Result<String, String> {
        let rest = match format.as_object() {
            Some(fields) if format["type"] == "tag" => self.tag(&tag_of(fields)?, "", depth)?,
            _ => String::new(),
        };
        self.followed(rest, then)
    }

    /// A tag; `begin` is the part of its beginning that was not written.
    fn tag(&mut self, tag: &Tag<'_>, begin: &str, depth: usize) -> Result<String, String> {
        let begin = self.texts(&[begin.to_owned()])?;
        let content = self.format(tag.content, Then::Texts(&tag.ends), depth + 1)?;
        Ok(self.rule("", &format!("{begin} {content}")))
    }

    /// Text, and tags where one of the triggers comes.
    fn triggered(
        &mut self,
        fields: &Map<String, Value>,
        then: Then<'_>,
        depth: usize,
    ) -> Result<String, String> {
        let triggers = texts_of(fields, "triggers")?;
        if triggers.is_empty() || triggers.iter().any(String::is_empty) {
            return Err(
                "\"triggers\" is a list of texts, of one at least, none of them empty".into()
            );
        }
        let tags = tags_of(fields)?;
        let (one, last) = (flag(fields, "at_least_one")?, flag(fields, "stop_after_first")?);
        let mut rests = vec![Vec::new(); triggers.len()];
        let mut wholes = Vec::new();
        for tag in &tags {
            let mut of = triggers.iter().enumerate().filter(|(_, t)| tag.begin.starts_with(*t));
            let (Some((at, trigger)), None) = (of.next(), of.next()) else {
                let begin = tag.begin;
                return Err(format!("the tag {begin:?} must begin with just one of \"triggers\""));
            };
            if one {
                wholes.push(self.tag(tag, tag.begin, depth)?);
            }
            if !(one && last) {
                rests[at].push(self.tag(tag, &tag.begin[trigger.len()..], depth)?);
            }
        }
        let mut banned = texts_of(fields, "excludes")?;
        banned.extend(triggers.iter().cloned());
        let whole = wholes.join(" | ");
        if one && last {
            let whole = self.rule("", &whole);
            return self.followed(whole, then);
        }
        let mut each = Vec::new();
        for (trigger, rests) in triggers.iter().zip(rests) {
            if !rests.is_empty() {
                let until = self.until(&banned, std::slice::from_ref(trigger))?;
                each.push(format!("{until} ({})", rests.join(" | ")));
            }
        }
        let each = self.rule("", &each.join(" | "));
        let free = self.any_text(&banned, then)?;
        Ok(match (one, last) {
            (true, _) => format!("({whole}) {each}* {free}"),
            (false, false) => format!("{each}* {free}"),
            (false, true) => {
                let tag = self.followed(each, then)?;
                self.rule("", &format!("{tag} | {free}"))
            }
        })
    }

    /// Tags and nothing else but a separator.
    fn separated(
        &mut self,
        fields: &Map<String, Value>,
        then: Then<'_>,
        depth: usize,
    ) -> Result<String, String> {
        let tags = tags_of(fields)?;
        let separator = self.texts(&[text_of(fields, "separator")?.to_owned()])?;
        let tags = tags.iter().map(|tag| self.tag(tag, tag.begin, depth));
        let tags = tags.collect::<Result<Vec<_>, _>>()?;
        let tag = self.rule("", &tags.join(" | "));
        let mut all = match flag(fields, "stop_after_first")? {
            true => tag,
            false => format!("{tag} ({separator} {tag})*"),
        };
        if !flag(fields, "at_least_one")? {
            all = format!("({all})?");
        }
        self.followed(all, then)
    }

    /// Any text without those, up to what follows.
    fn any_text(&mut self, excludes: &[String], then: Then<'_>) -> Result<String, String> {
        match then {
            Then::End => self.free(excludes),
            Then::Texts(texts) => {
                let mut banned = excludes.to_vec();
                banned.extend_from_slice(texts);
                self.until(&banned, texts)
            }
            Then::More => {
                Err("any text must be the last, or have a text behind it: the end of its tag, or a const_string".into())
            }
        }
    }

    /// Any text in which none of these stands, as a terminal.
    fn free(&mut self, banned: &[String]) -> Result<String, String> {
        if banned.is_empty() {
            return Ok(self.rule("T", "/(?s:.*)/"));
        }
        self.take(banned)?;
        let banned: Vec<String> = banned.iter().map(|text| literal(text)).collect();
        Ok(self.rule("T", &format!("/(?s:.*)/ & ~/(?s:.*)({})(?s:.*)/", banned.join("|"))))
    }

    /// Any text without what is banned up to one of `ends`, which are banned too, with it.
    fn until(&mut self, banned: &[String], ends: &[String]) -> Result<String, String> {
        let free = self.free(banned)?;
        let mut each = Vec::new();
        for end in ends {
            let mut pieces = self.pieces(end)?.into_iter();
            let first = pieces.next().unwrap_or_default();
            let mut until = format!("{free} {first}");
            // A string ends the text where it stands first; a token is in no text.
            if first.starts_with('"') {
                until = self.rule("u", &until);
            }
            pieces.for_each(|piece| {
                let _ = write!(until, " {piece}");
            });
            each.push(until);
        }
        Ok(match &each[..] {
            [one] => one.clone(),
            _ => self.rule("", &each.join(" | ")),
        })
    }

    /// What a regular expression matches, and what follows: as one terminal where that is text, which it may itself match.
    fn pattern(&mut self, pattern: &str, then: Then<'_>) -> Result<String, String> {
        self.chars += pattern.chars().count();
        let limit = self.limits.pattern_chars;
        if self.chars > limit {
            return Err(format!("its patterns have more than {limit} characters together"));
        }
        let pattern = slashed(pattern);
        let Then::Texts(texts) = then else {
            return Ok(self.rule("T", &format!("/{pattern}/")));
        };
        let mut each = Vec::new();
        for text in texts {
            let pieces = self.pieces(text)?;
            each.push(match &pieces[..] {
                [one] if one.starts_with('"') => {
                    let end = literal(text);
                    self.rule("T", &format!("/({pattern}){end}/"))
                }
                _ => {
                    let terminal = self.rule("T", &format!("/{pattern}/"));
                    format!("{terminal} {}", pieces.join(" "))
                }
            });
        }
        Ok(self.rule("", &each.join(" | ")))
    }

    fn schema(&mut self, fields: &Map<String, Value>) -> Result<String, String> {
        match fields.get("style").and_then(Value::as_str).unwrap_or("json") {
            "json" => {}
            other => return Err(format!("schemas of style {other:?} are not supported; json is")),
        }
        let mut schema = match fields.get("json_schema") {
            Some(Value::Bool(true)) => json!({}),
            Some(Value::Bool(false)) => json!({"not": {}}),
            Some(schema @ Value::Object(_)) => schema.clone(),
            _ => return Err("a format of type json_schema needs \"json_schema\", an object".into()),
        };
        schema[OPTIONS] = json!({"lenient": false});
        Ok(self.rule("", &format!("%json {schema}")))
    }

    /// An expression and what follows it.
    fn followed(&mut self, expression: String, then: Then<'_>) -> Result<String, String> {
        match then {
            Then::End | Then::More if expression.is_empty() => Ok("\"\"".to_owned()),
            Then::End | Then::More => Ok(expression),
            Then::Texts(texts) => Ok(format!("{expression} {}", self.texts(texts)?)),
        }
    }

    /// One of these texts.
    fn texts(&mut self, texts: &[String]) -> Result<String, String> {
        let each = texts.iter().map(|text| Ok(self.pieces(text)?.join(" ")));
        let each = each.collect::<Result<Vec<_>, String>>()?;
        Ok(match &each[..] {
            [one] => one.clone(),
            _ => self.rule("", &each.join(" | ")),
        })
    }

    /// A text as strings, and tokens where special ones are spelt.
    fn pieces(&mut self, text: &str) -> Result<Vec<String>, String> {
        self.take(&[text.to_owned()])?;
        let (mut pieces, mut from, mut at) = (Vec::new(), 0, 0);
        while let Some(next) = text[at..].chars().next() {
            let found = if next.is_alphanumeric() { None } else { self.token_at(&text[at..]) };
            match found {
                Some((bytes, id)) => {
                    if from < at {
                        pieces.push(quoted(&text[from..at]));
                    }
                    pieces.push(format!("<[{id}]>"));
                    at += bytes;
                    from = at;
                }
                None => at += next.len_utf8(),
            }
        }
        if from < text.len() || pieces.is_empty() {
            pieces.push(quoted(&text[from..]));
        }
        Ok(pieces)
    }

    /// The longest special token that is spelt there, and its bytes.
    fn token_at(&self, text: &str) -> Option<(usize, u32)> {
        let ends = text.char_indices().take(SPECIAL_CHARS_MAX).map(|(at, c)| at + c.len_utf8());
        let ends: Vec<usize> = ends.collect();
        ends.into_iter().rev().find_map(|end| Some((end, (self.special)(&text[..end])?)))
    }

    /// Holds texts to the limit.
    fn take(&mut self, texts: &[String]) -> Result<(), String> {
        self.bytes += texts.iter().map(String::len).sum::<usize>();
        match self.bytes > self.limits.lark_bytes {
            true => {
                let limit = self.limits.lark_bytes;
                Err(format!(
                    "its texts make a grammar of more than {limit} bytes; the limit is {limit}"
                ))
            }
            false => Ok(()),
        }
    }

    /// The name of a rule of this body: of a terminal (`T`), of text up to a marker (`u`), or of anything else.
    fn rule(&mut self, kind: &str, body: &str) -> String {
        let (kind, attributes) = match kind {
            "u" => ("u", "[lazy]"),
            "" => ("r", ""),
            other => (other, ""),
        };
        let key = format!("{kind}{body}");
        if let Some(name) = self.rules.get(&key) {
            return name.clone();
        }
        let name = format!("{kind}{}", self.rules.len());
        let _ = writeln!(self.text, "{name}{attributes}: {body}");
        self.rules.insert(key, name.clone());
        name
    }
}

/// A regular expression as it can stand between slashes.
fn slashed(pattern: &str) -> String {
    let mut slashed = String::with_capacity(pattern.len());
    let mut chars = pattern.chars();
    while let Some(next) = chars.next() {
        match next {
            '/' => slashed.push_str("\\x2f"),
            '\n' => slashed.push_str("\\n"),
            '\\' => match chars.next() {
                Some('/') => slashed.push_str("\\x2f"),
                Some('\n') => slashed.push_str("\\n"),
                Some(other) => slashed.extend(['\\', other]),
                None => slashed.push('\\'),
            },
            other => slashed.push(other),
        }
    }
    slashed
}
