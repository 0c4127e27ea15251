//! Messages in OpenAI's form to messages as a template takes them.
//!
//! | what | becomes |
//! |---|---|
//! | a key that is null | is left out, but for `content` |
//! | `tool_calls: []` | is left out |
//! | no `content` beside tool calls | nothing, null or empty: what the template wants |
//! | no `content` otherwise | empty |
//! | arguments of a tool call | an object or JSON text: what the template wants |
//! | arguments that are no object | as they are, or in one where the template fails on that |
//! | `reasoning`, `thinking`, `reasoning_content` | each from the other, as in transformers |
//! | role `developer` | `system`, where the template does not know it, or not there |
//! | a `system` message after others | joins the first, where the template loses or refuses one of them |
//!
//! Owns: these rules. Must never: lose a part of a message.

use std::borrow::Cow;

use minisgl_proto::integers;
use serde_json::{Map, Value, json};

/// How a template takes messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Form {
    /// Arguments of tool calls are JSON text.
    pub arguments_as_text: bool,
    /// Arguments that are no object, as of a model that wrote broken JSON, become one.
    pub wrap_broken: bool,
    /// What stands for the content that a message with tool calls does not have.
    pub content: Content,
    /// Which messages of a developer are called `system`.
    pub developers: Developers,
    /// Which system messages become one.
    pub systems: Systems,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Developers {
    #[default]
    AsTheyAre,
    /// But for one that comes first and alone: the template reads no other.
    SystemUnlessAlone,
    System,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Systems {
    #[default]
    AsTheyAre,
    /// Those at the start: the template keeps one of them.
    JoinFirst,
    JoinAll,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Content {
    #[default]
    Absent,
    Null,
    Empty,
}

/// Names for what a model thought.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// The messages in this form.
pub fn messages(given: &[Value], form: Form) -> Vec<Value> {
    let mut messages: Vec<Value> = given.iter().map(|message| adapted(message, form)).collect();
    if renames_developers(given, form.developers) {
        for message in &mut messages {
            if message["role"] == "developer" {
                message["role"] = "system".into();
            }
        }
    }
    match form.systems {
        Systems::AsTheyAre => {}
        Systems::JoinFirst => join_systems(&mut messages, |at, others| at < others),
        Systems::JoinAll => join_systems(&mut messages, |_, _| true),
    }
    messages
}

fn renames_developers(messages: &[Value], which: Developers) -> bool {
    let instructs =
        |message: &Value| matches!(message["role"].as_str(), Some("system" | "developer"));
    match which {
        Developers::AsTheyAre => false,
        Developers::SystemUnlessAlone => messages.iter().skip(1).any(instructs),
        Developers::System => true,
    }
}

fn adapted(message: &Value, form: Form) -> Value {
    let Some(fields) = message.as_object() else { return message.clone() };
    let calls = |value: &Value| value.as_array().is_some_and(|calls| !calls.is_empty());
    let has_calls = fields.get("tool_calls").is_some_and(calls);
    let reasoning =
        REASONING.iter().find_map(|name| fields.get(*name).filter(|value| !value.is_null()));
    let mut out = Map::new();
    if let Some(reasoning) = reasoning {
        out.insert("thinking".to_owned(), reasoning.clone());
    }
    for (name, value) in fields {
        let value = match name.as_str() {
            "content" if value.is_null() => continue,
            "tool_calls" if !has_calls && value.is_array() => continue,
            "tool_calls" => calls_as(value, form),
            _ if value.is_null() => continue,
            _ => value.clone(),
        };
        out.insert(name.clone(), value);
    }
    if let Some(reasoning) = reasoning {
        out.insert("reasoning_content".to_owned(), reasoning.clone());
    }
    if !out.contains_key("content") {
        match form.content {
            Content::Absent if has_calls => {}
            Content::Null if has_calls => drop(out.insert("content".to_owned(), Value::Null)),
            _ => drop(out.insert("content".to_owned(), json!(""))),
        }
    }
    Value::Object(out)
}

/// The name under which arguments that are no object reach a template that takes objects alone.
const BROKEN: &str = "arguments";

fn calls_as(calls: &Value, form: Form) -> Value {
    let mut calls = calls.clone();
    for call in calls.as_array_mut().into_iter().flatten() {
        let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
        let object: Option<Cow<'_, Value>> = match &*arguments {
            Value::Null => Some(Cow::Owned(json!({}))),
            Value::String(text) if text.trim().is_empty() => Some(Cow::Owned(json!({}))),
            // A model's arguments need not be JSON; then the template gets them as they are.
            Value::String(text) => serde_json::from_str(&integers::mark(text))
                .ok()
                .map(|fields| Cow::Owned(Value::Object(fields))),
            Value::Object(_) => Some(Cow::Borrowed(&*arguments)),
            _ => None,
        };
        let changed = match (form.arguments_as_text, &*arguments, object) {
            // Text keeps its own spaces and digits.
            (true, Value::String(text), _) if !text.trim().is_empty() => continue,
            (true, _, Some(object)) => Value::String(python_json(&object)),
            (false, _, Some(object)) => object.into_owned(),
            (false, broken, None) if form.wrap_broken => json!({BROKEN: broken}),
            (_, _, None) => continue,
        };
        *arguments = changed;
    }
    calls
}

/// JSON as Python writes it.
fn python_json(value: &Value) -> String {
    crate::jinja::dumps(&value.into())
}

/// System messages to the end of the first, or the first of them to the start. Which ones, is asked with the place of
/// one and that of the first message of another role.
fn join_systems(messages: &mut Vec<Value>, joins: impl Fn(usize, usize) -> bool) {
    let is_system = |message: &Value| message["role"] == "system";
    let others = messages.iter().position(|message| !is_system(message)).unwrap_or(messages.len());
    let mut late = Vec::new();
    let mut at = 0;
    messages.retain(|message| {
        let goes = at > 0 && is_system(message) && joins(at, others);
        at += 1;
        if goes {
            late.push(message.clone());
        }
        !goes
    });
    if late.is_empty() {
        return;
    }
    if !messages.first().is_some_and(is_system) {
        messages.insert(0, late.remove(0));
    }
    for message in late {
        match (&mut messages[0]["content"], &message["content"]) {
            (Value::String(first), Value::String(more)) => {
                first.push_str("\n\n");
                first.push_str(more);
            }
            (Value::Array(first), Value::Array(more)) => first.extend(more.iter().cloned()),
            (Value::Array(first), Value::String(more)) => {
                first.push(json!({"type": "text", "text": more}))
            }
            (first, Value::Array(more)) => {
                let mut parts = vec![json!({"type": "text", "text": first.clone()})];
                parts.extend(more.iter().cloned());
                *first = Value::Array(parts);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(message: Value, form: Form, right: Value) {
        assert_eq!(messages(&[message], form), [right]);
    }

    #[test]
    fn null_keys_and_empty_calls_are_as_absent() {
        let message = json!({"role": "assistant", "content": "4", "name": null, "tool_calls": []});
        check(message, Form::default(), json!({"role": "assistant", "content": "4"}));
        let message = json!({"role": "user", "content": null});
        check(message, Form::default(), json!({"role": "user", "content": ""}));
    }

    #[test]
    fn arguments_and_content_take_the_templates_form() {
        let call = |arguments: Value| json!([{"function": {"name": "f", "arguments": arguments}}]);
        let given =
            json!({"role": "assistant", "content": null, "tool_calls": call(json!("{\"x\":1.0}"))});
        let right = json!({"role": "assistant", "tool_calls": call(json!({"x": 1.0}))});
        check(given.clone(), Form::default(), right);
        let text = Form { arguments_as_text: true, content: Content::Null, ..Form::default() };
        let right =
            json!({"role": "assistant", "tool_calls": call(json!("{\"x\":1.0}")), "content": null});
        check(given, text, right);
        let object =
            json!({"role": "assistant", "content": "", "tool_calls": call(json!({"x": [1, "é"]}))});
        let right = json!({"role": "assistant", "content": "", "tool_calls": call(json!("{\"x\": [1, \"é\"]}"))});
        check(object, text, right);
        let broken = json!({"role": "assistant", "content": "", "tool_calls": call(json!("{x"))});
        check(broken.clone(), Form::default(), broken.clone());
        let right = json!({"role": "assistant", "content": "", "tool_calls": call(json!({"arguments": "{x"}))});
        check(broken, Form { wrap_broken: true, ..Form::default() }, right);
    }

    #[test]
    fn reasoning_has_every_name() {
        let given = json!({"role": "assistant", "content": "4", "reasoning": "2+2"});
        let right = json!({"thinking": "2+2", "role": "assistant", "content": "4", "reasoning": "2+2",
                           "reasoning_content": "2+2"});
        check(given, Form::default(), right);
    }

    #[test]
    fn late_system_messages_join_the_first() {
        let form =
            Form { systems: Systems::JoinAll, developers: Developers::System, ..Form::default() };
        let given = [
            json!({"role": "user", "content": "a"}),
            json!({"role": "developer", "content": "b"}),
            json!({"role": "system", "content": "c"}),
        ];
        let right = [
            json!({"role": "system", "content": "b\n\nc"}),
            json!({"role": "user", "content": "a"}),
        ];
        assert_eq!(messages(&given, form), right);
    }
}
