//! A call as a JSON object with a name and arguments, or a list of such.
//!
//! ```text
//!   {"name": "f", "arguments": {"a": 1}}      names and order of the keys vary, others are skipped
//!   [{"name": "f", "arguments": {}}, ...]
//! ```
//!
//! A call begins when both its name and the brace of its arguments are there. Arguments that come before the name are
//! held; a string is taken for JSON that was encoded twice; null, and none at all, are an empty object.

use super::{Body, NAME_BYTES_MAX, Step};
use crate::calls::{Calls, Sink};
use crate::json::{Json, State, escape};
use crate::part::Outcome;
use crate::scan::{Here, here, here_at_last, spaces};

/// What varies.
pub(crate) struct JsonForm {
    /// Closing markers; none where nothing closes it.
    pub(crate) close: &'static [&'static str],
    /// Whether it may be a list.
    pub(crate) list: bool,
    /// Whether it may be an object by itself.
    pub(crate) single: bool,
    /// What may stand between objects without a list.
    pub(crate) between: &'static [&'static str],
    /// What may stand before it, and is dropped (a fence).
    pub(crate) lead: &'static [&'static str],
}

const NAME_KEYS: [&str; 2] = ["name", "tool_name"];
const ARGUMENT_KEYS: [&str; 2] = ["arguments", "parameters"];

/// See the file's head.
pub(crate) struct JsonCall {
    form: &'static JsonForm,
    at: At,
    in_list: bool,
    object: Envelope,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before the brace of an object.
    Lead,
    /// In one.
    Object,
    /// Behind one.
    Tail,
    /// Behind all of them.
    Close,
}

struct Envelope {
    json: Json,
    key: Vec<u8>,
    role: Role,
    /// A string that is read as a whole, with its quotes.
    literal: Vec<u8>,
    name: Option<String>,
    /// Arguments that came before the name.
    early: Option<String>,
    progress: Progress,
}

/// What the value of a key is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    None,
    Key,
    Name,
    /// Arguments, given on.
    Stream,
    /// Arguments, held.
    Early,
    /// Arguments in a string.
    Literal,
    /// null for arguments.
    Null,
    Skip,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Before,
    Open,
    Ended,
}

impl JsonCall {
    pub(crate) fn new(form: &'static JsonForm) -> JsonCall {
        JsonCall { form, at: At::Lead, in_list: false, object: Envelope::new() }
    }

    fn lead(&mut self, text: &str, last: bool) -> Step {
        let space = spaces(text);
        if space > 0 {
            return Step::Took(space);
        }
        match text.as_bytes().first() {
            None => Step::Need,
            Some(b'{') if self.in_list || self.form.single => {
                (self.at, self.object) = (At::Object, Envelope::new());
                Step::Took(0)
            }
            Some(b'[') if !self.in_list && self.form.list => {
                self.in_list = true;
                Step::Took(1)
            }
            Some(_) if !self.in_list => match here(text.as_bytes(), self.form.lead.iter().copied())
            {
                Here::Whole(which) => Step::Took(self.form.lead[which].len()),
                Here::Half if !last => Step::Need,
                _ => Step::Not(0),
            },
            Some(_) => Step::Not(0),
        }
    }

    fn close(&mut self, text: &str, last: bool) -> Step {
        let space = spaces(text);
        if space > 0 {
            return Step::Took(space);
        }
        if text.is_empty() {
            let closed = self.form.close.is_empty();
            return if last { Step::Done { taken: 0, closed } } else { Step::Need };
        }
        match here(text.as_bytes(), self.form.close.iter().copied()) {
            Here::Whole(which) => {
                return Step::Done { taken: self.form.close[which].len(), closed: true };
            }
            Here::Half if last => return Step::Done { taken: text.len(), closed: true },
            Here::Half => return Step::Need,
            Here::No => {}
        }
        if !self.in_list {
            // Another object, right behind this one or behind a separator.
            let between = self.form.between.iter().copied();
            let separator = match here_at_last(text.as_bytes(), between) {
                Here::Whole(which) => self.form.between[which].len(),
                _ => 0,
            };
            let rest = text[separator..].trim_start_matches([' ', '\n', '\r', '\t']);
            if rest.starts_with('{') {
                self.at = At::Lead;
                self.object = Envelope::new();
                return Step::Took(text.len() - rest.len());
            }
            if rest.is_empty() && !last && text.len() <= NAME_BYTES_MAX {
                return Step::Need;
            }
        }
        Step::Done { taken: 0, closed: self.form.close.is_empty() }
    }
}

impl Body for JsonCall {
    fn step(&mut self, text: &str, last: bool, calls: &mut Calls, sink: &mut Sink<'_>) -> Step {
        match self.at {
            At::Lead => self.lead(text, last),
            At::Object if text.is_empty() => Step::Need,
            At::Object => match self.object.read(text, calls, sink) {
                Read::All => Step::Took(text.len()),
                Read::End(taken) => {
                    self.at = At::Tail;
                    Step::Took(taken)
                }
                Read::Bad(at) => match self.object.progress {
                    Progress::Before => Step::Not(at),
                    Progress::Open => Step::Broken(at),
                    Progress::Ended => Step::Done { taken: at, closed: false },
                },
            },
            At::Tail => match text.as_bytes().first() {
                None if !last => Step::Need,
                Some(byte) if self.in_list && crate::json::is_space(*byte) => Step::Took(1),
                Some(b',') if self.in_list => {
                    self.at = At::Lead;
                    Step::Took(1)
                }
                Some(b']') if self.in_list => {
                    self.at = At::Close;
                    Step::Took(1)
                }
                Some(_) if self.in_list => Step::Done { taken: 0, closed: false },
                _ => {
                    self.at = At::Close;
                    Step::Took(0)
                }
            },
            At::Close => self.close(text, last),
        }
    }

    fn is_pending(&self) -> bool {
        match self.at {
            At::Lead => true,
            At::Object => self.object.progress == Progress::Before,
            At::Tail | At::Close => false,
        }
    }

    fn closes(&self) -> &'static [&'static str] {
        self.form.close
    }
}

enum Read {
    All,
    End(usize),
    Bad(usize),
}

impl Envelope {
    fn new() -> Envelope {
        Envelope {
            json: Json::new(),
            key: Vec::new(),
            role: Role::None,
            literal: Vec::new(),
            name: None,
            early: None,
            progress: Progress::Before,
        }
    }

    fn read(&mut self, text: &str, calls: &mut Calls, sink: &mut Sink<'_>) -> Read {
        // Where the part of the arguments begins that is not given on yet.
        let mut given = 0;
        for (at, byte) in text.bytes().enumerate() {
            let (before, depth) = (self.json.state(), self.json.depth());
            let raw = byte < 0x20 && self.json.in_text();
            if !self.json.push(byte) {
                if self.role == Role::Stream {
                    calls.arguments(&text[given..at], sink);
                }
                return Read::Bad(at);
            }
            let now = self.json.state();
            if depth == 1 {
                // The value before this byte was a number, which only what follows it ends.
                let number = matches!(before, State::Number(_)) && !matches!(now, State::Number(_));
                if number {
                    self.role = Role::None;
                }
                match before {
                    State::FirstKey | State::Key if byte == b'"' => {
                        self.role = Role::Key;
                        self.key.clear();
                        continue;
                    }
                    State::Value if before != now => {
                        if !self.value_begins(byte, calls, sink) {
                            return Read::Bad(at);
                        }
                        given = at;
                    }
                    _ => {}
                }
            }
            match self.role {
                Role::Key if now == State::Colon => self.role = Role::None,
                Role::Key if self.key.len() < NAME_BYTES_MAX => self.key.push(byte),
                Role::Name | Role::Literal => self.literal.push(byte),
                Role::Stream if raw => {
                    calls.arguments(&text[given..at], sink);
                    let mut escaped = String::new();
                    escape(&text[at..=at], &mut escaped);
                    calls.arguments(&escaped, sink);
                    given = at + 1;
                }
                Role::Early => self.literal.push(byte),
                _ => {}
            }
            let ended = self.json.depth() == 1
                && now == State::After
                && (depth > 1 || before != State::After);
            if ended && self.role == Role::Stream {
                calls.arguments(&text[given..=at], sink);
            }
            if ended && !self.value_ends(calls, sink) {
                return Read::Bad(at);
            }
            if self.json.is_done() {
                return if self.object_ends(calls, sink) {
                    Read::End(at + 1)
                } else {
                    Read::Bad(at + 1)
                };
            }
        }
        if self.role == Role::Stream {
            calls.arguments(&text[given..], sink);
        }
        Read::All
    }

    fn value_begins(&mut self, byte: u8, calls: &mut Calls, sink: &mut Sink<'_>) -> bool {
        let key = std::str::from_utf8(&self.key).unwrap_or_default();
        self.role = Role::Skip;
        self.literal.clear();
        if NAME_KEYS.contains(&key) && self.name.is_none() && byte == b'"' {
            self.role = Role::Name;
        } else if ARGUMENT_KEYS.contains(&key)
            && self.progress == Progress::Before
            && self.early.is_none()
        {
            self.role = match byte {
                b'{' => match &self.name {
                    Some(name) => {
                        calls.begin(name, None, sink);
                        self.progress = Progress::Open;
                        Role::Stream
                    }
                    None => Role::Early,
                },
                b'"' => Role::Literal,
                b'n' => Role::Null,
                _ => return false,
            };
        }
        true
    }

    /// A value at the object's own depth has ended; `false`: so no call goes.
    fn value_ends(&mut self, calls: &mut Calls, sink: &mut Sink<'_>) -> bool {
        let arguments = match std::mem::replace(&mut self.role, Role::None) {
            Role::Name => {
                let name = serde_json::from_slice::<String>(&escaped(&self.literal));
                let Ok(name) = name.map(|name| name.trim().to_string()) else { return false };
                if name.len() > NAME_BYTES_MAX || !calls.accepts(&name) {
                    return false;
                }
                self.name = Some(name);
                self.early.take()
            }
            Role::Stream => {
                calls.end(Outcome::Whole, sink);
                self.progress = Progress::Ended;
                return true;
            }
            Role::Early => String::from_utf8(escaped(&self.literal)).ok(),
            Role::Literal => {
                let text = serde_json::from_slice::<String>(&escaped(&self.literal));
                let Ok(text) = text else { return false };
                let text = text.trim();
                let inner = if text.is_empty() { "{}" } else { text };
                let mut json = Json::new();
                let whole = inner.bytes().all(|byte| json.push(byte)) && json.is_done();
                if !whole || !inner.starts_with('{') {
                    return false;
                }
                Some(String::from_utf8_lossy(&escaped(inner.as_bytes())).into_owned())
            }
            Role::Null => Some("{}".to_string()),
            Role::None | Role::Key | Role::Skip => return true,
        };
        match (&self.name, arguments) {
            (Some(name), Some(arguments)) => {
                calls.whole(name, &arguments, sink);
                self.progress = Progress::Ended;
            }
            (_, arguments) => self.early = arguments,
        }
        true
    }

    fn object_ends(&mut self, calls: &mut Calls, sink: &mut Sink<'_>) -> bool {
        if let (Progress::Before, Some(name)) = (self.progress, &self.name) {
            calls.whole(name, "{}", sink);
            self.progress = Progress::Ended;
        }
        self.progress == Progress::Ended
    }
}

/// JSON with the raw control characters of its strings escaped.
fn escaped(json: &[u8]) -> Vec<u8> {
    let mut state = Json::new();
    let mut out = Vec::with_capacity(json.len());
    for &byte in json {
        if byte < 0x20 && state.in_text() {
            let mut text = String::new();
            escape(char::from(byte).encode_utf8(&mut [0; 4]), &mut text);
            out.extend_from_slice(text.as_bytes());
        } else {
            out.push(byte);
        }
        state.push(byte);
    }
    out
}
