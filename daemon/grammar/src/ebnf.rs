//! Grammars in the notation of llama.cpp (GBNF), which xgrammar and SGLang read too, as llguidance's Lark.
//!
//! ```text
//!   root ::= "yes" | (item ("," item)*)      item ::= [a-z]{1,8} | .      # a comment
//! ```
//!
//! Rules get numbers for names, since names may have what Lark's may not.

use std::collections::HashMap;
use std::fmt::Write;
use std::iter::Peekable;
use std::str::Chars;

/// The rule that an output is derived from.
const ROOT: &str = "root";

#[derive(Debug, PartialEq)]
enum Token {
    Name(String),
    /// `::=`
    Is,
    Text(String),
    /// As a class of the crate `regex`.
    Class(String),
    /// Of one character that means the same in both: parentheses, `|`, `*`, `+`, `?`.
    Sign(char),
    /// `{m}`, `{m,}` or `{m,n}`.
    Times(String),
}

/// The same in Lark.
///
/// # Errors
/// It is not in this notation, a rule is missing or there twice; the text says which.
pub fn to_lark(text: &str) -> Result<String, String> {
    let tokens = Lexer { chars: text.chars().peekable() }.all()?;
    let is_rule = |at: usize| tokens.get(at + 1) == Some(&Token::Is);
    let mut numbers = HashMap::new();
    for (at, token) in tokens.iter().enumerate() {
        if let (Token::Name(name), true) = (token, is_rule(at)) {
            let number = numbers.len();
            if numbers.insert(name.as_str(), number).is_some() {
                return Err(format!("the rule {name} is there twice"));
            }
        }
    }
    let number_of = |name: &str| {
        numbers.get(name).ok_or_else(|| format!("there is no rule {name}, which is asked for"))
    };
    let mut lark = format!("start: r{}", number_of(ROOT)?);
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Name(name) if is_rule(at) => {
                let _ = write!(lark, "\nr{}:", number_of(name)?);
            }
            Token::Name(name) => {
                let _ = write!(lark, " r{}", number_of(name)?);
            }
            Token::Is if at > 0 && matches!(tokens[at - 1], Token::Name(_)) => {}
            Token::Is => return Err("::= stands behind no name of a rule".to_owned()),
            Token::Text(text) => {
                let _ = write!(lark, " {}", serde_json::Value::from(text.as_str()));
            }
            Token::Class(class) => {
                let _ = write!(lark, " /{class}/");
            }
            Token::Sign(sign @ ('(' | '|')) => {
                let _ = write!(lark, " {sign}");
            }
            Token::Sign(sign) => lark.push(*sign),
            Token::Times(times) => lark.push_str(times),
        }
    }
    lark.push('\n');
    Ok(lark)
}

struct Lexer<'a> {
    chars: Peekable<Chars<'a>>,
}

impl Lexer<'_> {
    fn all(mut self) -> Result<Vec<Token>, String> {
        let mut tokens = Vec::new();
        while let Some(next) = self.chars.next() {
            tokens.push(match next {
                ' ' | '\t' | '\r' | '\n' => continue,
                '#' => {
                    while self.chars.next_if(|&c| c != '\n').is_some() {}
                    continue;
                }
                ':' if self.next_is(':') && self.next_is('=') => Token::Is,
                '"' => Token::Text(self.text()?),
                '[' => Token::Class(self.class()?),
                '.' => Token::Class("(?s:.)".to_owned()),
                '(' | ')' | '|' | '*' | '+' | '?' => Token::Sign(next),
                '{' => Token::Times(self.times()?),
                c if c.is_ascii_alphanumeric() || c == '_' => {
                    let mut name = String::from(c);
                    let goes = |c: &char| c.is_ascii_alphanumeric() || "_-".contains(*c);
                    while let Some(c) = self.chars.next_if(goes) {
                        name.push(c);
                    }
                    Token::Name(name)
                }
                other => return Err(format!("{other:?} means nothing there")),
            });
        }
        Ok(tokens)
    }

    fn next_is(&mut self, c: char) -> bool {
        self.chars.next_if_eq(&c).is_some()
    }

    fn text(&mut self) -> Result<String, String> {
        let mut text = String::new();
        loop {
            match self.chars.next() {
                Some('"') => return Ok(text),
                Some('\\') => text.push(self.escaped()?),
                Some(c) => text.push(c),
                None => return Err("a text in quotation marks does not end".to_owned()),
            }
        }
    }

    fn class(&mut self) -> Result<String, String> {
        let mut class = String::from(if self.next_is('^') { "[^" } else { "[" });
        let mut last = None;
        loop {
            let c = match self.chars.next() {
                Some(']') if last.is_some() => {
                    class.push(']');
                    return Ok(class);
                }
                // A dash in the middle is a range, as there.
                Some('-') if last.is_some() && self.chars.peek() != Some(&']') => {
                    class.push('-');
                    continue;
                }
                Some('\\') => self.escaped()?,
                Some(c) => c,
                None => {
                    return Err("a class in square brackets does not end, or is empty".to_owned());
                }
            };
            let _ = write!(class, "\\x{{{:x}}}", u32::from(c));
            last = Some(c);
        }
    }

    fn escaped(&mut self) -> Result<char, String> {
        let digits = match self.chars.next() {
            Some('n') => return Ok('\n'),
            Some('r') => return Ok('\r'),
            Some('t') => return Ok('\t'),
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            Some(c) if !c.is_ascii_alphanumeric() => return Ok(c),
            other => {
                return Err(format!(
                    "\\{} is no escape",
                    other.map_or(String::new(), String::from)
                ));
            }
        };
        let hex: String = self.chars.by_ref().take(digits).collect();
        let value = u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32);
        value.ok_or_else(|| format!("{hex:?} is no character's number"))
    }

    fn times(&mut self) -> Result<String, String> {
        let mut times = String::from("{");
        loop {
            match self.chars.next() {
                Some('}') => break,
                Some(c) if c.is_ascii_digit() || c == ',' => times.push(c),
                Some(' ') => {}
                _ => return Err("{ begins a number of times, such as {2,5}".to_owned()),
            }
        }
        Ok(times + "}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_become_lark() {
        let text = "root ::= item-list | \"\\\"a/b\\n\"  # yes\nitem-list ::= (\"x\" [^a-z\\]-]+ .)*\n  | root{2,3}";
        assert_eq!(
            to_lark(text).unwrap(),
            "start: r0\nr0: r1 | \"\\\"a/b\\n\"\nr1: ( \"x\" /[^\\x{61}-\\x{7a}\\x{5d}\\x{2d}]/+ /(?s:.)/)* | r0{2,3}\n"
        );
    }

    #[test]
    fn what_is_no_grammar_is_told() {
        for (text, told) in [
            ("start ::= \"a\"", "no rule root"),
            ("root ::= other", "no rule other"),
            ("root ::= \"a\"\nroot ::= \"b\"", "root is there twice"),
            ("root ::= \"a", "does not end"),
            ("root ::= [a", "does not end"),
            ("root ::= \"\\q\"", "\\q"),
            ("root ::= \"\\ud800\"", "d800"),
            ("root ::= a{x}", "number of times"),
            ("root ::= &", "'&'"),
            ("::= \"a\"", "no rule root"),
            ("root ::= \"a\" ::= \"b\"", "no name"),
        ] {
            let error = to_lark(text).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
