//! Anthropic's messages through the whole router, on a scripted model that speaks as Qwen 3 does: requests.

#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod support;

use axum::body::Body;
use axum::http::Request;
use minisgl_http::{KeyList, Keys, Rule, Settings};
use minisgl_proto::{Finish, Reject};
use serde_json::{Value, json};
use support::anthropic::{
    TEMPLATE, ask, body, events, joined, prompt, refusal, saying, tools, with,
};
use support::{House, Step, say, text_of};

#[tokio::test]
async fn thinking_is_asked_for_and_limited() {
    for (more, thinks) in [
        (json!({"thinking": {"type": "enabled", "budget_tokens": 20}}), true),
        (json!({"thinking": {"type": "disabled"}}), false),
        (json!({"thinking": {"type": "between_tools"}}), false),
        (json!({"thinking": {"type": "adaptive"}}), false),
        (json!({}), false),
        (json!({"chat_template_kwargs": {"enable_thinking": true}}), true),
    ] {
        let prompt = prompt(&saying("a"), more.clone()).await;
        assert_eq!(prompt.ends_with("<think>\n"), thinks, "{more}");
    }
    let house = saying("hm</think>\n\nYes.");
    let message =
        ask(&house, json!({"thinking": {"type": "enabled", "budget_tokens": 20}})).await.json();
    assert_eq!(
        (&message["content"][0]["thinking"], &message["content"][1]["text"]),
        (&json!("hm"), &json!("Yes."))
    );
    let guided = house.last().sampling.guided.unwrap();
    assert_eq!(guided.field, "thinking.budget_tokens");
    assert_eq!(guided.thought.unwrap().budget.unwrap().0, 20);
    let house = saying("a");
    for (thinking, param) in [
        (json!({"type": "enabled", "budget_tokens": -1}), "thinking.budget_tokens"),
        (json!({"type": "enabled", "budget_tokens": "many"}), "thinking.budget_tokens"),
        (json!({"type": "sometimes"}), "thinking.type"),
    ] {
        let (status, message) = refusal(&ask(&house, json!({"thinking": thinking})).await);
        assert!(status == 400 && message.contains(param), "{message}");
    }
}

#[tokio::test]
async fn fields_reach_the_model() {
    let house = saying("a");
    let answer = ask(
        &house,
        json!({"temperature": 0.5, "top_p": 0.25, "top_k": 7, "stop_sequences": ["x"], "metadata": {"user_id": "{}"},
               "service_tier": "auto", "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
               "mcp_servers": [], "container": null, "seed": 5, "cache_control": {"type": "ephemeral"}}),
    )
    .await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let sent = house.last();
    let sampling = &sent.sampling;
    assert_eq!(
        (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed),
        (0.5, 0.25, 7, 5)
    );
    assert_eq!(sent.stop.max_tokens, 400);
    let mut body = body(json!({}));
    body.as_object_mut().unwrap().shift_remove("max_tokens");
    assert_eq!(house.post("/v1/messages", body).await.status, 200);
    assert_eq!(
        house.last().stop.max_tokens as usize,
        512 - house.last().prompt.len(),
        "all that is left"
    );
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    let format = json!({"type": "json_schema", "schema": schema});
    for (more, field) in [
        (json!({"output_config": {"effort": "high", "format": format}}), "output_config.format"),
        (json!({"output_format": format}), "output_format"),
    ] {
        assert_eq!(ask(&house, more).await.status, 200);
        let guided = house.last().sampling.guided.unwrap();
        assert_eq!(guided.field, field);
        let right =
            minisgl_proto::Grammar::JsonSchema { schema: schema.to_string(), lenient: false };
        assert_eq!(guided.grammar, Some(right));
    }
}

#[tokio::test]
async fn effort_is_a_variable_of_the_template() {
    let house = saying("a");
    let template = TEMPLATE.replace("effort", "reasoning_effort");
    std::fs::write(house.folder.path().join("chat_template.jinja"), template).unwrap();
    let prompt = prompt(&house, json!({"output_config": {"effort": "high"}})).await;
    assert!(prompt.contains("<|im_end|>\nhigh<|im_start|>"), "{prompt}");
}

#[tokio::test]
async fn refusals_name_what_is_wrong() {
    let house = saying("a");
    let image = json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"}});
    for (more, status, told) in [
        (json!({"model": "claude-opus-9"}), 404, "claude-opus-9"),
        (json!({"messages": []}), 400, "at least one message"),
        (
            json!({"messages": [{"role": "user", "content": [image]}]}),
            400,
            "messages[0].content[0]: this image",
        ),
        (
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "{"}]}),
            400,
            "assistant's",
        ),
        (json!({"messages": [{"role": "tool", "content": "a"}]}), 400, "messages[0].role"),
        (json!({"messages": "hi"}), 400, "messages"),
        (json!({"max_tokens": 0}), 400, "max_tokens"),
        (json!({"temperature": -1}), 400, "temperature"),
        (json!({"stop_sequences": [""]}), 400, "stop_sequences"),
        (json!({"tools": [{"input_schema": {}}]}), 400, "tools[0].name"),
        (json!({"tool_choice": {"type": "any"}}), 400, "tool_choice"),
        (json!({"tool_choice": {"type": "tool", "name": "f"}, "tools": tools()}), 400, "\"f\""),
        (json!({"tool_choice": "auto"}), 400, "tool_choice"),
        (
            json!({"output_config": {"format": {"type": "json_object"}}}),
            400,
            "output_config.format",
        ),
        (
            json!({"output_config": {"format": {"type": "json_schema"}}}),
            400,
            "output_config.format",
        ),
        (json!({"output_config": {"effort": 3}}), 400, "output_config.effort"),
        (
            json!({"mcp_servers": [{"type": "url", "url": "https://a.example", "name": "a"}]}),
            400,
            "mcp_servers",
        ),
        (json!({"container": "c"}), 400, "container"),
        (json!({"thread": {"type": "create"}}), 400, "thread"),
        (json!({"stop": ["a"]}), 400, "stop_sequences"),
        (json!({"n": 2}), 400, "n is not supported"),
    ] {
        let (got, message) = refusal(&ask(&house, more.clone()).await);
        assert!(got == status && message.contains(told), "{more}: {got} {message}");
    }
    assert_eq!(house.model.submitted.lock().unwrap().len(), 0);
}

/// Claude Code compacts a conversation by these words, and takes the numbers out of them.
#[tokio::test]
async fn what_is_too_long_is_told_in_words_that_clients_know() {
    let long = |bytes: usize| json!({"messages": [{"role": "user", "content": "x".repeat(bytes)}]});
    let house = saying("a");
    let empty = prompt(&house, long(0)).await;
    let template = house.last().prompt.len();
    assert!(empty.ends_with("assistant\n"));
    let (_, message) = refusal(&ask(&house, long(512 - template)).await);
    assert_eq!(message, "prompt is too long: 512 tokens > 511 maximum");
    assert_eq!(ask(&house, long(511 - template)).await.status, 200);
    for bytes in [600, 1 << 20] {
        let (status, message) = refusal(&ask(&house, long(bytes)).await);
        let numbers = message.strip_prefix("prompt is too long: ").unwrap();
        let (tokens, most) =
            numbers.strip_suffix(" maximum").unwrap().split_once(" tokens > ").unwrap();
        assert!(tokens.parse::<u32>().unwrap() > 512 && most == "512", "{message}");
        assert_eq!(status, 400);
    }
    // Loaded again, with less room.
    let reject = Reject::TooLong { prompt: 300, limit: 200 };
    let smaller = with(vec![Step::End(Finish::Rejected(reject))], Settings::default());
    let (_, message) = refusal(&ask(&smaller, json!({})).await);
    assert_eq!(message, "prompt is too long: 300 tokens > 200 maximum");
    let strict = with(say("a"), Settings { clamp_max_tokens: false, ..Settings::default() });
    let (_, message) = refusal(&ask(&strict, json!({"max_tokens": 32_000})).await);
    let tokens = template + "hi".len();
    assert_eq!(
        message,
        format!(
            "input length and `max_tokens` exceed context limit: {tokens} + 32000 > 512, decrease input length or \
             `max_tokens` and try again"
        )
    );
    let answer = ask(&house, json!({"max_tokens": 32_000})).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.headers["x-max-tokens"]),
        (200, &(512 - tokens).into())
    );
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused() {
    let house = with(say("a"), Settings { body_bytes_max: 1000, ..Settings::default() });
    let more = json!({"metadata": {"user_id": "x".repeat(1000)}});
    assert_eq!(refusal(&ask(&house, more).await).0, 413);
}

#[tokio::test]
async fn a_queue_that_is_full_says_when_to_come_again() {
    let full =
        || Err(minisgl_http::backend::Unavailable::Busy { name: "org/tiny".into(), limit: 8 });
    let house = House::new(move |_| full());
    let answer = ask(&house, json!({})).await;
    assert_eq!(refusal(&answer).0, 429);
    assert!(answer.headers.contains_key("retry-after"));
    *house.backend.not_ready.lock().unwrap() = Some("loading".into());
    let answer = ask(&house, json!({})).await;
    assert_eq!(refusal(&answer).0, 503);
    assert!(answer.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn keys_come_in_either_header() {
    let keys = Keys::default();
    let list = KeyList::parse("sk-0123456789abcdef").unwrap();
    keys.set(Rule { keys: list, ..Rule::default() });
    let house = saying("a");
    let router = house.keyed(keys);
    let ask = async |headers: &[(&str, &str)]| {
        let mut request = Request::post("/v1/messages").header("anthropic-version", "2023-06-01");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = Body::from(body(json!({})).to_string());
        support::send(
            &router,
            request.header("anthropic-beta", "effort-2025-11-24").body(body).unwrap(),
        )
        .await
    };
    let (key, bearer) = ("sk-0123456789abcdef", "Bearer sk-0123456789abcdef");
    for headers in [
        &[("x-api-key", key)][..],
        &[("authorization", bearer)],
        &[("authorization", bearer), ("x-api-key", "sk-ant-another")],
        &[("authorization", "Bearer another"), ("x-api-key", key)],
    ] {
        assert_eq!(ask(headers).await.status, 200, "{headers:?}");
    }
    for headers in [
        &[][..],
        &[("x-api-key", "sk-ant-another")],
        &[("authorization", "Bearer x"), ("x-api-key", "x")],
    ] {
        let answer = ask(headers).await;
        assert_eq!(refusal(&answer).0, 401, "{headers:?}");
    }
}

/// The beginning of a session of Claude Code's with a model whose name it does not know.
fn claude_code() -> Value {
    let mark = json!({"type": "ephemeral"});
    json!({
        "model": "org/tiny", "max_tokens": 32000, "stream": true,
        "system": [
            {"type": "text", "text": "billing"}, {"type": "text", "text": "You are", "cache_control": mark},
            {"type": "text", "text": "Work", "cache_control": mark},
        ],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "<r>now</r>"}, {"type": "text", "text": "run it", "cache_control": mark}]},
            {"role": "system", "content": [{"type": "text", "text": "Skills", "cache_control": mark}]},
        ],
        "tools": [
            {"name": "Bash", "description": "Runs", "input_schema": {
                "$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object",
                "properties": {"command": {"type": "string"}}, "required": ["command"], "additionalProperties": false}},
            {"name": "Later", "description": "L", "input_schema": {"type": "object"}, "defer_loading": true},
        ],
        "metadata": {"user_id": "{\"device_id\":\"d\"}"},
        "thinking": {"type": "adaptive", "display": "omitted"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
    })
}

#[tokio::test]
async fn a_session_of_claude_code_goes_on() {
    let output = "<think>\nsure\n</think>\n\nI run. <tool_call>\n{\"name\": \"Bash\", \"arguments\": {\"command\": \"echo hi\"}}\n</tool_call>";
    let house = saying(output);
    // Its prompt is longer than the tiny model's context is for the others.
    let small = TEMPLATE.replace(
        "{{ tools | tojson }}",
        "{{ tools | map(attribute='function.name') | join(',') }}",
    );
    std::fs::write(house.folder.path().join("chat_template.jinja"), small).unwrap();
    let post = |body: Value| house.post("/v1/messages?beta=true", body);
    let mut body = claude_code();
    let first = joined(&events(&post(body.clone()).await));
    let prompt = text_of(&house.last().prompt);
    let begin = "<tools>Bash,Later</tools> <tool_call><|im_start|>system\nbilling\nYou are\nWork\n\nSkills<|im_end|>\n\
                 <|im_start|>user\n<r>now</r>\nrun it<|im_end|>\n";
    let apart = begin.replace("\n\nSkills<|im_end|>\n", "<|im_end|>\n");
    let in_place = format!("{apart}<|im_start|>system\nSkills<|im_end|>\n");
    assert!(
        [begin.to_owned(), in_place.clone()].iter().any(|begin| prompt.starts_with(begin)),
        "{prompt}"
    );
    assert_eq!(first["stop_reason"], "tool_use");
    let content = first["content"].as_array().unwrap();
    assert_eq!((&content[0]["thinking"], &content[1]["text"]), (&json!(""), &json!("I run.")));
    assert_eq!(content[2]["input"], json!({"command": "echo hi"}));
    let id = &content[2]["id"];
    let messages = body["messages"].as_array_mut().unwrap();
    messages.push(json!({"role": "assistant", "content": content}));
    let result =
        json!({"type": "tool_result", "tool_use_id": id, "content": "no", "is_error": true});
    messages.push(json!({"role": "user", "content": [result, {"type": "text", "text": "<r/>"}]}));
    messages.push(json!({"role": "system", "content": "Todo"}));
    let second = post(body.clone()).await;
    assert_eq!(second.status, 200, "{}", second.body);
    let prompt = text_of(&house.last().prompt);
    let said = "<|im_start|>assistant\n<think>sure</think>I run.<tool_call>{\"name\": \"Bash\", \"arguments\": {\"command\": \"echo hi\"}}\
                </tool_call><|im_end|>\n<|im_start|>tool\nError: no<|im_end|>\n<|im_start|>user\n<r/><|im_end|>\n";
    assert!(prompt.contains(said), "{prompt}");
    assert!(prompt.contains("Todo"), "{prompt}");
}

#[tokio::test]
async fn numbers_of_a_call_keep_their_digits() {
    let house = saying("a");
    let input = r#"{"n": 18446744073709551616, "x": 0.9205746819217139}"#;
    let body = format!(
        r#"{{"model": "org/tiny", "max_tokens": 9, "messages": [{{"role": "user", "content": "a"}}, {{"role": "assistant", "content":
           [{{"type": "tool_use", "id": "c", "name": "f", "input": {input}}}]}}, {{"role": "user", "content":
           [{{"type": "tool_result", "tool_use_id": "c", "content": "b"}}]}}]}}"#
    );
    let answer = house.post_bytes("/v1/messages", body.into_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let prompt = text_of(&house.last().prompt);
    assert!(prompt.contains(input), "{prompt}");
}

#[tokio::test]
async fn tokens_are_counted_as_a_message_would_have_them() {
    let house = saying("a");
    let mut body = claude_code();
    body["tools"] = tools();
    house.post("/v1/messages", body.clone()).await;
    let tokens = house.last().prompt.len();
    body.as_object_mut().unwrap().shift_remove("max_tokens");
    let answer = house.post("/v1/messages/count_tokens?beta=true", body.clone()).await;
    assert_eq!(answer.json(), json!({"input_tokens": tokens}));
    // Whatever the context has.
    body["messages"] = json!([{"role": "user", "content": "x".repeat(10_000)}]);
    let answer = house.post("/v1/messages/count_tokens", body.clone()).await;
    assert!(answer.json()["input_tokens"].as_u64().unwrap() > 10_000);
    body["messages"] = json!([]);
    assert_eq!(refusal(&house.post("/v1/messages/count_tokens", body).await).0, 400);
    let metrics = house.get("/metrics").await.body;
    assert!(metrics.contains("endpoint=\"/v1/messages/count_tokens\""), "{metrics}");
}
