//! A template's source to tokens, with Jinja2's rules for white space (`trim_blocks` and `lstrip_blocks` on).

use std::sync::Arc;

use super::Malformed;

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// Text outside of any tag.
    Text(Arc<str>),
    BlockBegin,
    BlockEnd,
    PrintBegin,
    PrintEnd,
    Name(Arc<str>),
    Str(Arc<str>),
    Int(i128),
    Float(f64),
    Op(&'static str),
}

/// Operators, longer ones before those that they begin with.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}",
    ">", "<", "=", ".", ":", "|", ",", ";",
];

struct Lexer<'s> {
    rest: &'s str,
    line: u32,
    tokens: Vec<(u32, Token)>,
    /// The tag before left the text at the start of a line.
    line_starts: bool,
}

/// Tokens with their lines.
pub fn tokens(source: &str) -> Result<Vec<(u32, Token)>, Malformed> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { rest: &source, line: 1, tokens: Vec::new(), line_starts: true };
    lexer.run()?;
    Ok(lexer.tokens)
}

impl<'s> Lexer<'s> {
    fn fail<T>(&self, message: impl Into<String>) -> Result<T, Malformed> {
        Err(Malformed { line: self.line, message: message.into() })
    }

    fn push(&mut self, token: Token) {
        self.tokens.push((self.line, token));
    }

    /// Takes so many bytes.
    fn take(&mut self, bytes: usize) -> &'s str {
        let (taken, rest) = self.rest.split_at(bytes);
        self.line += taken.matches('\n').count() as u32;
        self.rest = rest;
        taken
    }

    fn run(&mut self) -> Result<(), Malformed> {
        while !self.rest.is_empty() {
            let begins = ["{{", "{%", "{#"];
            let Some(at) = begins.iter().filter_map(|begin| self.rest.find(begin)).min() else {
                let text = self.take(self.rest.len());
                self.text(text);
                break;
            };
            let text = self.take(at);
            let tag = &self.rest[..2];
            let sign = self.rest[2..].chars().next();
            let text = match sign {
                Some('-') => text.trim_end(),
                Some('+') => text,
                _ if tag == "{{" => text,
                _ => self.without_indent(text),
            };
            self.text(text);
            let signed = usize::from(matches!(sign, Some('-' | '+')));
            match tag {
                "{#" => self.comment()?,
                "{%" if self.is_raw(signed) => self.raw(signed)?,
                "{%" => {
                    self.take(2 + signed);
                    self.push(Token::BlockBegin);
                    self.inside("%}")?;
                    self.push(Token::BlockEnd);
                }
                _ => {
                    self.take(2 + signed);
                    self.push(Token::PrintBegin);
                    self.inside("}}")?;
                    self.push(Token::PrintEnd);
                }
            }
        }
        Ok(())
    }

    fn text(&mut self, text: &str) {
        if !text.is_empty() {
            self.push(Token::Text(text.into()));
        }
    }

    /// Without the white space between the start of a line and a tag.
    fn without_indent<'t>(&self, text: &'t str) -> &'t str {
        let line = text.rfind('\n').map_or(0, |at| at + 1);
        let starts = line > 0 || self.line_starts;
        let blank = text[line..].chars().all(char::is_whitespace);
        if starts && blank { &text[..line] } else { text }
    }

    /// Takes the end of a tag: its sign, itself, and the white space that goes with it.
    fn end(&mut self, end: &str, sign: Option<char>) {
        let before = self.take(usize::from(sign.is_some()) + end.len());
        let mut last = before.chars().next_back();
        if sign == Some('-') {
            let blank = self.rest.len() - self.rest.trim_start().len();
            last = self.take(blank).chars().next_back().or(last);
        } else if sign.is_none() && end != "}}" && self.rest.starts_with('\n') {
            self.take(1);
            last = Some('\n');
        }
        self.line_starts = last == Some('\n');
    }

    /// The sign before `end`, if that is what follows.
    fn ends(&self, end: &str) -> Option<Option<char>> {
        if self.rest.starts_with(end) {
            return Some(None);
        }
        let sign = self.rest.chars().next().filter(|c| *c == '-' || (*c == '+' && end != "}}"))?;
        self.rest[1..].starts_with(end).then_some(Some(sign))
    }

    fn comment(&mut self) -> Result<(), Malformed> {
        let Some(at) = self.rest[2..].find("#}") else {
            return self.fail("a comment has no end");
        };
        let at = at + 2;
        let sign = self.rest[2..at].chars().next_back().filter(|c| matches!(c, '-' | '+'));
        self.take(at - usize::from(sign.is_some()));
        self.end("#}", sign);
        Ok(())
    }

    fn is_raw(&self, signed: usize) -> bool {
        let rest = self.rest[2 + signed..].trim_start();
        rest.strip_prefix("raw").is_some_and(|rest| {
            let rest = rest.trim_start();
            rest.starts_with("%}") || rest.starts_with("-%}")
        })
    }

    fn raw(&mut self, signed: usize) -> Result<(), Malformed> {
        self.take(2 + signed);
        self.skip_blank();
        self.take(3);
        self.skip_blank();
        // Unlike other tags this one takes no line break with it but by its sign.
        if self.rest.starts_with('-') {
            self.take(3);
            let blank = self.rest.len() - self.rest.trim_start().len();
            self.take(blank);
        } else {
            self.take(2);
        }
        let mut from = 0;
        loop {
            let Some(at) = self.rest[from..].find("{%").map(|at| at + from) else {
                return self.fail("a raw block has no end");
            };
            let tag = &self.rest[at + 2..];
            let sign = tag.chars().next().filter(|c| matches!(c, '-' | '+'));
            let inner = tag[usize::from(sign.is_some())..].trim_start();
            if let Some(after) = inner.strip_prefix("endraw") {
                let after = after.trim_start();
                if after.starts_with("%}") || after.starts_with("-%}") || after.starts_with("+%}") {
                    let text = self.take(at);
                    let text = match sign {
                        Some('-') => text.trim_end(),
                        Some(_) => text,
                        None => {
                            self.line_starts = false;
                            self.without_indent(text)
                        }
                    };
                    self.text(text);
                    let head = self.rest.len() - after.len();
                    self.take(head);
                    let sign = self.ends("%}").flatten();
                    self.end("%}", sign);
                    return Ok(());
                }
            }
            from = at + 2;
        }
    }

    fn skip_blank(&mut self) {
        let blank = self.rest.len() - self.rest.trim_start().len();
        self.take(blank);
    }

    /// Tokens up to the end of a tag. Brackets that are open hide it.
    fn inside(&mut self, end: &str) -> Result<(), Malformed> {
        let mut open: Vec<&str> = Vec::new();
        loop {
            self.skip_blank();
            if self.rest.is_empty() {
                return self.fail(format!("a tag has no end: {end} is missing"));
            }
            if open.is_empty()
                && let Some(sign) = self.ends(end)
            {
                self.end(end, sign);
                return Ok(());
            }
            let first = self.rest.chars().next().unwrap_or_default();
            if first.is_ascii_digit() {
                self.number()?;
            } else if first == '_' || first.is_alphanumeric() {
                let bytes = self.rest.find(|c: char| c != '_' && !c.is_alphanumeric());
                let name = self.take(bytes.unwrap_or(self.rest.len()));
                self.push(Token::Name(name.into()));
            } else if matches!(first, '\'' | '"') {
                self.string(first)?;
            } else {
                let Some(operator) = OPERATORS.iter().find(|op| self.rest.starts_with(**op)) else {
                    return self.fail(format!("unexpected {first:?}"));
                };
                match *operator {
                    "(" | "[" | "{" => open.push(operator),
                    ")" | "]" | "}" => {
                        let opens = match *operator {
                            ")" => "(",
                            "]" => "[",
                            _ => "{",
                        };
                        if open.pop() != Some(opens) {
                            return self.fail(format!("unexpected {operator:?}"));
                        }
                    }
                    _ => {}
                }
                self.take(operator.len());
                self.push(Token::Op(operator));
            }
        }
    }

    fn number(&mut self) -> Result<(), Malformed> {
        let radix = match self.rest.get(..2).map(str::to_ascii_lowercase).as_deref() {
            Some("0x") => 16,
            Some("0o") => 8,
            Some("0b") => 2,
            _ => 10,
        };
        if radix != 10 {
            let end = self.rest[2..].find(|c: char| c != '_' && !c.is_digit(radix));
            let end = end.map_or(self.rest.len(), |at| at + 2);
            let digits = self.take(end)[2..].replace('_', "");
            let Ok(number) = i128::from_str_radix(&digits, radix) else {
                return self.fail("not a number");
            };
            self.push(Token::Int(number));
            return Ok(());
        }
        let digits =
            |text: &str| text.find(|c: char| c != '_' && !c.is_ascii_digit()).unwrap_or(text.len());
        let mut end = digits(self.rest);
        let mut is_float = false;
        // After a dot this is an index: `a.0.1`.
        let after_dot = matches!(self.tokens.last(), Some((_, Token::Op("."))));
        let rest = &self.rest[end..];
        if !after_dot
            && rest.starts_with('.')
            && rest[1..].starts_with(|c: char| c.is_ascii_digit())
        {
            is_float = true;
            end += 1 + digits(&rest[1..]);
        }
        let rest = &self.rest[end..];
        if !after_dot && rest.starts_with(['e', 'E']) {
            let signed = usize::from(rest[1..].starts_with(['+', '-']));
            let exponent = &rest[1 + signed..];
            if exponent.starts_with(|c: char| c.is_ascii_digit()) {
                is_float = true;
                end += 1 + signed + digits(exponent);
            }
        }
        let text = self.take(end).replace('_', "");
        let number = if is_float {
            text.parse().ok().map(Token::Float)
        } else {
            text.parse().ok().map(Token::Int)
        };
        match number {
            Some(number) => self.push(number),
            None => return self.fail(format!("{text} is too large a number")),
        }
        Ok(())
    }

    fn string(&mut self, quote: char) -> Result<(), Malformed> {
        let mut escaped = false;
        let end = self.rest[1..].find(|c| {
            let ends = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let Some(end) = end else { return self.fail("a string has no end") };
        let line = self.line;
        let text = self.take(end + 2);
        let text = unescaped(&text[1..=end]);
        self.tokens.push((line, Token::Str(text.into())));
        Ok(())
    }
}

/// Python's escapes in a string; an unknown one stays as it is.
fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(c) = rest.chars().next() else {
            out.push('\\');
            break;
        };
        rest = &rest[c.len_utf8()..];
        let plain = match c {
            'n' => Some("\n"),
            't' => Some("\t"),
            'r' => Some("\r"),
            'a' => Some("\x07"),
            'b' => Some("\x08"),
            'f' => Some("\x0c"),
            'v' => Some("\x0b"),
            '\\' => Some("\\"),
            '\'' => Some("'"),
            '"' => Some("\""),
            '\n' => Some(""),
            _ => None,
        };
        if let Some(plain) = plain {
            out.push_str(plain);
            continue;
        }
        let hex = match c {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        let code =
            rest.get(..hex).filter(|_| hex > 0).and_then(|d| u32::from_str_radix(d, 16).ok());
        if let Some(c) = code.and_then(char::from_u32) {
            out.push(c);
            rest = &rest[hex..];
            continue;
        }
        if c.is_digit(8) {
            let more = rest.find(|c: char| !c.is_digit(8)).unwrap_or(rest.len()).min(2);
            let digits = format!("{c}{}", &rest[..more]);
            let code = u32::from_str_radix(&digits, 8).ok().and_then(char::from_u32);
            out.push(code.unwrap_or(char::REPLACEMENT_CHARACTER));
            rest = &rest[more..];
            continue;
        }
        out.push('\\');
        out.push(c);
    }
    out.push_str(rest);
    out
}
