//! The tools of the Responses API as those of a chat, and the way back.
//!
//! Owns: names. A tool in a namespace, or one that takes free text, is a function under a name of its own to the model;
//! [`Names`] knows whose it is. Must never: refuse a tool for its type: what cannot be called is left out.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use minisgl_proto::integers;
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::tools::ToolChoice;

/// Bytes of a function's name at most, its namespace included.
const NAME_BYTES_MAX: usize = 256;
/// The parameter of a function that takes free text.
const INPUT: &str = "input";

/// The tools of a request.
#[derive(Default)]
pub struct Toolkit {
    chat: Vec<Value>,
    names: Names,
    /// All names there.
    taken: HashSet<String>,
    /// Places in `chat`, and names there, by namespace and name.
    places: HashMap<(Option<String>, String), (usize, String)>,
}

/// What functions are to a client, by their names in a chat, where that is not the same.
#[derive(Clone, Debug, Default)]
pub struct Names(HashMap<String, Origin>);

/// A tool as its client knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: Option<String>,
    /// Whether it takes free text.
    pub is_custom: bool,
}

impl Names {
    /// What the function of this name in a chat is to the client.
    pub fn origin(&self, chat: &str) -> Origin {
        let plain = || Origin { name: chat.to_owned(), namespace: None, is_custom: false };
        self.0.get(chat).cloned().unwrap_or_else(plain)
    }
}

impl Toolkit {
    /// Adds the tools that `param` brought. One that is there already is replaced.
    ///
    /// # Errors
    /// 400: one is no object, or has no name.
    pub fn add(&mut self, param: &str, tools: &[Value]) -> Result<(), ApiError> {
        for (at, tool) in tools.iter().enumerate() {
            let param = format!("{param}[{at}]");
            if !self.add_one(&param, None, tool)? && tool["type"] == "namespace" {
                let namespace = name_of(&param, tool)?;
                let inner = tool["tools"].as_array().map_or(&[][..], Vec::as_slice);
                for (at, tool) in inner.iter().enumerate() {
                    let param = format!("{param}.tools[{at}]");
                    if !self.add_one(&param, Some(&namespace), tool)? {
                        left_out(tool);
                    }
                }
            } else if !matches!(tool["type"].as_str(), Some("function" | "custom")) {
                left_out(tool);
            }
        }
        Ok(())
    }

    /// Whether it is one that can be called.
    fn add_one(
        &mut self,
        param: &str,
        namespace: Option<&str>,
        tool: &Value,
    ) -> Result<bool, ApiError> {
        if !tool.is_object() {
            return Err(ApiError::field(param, format!("{param}: a tool is an object")));
        }
        let is_custom = match tool["type"].as_str() {
            Some("function") => false,
            Some("custom") => true,
            _ => return Ok(false),
        };
        // Chat completions' form puts it one level down.
        let inner = if tool["name"].is_string() { None } else { tool.get("function") };
        let tool = inner.or(tool.get("custom")).filter(|it| it.is_object()).unwrap_or(tool);
        let name = name_of(param, tool)?;
        let place = (namespace.map(str::to_owned), name.clone());
        let (at, chat) = match self.places.get(&place).cloned() {
            Some(known) => known,
            None => (self.chat.len(), self.free(namespace, &name)),
        };
        let function = if is_custom { custom(&chat, tool) } else { function(&chat, tool) };
        let function = json!({"type": "function", "function": function});
        if at == self.chat.len() {
            self.chat.push(function);
        } else {
            self.chat[at] = function;
        }
        if is_custom || namespace.is_some() || chat != name {
            let namespace = place.0.clone();
            self.names.0.insert(chat.clone(), Origin { name, namespace, is_custom });
        } else {
            // It takes the place of another kind.
            self.names.0.remove(&chat);
        }
        self.places.insert(place, (at, chat));
        Ok(true)
    }

    /// A name that no function has yet.
    fn free(&mut self, namespace: Option<&str>, name: &str) -> String {
        let joined = joined(namespace, name);
        let numbered = (2..).map(|number| format!("{joined}_{number}"));
        let mut names = std::iter::once(joined.clone()).chain(numbered);
        let free = names.find(|name| !self.taken.contains(name)).unwrap_or(joined);
        self.taken.insert(free.clone());
        free
    }

    /// The name in a chat of the function that an item calls; it need not be there any more.
    pub fn chat_name(&self, namespace: Option<&str>, name: &str) -> String {
        let place = (namespace.map(str::to_owned), name.to_owned());
        self.places.get(&place).map_or_else(|| joined(namespace, name), |(_, chat)| chat.clone())
    }

    /// What `tool_choice` says, in the names of a chat.
    ///
    /// # Errors
    /// 400: it has no form that is known, or is one that nobody can call.
    pub fn choice(&self, mut given: Value) -> Result<ToolChoice, ApiError> {
        self.rename(&mut given);
        let inner = match given.get("allowed_tools") {
            Some(_) => given.get_mut("allowed_tools"),
            None => Some(&mut given),
        };
        if let Some(Value::Array(tools)) = inner.and_then(|choice| choice.get_mut("tools")) {
            tools.iter_mut().for_each(|tool| self.rename(tool));
            // What was left out cannot be allowed.
            tools.retain(|tool| tool["type"] == "function" || tool["name"].is_string());
        }
        ToolChoice::read(&given)
    }

    fn rename(&self, tool: &mut Value) {
        let Some(name) = tool["name"].as_str() else { return };
        let chat = self.chat_name(tool["namespace"].as_str(), name);
        if let Some(fields) = tool.as_object_mut() {
            fields.insert("name".into(), chat.into());
            if fields.get("type").is_some_and(|kind| kind == "custom") {
                fields.insert("type".into(), "function".into());
            }
        }
    }

    /// The tools in a chat's form, and what they are to the client.
    pub fn into_parts(self) -> (Vec<Value>, Names) {
        (self.chat, self.names)
    }
}

/// What a function of a namespace is called: models know this form from MCP's tools.
fn joined(namespace: Option<&str>, name: &str) -> String {
    namespace.map_or_else(|| name.to_owned(), |space| format!("{space}__{name}"))
}

fn name_of(param: &str, tool: &Value) -> Result<String, ApiError> {
    let name = tool["name"].as_str().unwrap_or_default();
    // Two of them and what stands between make one.
    if name.is_empty() || name.len() > NAME_BYTES_MAX / 2 - 4 {
        let param = format!("{param}.name");
        let most = NAME_BYTES_MAX / 2 - 4;
        let text = format!("{param}: a tool needs a name of 1 to {most} bytes");
        return Err(ApiError::field(param, text));
    }
    Ok(name.to_owned())
}

fn function(chat: &str, tool: &Value) -> Value {
    let mut function = Map::new();
    function.insert("name".into(), chat.into());
    if let Some(description) = tool.get("description").filter(|it| it.is_string()) {
        function.insert("description".into(), description.clone());
    }
    let parameters = tool.get("parameters").filter(|it| !it.is_null()).cloned();
    let none = || json!({"type": "object", "properties": {}});
    function.insert("parameters".into(), parameters.unwrap_or_else(none));
    if tool["strict"] == true {
        function.insert("strict".into(), true.into());
    }
    function.into()
}

/// A tool that takes free text: models here call with JSON alone, so the text is a parameter.
fn custom(chat: &str, tool: &Value) -> Value {
    let mut description = tool["description"].as_str().unwrap_or_default().to_owned();
    let format = &tool["format"];
    let format = if format["grammar"].is_object() { &format["grammar"] } else { format };
    if let Some(grammar) = format["definition"].as_str() {
        let syntax = format["syntax"].as_str().unwrap_or("lark");
        if !description.is_empty() {
            description.push_str("\n\n");
        }
        description += &format!("The {INPUT} must follow this {syntax} grammar:\n{grammar}");
    }
    json!({"name": chat, "description": description, "parameters": {
        "type": "object",
        "properties": {INPUT: {"type": "string", "description": "The whole input of the tool, as free text."}},
        "required": [INPUT],
        "additionalProperties": false,
    }})
}

/// The free text in the arguments of a call. What the model broke off, or made otherwise, stays as it is.
pub fn input_of(arguments: &str) -> String {
    match serde_json::from_str::<Map<String, Value>>(arguments) {
        Ok(mut fields) => match fields.remove(INPUT) {
            Some(Value::String(input)) => input,
            _ => arguments.to_owned(),
        },
        Err(_) => cut_input(arguments).unwrap_or_default(),
    }
}

/// The input as far as it came, of arguments that were cut off.
fn cut_input(arguments: &str) -> Option<String> {
    let text = arguments.trim_start().strip_prefix('{')?.trim_start().strip_prefix("\"input\"")?;
    let text = text.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
    // Half an escape, of a pair of surrogates at most, says nothing yet.
    let ends = (text.len().saturating_sub(12)..=text.len()).rev();
    let mut whole = ends.filter_map(|end| text.get(..end));
    whole.find_map(|text| serde_json::from_str(&format!("\"{text}\"")).ok())
}

/// Arguments that hold this free text.
pub fn arguments_of(input: &str) -> String {
    json!({INPUT: input}).to_string()
}

/// A value as a client wrote it, but for the last digits of an integer of more than 64 bits.
pub fn plain(value: Value) -> Value {
    if let Some(digits) = integers::marked(&value) {
        return digits.parse::<f64>().ok().into();
    }
    match value {
        Value::Array(items) => items.into_iter().map(plain).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, it)| (name, plain(it))).collect(),
        other => other,
    }
}

/// The first is worth a warning; agents send the same ones with each request.
fn left_out(tool: &Value) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    let kind: String = tool["type"].as_str().unwrap_or("none").chars().take(40).collect();
    if WARNED.swap(true, Ordering::Relaxed) {
        tracing::debug!(kind, "a tool was left out");
    } else {
        tracing::warn!(
            kind,
            "a tool was left out: nothing here runs it; the model does not hear of it (this is said once)"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kit(tools: &Value) -> Toolkit {
        let mut kit = Toolkit::default();
        kit.add("tools", tools.as_array().unwrap()).unwrap();
        kit
    }

    fn names(kit: Toolkit) -> (Vec<String>, Names) {
        let (chat, names) = kit.into_parts();
        let chat = chat.iter().map(|tool| tool["function"]["name"].as_str().unwrap().to_owned());
        (chat.collect(), names)
    }

    #[test]
    fn a_tool_that_takes_anothers_place_is_what_it_is() {
        let function = |name: &str| json!({"type": "function", "name": name});
        let tools = json!([
            {"type": "namespace", "name": "a", "tools": [function("b")]},
            function("a__b"),
            {"type": "custom", "name": "p"},
            function("p"),
        ]);
        let (chat, names) = names(kit(&tools));
        assert_eq!(chat, ["a__b", "a__b_2", "p"]);
        let Origin { name, namespace, is_custom } = names.origin("a__b_2");
        assert_eq!((&*name, namespace, is_custom), ("a__b", None, false));
        assert!(!names.origin("p").is_custom);
    }

    #[test]
    fn names_are_unique_and_lead_back() {
        let function = |name: &str| json!({"type": "function", "name": name});
        let tools = json!([
            function("a__b"),
            {"type": "namespace", "name": "a", "tools": [function("b"), function("c"), {"type": "custom", "name": "d"}, {"type": "x"}]},
            {"type": "namespace", "name": "a__b", "tools": [function("c")]},
            {"type": "namespace", "name": "a", "tools": [function("b__c")]},
            {"type": "web_search"},
        ]);
        let kit = kit(&tools);
        assert_eq!(kit.chat_name(Some("a"), "b"), "a__b_2");
        assert_eq!(kit.chat_name(Some("gone"), "b"), "gone__b");
        let (chat, names) = names(kit);
        assert_eq!(chat, ["a__b", "a__b_2", "a__c", "a__d", "a__b__c", "a__b__c_2"]);
        let origin = |chat: &str| {
            let Origin { name, namespace, is_custom } = names.origin(chat);
            (namespace.unwrap_or_default(), name, is_custom)
        };
        let is = |space: &str, name: &str, custom| (space.to_owned(), name.to_owned(), custom);
        assert_eq!(origin("a__b"), is("", "a__b", false));
        assert_eq!(origin("a__b_2"), is("a", "b", false));
        assert_eq!(origin("a__d"), is("a", "d", true));
        assert_eq!(origin("a__b__c"), is("a__b", "c", false));
        assert_eq!(origin("a__b__c_2"), is("a", "b__c", false));
    }

    #[test]
    fn the_same_tool_again_replaces_the_first() {
        let mut kit = kit(&json!([{"type": "function", "name": "f", "description": "old"}]));
        kit.add(
            "input[0].tools",
            &[json!({"type": "function", "name": "f", "description": "new"})],
        )
        .unwrap();
        let (chat, _) = kit.into_parts();
        assert_eq!(chat.len(), 1);
        assert_eq!(chat[0]["function"]["description"], "new");
    }

    #[test]
    fn choices_are_read_in_the_names_of_the_chat() {
        let kit = kit(&json!([
            {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "f"}]},
            {"type": "custom", "name": "c"},
        ]));
        let named = |name: &str| ToolChoice::Named(name.into());
        for (given, read) in [
            (json!("required"), ToolChoice::Required),
            (json!({"type": "function", "name": "f", "namespace": "n"}), named("n__f")),
            (json!({"type": "custom", "name": "c"}), named("c")),
            (
                json!({"type": "allowed_tools", "mode": "auto",
                       "tools": [{"type": "function", "name": "f", "namespace": "n"}, {"type": "web_search"}]}),
                ToolChoice::Allowed { names: vec!["n__f".into()], required: false },
            ),
        ] {
            assert_eq!(kit.choice(given.clone()).unwrap(), read, "{given}");
        }
        assert!(kit.choice(json!({"type": "web_search"})).is_err());
    }

    #[test]
    fn what_is_no_tool_is_named() {
        for (tools, param) in [
            (json!([1]), "tools[0]"),
            (json!([{"type": "function"}]), "tools[0].name"),
            (
                json!([{"type": "namespace", "name": "n", "tools": [{"type": "function", "name": ""}]}]),
                "tools[0].tools[0].name",
            ),
            (json!([{"type": "function", "name": "x".repeat(200)}]), "tools[0].name"),
        ] {
            let error = Toolkit::default().add("tools", tools.as_array().unwrap()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{error}");
        }
    }

    #[test]
    fn free_text_comes_out_as_it_went_in() {
        for text in ["", "a \"b\"\n", "*** Begin Patch"] {
            assert_eq!(input_of(&arguments_of(text)), text);
        }
        for (cut, input) in [
            ("{\"input\": \"a", "a"),
            ("{ \"input\":\"a\\nb\\", "a\nb"),
            ("{\"input\":\"é\\u00e", "é"),
            ("{\"input\":\"\\ud83e\\udd8", ""),
            ("{\"inp", ""),
            ("{", ""),
        ] {
            assert_eq!(input_of(cut), input, "{cut}");
        }
        assert_eq!(input_of("{\"input\": 1}"), "{\"input\": 1}");
    }

    #[test]
    fn large_integers_are_numbers_again() {
        let marked = integers::mark("{\"a\":[123456789012345678901234567890]}");
        let value: Value = serde_json::from_str(&marked).unwrap();
        assert_eq!(plain(value), json!({"a": [123456789012345678901234567890_f64]}));
    }
}
