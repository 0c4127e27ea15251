//! The tools of a request: which there are, and which of them may or must be called.
//!
//! Owns: the forms of tools and of `tool_choice`. Must never: judge a tool's schema: whoever compiles it does.

use std::collections::HashSet;
use std::sync::Arc;

use minisgl_dialect::{Tool, Tools};
use serde_json::Value;

use crate::error::ApiError;

/// Bytes of a function's name at most.
const NAME_BYTES_MAX: usize = 256;

/// What a request says of calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model chooses.
    Auto,
    /// No tool is called, or told to the model.
    None,
    /// One at least.
    Required,
    /// This one, once.
    Named(String),
    /// Of these alone, `required` of them one at least.
    Allowed {
        /// Their names.
        names: Vec<String>,
        /// Whether one must be called.
        required: bool,
    },
}

impl ToolChoice {
    /// OpenAI's forms, those of chat completions and of responses.
    ///
    /// # Errors
    /// 400: none of them.
    pub fn read(choice: &Value) -> Result<ToolChoice, ApiError> {
        let name = |value: &Value| {
            value["function"]["name"].as_str().or(value["name"].as_str()).map(str::to_owned)
        };
        let wrong = || {
            ApiError::field(
                "tool_choice",
                "tool_choice is \"auto\", \"none\", \"required\", {\"type\": \"function\", \"function\": {\"name\": ..}} or \
                 {\"type\": \"allowed_tools\", ..}",
            )
        };
        match choice {
            Value::Null => Ok(ToolChoice::Auto),
            Value::String(word) => match &**word {
                "auto" => Ok(ToolChoice::Auto),
                "none" => Ok(ToolChoice::None),
                "required" | "any" => Ok(ToolChoice::Required),
                _ => Err(wrong()),
            },
            Value::Object(fields) => match fields.get("type").and_then(Value::as_str) {
                Some("auto") => Ok(ToolChoice::Auto),
                Some("none") => Ok(ToolChoice::None),
                Some("required" | "any") => Ok(ToolChoice::Required),
                Some("function" | "tool") | None => {
                    name(choice).map(ToolChoice::Named).ok_or_else(wrong)
                }
                Some("allowed_tools") => {
                    let inner = fields.get("allowed_tools").unwrap_or(choice);
                    let names = inner["tools"].as_array().ok_or_else(wrong)?;
                    let names = names.iter().map(name).collect::<Option<_>>().ok_or_else(wrong)?;
                    Ok(ToolChoice::Allowed { names, required: inner["mode"] == "required" })
                }
                Some(_) => Err(wrong()),
            },
            _ => Err(wrong()),
        }
    }
}

/// The tools of a request, as calling them needs them.
#[derive(Clone, Debug)]
pub struct Toolbox {
    tools: Vec<Tool>,
    /// Those of them whose schema must hold.
    strict: Vec<bool>,
    choice: ToolChoice,
    single: bool,
}

impl Toolbox {
    /// Of tools in OpenAI's form; `single`: one call at a time.
    ///
    /// # Errors
    /// 400: one has no name; `choice` needs tools that are not there.
    pub fn new(tools: &[Value], choice: ToolChoice, single: bool) -> Result<Toolbox, ApiError> {
        let mut read = Vec::with_capacity(tools.len());
        let mut strict = Vec::with_capacity(tools.len());
        for (at, tool) in tools.iter().enumerate() {
            // Templates take a function by itself, too.
            let function = if tool["function"].is_object() { &tool["function"] } else { tool };
            let name = function["name"].as_str().unwrap_or_default();
            if name.is_empty() || name.len() > NAME_BYTES_MAX {
                let param = format!("tools[{at}].function.name");
                let text = format!(
                    "{param}: a tool is {{\"type\": \"function\", \"function\": {{\"name\": .., \"parameters\": ..}}}}, with a \
                     name of 1 to {NAME_BYTES_MAX} bytes"
                );
                return Err(ApiError::field(param, text));
            }
            strict.push(function["strict"] == true);
            let parameters = function["parameters"].clone();
            read.push(Tool { name: name.to_owned(), parameters });
        }
        let names: HashSet<&str> = read.iter().map(|tool| &*tool.name).collect();
        let known = |name: &String| names.contains(&**name);
        let wanted: &[String] = match &choice {
            ToolChoice::Named(name) => std::slice::from_ref(name),
            ToolChoice::Allowed { names, .. } => names,
            _ => &[],
        };
        if let Some(name) = wanted.iter().find(|name| !known(name)) {
            let text = format!("tool_choice: there is no tool {name:?} among tools");
            return Err(ApiError::field("tool_choice", text));
        }
        let must = matches!(choice, ToolChoice::Required)
            || matches!(&choice, ToolChoice::Allowed { required: true, names } if names.is_empty());
        if must && (read.is_empty() || matches!(choice, ToolChoice::Allowed { .. })) {
            let text = "tool_choice: a call is required, and there are no tools; send some, or leave tool_choice out";
            return Err(ApiError::field("tool_choice", text));
        }
        let choice = match choice {
            // None is left.
            ToolChoice::Allowed { names, .. } if names.is_empty() => ToolChoice::None,
            choice => choice,
        };
        Ok(Toolbox { tools: read, strict, choice, single })
    }

    /// Whether any may be called.
    pub fn may_be_called(&self) -> bool {
        !self.tools.is_empty() && self.choice != ToolChoice::None
    }

    /// Whether the first call ends the output.
    pub fn single(&self) -> bool {
        self.single || matches!(self.choice, ToolChoice::Named(_))
    }

    /// What reading calls needs of them.
    pub fn for_reading(&self) -> Arc<Tools> {
        if self.may_be_called() { Arc::new(Tools::new(&self.tools)) } else { Arc::default() }
    }

    /// Those that may be called, each with whether its schema must hold.
    pub fn callable(&self) -> impl Iterator<Item = (&Tool, bool)> {
        let tools = self.tools.iter().zip(self.strict.iter().copied());
        let allowed: HashSet<&str> = match &self.choice {
            ToolChoice::Named(name) => HashSet::from([&**name]),
            ToolChoice::Allowed { names, .. } => names.iter().map(|name| &**name).collect(),
            _ => HashSet::new(),
        };
        let all = matches!(self.choice, ToolChoice::Auto | ToolChoice::Required);
        tools.filter(move |(tool, _)| all || allowed.contains(&*tool.name))
    }

    /// Whether one must be called.
    pub fn required(&self) -> bool {
        matches!(
            self.choice,
            ToolChoice::Required
                | ToolChoice::Named(_)
                | ToolChoice::Allowed { required: true, .. }
        )
    }

    /// Whether calls must be held to something: their schemas, or which tools they may be of.
    pub fn is_held(&self) -> bool {
        self.may_be_called()
            && (self.required()
                || self.strict.contains(&true)
                || matches!(self.choice, ToolChoice::Allowed { .. }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn choices_are_read_in_all_forms() {
        let named = || Ok(ToolChoice::Named("f".into()));
        let allowed =
            |required| Ok(ToolChoice::Allowed { names: vec!["f".into(), "g".into()], required });
        let functions = json!([{"type": "function", "function": {"name": "f"}}, {"type": "function", "name": "g"}]);
        for (given, right) in [
            (json!(null), Ok(ToolChoice::Auto)),
            (json!("auto"), Ok(ToolChoice::Auto)),
            (json!("none"), Ok(ToolChoice::None)),
            (json!("required"), Ok(ToolChoice::Required)),
            (json!("any"), Ok(ToolChoice::Required)),
            (json!({"type": "any"}), Ok(ToolChoice::Required)),
            (json!({"type": "function", "function": {"name": "f"}}), named()),
            (json!({"type": "function", "name": "f"}), named()),
            (json!({"type": "tool", "name": "f"}), named()),
            (
                json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": functions}}),
                allowed(true),
            ),
            (json!({"type": "allowed_tools", "mode": "auto", "tools": functions}), allowed(false)),
            (json!("sometimes"), Err(())),
            (json!({"type": "function"}), Err(())),
            (json!({"type": "allowed_tools"}), Err(())),
            (json!({"type": "file_search"}), Err(())),
            (json!(1), Err(())),
        ] {
            assert_eq!(ToolChoice::read(&given).map_err(|_| ()), right, "{given}");
        }
    }

    #[test]
    fn what_a_choice_needs_must_be_there() {
        let tools = [json!({"type": "function", "function": {"name": "f", "strict": true}})];
        let new = |tools: &[Value], choice| Toolbox::new(tools, choice, false);
        let none = || ToolChoice::Allowed { names: Vec::new(), required: true };
        for (tools, choice, param) in [
            (&[][..], ToolChoice::Required, "tool_choice"),
            (&tools[..], ToolChoice::Named("g".into()), "tool_choice"),
            (&tools[..], none(), "tool_choice"),
            (&[json!({})][..], ToolChoice::Auto, "tools[0].function.name"),
        ] {
            let error = new(tools, choice).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{error}");
        }
        let auto = new(&tools, ToolChoice::Auto).unwrap();
        assert!(auto.is_held() && !auto.required() && auto.callable().count() == 1);
        let hidden = new(&tools, ToolChoice::None).unwrap();
        assert!(!hidden.may_be_called() && !hidden.is_held() && hidden.callable().count() == 0);
        let named = new(&tools, ToolChoice::Named("f".into())).unwrap();
        assert!(named.single() && named.required());
        let empty = ToolChoice::Allowed { names: Vec::new(), required: false };
        assert!(!new(&tools, empty).unwrap().may_be_called(), "none is left");
    }
}
