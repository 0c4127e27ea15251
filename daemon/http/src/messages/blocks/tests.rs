use super::*;

fn read(system: Value, given: Value) -> Result<Value, ApiError> {
    let given: Vec<Message> = serde_json::from_value(given).unwrap();
    messages(system, given).map(|(messages, _)| json!(messages))
}

#[track_caller]
fn check(given: Value, right: Value) {
    assert_eq!(read(Value::Null, given).unwrap(), right);
}

fn call(id: &str, input: Value) -> Value {
    json!({"id": id, "type": "function", "function": {"name": "f", "arguments": input}})
}

fn used(id: &str, input: Value) -> Value {
    json!({"type": "tool_use", "id": id, "name": "f", "input": input, "cache_control": {"type": "ephemeral"}})
}

fn result(id: &str, content: Value) -> Value {
    json!({"type": "tool_result", "tool_use_id": id, "content": content})
}

/// What a result with this content says.
fn told(content: Value, is_error: bool) -> Value {
    let mut result = result("a", content);
    result["is_error"] = is_error.into();
    read(Value::Null, json!([{"role": "user", "content": [result]}])).unwrap()[0]["content"].clone()
}

#[test]
fn instructions_come_first_and_stay_where_they_are() {
    let blocks = json!([{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}]);
    let given = json!([{"role": "user", "content": "hi"}, {"role": "system", "content": blocks}, {"role": "system", "content": "c"}]);
    let right = json!([
        {"role": "system", "content": "a\nb"}, {"role": "user", "content": "hi"},
        {"role": "system", "content": "a\nb"}, {"role": "system", "content": "c"},
    ]);
    assert_eq!(read(blocks, given).unwrap(), right);
    for nothing in [json!(""), json!([]), Value::Null] {
        let given = json!([{"role": "user", "content": "hi"}]);
        assert_eq!(read(nothing, given.clone()).unwrap(), given);
    }
}

#[test]
fn an_assistant_said_thought_and_called() {
    let content = json!([
        {"type": "thinking", "thinking": "hm", "signature": "EqQB"}, {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "one"}, used("a", json!({"x": 1})),
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
        {"type": "text", "text": "two"}, used("b", Value::Null),
    ]);
    let calls = json!([call("a", json!({"x": 1})), call("b", Value::Null)]);
    check(
        json!([{"role": "assistant", "content": content}]),
        json!([{"role": "assistant", "content": "one\ntwo", "reasoning_content": "hm", "tool_calls": calls}]),
    );
    let alone = json!([{"role": "assistant", "content": [used("a", json!({}))]}]);
    check(alone, json!([{"role": "assistant", "tool_calls": [call("a", json!({}))]}]));
    let empty = json!([{"role": "assistant", "content": []}]);
    check(empty, json!([{"role": "assistant", "content": ""}]));
}

#[test]
fn a_thought_that_was_not_shown_comes_back_in_its_signature() {
    let thought = |thinking: &str, signature: &str| {
        let block = json!({"type": "thinking", "thinking": thinking, "signature": signature});
        let read = read(Value::Null, json!([{"role": "assistant", "content": [block]}])).unwrap();
        read[0]["reasoning_content"].clone()
    };
    assert_eq!(thought("", "minisgl:a: b"), "a: b");
    assert_eq!(thought("shown", "minisgl:kept"), "shown");
    let bare = json!([{"role": "assistant", "content": [{"type": "thinking"}, {"type": "text", "text": "a"}]}]);
    check(bare, json!([{"role": "assistant", "content": "a"}]));
    for others in ["", "minisgl", "EqQBCgIYAhIkMinisgl:"] {
        assert_eq!(thought("", others), Value::Null, "{others}");
    }
}

#[test]
fn results_follow_the_order_of_the_calls_and_text_follows_them() {
    let calls = json!([used("a", json!({})), used("b", json!({}))]);
    let results = json!([
        result("z", json!("Z")), {"type": "text", "text": "go on"}, result("b", json!("B")), result("a", json!("A")),
    ]);
    let tool = |id: &str, text: &str| json!({"role": "tool", "tool_call_id": id, "content": text});
    check(
        json!([{"role": "assistant", "content": calls}, {"role": "user", "content": results}]),
        json!([
            {"role": "assistant", "tool_calls": [call("a", json!({})), call("b", json!({}))]},
            tool("a", "A"), tool("b", "B"), tool("z", "Z"), {"role": "user", "content": "go on"},
        ]),
    );
}

#[test]
fn results_are_told_in_words() {
    let text = |text: &str| json!({"type": "text", "text": text});
    assert_eq!(told(json!([text("a"), text("b")]), false), "a\nb");
    assert_eq!(told(Value::Null, false), "");
    let image = json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"}});
    assert_eq!(told(json!([image]), false), "[image: not shown; this model reads text only]");
    let reference = json!({"type": "tool_reference", "tool_name": "WebFetch"});
    assert_eq!(told(json!([reference]), false), "[tool: WebFetch is available]");
    let document = |source: Value| json!({"type": "document", "title": "T", "source": source});
    assert_eq!(told(json!([document(json!({"type": "text", "data": "d"}))]), false), "T\nd");
    let pdf = told(json!([document(json!({"type": "base64", "data": "JVBE"}))]), false);
    assert_eq!(pdf, "[document: not shown; this model reads text only]");
    let found =
        json!({"type": "search_result", "source": "S", "title": "T", "content": [text("c")]});
    assert_eq!(told(json!([found]), false), "T\nS\nc");
    assert_eq!(told(json!("no such file"), true), "Error: no such file");
    assert_eq!(told(json!(" ERROR: none"), true), " ERROR: none");
    assert_eq!(told(Value::Null, true), "Error: ");
}

#[test]
fn messages_of_one_role_are_one() {
    let user = |text: &str| json!({"role": "user", "content": text});
    check(json!([user("a"), user("b")]), json!([user("a\nb")]));
    let parts = json!([
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": ""}]},
        {"role": "assistant", "content": [{"type": "text", "text": "I look"}, used("a", json!({}))]},
        {"role": "assistant", "content": [used("b", json!({}))]},
        {"role": "user", "content": [result("b", json!("B")), result("a", json!("A"))]},
    ]);
    let read = read(Value::Null, parts).unwrap();
    assert_eq!(
        read[0],
        json!({"role": "assistant", "content": "I look", "reasoning_content": "hm",
               "tool_calls": [call("a", json!({})), call("b", json!({}))]})
    );
    assert_eq!((&read[1]["content"], &read[2]["content"]), (&json!("A"), &json!("B")));
}

#[test]
fn a_user_shows_text_alone() {
    let user = |block: Value| json!([{"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}, block]}]);
    let data = json!({"type": "base64", "data": "iVBO"});
    for kind in ["image", "document"] {
        let error = read(Value::Null, user(json!({"type": kind, "source": data}))).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("messages[1].content[1]"));
        assert!(error.message.contains(kind) && error.code == Some("unsupported_parameter"));
    }
    let content = json!({"type": "content", "content": [{"type": "text", "text": "d"}]});
    check(
        user(json!({"type": "document", "source": content})),
        json!([{"role": "user", "content": "a\nb\nd"}]),
    );
    let unknown = user(json!({"type": "container_upload", "file_id": "f"}));
    let words = "a\nb\n[container_upload: not shown; this model reads text only]";
    check(unknown, json!([{"role": "user", "content": words}]));
}

#[test]
fn what_has_no_form_is_named() {
    for (given, param) in [
        (json!([{"role": "tool", "content": "a"}]), "messages[0].role"),
        (json!([{"content": "a"}]), "messages[0].role"),
        (json!([{"role": "user", "content": 1}]), "messages[0].content"),
        (json!([{"role": "user", "content": [1]}]), "messages[0].content[0]"),
        (json!([{"role": "user", "content": [{"text": "a"}]}]), "messages[0].content[0]"),
        (json!([{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0]"),
        (json!([{"role": "user", "content": [{"type": "tool_result"}]}]), "messages[0].content[0]"),
        (
            json!([{"role": "user", "content": [result("a", json!(["x", {"type": "text"}]))]}]),
            "messages[0].content[0]",
        ),
        (
            json!([{"role": "assistant", "content": ["x", {"type": "tool_use", "id": "a"}]}]),
            "messages[0].content[1]",
        ),
        (json!([{"role": "system", "content": {}}]), "messages[0].content"),
    ] {
        let error = read(Value::Null, given.clone()).unwrap_err();
        assert_eq!(error.param.as_deref(), Some(param), "{given}: {error}");
    }
    assert_eq!(read(json!(1), json!([])).unwrap_err().param.as_deref(), Some("system"));
}

#[test]
fn tools_change_in_the_middle() {
    let tool = json!({"name": "f", "input_schema": {"type": "object"}});
    let named = |name: &str| json!({"type": "tool_reference", "name": name});
    let blocks = json!([
        {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": tool}},
        {"type": "tool_addition", "tool": named("g")},
        {"type": "tool_removal", "tool": named("h")},
        {"type": "tool_removal", "tool": {"type": "mcp_toolset_reference", "server_name": "s"}},
    ]);
    let given = json!([{"role": "user", "content": "a"}, {"role": "system", "content": blocks}]);
    let given: Vec<Message> = serde_json::from_value(given).unwrap();
    let (messages, tools) = messages(Value::Null, given).unwrap();
    assert_eq!(
        messages[1]["content"],
        "[tool: f is available]\n[tool: g is available]\n[tool: h is no longer available]\n\
         [tool_removal: not shown; this model reads text only]"
    );
    assert_eq!(tools, [tool]);
}

#[test]
fn instructions_for_one_turn_are_gone_with_the_next() {
    let brief = json!({"role": "system", "content": "now", "clear_at": "next_user_message"});
    let user = |text: &str| json!({"role": "user", "content": text});
    let kept = json!({"role": "system", "content": "now"});
    check(json!([user("a"), brief]), json!([user("a"), kept]));
    let said = json!({"role": "assistant", "content": "b"});
    check(json!([user("a"), brief, said, user("c")]), json!([user("a"), said, user("c")]));
    let nothing = json!({"role": "system", "output_config": {"effort": "low"}});
    check(json!([user("a"), nothing]), json!([user("a")]));
}
