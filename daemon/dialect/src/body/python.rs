//! Calls as Python writes them, by keyword: `[f(city="Paris", days=[1, 2]), g()]`.
//!
//! A call begins behind its first keyword, or at its end where it has none: `f(x)` is none, since `x` has no name.

mod literal;

pub(crate) use literal::to_json;
use literal::{Literal, Push};

use super::{Body, NAME_BYTES_MAX, Step};
use crate::calls::{Calls, Sink};
use crate::json::escape;
use crate::part::Outcome;
use crate::scan::{Here, here, spaces};

/// What varies.
pub(crate) struct PythonForm {
    /// Whether one call may stand without brackets.
    pub(crate) single: bool,
    /// Closing markers, which may be missing.
    pub(crate) close: &'static [&'static str],
    /// What a name may end with that is none of it.
    pub(crate) suffix: &'static str,
}

/// See the file's head.
pub(crate) struct PythonCall {
    form: &'static PythonForm,
    at: At,
    in_list: bool,
    name: String,
    key: String,
    literal: Literal,
    /// Arguments so far.
    count: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before a name.
    Lead,
    Name,
    /// Before a keyword, or the end; a comma may come first where there was one.
    Key,
    /// In a keyword, or behind it.
    InKey,
    Value,
    /// Behind a value.
    Next,
    /// Behind a call.
    After,
    Close,
}

impl PythonCall {
    pub(crate) fn new(form: &'static PythonForm) -> PythonCall {
        PythonCall {
            form,
            at: At::Lead,
            in_list: false,
            name: String::new(),
            key: String::new(),
            literal: Literal::new(),
            count: 0,
        }
    }

    fn fails(&self, at: usize) -> Step {
        if self.is_pending() { Step::Not(at) } else { Step::Broken(at) }
    }

    fn end_call(&mut self, calls: &mut Calls, sink: &mut Sink<'_>) {
        if self.count == 0 {
            calls.begin(&self.name, None, sink);
            calls.arguments("{", sink);
        }
        calls.arguments("}", sink);
        calls.end(Outcome::Whole, sink);
        self.at = At::After;
    }

    /// Takes one character; `Err`: it does not fit.
    fn take(&mut self, char: char, calls: &mut Calls, sink: &mut Sink<'_>) -> Result<(), ()> {
        let space = char.is_ascii() && crate::json::is_space(char as u8);
        match self.at {
            At::Lead => match char {
                _ if space => {}
                '[' if !self.in_list => self.in_list = true,
                'A'..='Z' | 'a'..='z' | '_' if self.in_list || self.form.single => {
                    self.name = char.to_string();
                    self.count = 0;
                    self.at = At::Name;
                }
                _ => return Err(()),
            },
            At::Name => match char {
                '(' => {
                    let name = self.name.strip_suffix(self.form.suffix).unwrap_or(&self.name);
                    if !calls.accepts(name) {
                        return Err(());
                    }
                    self.name = name.to_string();
                    self.at = At::Key;
                }
                _ if self.name.len() < NAME_BYTES_MAX
                    && (char.is_ascii_alphanumeric() || matches!(char, '_' | '.' | '-')) =>
                {
                    self.name.push(char);
                }
                _ => return Err(()),
            },
            At::Key => match char {
                _ if space => {}
                ')' => self.end_call(calls, sink),
                _ if char.is_alphabetic() || char == '_' => {
                    self.key = char.to_string();
                    self.at = At::InKey;
                }
                _ => return Err(()),
            },
            At::InKey => match char {
                '=' => {
                    let mut json = String::from(if self.count == 0 { "{\"" } else { ", \"" });
                    escape(self.key.trim_end(), &mut json);
                    json.push_str("\": ");
                    if self.count == 0 {
                        calls.begin(&self.name, None, sink);
                    }
                    calls.arguments(&json, sink);
                    self.count += 1;
                    self.literal = Literal::new();
                    self.at = At::Value;
                }
                _ if self.key.len() >= NAME_BYTES_MAX => return Err(()),
                _ if space => self.key.push(' '),
                _ if (char.is_alphanumeric() || char == '_') && !self.key.ends_with(' ') => {
                    self.key.push(char);
                }
                _ => return Err(()),
            },
            At::Value => {
                let mut json = String::new();
                let push = self.literal.push(char, &mut json);
                calls.arguments(&json, sink);
                match push {
                    Push::More => {}
                    Push::End => self.at = At::Next,
                    Push::EndBefore => {
                        self.at = At::Next;
                        return self.take(char, calls, sink);
                    }
                    Push::Bad => return Err(()),
                }
            }
            At::Next => match char {
                _ if space => {}
                ',' => self.at = At::Key,
                ')' => self.end_call(calls, sink),
                _ => return Err(()),
            },
            At::After | At::Close => return Err(()),
        }
        Ok(())
    }

    fn behind(&mut self, text: &str, last: bool) -> Step {
        let space = spaces(text);
        if space > 0 {
            return Step::Took(space);
        }
        let closed = self.form.close.is_empty();
        match text.as_bytes().first() {
            Some(b',' | b';') if self.in_list && self.at == At::After => {
                self.at = At::Lead;
                return Step::Took(1);
            }
            Some(b']') if self.in_list && self.at == At::After => {
                self.at = At::Close;
                return Step::Took(1);
            }
            None if last || (closed && (!self.in_list || self.at == At::Close)) => {
                return Step::Done { taken: 0, closed };
            }
            None => return Step::Need,
            _ => {}
        }
        match here(text.as_bytes(), self.form.close.iter().copied()) {
            Here::Whole(which) => Step::Done { taken: self.form.close[which].len(), closed: true },
            Here::Half if last => Step::Done { taken: text.len(), closed: true },
            Here::Half => Step::Need,
            Here::No => Step::Done { taken: 0, closed },
        }
    }
}

impl Body for PythonCall {
    fn step(&mut self, text: &str, last: bool, calls: &mut Calls, sink: &mut Sink<'_>) -> Step {
        if matches!(self.at, At::After | At::Close) {
            return self.behind(text, last);
        }
        if text.is_empty() {
            return Step::Need;
        }
        let pending = self.is_pending();
        for (at, char) in text.char_indices() {
            if self.take(char, calls, sink).is_err() {
                return self.fails(at);
            }
            if self.at == At::After || self.is_pending() != pending {
                return Step::Took(at + char.len_utf8());
            }
        }
        Step::Took(text.len())
    }

    fn is_pending(&self) -> bool {
        match self.at {
            At::Lead | At::Name => true,
            At::Key | At::InKey => self.count == 0,
            At::Value | At::Next | At::After | At::Close => false,
        }
    }

    fn closes(&self) -> &'static [&'static str] {
        self.form.close
    }

    fn held(&self) -> &str {
        match self.at {
            At::InKey => &self.key,
            At::Value => self.literal.held(),
            _ => "",
        }
    }
}
