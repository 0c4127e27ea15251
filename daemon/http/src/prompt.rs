//! The messages of a chat request to the token ids of its prompt.
//!
//! Owns: what OpenAI's message forms mean to a chat template. Must never: drop a part of a message
//! that it does not understand; it refuses it.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::body::{Refusal, never};
use crate::error::ApiError;
use crate::front::Found;
use crate::tokenizer::Conversation;

/// The fields of a chat request that shape its prompt.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct PromptFields {
    messages: Option<Vec<Map<String, Value>>>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    add_generation_prompt: Option<bool>,
    chat_template_kwargs: Option<Map<String, Value>>,
    /// A hint, which templates of reasoning models know as a variable.
    reasoning_effort: Option<String>,
}

/// Fields that would shape the prompt, were they built.
pub const REFUSED: &[Refusal] = &[
    Refusal {
        field: "tool_choice",
        harmless: |value| value == "auto" || value == "none",
        instead: "only \"auto\" and \"none\" are: the output is not constrained to a call",
    },
    Refusal { field: "chat_template", harmless: never, instead: "the model's own is used" },
    Refusal { field: "continue_final_message", harmless: never, instead: "use /v1/completions" },
    Refusal { field: "documents", harmless: never, instead: "put them into a message" },
    Refusal { field: "functions", harmless: never, instead: "use tools" },
    Refusal {
        field: "function_call",
        harmless: |value| value == "auto" || value == "none",
        instead: "use tools",
    },
];

impl PromptFields {
    /// Whether there are messages at all.
    pub fn has_messages(&self) -> bool {
        self.messages.is_some()
    }

    /// Renders and tokenizes, on the pool.
    ///
    /// # Errors
    /// 400: no messages, a part that is not text, no tokenizer, no chat template, or one that refuses.
    pub async fn tokenize(self, found: &Found) -> Result<Vec<u32>, ApiError> {
        let room = found.model.info().max_len;
        found.text.encode_chat(self.conversation()?, Some(room)).await
    }

    fn conversation(self) -> Result<Conversation, ApiError> {
        let messages = self.messages.unwrap_or_default();
        if messages.is_empty() {
            return Err(ApiError::field("messages", "messages: at least one message is needed"));
        }
        let messages = messages.into_iter().enumerate().map(|(at, message)| normal(message, at));
        let mut kwargs = self.chat_template_kwargs.unwrap_or_default();
        if let Some(effort) = self.reasoning_effort {
            kwargs.entry("reasoning_effort").or_insert(effort.into());
        }
        let without_tools = self.tool_choice.as_ref().is_some_and(|choice| choice == "none");
        Ok(Conversation {
            messages: messages.collect::<Result<_, _>>()?,
            tools: self.tools.filter(|tools| !tools.is_empty() && !without_tools),
            add_generation_prompt: self.add_generation_prompt.unwrap_or(true),
            kwargs,
        })
    }
}

/// A message as templates expect it: `content` a string, arguments of tool calls objects.
fn normal(mut message: Map<String, Value>, at: usize) -> Result<Value, ApiError> {
    if !message.get("role").is_some_and(Value::is_string) {
        let param = format!("messages[{at}].role");
        let text = format!("{param}: a message needs a role, which is a string");
        return Err(ApiError::field(param, text));
    }
    let content = text_of(message.get("content"), at)?;
    message.insert("content".into(), content.into());
    if message.get("tool_calls").is_some_and(Value::is_null) {
        message.remove("tool_calls");
    }
    let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
        // A model's arguments need not be JSON; then the template gets them as they are.
        match arguments.as_str() {
            Some("") => *arguments = json!({}),
            Some(text) => {
                if let Ok(object) = serde_json::from_str::<Map<String, Value>>(text) {
                    *arguments = object.into();
                }
            }
            None if arguments.is_null() => *arguments = json!({}),
            None => {}
        }
    }
    Ok(message.into())
}

/// Text parts are joined by line breaks; null and absent are empty.
fn text_of(content: Option<&Value>, at: usize) -> Result<String, ApiError> {
    let param = || format!("messages[{at}].content");
    match content {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(parts)) => {
            let texts = parts.iter().enumerate().map(|(index, part)| {
                if let Some(text) = part.as_str() {
                    return Ok(text);
                }
                let kind = part["type"].as_str().unwrap_or("unknown");
                let text = part["text"].as_str().or(part["refusal"].as_str());
                match (kind, text) {
                    ("text" | "input_text" | "output_text" | "refusal", Some(text)) => Ok(text),
                    _ => {
                        let param = format!("messages[{at}].content[{index}]");
                        let message = format!(
                            "{param}: a part of type \"{kind}\" cannot be read; models here take \
                             text only"
                        );
                        Err(ApiError::unsupported(param, message))
                    }
                }
            });
            Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
        }
        Some(_) => Err(ApiError::field(
            param(),
            format!("{}: content is a string or a list of parts", param()),
        )),
    }
}
