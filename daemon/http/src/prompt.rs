//! The messages of a chat request to the token ids of its prompt.
//!
//! Owns: what OpenAI's message forms mean to a chat template. Must never: drop a part of a message
//! that it does not understand; it refuses it.

use serde_json::{Map, Value, json};

use crate::body::Share;
use crate::error::ApiError;
use crate::json::{self, Exact, List, Node, Object, fields};
use crate::pool::Pool;
use crate::room::Room;
use crate::tokenizer::{Conversation, TextModel};

/// Messages of one conversation, at most.
const MESSAGES_MAX: usize = 16 << 10;
/// Tools of one request, at most.
const TOOLS_MAX: usize = 4 << 10;

fields! {
    /// The fields of a chat request that shape its prompt.
    pub struct PromptFields {
        messages: List<Exact<Object>, MESSAGES_MAX>,
        tools: List<Exact<Node>, TOOLS_MAX>,
        tool_choice: Node,
        add_generation_prompt: bool,
        chat_template_kwargs: Exact<Object>,
        /// Hints, which templates of reasoning models know as variables.
        reasoning_effort: String,
        verbosity: String,
    }
}

impl PromptFields {
    /// Whether there are messages at all.
    pub fn has_messages(&self) -> bool {
        self.messages.is_some()
    }

    /// Renders and tokenizes; one for which there is no `room` is refused. `bytes` are those of the request, and
    /// `share` its part of the budget.
    ///
    /// # Errors
    /// 400: no messages, a part that is not text, no tokenizer, no chat template, or one that refuses.
    pub async fn tokenize(
        self,
        pool: &Pool,
        text: &TextModel,
        room: Option<Room>,
        share: &mut Share,
    ) -> Result<Vec<u32>, ApiError> {
        let prepare = move || json::counted(|| self.conversation());
        let (conversation, bytes) = pool.run(share.bytes(), prepare).await?;
        share.grow(bytes)?;
        text.encode_chat(conversation?, room).await
    }

    fn conversation(self) -> Result<Conversation, ApiError> {
        let messages = self.messages.map(|List(messages)| messages).unwrap_or_default();
        if messages.is_empty() {
            return Err(ApiError::field("messages", "messages: at least one message is needed"));
        }
        let without_tools = match self.tool_choice.as_ref().map(|Node(choice)| choice) {
            None => false,
            Some(choice) if choice == "auto" => false,
            Some(choice) if choice == "none" => true,
            Some(_) => {
                let message = "tool_choice is not supported; only \"auto\" and \"none\" are: the output is not \
                               constrained to a call";
                return Err(ApiError::unsupported("tool_choice", message));
            }
        };
        let messages = messages.into_iter().enumerate();
        let messages = messages.map(|(at, Exact(Object(message)))| normal(message, at));
        let messages = messages.collect::<Result<Vec<_>, _>>()?;
        let Exact(Object(mut kwargs)) = self.chat_template_kwargs.unwrap_or_default();
        for (name, hint) in
            [("reasoning_effort", self.reasoning_effort), ("verbosity", self.verbosity)]
        {
            if let Some(hint) = hint {
                kwargs.entry(name).or_insert(hint.into());
            }
        }
        let tools = self.tools.map(|List(tools)| tools).unwrap_or_default();
        let tools: Vec<Value> = tools.into_iter().map(|Exact(Node(tool))| tool).collect();
        Ok(Conversation {
            messages: messages.into_iter().map(Value::Object).collect(),
            tools: Some(tools).filter(|tools| !tools.is_empty() && !without_tools),
            add_generation_prompt: self.add_generation_prompt.unwrap_or(true),
            kwargs,
        })
    }
}

type Message = Map<String, Value>;

/// A message in OpenAI's present form, its content as text. The text process changes it to the form that the template
/// takes.
fn normal(mut message: Message, at: usize) -> Result<Message, ApiError> {
    if !message.get("role").is_some_and(Value::is_string) {
        let param = format!("messages[{at}].role");
        let text = format!("{param}: a message needs a role, which is a string");
        return Err(ApiError::field(param, text));
    }
    let content = message.get_mut("content").map(Value::take);
    let content = text_of(content.unwrap_or_default(), at)?;
    let content = content.or(refusal(&message));
    if message.get("audio").is_some_and(|audio| !audio.is_null()) {
        let param = format!("messages[{at}].audio");
        let text = format!("{param}: audio cannot be read; models here take text only");
        return Err(ApiError::unsupported(param, text));
    }
    old_calls(&mut message);
    match content {
        Some(text) => drop(message.insert("content".into(), text.into())),
        None => drop(message.shift_remove("content")),
    }
    // OpenAI's old name for the same.
    if message["role"] == "function" {
        message.insert("role".into(), "tool".into());
        if let Some(name) = message.get("name").cloned() {
            message.entry("tool_call_id").or_insert(name);
        }
    }
    Ok(message)
}

/// What an assistant said instead of content. No template reads it under that name.
fn refusal(message: &Message) -> Option<String> {
    message.get("refusal").and_then(Value::as_str).map(str::to_owned)
}

/// OpenAI's old form of a call, `function_call`, to `tool_calls`.
fn old_calls(message: &mut Message) {
    match message.remove("function_call") {
        None | Some(Value::Null) => {}
        Some(call) => {
            let id = call.get("name").cloned().unwrap_or_default();
            let calls = message.entry("tool_calls").or_insert_with(|| json!([]));
            if let Some(calls) = calls.as_array_mut().filter(|calls| calls.is_empty()) {
                calls.push(json!({"id": id, "type": "function", "function": call}));
            } else if calls.is_null() {
                *calls = json!([{"id": id, "type": "function", "function": call}]);
            }
        }
    }
}

/// Text parts are joined by line breaks; null and absent are none.
fn text_of(content: Value, at: usize) -> Result<Option<String>, ApiError> {
    let param = || format!("messages[{at}].content");
    match content {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        Value::Array(parts) => {
            let texts = parts.iter().enumerate().map(|(index, part)| {
                if let Some(text) = part.as_str() {
                    return Ok(text);
                }
                let kind = part["type"].as_str().unwrap_or("unknown");
                let text = part["text"].as_str().or(part["refusal"].as_str());
                match (kind, text) {
                    ("text" | "input_text" | "output_text" | "refusal", Some(text)) => Ok(text),
                    _ => {
                        let kind: String = kind.chars().take(40).collect();
                        let param = format!("messages[{at}].content[{index}]");
                        let message = format!(
                            "{param}: a part of type \"{kind}\" cannot be read; models here take \
                             text only"
                        );
                        Err(ApiError::unsupported(param, message))
                    }
                }
            });
            Ok(Some(texts.collect::<Result<Vec<_>, _>>()?.join("\n")))
        }
        _ => Err(ApiError::field(
            param(),
            format!("{}: content is a string or a list of parts", param()),
        )),
    }
}
