//! A call as tags: a name, and arguments as plain text between tags of their own.
//!
//! ```text
//!   <function=f> <parameter=city> Paris </parameter> </function>                       Qwen3-Coder
//!   <invoke name="f"><parameter name="city">Paris</parameter></invoke>                 MiniMax M2
//!   f<arg_key>city</arg_key><arg_value>Paris</arg_value>                               GLM
//! ```
//!
//! The text of an argument may hold its own closing tag: it ends where behind that tag, and white space, stands what can
//! follow an argument. The call begins when behind its name stands an argument or its end.

use super::value::Value;
use super::{Body, NAME_BYTES_MAX, Step, name_window};
use crate::calls::{Calls, Sink};
use crate::json::escape;
use crate::part::Outcome;
use crate::scan::{Found, Here, find, here, here_at_last, spaces};

/// White space, in bytes, between a closing tag and what must follow it.
const GAP_BYTES_MAX: usize = 256;

/// What varies.
pub(crate) struct XmlForm {
    /// Before the name; empty where nothing is.
    pub(crate) name_open: &'static str,
    /// Behind it; `true`: and it is taken.
    pub(crate) name_close: &'static [(&'static str, bool)],
    pub(crate) key_open: &'static str,
    pub(crate) key_close: &'static str,
    /// Before the value, behind the key; empty where nothing is.
    pub(crate) value_open: &'static str,
    pub(crate) value_close: &'static str,
    pub(crate) call_close: &'static str,
    /// Behind the calls; none where the call's own end is that.
    pub(crate) close: &'static [&'static str],
    /// A line break behind the value's opening and before its closing tag is the format's own.
    pub(crate) lines: bool,
}

/// See the file's head.
pub(crate) struct XmlCall {
    form: &'static XmlForm,
    at: At,
    name: String,
    key: String,
    value: Value,
    /// Arguments so far.
    count: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Open,
    Name,
    /// Behind the name.
    First,
    /// Behind an argument.
    Next,
    Key,
    ValueOpen,
    ValueStart,
    Value,
    /// Behind a call.
    After,
}

impl XmlCall {
    pub(crate) fn new(form: &'static XmlForm) -> XmlCall {
        let value = Value::new(crate::tools::Types::STRING);
        let at = if form.name_open.is_empty() { At::Name } else { At::Open };
        XmlCall { form, at, name: String::new(), key: String::new(), value, count: 0 }
    }

    /// What stands before the name was the opening marker.
    pub(crate) fn at_name(form: &'static XmlForm) -> XmlCall {
        XmlCall { at: At::Name, ..XmlCall::new(form) }
    }

    /// Takes a name up to what ends it; `None`: there is no end yet, or none can come.
    fn read_name(
        name: &mut String,
        text: &str,
        last: bool,
        ends: &[(&str, bool)],
    ) -> Result<Option<usize>, Step> {
        let window = name_window(text);
        let (text, last) = (window, last && window.len() == text.len());
        let found = find(text, ends.iter().map(|(end, _)| *end));
        let (until, which) = match found {
            Found::Whole { at, which } => (at, Some(which)),
            Found::Half(at) if !last => (at, None),
            _ => (text.len(), None),
        };
        for (at, char) in text[..until].char_indices() {
            let odd = char.is_control() || matches!(char, '<' | '>' | '{' | '}');
            if odd || name.len() + at >= NAME_BYTES_MAX {
                return Err(Step::Not(at));
            }
        }
        name.push_str(&text[..until]);
        match which {
            Some(which) => {
                let (end, taken) = ends[which];
                Ok(Some(until + if taken { end.len() } else { 0 }))
            }
            None if until > 0 => Err(Step::Took(until)),
            None => Err(Step::Need),
        }
    }

    fn name(&mut self, text: &str, last: bool, calls: &Calls) -> Step {
        let space = spaces(text);
        if self.name.is_empty() && space > 0 {
            return Step::Took(space);
        }
        match XmlCall::read_name(&mut self.name, text, last, self.form.name_close) {
            Err(step) => step,
            Ok(Some(taken)) => {
                let name = self.name.trim().trim_matches(['"', '\'']).to_string();
                if name.contains(char::is_whitespace) || !calls.accepts(&name) {
                    return Step::Not(taken);
                }
                self.name = name;
                self.at = At::First;
                Step::Took(taken)
            }
            Ok(None) => Step::Need,
        }
    }

    /// Behind the name or behind an argument.
    fn next(&mut self, text: &str, last: bool, calls: &mut Calls, sink: &mut Sink<'_>) -> Step {
        let space = spaces(text);
        if space > 0 {
            return Step::Took(space);
        }
        let marks = [self.form.key_open, self.form.call_close];
        let block = self.form.close.iter().copied();
        match here(text.as_bytes(), marks.into_iter().chain(block)) {
            Here::Half if !last || text.is_empty() => Step::Need,
            Here::Half | Here::No if self.at == At::First => Step::Not(0),
            // Half a tag is all there is: the output was cut.
            Here::Half => Step::Took(text.len()),
            Here::No => Step::Broken(0),
            Here::Whole(0) => {
                if self.at == At::First {
                    calls.begin(&self.name, None, sink);
                    calls.arguments("{", sink);
                }
                self.key.clear();
                self.at = At::Key;
                Step::Took(self.form.key_open.len())
            }
            Here::Whole(which) => {
                if self.at == At::First {
                    calls.begin(&self.name, None, sink);
                    calls.arguments("{", sink);
                }
                calls.arguments("}", sink);
                calls.end(Outcome::Whole, sink);
                self.at = At::After;
                if which == 1 {
                    Step::Took(self.form.call_close.len())
                } else {
                    // The call's own end is missing.
                    Step::Took(0)
                }
            }
        }
    }

    fn key(&mut self, text: &str, last: bool, calls: &mut Calls, sink: &mut Sink<'_>) -> Step {
        match XmlCall::read_name(&mut self.key, text, last, &[(self.form.key_close, true)]) {
            Err(Step::Not(at)) => {
                self.key.push_str(&text[..at]);
                Step::Broken(at)
            }
            Err(step) => step,
            Ok(None) => Step::Need,
            Ok(Some(taken)) => {
                let key = self.key.trim().trim_matches(['"', '\'']).to_string();
                let mut json = String::from(if self.count > 0 { ", \"" } else { "\"" });
                escape(&key, &mut json);
                json.push_str("\": ");
                calls.arguments(&json, sink);
                self.value = Value::new(calls.tools.types(&self.name, &key));
                self.key.clear();
                self.count += 1;
                self.at =
                    if self.form.value_open.is_empty() { At::ValueStart } else { At::ValueOpen };
                Step::Took(taken)
            }
        }
    }

    fn value(&mut self, text: &str, last: bool, calls: &mut Calls, sink: &mut Sink<'_>) -> Step {
        let (at, end) = match self.value_end(text, last) {
            Ok(end) => end,
            // Nothing ends it so far: up to here it is the value's.
            Err(mut until) => {
                if self.form.lines && text[..until].ends_with('\n') && !last {
                    until -= 1;
                }
                if until == 0 {
                    return Step::Need;
                }
                self.value.push(&text[..until], calls, sink);
                return Step::Took(until);
            }
        };
        let mut value = &text[..at];
        if self.form.lines {
            value = value.strip_suffix('\n').unwrap_or(value);
        }
        self.value.push(value, calls, sink);
        self.value.end(calls, sink);
        self.at = At::Next;
        Step::Took(end)
    }

    /// Where the value ends and where its closing tag does; or how far it goes at least.
    fn value_end(&self, text: &str, last: bool) -> Result<(usize, usize), usize> {
        let form = self.form;
        let mut from = 0;
        loop {
            let tags = [form.value_close, form.call_close].into_iter();
            let (at, which) = match find(&text[from..], tags) {
                Found::Whole { at, which } => (from + at, which),
                Found::Half(at) if !last => return Err(from + at),
                _ => return Err(text.len()),
            };
            let tag = [form.value_close, form.call_close][which];
            let behind = &text[at + tag.len()..];
            let gap = spaces(behind);
            let behind = &behind.as_bytes()[gap..];
            let block = form.close.iter().copied();
            let follows = if which == 0 {
                let marks = [form.key_open, form.call_close].into_iter().chain(block);
                if last { here_at_last(behind, marks) } else { here(behind, marks) }
            } else if form.close.is_empty() {
                Here::No
            } else {
                // The argument's own end is missing.
                if last { here_at_last(behind, block) } else { here(behind, block) }
            };
            let ends = match follows {
                Here::Whole(_) => gap <= GAP_BYTES_MAX,
                Here::Half if gap <= GAP_BYTES_MAX => return Err(at),
                Here::Half => false,
                Here::No => last && behind.is_empty(),
            };
            if ends {
                let taken = if which == 0 { at + tag.len() } else { at };
                return Ok((at, taken));
            }
            from = at + tag.len();
        }
    }

    fn after(&mut self, text: &str, last: bool) -> Step {
        let space = spaces(text);
        if space > 0 {
            return Step::Took(space);
        }
        let closed = self.form.close.is_empty();
        if closed || text.is_empty() {
            return if closed || last { Step::Done { taken: 0, closed } } else { Step::Need };
        }
        let block = self.form.close;
        match here(text.as_bytes(), block.iter().copied().chain([self.form.name_open])) {
            Here::Whole(which) if which < block.len() => {
                Step::Done { taken: block[which].len(), closed: true }
            }
            Here::Whole(_) => {
                *self = XmlCall::new(self.form);
                Step::Took(0)
            }
            Here::Half if last => Step::Done { taken: text.len(), closed: true },
            Here::Half => Step::Need,
            Here::No => Step::Done { taken: 0, closed: false },
        }
    }
}

impl Body for XmlCall {
    fn step(&mut self, text: &str, last: bool, calls: &mut Calls, sink: &mut Sink<'_>) -> Step {
        match self.at {
            At::Open => {
                let space = spaces(text);
                if space > 0 {
                    return Step::Took(space);
                }
                match here(text.as_bytes(), [self.form.name_open].into_iter()) {
                    Here::Whole(_) => {
                        self.at = At::Name;
                        Step::Took(self.form.name_open.len())
                    }
                    Here::Half if !last || text.is_empty() => Step::Need,
                    _ => Step::Not(0),
                }
            }
            At::Name | At::Key if text.is_empty() => Step::Need,
            At::Name => self.name(text, last, calls),
            At::First | At::Next => self.next(text, last, calls, sink),
            At::Key => self.key(text, last, calls, sink),
            At::ValueOpen => {
                let space = spaces(text);
                if space > 0 {
                    return Step::Took(space);
                }
                match here(text.as_bytes(), [self.form.value_open].into_iter()) {
                    Here::Whole(_) => {
                        self.at = At::ValueStart;
                        Step::Took(self.form.value_open.len())
                    }
                    Here::Half if !last || text.is_empty() => Step::Need,
                    _ => Step::Broken(0),
                }
            }
            At::ValueStart if text.is_empty() => Step::Need,
            At::ValueStart => {
                self.at = At::Value;
                Step::Took(usize::from(self.form.lines && text.starts_with('\n')))
            }
            At::Value if text.is_empty() => Step::Need,
            At::Value => self.value(text, last, calls, sink),
            At::After => self.after(text, last),
        }
    }

    fn is_pending(&self) -> bool {
        matches!(self.at, At::Open | At::Name | At::First)
    }

    fn closes(&self) -> &'static [&'static str] {
        self.form.close
    }

    fn held(&self) -> &str {
        &self.key
    }
}
