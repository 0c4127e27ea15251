//! Items of a conversation in the Responses API's form, as the messages of a chat.
//!
//! ```text
//!   reasoning, message (assistant), function_call, function_call --> one assistant message
//!   function_call_output                                         --> one tool message
//! ```
//!
//! Owns: which items make one turn. Must never: drop a part that a user wrote; it refuses what it does not understand.

use serde_json::{Value, json};

use super::tools::{Toolkit, arguments_of};
use crate::error::ApiError;
use crate::prompt::Message;

/// What `encrypted_content` of this server begins with. Nothing is secret in it: clients that give back nothing else of a
/// thought give back this.
pub const THOUGHT: &str = "minisgl.thought:";

/// Types of parts that are text.
const TEXTS: [&str; 6] =
    ["input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text"];

/// Types of items that are read; any other is left out.
const READ: [&str; 7] = [
    "message",
    "reasoning",
    "function_call",
    "custom_tool_call",
    "function_call_output",
    "custom_tool_call_output",
    "additional_tools",
];

/// The type of an item, if it has one.
fn kind(item: &Value) -> Option<&str> {
    match item.get("type").and_then(Value::as_str) {
        None if item["role"].is_string() => Some("message"),
        kind => kind,
    }
}

/// Whether it is of a type that is read.
pub fn is_read(item: &Value) -> bool {
    kind(item).is_some_and(|kind| READ.contains(&kind))
}

/// What the assistant said at once.
#[derive(Default)]
struct Turn {
    reasoning: Option<String>,
    content: Option<String>,
    calls: Vec<Value>,
}

/// Reads items one after the other.
pub struct Reader<'a> {
    tools: &'a Toolkit,
    messages: Vec<Message>,
    turn: Turn,
}

impl<'a> Reader<'a> {
    /// With the tools that calls are of.
    pub fn new(tools: &'a Toolkit) -> Reader<'a> {
        Reader { tools, messages: Vec::new(), turn: Turn::default() }
    }

    /// Takes the next item, which stands at `param`.
    ///
    /// # Errors
    /// 400: it lacks what an item of its type has, or holds what the model cannot read.
    pub fn read(&mut self, param: &str, item: &Value) -> Result<(), ApiError> {
        let Some(kind) = kind(item) else {
            let text = format!("{param}: an item has a type, or a role and a content");
            return Err(ApiError::field(param, text));
        };
        if !READ.contains(&kind) {
            let kind: String = kind.chars().take(40).collect();
            tracing::debug!(kind, "an item was left out: the model cannot read it");
            return Ok(());
        }
        match kind {
            "message" => self.message(param, item),
            "reasoning" => {
                if let Some(text) = thought(item) {
                    join(&mut self.turn.reasoning, &text);
                }
                Ok(())
            }
            "function_call" => {
                let arguments = string(param, item, "arguments")?.to_owned();
                self.call(param, item, arguments)
            }
            "custom_tool_call" => {
                let arguments = arguments_of(string(param, item, "input")?);
                self.call(param, item, arguments)
            }
            "function_call_output" | "custom_tool_call_output" => self.output(param, item),
            // The tools of `additional_tools` are there already.
            _ => Ok(()),
        }
    }

    /// All messages.
    pub fn finish(mut self) -> Vec<Message> {
        self.end_turn();
        self.messages
    }

    fn message(&mut self, param: &str, item: &Value) -> Result<(), ApiError> {
        let role = item["role"].as_str().unwrap_or_default();
        let text = text(&format!("{param}.content"), &item["content"], Media::Refused)?;
        match role {
            "assistant" => join(&mut self.turn.content, &text),
            "user" | "system" | "developer" => {
                self.push(json!({"role": role, "content": text}));
            }
            _ => {
                let param = format!("{param}.role");
                let text = format!(
                    "{param}: a message is of \"user\", \"assistant\", \"system\" or \"developer\""
                );
                return Err(ApiError::field(param, text));
            }
        }
        Ok(())
    }

    fn call(&mut self, param: &str, item: &Value, arguments: String) -> Result<(), ApiError> {
        let name = string(param, item, "name")?;
        let id = string(param, item, "call_id")?;
        let name = self.tools.chat_name(item["namespace"].as_str(), name);
        let function = json!({"name": name, "arguments": arguments});
        self.turn.calls.push(json!({"id": id, "type": "function", "function": function}));
        Ok(())
    }

    fn output(&mut self, param: &str, item: &Value) -> Result<(), ApiError> {
        let id = string(param, item, "call_id")?;
        let text = text(&format!("{param}.output"), &item["output"], Media::Words)?;
        self.push(json!({"role": "tool", "tool_call_id": id, "content": text}));
        Ok(())
    }

    fn push(&mut self, message: Value) {
        self.end_turn();
        if let Value::Object(message) = message {
            self.messages.push(message);
        }
    }

    fn end_turn(&mut self) {
        let Turn { reasoning, content, calls } = std::mem::take(&mut self.turn);
        // A thought that nothing followed was broken off.
        if content.is_none() && calls.is_empty() {
            return;
        }
        let mut message = Message::new();
        message.insert("role".into(), "assistant".into());
        message.insert("content".into(), content.into());
        if let Some(reasoning) = reasoning {
            message.insert("reasoning_content".into(), reasoning.into());
        }
        if !calls.is_empty() {
            message.insert("tool_calls".into(), calls.into());
        }
        self.messages.push(message);
    }
}

/// Puts a text behind one that may be there.
fn join(all: &mut Option<String>, text: &str) {
    match all {
        Some(all) => {
            all.push('\n');
            all.push_str(text);
        }
        None => *all = Some(text.to_owned()),
    }
}

fn string<'a>(param: &str, item: &'a Value, name: &str) -> Result<&'a str, ApiError> {
    item[name].as_str().ok_or_else(|| {
        let param = format!("{param}.{name}");
        let text = format!("{param}: a string is needed");
        ApiError::field(param, text)
    })
}

/// What the model thought: the thought itself, or else its summary.
fn thought(item: &Value) -> Option<String> {
    let texts = |name: &str| {
        let parts = item[name].as_array()?;
        let texts: Vec<&str> = parts.iter().filter_map(|part| part["text"].as_str()).collect();
        Some(texts.join("\n")).filter(|text| !text.is_empty())
    };
    let kept = item["encrypted_content"].as_str().and_then(|kept| kept.strip_prefix(THOUGHT));
    texts("content").or(kept.map(str::to_owned)).or_else(|| texts("summary"))
}

/// What becomes of an image, or a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Media {
    /// 400: whoever wrote it would not know that it was not seen.
    Refused,
    /// It is named. A tool made it, and the model can ask for something else.
    Words,
}

/// A content that is a string, or parts, which are joined by line breaks.
fn text(param: &str, content: &Value, media: Media) -> Result<String, ApiError> {
    match content {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => {
            let parts = parts.iter().enumerate();
            let texts = parts.map(|(at, part)| part_text(&format!("{param}[{at}]"), part, media));
            Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
        }
        _ => Err(ApiError::field(param, format!("{param} is a string or a list of parts"))),
    }
}

fn part_text(param: &str, part: &Value, media: Media) -> Result<String, ApiError> {
    if let Some(text) = part.as_str() {
        return Ok(text.to_owned());
    }
    let kind = part["type"].as_str().unwrap_or("unknown");
    let text = part["text"].as_str().or(part["refusal"].as_str());
    if let Some(text) = text.filter(|_| TEXTS.contains(&kind)) {
        return Ok(text.to_owned());
    }
    let kind: String = kind.chars().take(40).collect();
    if media == Media::Words {
        let what = kind.strip_prefix("input_").unwrap_or(&kind).trim_end_matches("_url");
        return Ok(format!("[{what}: not shown; this model reads text only]"));
    }
    let text =
        format!("{param}: a part of type \"{kind}\" cannot be read; models here take text only");
    Err(ApiError::unsupported(param, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(items: &Value, tools: &Toolkit) -> Result<Value, ApiError> {
        let mut reader = Reader::new(tools);
        for (at, item) in items.as_array().unwrap().iter().enumerate() {
            reader.read(&format!("input[{at}]"), item)?;
        }
        Ok(Value::from_iter(reader.finish()))
    }

    #[test]
    fn the_items_of_one_turn_are_one_message() {
        let mut tools = Toolkit::default();
        let space =
            json!({"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "g"}]});
        tools.add("tools", &[space]).unwrap();
        let items = json!([
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
            {"role": "user", "content": "Hi"},
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "s"}],
             "content": [{"type": "reasoning_text", "text": "hm"}], "encrypted_content": null},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c1", "id": "fc_1", "status": "completed"},
            {"type": "function_call", "name": "g", "namespace": "n", "arguments": "{\"a\":1}", "call_id": "c2"},
            {"type": "custom_tool_call", "name": "patch", "input": "a\"b", "call_id": "c3"},
            {"type": "function_call_output", "call_id": "c2", "output": "two"},
            {"type": "function_call_output", "call_id": "c1", "output": [
                {"type": "input_image", "image_url": "data:image/png;base64,AA"}, {"type": "input_text", "text": "one"}]},
            {"type": "custom_tool_call_output", "call_id": "c3", "output": "three"},
            {"type": "web_search_call", "id": "ws_1"},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "so"}]},
            {"role": "assistant", "content": "Done."},
            {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"},
            {"role": "system", "content": "Go on."},
        ]);
        let call = |id: &str, name: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
        let tool = |id: &str, content: &str| json!({"role": "tool", "tool_call_id": id, "content": content});
        assert_eq!(
            messages(&items, &tools).unwrap(),
            json!([
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": [
                    call("c1", "f", "{}"), call("c2", "n__g", "{\"a\":1}"), call("c3", "patch", "{\"input\":\"a\\\"b\"}")]},
                tool("c2", "two"),
                tool("c1", "[image: not shown; this model reads text only]\none"),
                tool("c3", "three"),
                {"role": "assistant", "content": "Done.", "reasoning_content": "so"},
                {"role": "system", "content": "Go on."},
            ])
        );
    }

    #[test]
    fn a_thought_is_found_wherever_a_client_kept_it() {
        let turn = |mut reasoning: Value| {
            reasoning["type"] = "reasoning".into();
            let items = json!([reasoning, {"role": "assistant", "content": "a"}]);
            messages(&items, &Toolkit::default()).unwrap()[0]["reasoning_content"].clone()
        };
        let kept = format!("{THOUGHT}whole");
        let summary = json!([{"type": "summary_text", "text": "short"}]);
        assert_eq!(turn(json!({"encrypted_content": kept, "summary": summary})), "whole");
        assert_eq!(turn(json!({"encrypted_content": "other's", "summary": summary})), "short");
        assert_eq!(turn(json!({"encrypted_content": kept, "content": [], "summary": []})), "whole");
        assert_eq!(turn(json!({"summary": []})), Value::Null);
    }

    #[test]
    fn what_is_no_item_is_named() {
        for (item, param, told) in [
            (json!({"content": "a"}), "input[0]", "a type, or a role"),
            (json!("a"), "input[0]", "a type, or a role"),
            (json!({"role": "tool", "content": "a"}), "input[0].role", "\"developer\""),
            (json!({"role": "user", "content": 1}), "input[0].content", "a list of parts"),
            (
                json!({"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "x"}]}),
                "input[0].content[1]",
                "input_image",
            ),
            (
                json!({"type": "function_call", "name": "f", "arguments": "{}"}),
                "input[0].call_id",
                "a string",
            ),
            (
                json!({"type": "function_call_output", "output": "a"}),
                "input[0].call_id",
                "a string",
            ),
        ] {
            let error = messages(&json!([item]), &Toolkit::default()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{error}");
            assert!(error.message.contains(told), "{error}");
        }
    }
}
