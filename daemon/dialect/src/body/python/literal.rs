//! A Python literal, a character at a time, as JSON.
//!
//! Owns: strings in all quotes, numbers, `True`, `False`, `None` (and JSON's words for them), lists, tuples (as arrays)
//! and dictionaries. Must never: evaluate anything.

use crate::json::{Json, escape};

/// Containers inside containers.
const DEPTH_MAX: usize = 128;
/// Bytes of a number or a word.
const TOKEN_BYTES_MAX: usize = 512;

/// What became of a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Push {
    More,
    /// The literal ended with it.
    End,
    /// The literal ended before it.
    EndBefore,
    Bad,
}

/// A literal on its way.
#[derive(Clone, Debug)]
pub(crate) struct Literal {
    state: State,
    stack: Vec<Container>,
    /// A number or a word so far.
    token: String,
}

#[derive(Clone, Copy, Debug)]
struct Container {
    closing: char,
    /// Items, keys and values each count.
    items: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A value or, in a container, its end.
    Value,
    /// The value behind a colon.
    Must,
    /// Behind one quote, or two.
    Quote(char, u8),
    /// In a string with this quote; three of them where `true`; so many quotes may be its end.
    Text(char, bool, u8),
    /// Behind a backslash.
    Escape(char, bool),
    /// Digits to come, and the code so far.
    Code(char, bool, u8, u32),
    Token,
    Colon,
    After,
}

impl Literal {
    pub(crate) fn new() -> Literal {
        Literal { state: State::Value, stack: Vec::new(), token: String::new() }
    }

    /// Takes a character; its JSON goes to `out`.
    pub(crate) fn push(&mut self, char: char, out: &mut String) -> Push {
        let space = matches!(char, ' ' | '\n' | '\r' | '\t');
        match self.state {
            State::Value | State::Must if space => Push::More,
            State::Value | State::Must => self.begin(char, out),
            State::Quote(quote, 1) if char == quote => {
                self.state = State::Quote(quote, 2);
                Push::More
            }
            State::Quote(quote, 2) if char == quote => {
                self.state = State::Text(quote, true, 0);
                Push::More
            }
            State::Quote(quote, 1) => {
                self.state = State::Text(quote, false, 0);
                self.push(char, out)
            }
            State::Quote(..) => {
                // Two quotes were all: an empty string, and this stands behind it.
                out.push('"');
                match self.ended() {
                    Push::End => Push::EndBefore,
                    _ => self.push(char, out),
                }
            }
            State::Text(quote, triple, seen) => self.in_text(quote, triple, seen, char, out),
            State::Escape(quote, triple) => self.in_escape(quote, triple, char, out),
            State::Code(quote, triple, digits, code) => {
                let Some(digit) = char.to_digit(16) else { return Push::Bad };
                let code = code << 4 | digit;
                if digits > 1 {
                    self.state = State::Code(quote, triple, digits - 1, code);
                    return Push::More;
                }
                self.state = State::Text(quote, triple, 0);
                match char::from_u32(code) {
                    Some(char) => escape(char.encode_utf8(&mut [0; 4]), out),
                    // Half of a surrogate pair, as JSON writes it.
                    None if code < 0x1_0000 => out.push_str(&format!("\\u{code:04x}")),
                    None => return Push::Bad,
                }
                Push::More
            }
            State::Token => {
                if char.is_ascii_alphanumeric() || matches!(char, '_' | '.' | '+' | '-') {
                    self.token.push(char);
                    let fits = self.token.len() <= TOKEN_BYTES_MAX;
                    return if fits { Push::More } else { Push::Bad };
                }
                if !self.token_ends(out) {
                    return Push::Bad;
                }
                match self.ended() {
                    Push::End => Push::EndBefore,
                    _ => self.push(char, out),
                }
            }
            State::Colon if space => Push::More,
            State::Colon if char == ':' => {
                out.push_str(": ");
                self.state = State::Must;
                Push::More
            }
            State::Colon => Push::Bad,
            State::After if space => Push::More,
            State::After if char == ',' => {
                self.state = State::Value;
                Push::More
            }
            State::After => self.close(char, out),
        }
    }

    /// A number or a word that has not ended.
    pub(crate) fn held(&self) -> &str {
        if self.state == State::Token { &self.token } else { "" }
    }

    fn is_key(&self) -> bool {
        self.stack.last().is_some_and(|top| top.closing == '}' && top.items % 2 == 1)
    }

    fn begin(&mut self, char: char, out: &mut String) -> Push {
        if self.state == State::Value && matches!(char, ']' | ')' | '}') {
            return self.close(char, out);
        }
        if let Some(top) = self.stack.last_mut() {
            if self.state == State::Value && top.items > 0 {
                out.push_str(", ");
            }
            top.items += 1;
        }
        match char {
            '"' | '\'' => {
                out.push('"');
                self.state = State::Quote(char, 1);
            }
            '[' | '(' | '{' if !self.is_key() => {
                if self.stack.len() == DEPTH_MAX {
                    return Push::Bad;
                }
                out.push(if char == '{' { '{' } else { '[' });
                let closing = match char {
                    '[' => ']',
                    '(' => ')',
                    _ => '}',
                };
                self.stack.push(Container { closing, items: 0 });
                self.state = State::Value;
            }
            '0'..='9' | '-' | '+' | '.' | 'A'..='Z' | 'a'..='z' => {
                self.token = char.to_string();
                self.state = State::Token;
            }
            _ => return Push::Bad,
        }
        Push::More
    }

    fn close(&mut self, char: char, out: &mut String) -> Push {
        match self.stack.last() {
            Some(top) if top.closing == char => {
                self.stack.pop();
                out.push(if char == '}' { '}' } else { ']' });
                self.ended()
            }
            _ => Push::Bad,
        }
    }

    /// A value or a key has ended.
    fn ended(&mut self) -> Push {
        if self.stack.is_empty() {
            self.state = State::After;
            return Push::End;
        }
        self.state = if self.is_key() { State::Colon } else { State::After };
        Push::More
    }

    fn in_text(
        &mut self,
        quote: char,
        triple: bool,
        seen: u8,
        char: char,
        out: &mut String,
    ) -> Push {
        if char == quote {
            if !triple || seen == 2 {
                out.push('"');
                return self.ended();
            }
            self.state = State::Text(quote, triple, seen + 1);
            return Push::More;
        }
        for _ in 0..seen {
            escape(quote.encode_utf8(&mut [0; 4]), out);
        }
        if char == '\\' {
            self.state = State::Escape(quote, triple);
        } else {
            self.state = State::Text(quote, triple, 0);
            escape(char.encode_utf8(&mut [0; 4]), out);
        }
        Push::More
    }

    fn in_escape(&mut self, quote: char, triple: bool, char: char, out: &mut String) -> Push {
        self.state = State::Text(quote, triple, 0);
        match char {
            'n' => out.push_str("\\n"),
            't' => out.push_str("\\t"),
            'r' => out.push_str("\\r"),
            'b' => out.push_str("\\b"),
            'f' => out.push_str("\\f"),
            'a' => out.push_str("\\u0007"),
            'v' => out.push_str("\\u000b"),
            '0' => out.push_str("\\u0000"),
            '\\' | '\'' | '"' => escape(char.encode_utf8(&mut [0; 4]), out),
            '\n' => {}
            'x' => self.state = State::Code(quote, triple, 2, 0),
            'u' => self.state = State::Code(quote, triple, 4, 0),
            'U' => self.state = State::Code(quote, triple, 8, 0),
            // Python keeps the backslash.
            other => {
                out.push_str("\\\\");
                escape(other.encode_utf8(&mut [0; 4]), out);
            }
        }
        Push::More
    }

    /// A number or a word has ended; `false`: it is neither.
    fn token_ends(&mut self, out: &mut String) -> bool {
        let key = self.is_key();
        let word = match self.token.as_str() {
            "True" | "true" => "true",
            "False" | "false" => "false",
            "None" | "null" | "none" => "null",
            _ => "",
        };
        let number = if word.is_empty() { number(&self.token) } else { Some(word.to_string()) };
        let Some(json) = number else { return false };
        if key {
            out.push_str(&format!("\"{json}\""));
        } else {
            out.push_str(&json);
        }
        true
    }
}

/// A Python number as JSON writes it.
fn number(token: &str) -> Option<String> {
    let plain = token.replace('_', "");
    let (sign, digits) = match plain.as_bytes().first()? {
        b'-' => ("-", &plain[1..]),
        b'+' => ("", &plain[1..]),
        _ => ("", &plain[..]),
    };
    if let Some(hexadecimal) = digits.strip_prefix("0x") {
        return Some(format!("{sign}{}", u128::from_str_radix(hexadecimal, 16).ok()?));
    }
    let mut json = String::from(sign);
    if digits.starts_with('.') {
        json.push('0');
    }
    json.push_str(digits);
    if json.ends_with('.') {
        json.push('0');
    }
    let mut reader = Json::new();
    (json.bytes().all(|byte| reader.push(byte)) && reader.is_whole()).then_some(json)
}

/// A whole Python literal as JSON.
pub(crate) fn to_json(text: &str) -> Option<String> {
    let (mut literal, mut json) = (Literal::new(), String::new());
    let mut rest = text.trim().chars();
    for char in rest.by_ref() {
        match literal.push(char, &mut json) {
            Push::More => {}
            Push::End => return rest.next().is_none().then_some(json),
            Push::EndBefore | Push::Bad => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_json() {
        let cases = [
            ("{'a': True, \"b\": None,}", "{\"a\": true, \"b\": null}"),
            ("[1, -2.5, (3,), 0x1f, 1_000, .5, 2.]", "[1, -2.5, [3], 31, 1000, 0.5, 2.0]"),
            (
                "['it\\'s', \"\\x41\\u00e9\\q\", '', '''a'b''']",
                "[\"it's\", \"A\u{e9}\\\\q\", \"\", \"a'b\"]",
            ),
            ("{1: {}, 'k': [[]]}", "{\"1\": {}, \"k\": [[]]}"),
            ("[\"\"\"two\nlines \"quoted\" \"\"\"]", "[\"two\\nlines \\\"quoted\\\" \"]"),
        ];
        for (python, json) in cases {
            assert_eq!(to_json(python).as_deref(), Some(json), "{python}");
            serde_json::from_str::<serde_json::Value>(json).unwrap();
        }
        for none in
            ["[1", "{1}", "[a]", "[1 2]", "[}", "{'a': }", "[01]", "['a' 'b']", "[,]", "[1]]"]
        {
            assert_eq!(to_json(none), None, "{none}");
        }
    }
}
