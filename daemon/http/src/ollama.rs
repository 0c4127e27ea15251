//! Ollama's API, below `/api`: a surface over the models that are loaded, for clients that speak nothing else.
//!
//! | file | what it holds |
//! |---|---|
//! | here | the fields of `/api/chat` and `/api/generate`, and what they mean |
//! | `wire` | the answer: a line of JSON for each piece |
//! | `lists` | `/api/tags`, `/api/show`, `/api/ps`, `/api/version` |
//!
//! Owns: Ollama's names of models, and its form of messages. Must never: load, fetch or remove a model.

mod lists;
mod wire;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Method, Request, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use crate::backend::Unavailable;
use crate::error::ApiError;
use crate::fields::Route;
use crate::format::FormatFields;
use crate::front::{Front, bounded};
use crate::input::Input;
use crate::intent::{Intent, Prompts};
use crate::json::{Exact, List, Nested, Node, Object, fields};
use crate::middleware::not_found;
use crate::prompt::{Dialogue, MESSAGES_MAX, Message, TOOLS_MAX};
use crate::sampling::OptionsFields;
use crate::surface::{self, Surface};
use crate::unserved;
use crate::usage::Telling;
use crate::wire::Answer;
use wire::LineWire;

/// Bytes of a body that may ask for nothing but that its model is loaded.
const LOAD_BYTES_MAX: usize = 4096;

fields! {
    /// The fields of `/api/chat`.
    pub struct ApiChatFields {
        model: String,
        messages: List<Exact<Object>, MESSAGES_MAX>,
        tools: List<Exact<Node>, TOOLS_MAX>,
    }
    with {
        how: HowFields,
    }
}

fields! {
    /// The fields of `/api/generate`.
    pub struct ApiGenerateFields {
        model: String,
        prompt: String,
        system: String,
        raw: bool,
    }
    with {
        how: HowFields,
    }
}

fields! {
    /// What both have.
    pub struct HowFields {
        /// Absent, it is true.
        stream: bool,
        format: Exact<Node>,
        /// Whether the model thinks, or how much.
        think: Node,
        options: Nested<OptionsFields>,
    }
}

/// All of it; `on` as the operator wants.
pub fn routes(on: bool) -> Router<Arc<Front>> {
    if !on {
        return Router::new().route("/api/{*path}", any(off));
    }
    Router::new()
        .route("/", get(lists::running))
        .route("/api/chat", post(chat))
        .route("/api/generate", post(generate))
        .route("/api/tags", get(lists::tags))
        .route("/api/ps", get(lists::ps))
        .route("/api/show", post(lists::show))
        .route("/api/version", get(lists::version))
        .route("/api/embed", post(unserved::embeddings))
        .route("/api/embeddings", post(unserved::embeddings))
        .route("/api/pull", post(operators))
        .route("/api/push", post(operators))
        .route("/api/create", post(operators))
        .route("/api/copy", post(operators))
        .route("/api/delete", any(operators))
        .route("/api/{*path}", any(not_found))
}

/// 404, with the remedy.
async fn off(method: Method, uri: Uri) -> ApiError {
    let message = format!(
        "there is no {method} {}: Ollama's API is off; [http] ollama = true in the configuration turns it on, and \
         OpenAI's is at /v1",
        uri.path()
    );
    ApiError::new(StatusCode::NOT_FOUND, message).with_code("unknown_url")
}

/// 501: clients change no models.
async fn operators(uri: Uri) -> ApiError {
    let message =
        format!("{} is the operator's, with minisglctl load, unload and pull", uri.path());
    ApiError::new(StatusCode::NOT_IMPLEMENTED, message).with_code("unsupported_url")
}

/// The name by which a model is loaded: the one given, or that without its tag where only this is known.
pub(super) fn known_as(front: &Front, name: &str) -> String {
    let is_unknown =
        |name: &str| matches!(front.backend.model(Some(name)), Err(Unavailable::NotFound { .. }));
    match name.rsplit_once(':') {
        Some((bare, tag)) if !bare.is_empty() && !tag.contains('/') => {
            if is_unknown(name) && !is_unknown(bare) { bare.to_owned() } else { name.to_owned() }
        }
        _ => name.to_owned(),
    }
}

/// What a body that asks for nothing has.
#[derive(Deserialize)]
struct Idle {
    model: Option<String>,
    prompt: Option<String>,
    messages: Option<Vec<IgnoredAny>>,
    keep_alive: Option<Value>,
}

/// Handles `/api/chat`; without messages it asks that the model is loaded.
async fn chat(state: State<Arc<Front>>, request: Request<Body>) -> Result<Response, ApiError> {
    let is_idle = |idle: &Idle| idle.messages.as_ref().is_none_or(Vec::is_empty);
    match load::<true>(&state.0, request, is_idle).await? {
        Ok(answer) => Ok(answer),
        Err(request) => surface::serve::<ApiChat>(state, request).await,
    }
}

/// Handles `/api/generate`; without a prompt it asks that the model is loaded.
async fn generate(state: State<Arc<Front>>, request: Request<Body>) -> Result<Response, ApiError> {
    let is_idle = |idle: &Idle| idle.prompt.as_ref().is_none_or(String::is_empty);
    match load::<false>(&state.0, request, is_idle).await? {
        Ok(answer) => Ok(answer),
        Err(request) => surface::serve::<ApiGenerate>(state, request).await,
    }
}

/// Answers a request that asks for a model to be loaded, which it is; any other is given back.
async fn load<const CHAT: bool>(
    front: &Front,
    request: Request<Body>,
    is_idle: impl Fn(&Idle) -> bool,
) -> Result<Result<Response, Request<Body>>, ApiError> {
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if length.is_none_or(|length| length > LOAD_BYTES_MAX) {
        return Ok(Err(request));
    }
    let (parts, body) = request.into_parts();
    let request = Request::from_parts(parts.clone(), body);
    let body = front.small_body(request, LOAD_BYTES_MAX).await?;
    let idle = serde_json::from_slice::<Idle>(&body).ok().filter(is_idle);
    let Some(Idle { model: Some(model), keep_alive, .. }) = idle else {
        return Ok(Err(Request::from_parts(parts, Body::from(body))));
    };
    bounded(&model)?;
    front.model(Some(&known_as(front, &model)))?;
    // It stays all the same.
    let is_over = keep_alive.is_some_and(|time| time == 0 || time == "0" || time == "0s");
    let reason = if is_over { "unload" } else { "load" };
    Ok(Ok(axum::Json(wire::idle::<CHAT>(&model, reason)).into_response()))
}

/// What both surfaces keep for their answers.
struct Asked {
    /// The model, by the name it was asked for.
    name: String,
    began: Instant,
}

/// A request's model and how it is to be answered: an intent without prompts.
fn intent(
    model: Option<String>,
    how: HowFields,
    front: &Front,
    param: &'static str,
    prompts: impl FnOnce(&str, &Option<Node>) -> Result<Prompts, ApiError>,
) -> Result<(Intent, Asked), ApiError> {
    let began = Instant::now();
    let name = model.filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| ApiError::field("model", "model is missing; see /api/tags"))?;
    // Each line repeats it, with a tag that nobody looks up.
    bounded(&name)?;
    let known = known_as(front, &name);
    let format = how.format.map_or(Value::Null, |Exact(Node(format))| format);
    let options = how.options.unwrap_or_default().checked("options")?;
    let (sampling, max_tokens) = options.sampling(FormatFields::ollama(format)?);
    let intent = Intent {
        prompts: prompts(&known, &how.think)?,
        model: Some(known),
        param,
        sampling,
        max_tokens: max_tokens.map(|max| ("num_predict", max)),
        max_tokens_default: None,
        logprobs: None,
        prompt_logprobs: None,
        stream: how.stream.unwrap_or(true),
        telling: Telling::Silent,
        echo: false,
        ids: false,
    };
    Ok((intent, Asked { name, began }))
}

/// `/api/chat`.
pub struct ApiChat(Asked);

impl Surface for ApiChat {
    type Body = ApiChatFields;
    type Wire = LineWire<true>;
    const ROUTE: Route = Route::ApiChat;

    fn intent(f: ApiChatFields, front: &Front) -> Result<(Intent, ApiChat), ApiError> {
        let given = f.messages.map(|List(messages)| messages).unwrap_or_default();
        let tools = f.tools.map(|List(tools)| tools).unwrap_or_default();
        let prompts = |_: &str, think: &Option<Node>| {
            let mut dialogue = Dialogue {
                messages: messages(given)?,
                tools: tools.into_iter().map(|Exact(Node(tool))| tool).collect(),
                ..Dialogue::default()
            };
            apply_think(&mut dialogue, think)?;
            Ok(Prompts::Chat(Box::new(dialogue)))
        };
        let (intent, asked) = intent(f.model, f.how, front, "messages", prompts)?;
        Ok((intent, ApiChat(asked)))
    }

    fn wire(self, _: &Arc<Front>, _: Answer) -> LineWire<true> {
        LineWire::new(&self.0.name, self.0.began)
    }
}

/// `/api/generate`.
pub struct ApiGenerate(Asked);

impl Surface for ApiGenerate {
    type Body = ApiGenerateFields;
    type Wire = LineWire<false>;
    const ROUTE: Route = Route::ApiGenerate;

    /// A prompt is a conversation of one message, unless it is raw, or the model is none for conversations.
    fn intent(f: ApiGenerateFields, front: &Front) -> Result<(Intent, ApiGenerate), ApiError> {
        let (prompt, system) = (f.prompt.unwrap_or_default(), f.system.unwrap_or_default());
        let raw = f.raw.unwrap_or(false);
        let prompts = |known: &str, think: &Option<Node>| {
            let has_template = |front: &Front| {
                let model = front.backend.model(Some(known));
                model.map_or(true, |model| model.text().info().has_template)
            };
            if raw || !has_template(front) {
                let text = if system.is_empty() { prompt } else { format!("{system}\n\n{prompt}") };
                return Ok(Prompts::Bare { input: Input::Text(text), add_special: true });
            }
            let message = |role: &str, content: String| -> Message {
                Map::from_iter([("role".into(), role.into()), ("content".into(), content.into())])
            };
            let mut messages = Vec::new();
            if !system.is_empty() {
                messages.push(message("system", system));
            }
            messages.push(message("user", prompt));
            let mut dialogue = Dialogue { messages, ..Dialogue::default() };
            apply_think(&mut dialogue, think)?;
            Ok(Prompts::Chat(Box::new(dialogue)))
        };
        let (intent, asked) = intent(f.model, f.how, front, "prompt", prompts)?;
        Ok((intent, ApiGenerate(asked)))
    }

    fn wire(self, _: &Arc<Front>, _: Answer) -> LineWire<false> {
        LineWire::new(&self.0.name, self.0.began)
    }
}

/// `think`: whether, or how much.
fn apply_think(dialogue: &mut Dialogue, think: &Option<Node>) -> Result<(), ApiError> {
    match think.as_ref().map(|Node(think)| think) {
        None | Some(Value::Null) => {}
        Some(Value::Bool(thinks)) => dialogue.think(*thinks),
        Some(Value::String(effort)) if ["low", "medium", "high"].contains(&&**effort) => {
            dialogue.kwargs.insert("reasoning_effort".into(), effort.clone().into());
            dialogue.think(true);
        }
        Some(_) => {
            let message = "think is true, false, \"low\", \"medium\" or \"high\"";
            return Err(ApiError::field("think", message));
        }
    }
    Ok(())
}

/// Messages in OpenAI's form: calls get ids, by which results name them.
fn messages(given: Vec<Exact<Object>>) -> Result<Vec<Message>, ApiError> {
    let mut open: VecDeque<(String, String)> = VecDeque::new();
    let mut calls = 0_usize;
    let mut messages = Vec::with_capacity(given.len());
    for (at, Exact(Object(mut message))) in given.into_iter().enumerate() {
        match message.shift_remove("images") {
            None | Some(Value::Null) => {}
            Some(Value::Array(images)) if images.is_empty() => {}
            Some(_) => {
                let param = format!("messages[{at}].images");
                let text = format!("{param}: images cannot be read; models here take text only");
                return Err(ApiError::unsupported(param, text));
            }
        }
        let own = message.get_mut("tool_calls").and_then(Value::as_array_mut);
        for call in own.into_iter().flatten().filter_map(Value::as_object_mut) {
            let name = call.get("function").and_then(|function| function["name"].as_str());
            let name = name.unwrap_or_default().to_owned();
            let id = call.get("id").and_then(Value::as_str).filter(|id| !id.is_empty());
            // Nine letters and digits: what the strictest templates take.
            let id = id.map_or_else(|| format!("call{calls:05}"), str::to_owned);
            calls += 1;
            call.insert("id".into(), id.clone().into());
            call.entry("type").or_insert("function".into());
            open.push_back((name, id));
        }
        if message.get("role").is_some_and(|role| role == "tool") {
            answer(&mut message, &mut open);
        }
        messages.push(message);
    }
    Ok(messages)
}

/// Says which call a result is of: the first open one of its function, else the first.
fn answer(message: &mut Message, open: &mut VecDeque<(String, String)>) {
    let name = message.shift_remove("tool_name").filter(Value::is_string);
    let told = message.get("tool_call_id").and_then(Value::as_str);
    let at = match (told, &name) {
        (Some(told), _) => open.iter().position(|(_, id)| id == told),
        (None, Some(name)) => open.iter().position(|(own, _)| name == own.as_str()).or(Some(0)),
        (None, None) => Some(0),
    };
    if let Some((_, id)) = at.and_then(|at| open.remove(at)) {
        message.entry("tool_call_id").or_insert(id.into());
    }
    if let Some(name) = name {
        message.entry("name").or_insert(name);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn results_are_of_the_call_whose_function_they_name() {
        let call = |name: &str| json!({"function": {"name": name, "arguments": {"a": 1}}});
        let given = json!([
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "", "tool_calls": [call("f"), call("g"), call("f")]},
            {"role": "tool", "tool_name": "g", "content": "1"},
            {"role": "tool", "tool_name": "f", "content": "2"},
            {"role": "tool", "content": "3"},
            {"role": "tool", "content": "4"},
        ]);
        let given = given.as_array().unwrap().iter();
        let given = given.map(|one| Exact(Object(one.as_object().unwrap().clone())));
        let made = messages(given.collect()).unwrap();
        let ids: Vec<&Value> =
            made[1]["tool_calls"].as_array().unwrap().iter().map(|c| &c["id"]).collect();
        assert_eq!(ids, ["call00000", "call00001", "call00002"]);
        let told: Vec<_> =
            made[2..].iter().map(|m| m.get("tool_call_id").and_then(Value::as_str)).collect();
        assert_eq!(told, [Some("call00001"), Some("call00000"), Some("call00002"), None]);
        assert_eq!((&made[2]["name"], made[2].get("tool_name")), (&json!("g"), None));
    }
}
