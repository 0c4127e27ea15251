//! Messages of blocks to messages in OpenAI's form.
//!
//! | block | becomes |
//! |---|---|
//! | `text` | a line of the content |
//! | `thinking` | `reasoning_content`; `redacted_thinking` has nothing to tell |
//! | `tool_use` | one of `tool_calls` |
//! | `tool_result` | a message of role `tool` before the text beside it, in the order of the calls |
//! | `document` of text, `search_result` | its text |
//! | `tool_addition`, `tool_removal` | words; a tool that is defined there is one of the request's |
//! | another in a result, or of a kind that is not known | words that say what is not shown |
//! | another of an assistant's, such as `server_tool_use` | nothing |
//!
//! Owns: these rules. Must never: refuse what an earlier answer, or a tool, put into a conversation: its client could
//! never go on.

use std::collections::HashMap;
use std::fmt;

use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::prompt::Message;

/// What stands for the signature of a thought; behind it and a colon is a thought that was not shown.
pub const SIGNATURE: &str = "minisgl";

/// The messages in OpenAI's form, and tools that are defined among them, in Anthropic's.
///
/// # Errors
/// 400: a message or a block has no form that is known, or a user shows what is not text.
pub fn messages(
    system: Value,
    given: Vec<Message>,
) -> Result<(Vec<Message>, Vec<Value>), ApiError> {
    let mut out = Conversation::default();
    out.system(system, Place { message: None, block: None })?;
    let is_user = |message: &Message| message.get("role").is_some_and(|role| role == "user");
    let last_of_user = given.iter().rposition(is_user);
    for (at, mut message) in given.into_iter().enumerate() {
        let place = Place { message: Some(at), block: None };
        let content = message.get_mut("content").map(Value::take).unwrap_or_default();
        match message.get("role").and_then(Value::as_str) {
            Some("user") => out.user(content, place)?,
            Some("assistant") => out.assistant(content, place)?,
            Some("system") => {
                let passes = message.get("clear_at").is_some_and(|it| it == "next_user_message");
                if !passes || last_of_user.is_none_or(|last| at > last) {
                    out.system(content, place)?;
                }
            }
            _ => {
                let param = format!("messages[{at}].role");
                let text = format!("{param} is \"user\", \"assistant\" or \"system\"");
                return Err(ApiError::field(param, text));
            }
        }
    }
    Ok((out.messages, out.tools))
}

/// Where a block stands, for an error.
#[derive(Clone, Copy)]
struct Place {
    /// `None`: in `system`.
    message: Option<usize>,
    block: Option<usize>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.message {
            None => f.write_str("system")?,
            Some(at) => write!(f, "messages[{at}].content")?,
        }
        self.block.map_or(Ok(()), |at| write!(f, "[{at}]"))
    }
}

impl Place {
    fn error(self, what: &str) -> ApiError {
        ApiError::field(self.to_string(), format!("{self}: {what}"))
    }
}

/// A block, and where it stands.
struct Block {
    kind: String,
    fields: Map<String, Value>,
    place: Place,
}

impl Block {
    /// A field that must be a text.
    fn text(&mut self, name: &str) -> Result<String, ApiError> {
        match self.fields.get_mut(name).map(Value::take) {
            Some(Value::String(text)) => Ok(text),
            _ => Err(self.place.error(&format!("a {} block needs {name}, a string", self.kind))),
        }
    }
}

/// The blocks of a content; a string is one of text.
fn blocks(content: Value, place: Place) -> Result<Vec<Block>, ApiError> {
    let text = |text: String, place| {
        let fields = Map::from_iter([("text".to_owned(), Value::String(text))]);
        Block { kind: "text".to_owned(), fields, place }
    };
    let list = match content {
        Value::Null => return Ok(Vec::new()),
        Value::String(words) => return Ok(vec![text(words, place)]),
        Value::Array(list) => list,
        _ => return Err(place.error("content is a string or a list of blocks")),
    };
    let read = |(at, block): (usize, Value)| {
        let place = Place { block: Some(at), ..place };
        match block {
            Value::String(words) => Ok(text(words, place)),
            Value::Object(fields) => match fields.get("type").and_then(Value::as_str) {
                Some(kind) => Ok(Block { kind: kind.to_owned(), fields, place }),
                None => Err(place.error("a block needs a type, a string")),
            },
            _ => Err(place.error("a block is an object with a type")),
        }
    };
    list.into_iter().enumerate().map(read).collect()
}

/// What tells a model of something that it cannot see.
fn not_shown(kind: &str) -> String {
    let kind: String = kind.chars().take(40).collect();
    format!("[{kind}: not shown; this model reads text only]")
}

fn available(tool: &str) -> String {
    format!("[tool: {tool} is available]")
}

/// A conversation in OpenAI's form.
#[derive(Default)]
struct Conversation {
    messages: Vec<Message>,
    /// Those that messages define.
    tools: Vec<Value>,
    /// Places of the calls that were made last, by id.
    calls: HashMap<String, usize>,
}

impl Conversation {
    /// Appends a message. As with Anthropic, one of the role of the message before goes on that.
    fn push(&mut self, role: &str, content: Option<String>) -> &mut Message {
        let goes_on = self
            .messages
            .last()
            .is_some_and(|last| last["role"] == role && (role == "user" || role == "assistant"));
        if !goes_on {
            let message = Message::from_iter([("role".to_owned(), role.into())]);
            self.messages.push(message);
        }
        let at = self.messages.len() - 1;
        let message = &mut self.messages[at];
        if let Some(content) = content {
            append(message, "content", &content);
        }
        message
    }

    /// Instructions, of which there may be none.
    fn system(&mut self, content: Value, place: Place) -> Result<(), ApiError> {
        let mut texts = Vec::new();
        for mut block in blocks(content, place)? {
            texts.push(match &*block.kind {
                "text" => block.text("text")?,
                _ => self.words(block),
            });
        }
        let text = texts.join("\n");
        if !text.is_empty() {
            self.push("system", Some(text));
        }
        Ok(())
    }

    /// What a block says that is neither text nor of a kind that stands for itself.
    fn words(&mut self, mut block: Block) -> String {
        let mut tool = block.fields.get_mut("tool").map(Value::take).unwrap_or_default();
        let definition = tool.get_mut("definition").map(Value::take);
        let name = definition.as_ref().unwrap_or(&tool)["name"].as_str().map(str::to_owned);
        match (&*block.kind, name) {
            ("tool_addition", Some(name)) => {
                self.tools.extend(definition);
                available(&name)
            }
            ("tool_removal", Some(name)) => format!("[tool: {name} is no longer available]"),
            (kind, _) => not_shown(kind),
        }
    }

    fn user(&mut self, content: Value, place: Place) -> Result<(), ApiError> {
        let (mut results, mut texts) = (Vec::new(), Vec::new());
        for mut block in blocks(content, place)? {
            match &*block.kind {
                "text" => texts.push(block.text("text")?),
                "tool_result" => results.push(self.result(block)?),
                "image" | "document" | "search_result" => {
                    match readable(&block.kind, &block.fields) {
                        Some(text) => texts.push(text),
                        None => {
                            let Block { kind, place, .. } = block;
                            let text = format!(
                                "{place}: this {kind} cannot be read; models here take text only"
                            );
                            return Err(ApiError::unsupported(place.to_string(), text));
                        }
                    }
                }
                _ => texts.push(self.words(block)),
            }
        }
        let alone = results.is_empty();
        // Those of calls that nobody made come last.
        results.sort_by_key(|(at, _)| *at);
        self.messages.extend(results.into_iter().map(|(_, message)| message));
        if alone || !texts.is_empty() {
            self.push("user", Some(texts.join("\n")));
        }
        Ok(())
    }

    /// The message of a tool's result, and the place of its call.
    fn result(&self, mut block: Block) -> Result<(usize, Message), ApiError> {
        let id = block.text("tool_use_id")?;
        let content = block.fields.get_mut("content").map(Value::take).unwrap_or_default();
        let inner = blocks(content, block.place)?.into_iter().map(|mut inner| {
            // Whatever is wrong stands in the result, which has a place in the message.
            inner.place = block.place;
            match &*inner.kind {
                "text" => inner.text("text"),
                "tool_reference" => Ok(available(&inner.text("tool_name")?)),
                kind => Ok(readable(kind, &inner.fields).unwrap_or_else(|| not_shown(kind))),
            }
        });
        let mut text = inner.collect::<Result<Vec<_>, _>>()?.join("\n");
        let failed = block.fields.get("is_error").is_some_and(|failed| failed == true);
        if failed && !begins_with_error(&text) {
            text.insert_str(0, "Error: ");
        }
        let at = self.calls.get(&id).copied().unwrap_or(usize::MAX);
        let fields =
            [("role", "tool".into()), ("tool_call_id", id.into()), ("content", text.into())];
        let fields = fields.map(|(name, value): (&str, Value)| (name.to_owned(), value));
        Ok((at, Message::from_iter(fields)))
    }

    fn assistant(&mut self, content: Value, place: Place) -> Result<(), ApiError> {
        if self.messages.last().is_none_or(|last| last["role"] != "assistant") {
            self.calls.clear();
        }
        let (mut said, mut thought, mut calls) = (Vec::new(), Vec::new(), Vec::new());
        for mut block in blocks(content, place)? {
            match &*block.kind {
                "text" => said.push(block.text("text")?),
                "thinking" => thought.extend(thinking(&block.fields)),
                "tool_use" => {
                    let (id, name) = (block.text("id")?, block.text("name")?);
                    // An object as it came, so that its numbers keep their digits.
                    let input = block.fields.shift_remove("input").unwrap_or_default();
                    let function = json!({"name": name, "arguments": input});
                    calls.push(json!({"id": id, "type": "function", "function": function}));
                    let place = self.calls.len();
                    self.calls.entry(id).or_insert(place);
                }
                // Of what only Anthropic's servers do, nothing is told that a model could repeat.
                _ => {}
            }
        }
        let has_text = !said.is_empty() || calls.is_empty();
        let message = self.push("assistant", has_text.then(|| said.join("\n")));
        if !thought.is_empty() {
            append(message, "reasoning_content", &thought.join("\n"));
        }
        if !calls.is_empty() {
            let all = message.entry("tool_calls").or_insert_with(|| json!([]));
            all.as_array_mut().into_iter().for_each(|all| all.append(&mut calls));
        }
        Ok(())
    }
}

/// Adds a text to a message's field, behind a line break where there is text already.
fn append(message: &mut Message, name: &str, text: &str) {
    match message.get_mut(name) {
        Some(Value::String(so_far)) if so_far.is_empty() => so_far.push_str(text),
        Some(Value::String(so_far)) => {
            if !text.is_empty() {
                so_far.push('\n');
                so_far.push_str(text);
            }
        }
        _ => drop(message.insert(name.to_owned(), text.into())),
    }
}

fn begins_with_error(text: &str) -> bool {
    let begin = text.trim_start().as_bytes();
    begin.get(.."error".len()).is_some_and(|begin| begin.eq_ignore_ascii_case(b"error"))
}

/// A thought; one that was not shown is in its signature.
fn thinking(fields: &Map<String, Value>) -> Option<String> {
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    let shown = text("thinking").filter(|shown| !shown.is_empty());
    let kept = || text("signature")?.strip_prefix(SIGNATURE)?.strip_prefix(':');
    shown.or_else(kept).map(str::to_owned)
}

/// The text of what is a file or the result of a search, where it has one.
fn readable(kind: &str, fields: &Map<String, Value>) -> Option<String> {
    let (source, content) = (fields.get("source"), fields.get("content"));
    let text = match kind {
        "document" => {
            let source = source?;
            match source["type"].as_str()? {
                "text" => source["data"].as_str()?.to_owned(),
                "content" => only_text(&source["content"])?,
                _ => return None,
            }
        }
        "search_result" => {
            let from = source.and_then(Value::as_str).unwrap_or_default();
            format!("{from}\n{}", only_text(content?)?)
        }
        _ => return None,
    };
    let title = fields.get("title").and_then(Value::as_str).filter(|title| !title.is_empty());
    Some(title.map_or(text.clone(), |title| format!("{title}\n{text}")))
}

/// A string, or blocks of text.
fn only_text(content: &Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(blocks) => {
            let texts = blocks.iter().map(|block| block["text"].as_str());
            Some(texts.collect::<Option<Vec<_>>>()?.join("\n"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
