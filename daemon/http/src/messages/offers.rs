//! The tools of a request in Anthropic's form to OpenAI's, and which of them may be called.
//!
//! Owns: those forms. Must never: offer a tool that nobody would run: Anthropic's own servers run some.

use minisgl_accept::Throttle;
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::json::Object;
use crate::tools::ToolChoice;

/// Tools that the log names of one request.
const NAMED_MAX: usize = 8;
/// Characters of such a name.
const NAMED_CHARS_MAX: usize = 40;

/// What a request says of calls.
#[derive(Debug)]
pub struct Offers {
    /// In OpenAI's form.
    pub tools: Vec<Value>,
    /// Which may or must be called.
    pub choice: ToolChoice,
    /// Whether several calls may come at once.
    pub parallel: bool,
}

static LEFT_OUT: Throttle = Throttle::new();

impl Offers {
    /// Reads them. A tool that a server of Anthropic's would run is left out, and so is a choice of it.
    ///
    /// # Errors
    /// 400: a tool has no name, or the choice has no form that is known.
    pub fn read(
        given: impl Iterator<Item = Value>,
        choice: Option<Object>,
    ) -> Result<Offers, ApiError> {
        let (mut tools, mut left_out) = (Vec::new(), Vec::new());
        for (at, tool) in given.enumerate() {
            let Value::Object(mut tool) = tool else { return Err(no_tool(at)) };
            let name = match tool.shift_remove("name") {
                Some(Value::String(name)) => name,
                _ => String::new(),
            };
            match foreign(&tool) {
                None if name.is_empty() => return Err(no_tool(at)),
                None => tools.push(function(name, tool)),
                Some(kind) if name.is_empty() => left_out.push(kind.to_owned()),
                Some(_) => left_out.push(name),
            }
        }
        let (mut choice, parallel) = read_choice(choice)?;
        let of_left_out = matches!(&choice, ToolChoice::Named(name) if left_out.contains(name));
        if of_left_out || (tools.is_empty() && !left_out.is_empty()) {
            choice = ToolChoice::Auto;
        }
        if !left_out.is_empty()
            && let Some(requests) = LEFT_OUT.count()
        {
            let names = left_out.iter().take(NAMED_MAX);
            let names: Vec<String> =
                names.map(|name| name.chars().take(NAMED_CHARS_MAX).collect()).collect();
            tracing::warn!(
                requests,
                tools = ?names,
                "tools without a schema were left out: no server runs them here"
            );
        }
        Ok(Offers { tools, choice, parallel })
    }
}

/// The type of a tool that is Anthropic's: it says not what it takes.
fn foreign(tool: &Map<String, Value>) -> Option<&str> {
    let kind = tool.get("type").and_then(Value::as_str).filter(|kind| *kind != "custom")?;
    tool.get("input_schema").is_none_or(|schema| !schema.is_object()).then_some(kind)
}

/// Templates read these keys, in this order.
fn function(name: String, mut tool: Map<String, Value>) -> Value {
    let mut function = Map::new();
    function.insert("name".into(), name.into());
    for (theirs, ours) in
        [("description", "description"), ("input_schema", "parameters"), ("strict", "strict")]
    {
        if let Some(value) = tool.shift_remove(theirs).filter(|value| !value.is_null()) {
            function.insert(ours.into(), value);
        }
    }
    json!({"type": "function", "function": function})
}

fn no_tool(at: usize) -> ApiError {
    let param = format!("tools[{at}].name");
    let text =
        format!("{param}: a tool is {{\"name\": .., \"description\": .., \"input_schema\": ..}}");
    ApiError::field(param, text)
}

/// The choice, and whether several calls may come at once.
fn read_choice(choice: Option<Object>) -> Result<(ToolChoice, bool), ApiError> {
    let Some(Object(choice)) = choice else { return Ok((ToolChoice::Auto, true)) };
    let text = |name: &str| choice.get(name).and_then(Value::as_str);
    let wanted = match (text("type"), text("name")) {
        (Some("auto"), _) => ToolChoice::Auto,
        (Some("any"), _) => ToolChoice::Required,
        (Some("none"), _) => ToolChoice::None,
        (Some("tool"), Some(name)) => ToolChoice::Named(name.to_owned()),
        _ => {
            let text = "tool_choice is {\"type\": \"auto\"}, {\"type\": \"any\"}, {\"type\": \"none\"} or \
                        {\"type\": \"tool\", \"name\": ..}";
            return Err(ApiError::field("tool_choice", text));
        }
    };
    let single = choice.get("disable_parallel_tool_use").is_some_and(|single| single == true);
    Ok((wanted, !single))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(tools: Value, choice: Value) -> Result<Offers, ApiError> {
        let Value::Array(tools) = tools else { panic!("a list") };
        let choice = match choice {
            Value::Object(choice) => Some(Object(choice)),
            _ => None,
        };
        Offers::read(tools.into_iter(), choice)
    }

    #[test]
    fn tools_have_the_keys_that_templates_read_and_no_others() {
        let tools = json!([
            {"name": "f", "input_schema": {"type": "object"}, "description": "d", "cache_control": {"type": "ephemeral"},
             "defer_loading": true, "eager_input_streaming": true, "strict": true},
            {"type": "custom", "name": "g", "description": null},
        ]);
        let offers = read(tools, Value::Null).unwrap();
        assert_eq!(
            json!(offers.tools).to_string(),
            json!([
                {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"},
                                                  "strict": true}},
                {"type": "function", "function": {"name": "g"}},
            ])
            .to_string()
        );
        assert_eq!((offers.choice, offers.parallel), (ToolChoice::Auto, true));
    }

    #[test]
    fn tools_of_servers_are_left_out_and_so_is_a_choice_of_them() {
        let search = json!({"type": "web_search_20250305", "name": "web_search", "max_uses": 8});
        let own = json!({"name": "f", "input_schema": {}});
        let set = json!({"type": "mcp_toolset", "mcp_server_name": "s"});
        for (tools, choice, count, left) in [
            (json!([search]), json!({"type": "auto"}), 0, ToolChoice::Auto),
            (json!([search]), json!({"type": "any"}), 0, ToolChoice::Auto),
            (json!([search]), json!({"type": "tool", "name": "web_search"}), 0, ToolChoice::Auto),
            (
                json!([search, own]),
                json!({"type": "tool", "name": "web_search"}),
                1,
                ToolChoice::Auto,
            ),
            (json!([set, own]), json!({"type": "any"}), 1, ToolChoice::Required),
            (
                json!([search, own]),
                json!({"type": "tool", "name": "f"}),
                1,
                ToolChoice::Named("f".into()),
            ),
        ] {
            let offers = read(tools, choice.clone()).unwrap();
            assert_eq!((offers.tools.len(), offers.choice), (count, left), "{choice}");
        }
    }

    #[test]
    fn choices_and_tools_of_no_form_are_named() {
        let single = json!({"type": "none", "disable_parallel_tool_use": true});
        let offers = read(json!([]), single).unwrap();
        assert_eq!((offers.choice, offers.parallel), (ToolChoice::None, false));
        for (tools, choice, param) in [
            (json!([]), json!({"type": "tool"}), "tool_choice"),
            (json!([]), json!({"type": "required"}), "tool_choice"),
            (json!([]), json!({}), "tool_choice"),
            (json!([{"name": "f"}, {"description": "d"}]), Value::Null, "tools[1].name"),
            (json!(["f"]), Value::Null, "tools[0].name"),
            (json!([{"name": ""}]), Value::Null, "tools[0].name"),
        ] {
            let error = read(tools, choice).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{error}");
        }
    }
}
