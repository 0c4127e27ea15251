//! JSON, a byte at a time: whether what came so far can still become a value, and where the value ends.
//!
//! Owns: the grammar of RFC 8259 as an automaton of constant size. Must never: hold text, or look ahead. Control
//! characters inside strings pass, as models write them raw; whoever gives the text on escapes them ([`escape`]).

/// Containers inside containers; more is no value.
const DEPTH_MAX: u32 = 128;

/// What is expected next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// A value.
    Value,
    /// A value, or the end of an empty array.
    FirstItem,
    /// A key, or the end of an empty object.
    FirstKey,
    /// A key.
    Key,
    /// The colon behind a key.
    Colon,
    /// A comma, or the end of the container.
    After,
    /// The rest of a string, of a key where `key`; `escape` is 1 behind a backslash, and 1 more than the hexadecimal
    /// digits that are missing behind `\u`.
    Text { key: bool, escape: u8 },
    /// The rest of a number.
    Number(Number),
    /// The rest of `true`, `false` or `null`.
    Word(&'static [u8]),
    /// Nothing: the value has ended.
    Done,
}

/// How far a number has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Number {
    Minus,
    Zero,
    Whole,
    Dot,
    Fraction,
    Exponent,
    ExponentSign,
    Power,
}

impl Number {
    fn can_end(self) -> bool {
        matches!(self, Number::Zero | Number::Whole | Number::Fraction | Number::Power)
    }

    fn next(self, byte: u8) -> Option<Number> {
        use Number::*;
        Some(match (self, byte) {
            (Minus, b'0') => Zero,
            (Minus, b'1'..=b'9') | (Whole, b'0'..=b'9') => Whole,
            (Zero | Whole, b'.') => Dot,
            (Dot | Fraction, b'0'..=b'9') => Fraction,
            (Zero | Whole | Fraction, b'e' | b'E') => Exponent,
            (Exponent, b'+' | b'-') => ExponentSign,
            (Exponent | ExponentSign | Power, b'0'..=b'9') => Power,
            _ => return None,
        })
    }
}

/// A value on its way.
#[derive(Clone, Debug)]
pub(crate) struct Json {
    state: State,
    depth: u32,
    /// Bit `d`: the container at depth `d + 1` is an object.
    objects: u128,
}

impl Json {
    /// Before any byte.
    pub(crate) fn new() -> Json {
        Json { state: State::Value, depth: 0, objects: 0 }
    }

    /// What is expected next.
    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// Containers that are open.
    pub(crate) fn depth(&self) -> u32 {
        self.depth
    }

    /// Whether the value has ended, and no byte can follow it.
    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether what came is a whole value, also where it could go on (a number).
    pub(crate) fn is_whole(&self) -> bool {
        match self.state {
            State::Done => true,
            State::Number(number) => self.depth == 0 && number.can_end(),
            _ => false,
        }
    }

    /// Whether the next byte stands inside a string.
    pub(crate) fn in_text(&self) -> bool {
        matches!(self.state, State::Text { .. })
    }

    /// Takes a byte. `false`: no value begins so, and the byte is not taken.
    pub(crate) fn push(&mut self, byte: u8) -> bool {
        let next = match self.state {
            State::Text { key, escape } => self.in_string(key, escape, byte),
            State::Number(number) => match number.next(byte) {
                Some(number) => Some(State::Number(number)),
                None if number.can_end() => {
                    let before = self.state;
                    self.state = self.after();
                    let taken = self.push(byte);
                    if !taken {
                        self.state = before;
                    }
                    return taken;
                }
                None => None,
            },
            State::Word(rest) => match rest.split_first() {
                Some((&first, rest)) if first == byte => {
                    Some(if rest.is_empty() { self.after() } else { State::Word(rest) })
                }
                _ => None,
            },
            state if is_space(byte) && state != State::Done => Some(state),
            State::Value | State::FirstItem => self.begin(byte),
            State::FirstKey | State::Key => match byte {
                b'"' => Some(State::Text { key: true, escape: 0 }),
                b'}' if self.state == State::FirstKey => Some(self.close()),
                _ => None,
            },
            State::Colon => (byte == b':').then_some(State::Value),
            State::After => match byte {
                b',' if self.in_object() => Some(State::Key),
                b',' => Some(State::Value),
                b'}' if self.in_object() => Some(self.close()),
                b']' if !self.in_object() => Some(self.close()),
                _ => None,
            },
            State::Done => None,
        };
        match next {
            Some(next) => {
                self.state = next;
                true
            }
            None => false,
        }
    }

    fn begin(&mut self, byte: u8) -> Option<State> {
        Some(match byte {
            b'{' | b'[' => {
                if self.depth == DEPTH_MAX {
                    return None;
                }
                let bit = 1u128 << self.depth;
                self.depth += 1;
                if byte == b'{' {
                    self.objects |= bit;
                    State::FirstKey
                } else {
                    self.objects &= !bit;
                    State::FirstItem
                }
            }
            b']' if self.state == State::FirstItem => self.close(),
            b'"' => State::Text { key: false, escape: 0 },
            b'-' => State::Number(Number::Minus),
            b'0' => State::Number(Number::Zero),
            b'1'..=b'9' => State::Number(Number::Whole),
            b't' => State::Word(b"rue"),
            b'f' => State::Word(b"alse"),
            b'n' => State::Word(b"ull"),
            _ => return None,
        })
    }

    fn in_string(&self, key: bool, escape: u8, byte: u8) -> Option<State> {
        Some(match (escape, byte) {
            (0, b'"') if key => State::Colon,
            (0, b'"') => self.after(),
            (0, b'\\') => State::Text { key, escape: 1 },
            (0, _) => State::Text { key, escape: 0 },
            (1, b'u') => State::Text { key, escape: 5 },
            (1, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                State::Text { key, escape: 0 }
            }
            (2, byte) if byte.is_ascii_hexdigit() => State::Text { key, escape: 0 },
            (3.., byte) if byte.is_ascii_hexdigit() => State::Text { key, escape: escape - 1 },
            _ => return None,
        })
    }

    fn in_object(&self) -> bool {
        self.depth > 0 && self.objects >> (self.depth - 1) & 1 == 1
    }

    fn close(&mut self) -> State {
        self.depth -= 1;
        self.after()
    }

    fn after(&self) -> State {
        if self.depth == 0 { State::Done } else { State::After }
    }
}

/// JSON's white space.
pub(crate) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t')
}

/// Appends what stands for a text inside a JSON string, without its quotes.
pub(crate) fn escape(text: &str, out: &mut String) {
    let mut from = 0;
    for (at, byte) in text.bytes().enumerate() {
        let short = match byte {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            b'\n' => "\\n",
            b'\r' => "\\r",
            b'\t' => "\\t",
            0..0x20 => "",
            _ => continue,
        };
        out.push_str(&text[from..at]);
        from = at + 1;
        if short.is_empty() {
            out.push_str(&format!("\\u{byte:04x}"));
        } else {
            out.push_str(short);
        }
    }
    out.push_str(&text[from..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(text: &str) -> bool {
        let mut json = Json::new();
        text.bytes().all(|byte| json.push(byte)) && json.is_whole()
    }

    #[test]
    fn it_takes_what_serde_takes() {
        let values = [
            "{}",
            "[]",
            "{\"a\":[1,2.5e-3,{\"b\":null}],\"c\":\"\\u00e9\\n\"}",
            "-0",
            "1e9",
            "true",
            " [ 1 , 2 ] ",
            "{,}",
            "[1,]",
            "{\"a\"}",
            "01",
            "1.",
            "-",
            "\"\\x\"",
            "nul",
            "{\"a\":1,}",
            "[}",
            "\"a",
            "{1:2}",
            "é",
            "\"é\"",
            "\"\\u12g4\"",
            "[[[]]]",
            "1 2",
            "tru e",
            "{\"a\":\"b\" \"c\":1}",
            "1e",
            "1e+",
            ".5",
            "+1",
        ];
        for value in values {
            let serde = serde_json::from_str::<serde_json::Value>(value.trim()).is_ok();
            assert_eq!(reads(value.trim()), serde, "{value}");
        }
    }

    #[test]
    fn depth_has_a_limit() {
        let deep = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert!(reads(&deep(DEPTH_MAX as usize)));
        assert!(!reads(&deep(DEPTH_MAX as usize + 1)));
    }

    #[test]
    fn escaped_text_is_what_it_was() {
        let text: String = (0..0x80).map(char::from).chain("é💧\"\\".chars()).collect();
        let mut out = String::from("\"");
        escape(&text, &mut out);
        out.push('"');
        assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text);
    }
}
