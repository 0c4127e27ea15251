//! `POST /v1/responses`: OpenAI's Responses API.
//!
//! ```text
//!   input + what previous_response_id kept -> items -> messages of a chat
//!   parts -> items -> events, or one response (wire.rs) -> kept (crate::store)
//! ```
//!
//! Owns: the fields of a request. Must never: know what a tool is to the model.

mod head;
mod items;
mod output;
pub mod routes;
mod tools;
mod wire;

use std::io;
use std::sync::Arc;

use axum::http::StatusCode;
use serde_json::{Map, Value, json};

use crate::chat::TalkFields;
use crate::error::ApiError;
use crate::fields::Route;
use crate::front::Front;
use crate::intent::{Intent, Prompts};
use crate::json::{Exact, Int, List, Node, Object, SHORT_LIST_MAX, fields, spend_text};
use crate::keys::Owner;
use crate::prompt::{Dialogue, Message};
use crate::sampling::{SamplingFields, top, whole};
use crate::store::{CONVERSATION_BYTES_MAX, Store};
use crate::surface::Surface;
use crate::usage::Telling;
use crate::wire::Answer;
use head::{Echo, Head};
use items::{Reader, is_read};
use output::Showing;
use tools::{Names, Toolkit, plain};
use wire::{Parts, ResponseWire};

/// Tools of one request, at most; those of a namespace count as one.
const TOOLS_MAX: usize = 4 << 10;
/// What `include` may ask for.
const ENCRYPTED: &str = "reasoning.encrypted_content";
const LOGPROBS: &str = "message.output_text.logprobs";

fields! {
    /// The fields of this surface.
    pub struct ResponseFields {
        model: String,
        stream: bool,
        input: Node,
        instructions: String,
        previous_response_id: String,
        tools: List<Exact<Node>, TOOLS_MAX>,
        tool_choice: Node,
        text: Exact<Object>,
        reasoning: Object,
        include: List<String, SHORT_LIST_MAX>,
        max_output_tokens: Int,
        max_tool_calls: Int,
        top_logprobs: Int,
        store: bool,
        metadata: Object,
        user: String,
        chat_template_kwargs: Exact<Object>,
    }
    with {
        talk: TalkFields,
        sampling: SamplingFields,
    }
}

/// What of a request its answer's form needs.
pub struct Responses {
    names: Names,
    showing: Showing,
    echo: Echo,
    sampling: (Option<f64>, Option<f64>),
    owner: Owner,
    /// JSON of all items before the answer, if it is to be kept.
    input: Option<String>,
}

impl Surface for Responses {
    type Body = ResponseFields;
    type Wire = ResponseWire;
    const ROUTE: Route = Route::Responses;

    fn intent(f: ResponseFields, front: &Front) -> Result<(Intent, Responses), ApiError> {
        Responses::intent_of(f, front, &Owner::Anybody)
    }

    fn intent_of(
        mut f: ResponseFields,
        front: &Front,
        owner: &Owner,
    ) -> Result<(Intent, Responses), ApiError> {
        f.sampling.single()?;
        let tools: Vec<Value> = f.tools.take().map_or_else(Vec::new, |List(list)| {
            list.into_iter().map(|Exact(Node(tool))| tool).collect()
        });
        let previous = f.previous_response_id.as_deref();
        let items = conversation(f.input.take(), previous, &front.responses, owner)?;
        let kit = toolkit(&tools, &items)?;
        let messages = messages(&items, &kit, f.instructions.as_deref())?;
        let choice = f.tool_choice.take().map_or(Value::Null, |Node(choice)| choice);
        let shown_choice = if choice.is_null() { json!("auto") } else { choice.clone() };
        let choice = kit.choice(choice)?;
        let Exact(Object(text)) = f.text.take().unwrap_or_default();
        let Object(reasoning) = f.reasoning.take().unwrap_or_default();
        let List(include) = f.include.take().unwrap_or(List(Vec::new()));
        let includes = |what: &str| include.iter().any(|it| it == what);
        let summary =
            ["summary", "generate_summary"].iter().find_map(|name| reasoning.get(*name)?.as_str());
        let showing = Showing { summary: summary.is_some(), encrypted: includes(ENCRYPTED) };
        let tops = top("top_logprobs", f.top_logprobs.unwrap_or(Int(0)))?;
        if let Some(Int(calls)) = f.max_tool_calls {
            whole("max_tool_calls", calls, 0, u32::MAX.into())?;
        }
        let parallel = f.talk.parallel();
        let told = Told {
            tools,
            choice: shown_choice,
            text: &text,
            reasoning: &reasoning,
            parallel,
            tops,
        };
        let echo = echo(&f, told);
        let input = if f.store.unwrap_or(true) { kept(&items)? } else { None };
        drop(items);
        let (tools, names) = kit.into_parts();
        let Exact(Object(kwargs)) = f.chat_template_kwargs.take().unwrap_or_default();
        let mut dialogue = Dialogue { messages, tools, choice, kwargs, ..Dialogue::default() };
        hints(&mut dialogue, &text, &reasoning)?;
        f.talk.apply(&mut dialogue)?;
        if let Some(format) = text.get("format").filter(|format| !format.is_null()) {
            let Value::Object(format) = format else {
                return Err(ApiError::field("text.format", "text.format is an object with a type"));
            };
            f.sampling.set_format("text.format", format.clone());
        }
        let sampling = f.sampling.told();
        let intent = Intent {
            model: f.model,
            prompts: Prompts::Chat(Box::new(dialogue)),
            param: "input",
            sampling: f.sampling,
            max_tokens: f.max_output_tokens.map(|max| ("max_output_tokens", max)),
            max_tokens_default: None,
            logprobs: (tops > 0 || includes(LOGPROBS)).then_some(tops),
            prompt_logprobs: None,
            stream: f.stream.unwrap_or(false),
            telling: Telling::AtEnd,
            echo: false,
            ids: false,
        };
        let owner = owner.clone();
        Ok((intent, Responses { names, showing, echo, sampling, owner, input }))
    }

    fn wire(self, front: &Arc<Front>, answer: Answer) -> ResponseWire {
        let defaults = answer.text.defaults();
        let (temperature, top_p) = self.sampling;
        let head = Head {
            id: format!("resp_{}", answer.id),
            created_s: answer.created_s,
            model: answer.model,
            sampling: (
                temperature.or(defaults.temperature).unwrap_or(1.0),
                top_p.or(defaults.top_p).unwrap_or(1.0),
            ),
            // Known once there is room.
            store: false,
            echo: self.echo,
        };
        let parts = Parts { head, names: self.names, showing: self.showing, text: answer.text };
        ResponseWire::new(parts, &front.responses, self.owner, self.input)
    }
}

/// All items, each with where it stands: those that are kept, then those of the request.
fn conversation(
    input: Option<Node>,
    previous: Option<&str>,
    store: &Store,
    owner: &Owner,
) -> Result<Vec<(String, Value)>, ApiError> {
    let mut items = Vec::new();
    if let Some(id) = previous.filter(|id| !id.is_empty()) {
        for item in kept_items(store, id, owner)
            .map_err(|error| not_found(error, "previous_response_id"))?
        {
            items.push(("previous_response_id".to_owned(), item));
        }
    }
    let given = match input {
        None | Some(Node(Value::Null)) => Vec::new(),
        Some(Node(Value::String(text))) => vec![json!({"role": "user", "content": text})],
        Some(Node(Value::Array(items))) => items,
        Some(_) => return Err(ApiError::field("input", "input is a string, or a list of items")),
    };
    for (at, item) in given.into_iter().enumerate() {
        let param = format!("input[{at}]");
        let is_bare = item["type"].is_null() && item["role"].is_null() && item["id"].is_string();
        let item = if is_bare || item["type"] == "item_reference" {
            referred(store, &item["id"], owner).map_err(|error| not_found(error, &param))?
        } else {
            item
        };
        items.push((param, item));
    }
    Ok(items)
}

/// The tools of a request, and those that its items bring.
fn toolkit(tools: &[Value], items: &[(String, Value)]) -> Result<Toolkit, ApiError> {
    let mut kit = Toolkit::default();
    kit.add("tools", tools)?;
    for (param, item) in items.iter().filter(|(_, item)| item["type"] == "additional_tools") {
        let more = item["tools"].as_array().map_or(&[][..], Vec::as_slice);
        kit.add(&format!("{param}.tools"), more)?;
    }
    Ok(kit)
}

/// The messages that items make, behind the instructions.
fn messages(
    items: &[(String, Value)],
    kit: &Toolkit,
    instructions: Option<&str>,
) -> Result<Vec<Message>, ApiError> {
    let mut reader = Reader::new(kit);
    for (param, item) in items {
        reader.read(param, item)?;
    }
    let mut messages = reader.finish();
    if messages.is_empty() {
        let text = "input: at least one message, or output of a tool, is needed";
        return Err(ApiError::field("input", text));
    }
    if let Some(instructions) = instructions.filter(|text| !text.is_empty()) {
        let message = json!({"role": "system", "content": instructions});
        messages.splice(0..0, message.as_object().cloned());
    }
    Ok(messages)
}

/// 400, at this field, of what is 404 where it is asked for itself.
fn not_found(mut error: ApiError, param: &str) -> ApiError {
    if error.status == 404 {
        error.status = StatusCode::BAD_REQUEST;
        error.param = Some(param.to_owned());
        error.code = Some("previous_response_not_found");
    }
    error
}

/// What was said up to the end of a response.
fn kept_items(store: &Store, id: &str, owner: &Owner) -> Result<Vec<Value>, ApiError> {
    let answer = store.find(id, owner)?;
    let mut items = Vec::new();
    for list in [&answer.input, &answer.output] {
        spend_text(list.len())?;
        let read = serde_json::from_str::<Vec<Node>>(list);
        let read = read.map_err(|why| ApiError::field("previous_response_id", why.to_string()))?;
        items.extend(read.into_iter().map(|Node(item)| item));
    }
    Ok(items)
}

/// The item of this id, which names its response.
fn referred(store: &Store, id: &Value, owner: &Owner) -> Result<Value, ApiError> {
    let id = id.as_str().unwrap_or_default();
    let inner = id.split('_').nth(1).unwrap_or_default();
    let unknown = || {
        let shown: String = id.chars().take(80).collect();
        let text = format!(
            "there is no item \"{shown}\" here: its response was not stored, or is forgotten; send the item itself"
        );
        ApiError::new(StatusCode::NOT_FOUND, text)
    };
    let answer = store.find(&format!("resp_{inner}"), owner).map_err(|_| unknown())?;
    spend_text(answer.output.len())?;
    let items: Vec<Value> = serde_json::from_str(&answer.output).unwrap_or_default();
    items.into_iter().find(|item| item["id"] == id).ok_or_else(unknown)
}

/// What is written, up to a limit of bytes.
struct Bounded {
    out: Vec<u8>,
    bytes_max: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.bytes_max - self.out.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.out.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// JSON of all items that were read; `None`: they are too many to be kept.
fn kept(items: &[(String, Value)]) -> Result<Option<String>, ApiError> {
    let list: Vec<&Value> = items.iter().map(|(_, item)| item).filter(|it| is_read(it)).collect();
    let mut json = Bounded { out: Vec::new(), bytes_max: CONVERSATION_BYTES_MAX };
    if serde_json::to_writer(&mut json, &list).is_err() {
        tracing::debug!(bytes = json.out.len(), "a conversation is too large to be kept");
        return Ok(None);
    }
    let mut json = json.out;
    json.shrink_to_fit();
    spend_text(json.len())?;
    Ok(String::from_utf8(json).ok())
}

/// What templates know as variables.
fn hints(
    dialogue: &mut Dialogue,
    text: &Map<String, Value>,
    reasoning: &Map<String, Value>,
) -> Result<(), ApiError> {
    for (param, name, hint) in [
        ("reasoning.effort", "reasoning_effort", reasoning.get("effort")),
        ("text.verbosity", "verbosity", text.get("verbosity")),
    ] {
        match hint {
            None | Some(Value::Null) => {}
            Some(Value::String(hint)) => {
                dialogue.kwargs.entry(name).or_insert(hint.as_str().into());
            }
            Some(_) => return Err(ApiError::field(param, format!("{param} is a string"))),
        }
    }
    if dialogue.kwargs.get("reasoning_effort").is_some_and(|effort| effort == "none") {
        dialogue.think(false);
    }
    Ok(())
}

/// What a response repeats that was taken out of the fields.
struct Told<'a> {
    tools: Vec<Value>,
    choice: Value,
    text: &'a Map<String, Value>,
    reasoning: &'a Map<String, Value>,
    parallel: bool,
    tops: u32,
}

fn echo(f: &ResponseFields, told: Told<'_>) -> Echo {
    let number = |given: Option<Int>| given.map(|Int(given)| given);
    let Told { tools, choice, text, reasoning, parallel, tops } = told;
    let mut text = plain(text.clone().into());
    if text["format"].is_null() {
        text["format"] = json!({"type": "text"});
    }
    let asked = |name: &str| reasoning.get(name).cloned().unwrap_or_default();
    let metadata = f.metadata.as_ref().map(|Object(metadata)| metadata.clone());
    let fields = json!({
        "instructions": f.instructions,
        "max_output_tokens": number(f.max_output_tokens),
        "max_tool_calls": number(f.max_tool_calls),
        "parallel_tool_calls": parallel,
        "previous_response_id": f.previous_response_id,
        "reasoning": {"effort": asked("effort"), "summary": asked("summary")},
        "text": text,
        "tool_choice": choice,
        "tools": tools.into_iter().map(plain).collect::<Vec<_>>(),
        "top_logprobs": tops,
        "user": f.user,
        "metadata": metadata.unwrap_or_default(),
    });
    match fields {
        Value::Object(fields) => Echo::new(fields),
        _ => Echo::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::{NODES_MAX, counted};

    fn item(bytes: usize) -> Vec<(String, Value)> {
        vec![(String::new(), json!({"type": "message", "content": "x".repeat(bytes)}))]
    }

    #[test]
    fn a_conversation_that_is_kept_is_bounded_and_counts() {
        let spent = |bytes: usize| counted(|| kept(&item(bytes)).map(|it| it.is_some()));
        let (is_kept, bytes) = spent(CONVERSATION_BYTES_MAX - 40);
        assert!(is_kept.unwrap());
        assert!(bytes > CONVERSATION_BYTES_MAX - 200, "{bytes}: the budget of bodies knows of it");
        assert!(!spent(CONVERSATION_BYTES_MAX + 1).0.unwrap());
        let (one, _) = counted(|| {
            spend_text(NODES_MAX * 191)?;
            kept(&item(CONVERSATION_BYTES_MAX / 2))
        });
        assert!(one.unwrap_err().message.contains("too large"));
    }

    #[test]
    fn nothing_is_written_beyond_the_limit_nor_what_is_left_out() {
        let mut out = Bounded { out: Vec::new(), bytes_max: 100 };
        assert!(serde_json::to_writer(&mut out, &vec!["x".repeat(90); 1000]).is_err());
        assert!(out.out.len() <= 100 && out.out.capacity() <= 256);
        let mut items = item(3);
        items.push((String::new(), json!({"type": "unknown", "text": "y".repeat(1000)})));
        items.push((String::new(), json!({"role": "user", "content": "z"})));
        let (json, _) = counted(|| kept(&items));
        let json = json.unwrap().unwrap();
        let message = r#"[{"type":"message","content":"xxx"},{"role":"user","content":"z"}]"#;
        assert_eq!(json, message);
    }

    #[test]
    fn both_together_are_bounded_by_what_a_request_may_hold() {
        let store = Store::default();
        let input = format!("[{}]", vec!["1"; NODES_MAX + 1].join(","));
        let answer = crate::store::Answered { response: String::new(), input, output: "[]".into() };
        store.keep("resp_a", Owner::Anybody, answer);
        let (items, _) = counted(|| conversation(None, Some("resp_a"), &store, &Owner::Anybody));
        let error = items.unwrap_err();
        assert!(error.message.contains("JSON values"), "{error}");
        assert_eq!(error.param.as_deref(), Some("previous_response_id"));
    }
}
