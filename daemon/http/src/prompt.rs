//! A conversation to the token ids of its prompt.
//!
//! Owns: what OpenAI's message forms mean to a chat template. Must never: drop a part of a message
//! that it does not understand; it refuses it.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::body::Share;
use crate::error::ApiError;
use crate::json::{self, Exact, List, Node, Object, fields};
use crate::pool::Pool;
use crate::room::Room;
use crate::talk::Wants;
use crate::tokenizer::{Conversation, TextModel};
use crate::tools::{ToolChoice, Toolbox};

/// Messages of one conversation, at most.
pub const MESSAGES_MAX: usize = 16 << 10;
/// Tools of one request, at most.
pub const TOOLS_MAX: usize = 4 << 10;

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

/// A message in OpenAI's form.
pub type Message = Map<String, Value>;

/// A conversation to go on with, whatever surface it came by.
#[derive(Clone, Debug)]
pub struct Dialogue {
    /// Its messages, in OpenAI's form.
    pub messages: Vec<Message>,
    /// Its tools, likewise.
    pub tools: Vec<Value>,
    /// Which of them may, or must, be called.
    pub choice: ToolChoice,
    /// Whether several calls may come at once.
    pub parallel: bool,
    /// Whether thoughts are told apart from text.
    pub separate: bool,
    /// Whether thoughts are told at all.
    pub shown: bool,
    /// Tokens of a thought at most, and the field that says so.
    pub budget: Option<(&'static str, u32)>,
    /// Whether the prompt ends with the opening of an assistant's message.
    pub add_generation_prompt: bool,
    /// More variables of the template.
    pub kwargs: Map<String, Value>,
}

impl Default for Dialogue {
    fn default() -> Self {
        Dialogue {
            messages: Vec::new(),
            tools: Vec::new(),
            choice: ToolChoice::Auto,
            parallel: true,
            separate: true,
            shown: true,
            budget: None,
            add_generation_prompt: true,
            kwargs: Map::new(),
        }
    }
}

/// A prompt that is token ids.
pub struct Rendered {
    /// They.
    pub ids: Vec<u32>,
    /// The end of its text.
    pub end: String,
    /// The tools of the request.
    pub tools: Arc<Toolbox>,
    /// As in [`Dialogue`].
    pub budget: Option<(&'static str, u32)>,
    /// How the answer is to be told apart.
    pub wants: Wants,
}

impl PromptFields {
    /// Whether there are messages at all.
    pub fn has_messages(&self) -> bool {
        self.messages.is_some()
    }

    /// What they say.
    ///
    /// # Errors
    /// 400: `tool_choice` has no form that is known.
    pub fn dialogue(self) -> Result<Dialogue, ApiError> {
        let choice = match self.tool_choice {
            None => ToolChoice::Auto,
            Some(Node(choice)) => ToolChoice::read(&choice)?,
        };
        let Exact(Object(mut kwargs)) = self.chat_template_kwargs.unwrap_or_default();
        for (name, hint) in
            [("reasoning_effort", self.reasoning_effort), ("verbosity", self.verbosity)]
        {
            if let Some(hint) = hint {
                kwargs.entry(name).or_insert(hint.into());
            }
        }
        let thinks = kwargs.get("reasoning_effort").is_none_or(|effort| effort != "none");
        let messages = self.messages.map(|List(messages)| messages).unwrap_or_default();
        let tools = self.tools.map(|List(tools)| tools).unwrap_or_default();
        let mut dialogue = Dialogue {
            messages: messages.into_iter().map(|Exact(Object(message))| message).collect(),
            tools: tools.into_iter().map(|Exact(Node(tool))| tool).collect(),
            choice,
            add_generation_prompt: self.add_generation_prompt.unwrap_or(true),
            kwargs,
            ..Dialogue::default()
        };
        if !thinks {
            dialogue.think(false);
        }
        Ok(dialogue)
    }
}

/// Variables by which templates know whether the model is to think.
const THINKING: [&str; 2] = ["enable_thinking", "thinking"];

impl Dialogue {
    /// Says whether the model is to think, unless `chat_template_kwargs` does.
    pub fn think(&mut self, thinks: bool) {
        for name in THINKING {
            self.kwargs.entry(name).or_insert(thinks.into());
        }
    }

    /// Renders and tokenizes; one for which there is no `room` is refused. `share` is the request's part of the budget.
    ///
    /// # Errors
    /// 400: no messages, a part that is not text, a tool without a name, no tokenizer, no chat template, or one that refuses.
    pub async fn tokenize(
        self,
        pool: &Pool,
        text: &TextModel,
        room: Option<Room>,
        share: &mut Share,
    ) -> Result<Rendered, ApiError> {
        let budget = self.budget;
        let prepare = move || json::counted(|| self.prepare());
        let (prepared, bytes) = pool.run(share.bytes(), prepare).await?;
        share.grow(bytes)?;
        let (conversation, tools, wants) = prepared?;
        let (ids, end) = text.encode_chat(conversation, room).await?;
        Ok(Rendered { ids, end, tools: Arc::new(tools), budget, wants })
    }

    fn prepare(self) -> Result<(Conversation, Toolbox, Wants), ApiError> {
        if self.messages.is_empty() {
            return Err(ApiError::field("messages", "messages: at least one message is needed"));
        }
        let tools = Toolbox::new(&self.tools, self.choice, !self.parallel)?;
        let wants = Wants {
            tools: tools.for_reading(),
            calls: tools.may_be_called(),
            single: tools.single(),
            separate: self.separate,
            shown: self.shown,
            thinks: THINKING.iter().all(|name| self.kwargs.get(*name) != Some(&Value::Bool(false))),
        };
        let messages = self.messages.into_iter().enumerate();
        let messages = messages.map(|(at, message)| Ok(Value::Object(normal(message, at)?)));
        let conversation = Conversation {
            messages: messages.collect::<Result<_, ApiError>>()?,
            tools: Some(self.tools).filter(|list| !list.is_empty() && tools.may_be_called()),
            add_generation_prompt: self.add_generation_prompt,
            kwargs: self.kwargs,
        };
        Ok((conversation, tools, wants))
    }
}

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
