//! `POST /v1/messages` and `POST /v1/messages/count_tokens`: Anthropic's form.
//!
//! Owns: the fields, and what they ask for. Must never: refuse a part of a history that it can tell in words.

mod blocks;
mod offers;
mod wire;

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::fields::Route;
use crate::format::FormatFields;
use crate::front::Front;
use crate::intent::{Intent, Prompts};
use crate::json::{Exact, Int, List, Node, Object, fields};
use crate::prompt::{Dialogue, MESSAGES_MAX, TOOLS_MAX};
use crate::sampling::{FewFields, whole};
use crate::surface::Surface;
use crate::usage::Telling;
use crate::wire::Answer;
use offers::Offers;
use wire::MessagesWire;

fields! {
    /// The fields of this surface.
    pub struct MessagesFields {
        model: String,
        stream: bool,
        max_tokens: Int,
        output_config: Exact<Object>,
        /// What `output_config.format` was called before.
        output_format: Exact<Object>,
    }
    with {
        prompt: PromptFields,
        sampling: FewFields,
    }
}

fields! {
    /// The fields that shape the prompt.
    pub struct PromptFields {
        system: Exact<Node>,
        messages: List<Exact<Object>, MESSAGES_MAX>,
        tools: List<Exact<Node>, TOOLS_MAX>,
        tool_choice: Object,
        thinking: Object,
        chat_template_kwargs: Exact<Object>,
    }
}

/// Anthropic's messages.
pub struct Messages {
    /// Whether thoughts come without their text.
    omitted: bool,
}

impl Surface for Messages {
    type Body = MessagesFields;
    type Wire = MessagesWire;
    const ROUTE: Route = Route::Messages;

    fn intent(f: MessagesFields, front: &Front) -> Result<(Intent, Messages), ApiError> {
        let output = Output::read(f.output_config, f.output_format)?;
        let omitted = is_omitted(&f.prompt);
        let dialogue = f.prompt.dialogue(output.effort)?;
        if dialogue.messages.last().is_some_and(|last| last["role"] == "assistant") {
            let text = "messages: the last one is the assistant's, and an answer does not go on from it; end with a \
                        user's message";
            return Err(ApiError::unsupported("messages", text));
        }
        let intent = Intent {
            model: f.model,
            prompts: Prompts::Chat(Box::new(dialogue)),
            param: "messages",
            sampling: f.sampling.among_all(output.format, &front.settings)?,
            max_tokens: f.max_tokens.map(|max| ("max_tokens", max)),
            max_tokens_default: None,
            logprobs: None,
            prompt_logprobs: None,
            stream: f.stream.unwrap_or(false),
            telling: Telling::Silent,
            echo: false,
            ids: false,
        };
        Ok((intent, Messages { omitted }))
    }

    fn wire(self, _: &Arc<Front>, answer: Answer) -> MessagesWire {
        MessagesWire::new(&answer, self.omitted)
    }
}

/// Handles `/v1/messages/count_tokens`: how long the prompt of a body for `/v1/messages` is, whatever the model's context.
///
/// # Errors
/// Whatever is wrong with the body or the model.
pub async fn count_tokens(
    State(front): State<Arc<Front>>,
    request: Request<Body>,
) -> Result<Json<Value>, ApiError> {
    let incoming = front.receive(request).await?;
    let record = Arc::clone(&incoming.record);
    let read = |f: MessagesFields| {
        let output = Output::read(f.output_config, f.output_format)?;
        Ok((f.model, f.prompt.dialogue(output.effort)?))
    };
    let ((model, dialogue), mut share) =
        front.read::<MessagesFields, _>(incoming, Route::Messages, read).await?;
    let found = front.find(model.as_deref(), &record).await?;
    let rendered = dialogue.tokenize(&front.pool, &found.text, None, &mut share).await?;
    Ok(Json(json!({"input_tokens": rendered.ids.len()})))
}

/// `output_config`.
struct Output {
    /// How much the model is to think.
    effort: Option<String>,
    format: FormatFields,
}

impl Output {
    /// # Errors
    /// 400: not of their forms, or two formats.
    fn read(
        config: Option<Exact<Object>>,
        before: Option<Exact<Object>>,
    ) -> Result<Output, ApiError> {
        let Exact(Object(mut config)) = config.unwrap_or_default();
        let effort = match config.shift_remove("effort") {
            None | Some(Value::Null) => None,
            Some(Value::String(effort)) => Some(effort),
            Some(_) => {
                let param = "output_config.effort";
                return Err(ApiError::field(param, format!("{param} is a string")));
            }
        };
        let format = config.shift_remove("format").filter(|format| !format.is_null());
        let before = before.map(|Exact(Object(format))| Value::Object(format));
        let format = match (format, before) {
            (Some(_), Some(_)) => {
                let text =
                    "output_format is what output_config.format was called; send one of them";
                return Err(ApiError::field("output_format", text));
            }
            (Some(format), None) => Some(("output_config.format", format)),
            (None, Some(format)) => Some(("output_format", format)),
            (None, None) => None,
        };
        let format = match format {
            None => FormatFields::default(),
            Some((name, mut format)) if format["type"] == "json_schema" => {
                let schema = format.get_mut("schema").map(Value::take).unwrap_or_default();
                FormatFields::of_schema(name, schema)?
            }
            Some((name, _)) => {
                let form = "{\"type\": \"json_schema\", \"schema\": ..}";
                return Err(ApiError::field(name, format!("{name} is {form}")));
            }
        };
        Ok(Output { effort, format })
    }
}

/// Whether thoughts are to come without their text.
fn is_omitted(prompt: &PromptFields) -> bool {
    prompt.thinking.as_ref().is_some_and(|Object(thinking)| {
        thinking.get("display").is_some_and(|display| display == "omitted")
    })
}

impl PromptFields {
    /// What they say.
    ///
    /// # Errors
    /// 400: a part of it has no form that is known, or cannot be read.
    fn dialogue(self, effort: Option<String>) -> Result<Dialogue, ApiError> {
        let system = self.system.map(|Exact(Node(system))| system).unwrap_or_default();
        let messages = self.messages.map(|List(messages)| messages).unwrap_or_default();
        if messages.is_empty() {
            return Err(ApiError::field("messages", "messages: at least one message is needed"));
        }
        let messages = messages.into_iter().map(|Exact(Object(message))| message).collect();
        let (messages, defined) = blocks::messages(system, messages)?;
        let tools = self.tools.map(|List(tools)| tools).unwrap_or_default();
        let tools = tools.into_iter().map(|Exact(Node(tool))| tool);
        let Exact(Object(mut kwargs)) = self.chat_template_kwargs.unwrap_or_default();
        let thinks = effort.as_deref() != Some("none");
        if let Some(effort) = effort {
            kwargs.entry("reasoning_effort").or_insert(effort.into());
        }
        let Offers { tools, choice, parallel } =
            Offers::read(tools.chain(defined), self.tool_choice)?;
        let mut dialogue =
            Dialogue { messages, tools, choice, parallel, kwargs, ..Dialogue::default() };
        if let Some(Object(thinking)) = self.thinking {
            think(&thinking, &mut dialogue)?;
        }
        if !thinks {
            dialogue.think(false);
        }
        Ok(dialogue)
    }
}

/// Puts what `thinking` says into the dialogue.
fn think(thinking: &Map<String, Value>, dialogue: &mut Dialogue) -> Result<(), ApiError> {
    const BUDGET: &str = "thinking.budget_tokens";
    match thinking.get("type").and_then(Value::as_str) {
        // What is told between tools is text here, and no thought.
        Some("disabled" | "between_tools") => dialogue.think(false),
        // The template's own way.
        Some("adaptive") => {}
        Some("enabled") => {
            dialogue.think(true);
            let budget = thinking.get("budget_tokens").filter(|budget| !budget.is_null());
            if let Some(budget) = budget {
                let budget = serde_json::from_value::<Int>(budget.clone());
                let Int(tokens) =
                    budget.map_err(|why| ApiError::field(BUDGET, format!("{BUDGET}: {why}")))?;
                let tokens = whole(BUDGET, tokens, 0, u32::MAX.into())? as u32;
                dialogue.budget = Some((BUDGET, tokens));
            }
        }
        _ => {
            let text = "thinking.type is \"enabled\", \"disabled\" or \"adaptive\"";
            return Err(ApiError::field("thinking.type", text));
        }
    }
    Ok(())
}
