//! Writing a grammar in the Lark syntax of llguidance.
//!
//! Owns: rules and their names, and how a text is written: markers that are tokens of the vocabulary as tokens, all else in
//! quotation marks. Must never: know a dialect or a tool.

use std::collections::HashMap;
use std::fmt::Write;

/// Bytes of a grammar; what compiles it takes no more. So that no schema is written out again and again, as much may be written anew
/// as four times that.
pub const LARK_BYTES_MAX: usize = 256 << 10;

/// The id of a token of just this text, where the vocabulary has one.
pub(crate) type Token<'a> = dyn Fn(&str) -> Option<u32> + 'a;

/// A grammar on its way.
pub(crate) struct Lark<'a> {
    token: &'a Token<'a>,
    /// Markers that may be tokens, longer ones first.
    markers: Vec<&'static str>,
    /// Whether one begins with this byte.
    begins: [bool; 256],
    text: String,
    /// Bytes that were written, also of what was there already.
    spent: usize,
    /// Rules and terminals by what they are.
    names: HashMap<String, String>,
}

impl<'a> Lark<'a> {
    pub(crate) fn new(mut markers: Vec<&'static str>, token: &'a Token<'a>) -> Lark<'a> {
        markers.sort_by_key(|marker| std::cmp::Reverse(marker.len()));
        let mut begins = [false; 256];
        markers.iter().filter_map(|marker| marker.bytes().next()).for_each(|byte| {
            begins[usize::from(byte)] = true;
        });
        Lark { token, markers, begins, text: String::new(), spent: 0, names: HashMap::new() }
    }

    /// A text, as expressions: strings, and tokens where it has markers that are some.
    pub(crate) fn text(&self, text: &str) -> String {
        self.pieces(text).join(" ")
    }

    fn pieces(&self, text: &str) -> Vec<String> {
        let (mut pieces, mut from, mut at) = (Vec::new(), 0, 0);
        while let Some(&byte) = text.as_bytes().get(at) {
            if !self.begins[usize::from(byte)] {
                at += 1;
                continue;
            }
            let markers = self.markers.iter().filter(|marker| text[at..].starts_with(**marker));
            let found = markers.filter_map(|marker| Some((marker, (self.token)(marker)?))).next();
            if let Some((marker, id)) = found {
                if from < at {
                    pieces.push(string(&text[from..at]));
                }
                pieces.push(format!("<[{id}]>"));
                at += marker.len();
                from = at;
            } else {
                at += text[at..].chars().next().map_or(1, char::len_utf8);
            }
        }
        if from < text.len() {
            pieces.push(string(&text[from..]));
        }
        pieces
    }

    /// Any text in which nothing stands that one of these regular expressions matches, as a terminal.
    pub(crate) fn free(&mut self, banned: &[String]) -> String {
        if banned.is_empty() {
            return self.terminal("/(?s:.*)/".to_owned());
        }
        self.terminal(format!("/(?s:.*)/ & ~/(?s:.*)({})(?s:.*)/", banned.join("|")))
    }

    /// Such a text up to a marker, with it. The text that may be written is the longest: the marker is banned from it.
    pub(crate) fn until(&mut self, banned: &[String], marker: &str) -> String {
        let (mut banned, marked) = (banned.to_vec(), quoted(marker));
        if !banned.iter().any(|text| marked.contains(text)) {
            banned.push(marked);
        }
        let free = self.free(&banned);
        let mut pieces = self.pieces(marker).into_iter();
        let first = pieces.next().unwrap_or_default();
        // A string ends the text where it stands first, before the text could take it; a token is in no text.
        let first = match first.starts_with('"') {
            true => self.first(format!("{free} {first}")),
            false => format!("{free} {first}"),
        };
        [first].into_iter().chain(pieces).collect::<Vec<_>>().join(" ")
    }

    /// The name of a rule that is this.
    pub(crate) fn rule(&mut self, body: String) -> String {
        self.named("r", "", body)
    }

    /// The name of a terminal that is this.
    pub(crate) fn terminal(&mut self, body: String) -> String {
        self.named("T", "", body)
    }

    /// The name of a rule that is this, and stands where it can, however a longer text would go on.
    pub(crate) fn first(&mut self, body: String) -> String {
        self.named("u", "[lazy]", body)
    }

    /// A name for a rule that is not written yet.
    pub(crate) fn reserve(&mut self) -> String {
        let name = format!("r{}", self.names.len());
        self.names.insert(name.clone(), name.clone());
        name
    }

    /// # Errors
    /// It is too long.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self.text.len() > LARK_BYTES_MAX || self.spent > 4 * LARK_BYTES_MAX {
            true => Err(too_long()),
            false => Ok(()),
        }
    }

    /// Bytes that one more rule may have.
    pub(crate) fn room(&self) -> usize {
        LARK_BYTES_MAX.min((4 * LARK_BYTES_MAX).saturating_sub(self.spent))
    }

    /// Writes one.
    pub(crate) fn define(&mut self, name: &str, body: &str) {
        self.spent += body.len();
        let _ = writeln!(self.text, "{name}: {body}");
    }

    fn named(&mut self, kind: &str, attributes: &str, body: String) -> String {
        self.spent += body.len();
        let key = format!("{kind}{body}");
        if let Some(name) = self.names.get(&key) {
            return name.clone();
        }
        let name = format!("{kind}{}", self.names.len());
        let _ = writeln!(self.text, "{name}{attributes}: {body}");
        self.names.insert(key, name.clone());
        name
    }

    /// All of it.
    pub(crate) fn finish(self, start: &str) -> String {
        format!("start: {start}\n{}", self.text)
    }
}

/// What whoever asked for too long a grammar is told.
pub(crate) fn too_long() -> String {
    format!("the list of tools makes too long a grammar; the limit is {LARK_BYTES_MAX}")
}

/// A text in quotation marks.
pub(crate) fn string(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// A text as a regular expression.
pub(crate) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_ascii_alphanumeric() {
            quoted.push(char);
        } else {
            let _ = write!(quoted, "\\x{{{:x}}}", u32::from(char));
        }
    }
    quoted
}
