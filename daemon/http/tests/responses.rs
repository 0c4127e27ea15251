//! The Responses API through the whole router, on a scripted model that speaks as Qwen 3 does: what is answered.

#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod support;

use minisgl_http::Settings;
use minisgl_proto::Finish;
use serde_json::{Value, json};
use support::events::{same, told};
use support::{House, Step, say, text_of};

/// Says by what markers calls and thoughts stand; tools are told by name alone, as the context is small.
const TEMPLATE: &str = "{% for m in messages %}[{{ m.role }}]{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content or '' }}{% for t in m.tool_calls or [] %}<tool_call>{{ t.function.name }} {{ t.function.arguments | tojson }}</tool_call>{% endfor %}{% endfor %}{% for t in tools or [] %}<{{ t.function.name }}>{% endfor %}{{ reasoning_effort }}{{ verbosity }}{% if enable_thinking %}<think>\n{% endif %}";

const OUTPUT: &str = "<think>\nIs it \"so\"?\n</think>\n\nI look. <tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Köln\"}}\n\
                      </tool_call>\n<tool_call>\n{\"name\": \"n__time\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n\
                      {\"name\": \"patch\", \"arguments\": {\"input\": \"a\\n\\\"b\\\"\"}}\n</tool_call>";

fn house(steps: Vec<Step>) -> House {
    let house = House::playing(steps);
    std::fs::write(house.folder.path().join("chat_template.jinja"), TEMPLATE).unwrap();
    house
}

fn saying(text: &str) -> House {
    house(say(text))
}

fn tools() -> Value {
    json!([
        {"type": "function", "name": "weather", "description": null, "strict": false, "parameters": {"type": "object"}},
        {"type": "namespace", "name": "n", "description": "d", "tools": [{"type": "function", "name": "time", "strict": false, "parameters": {}}]},
        {"type": "custom", "name": "patch", "format": {"type": "grammar", "syntax": "lark", "definition": "start: /a/"}},
        {"type": "web_search", "external_web_access": true},
    ])
}

fn body(more: Value) -> Value {
    let mut body = json!({"model": "org/tiny", "input": "hi"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn ask(house: &House, more: Value) -> support::Answer {
    house.post("/v1/responses", body(more)).await
}

async fn whole(house: &House, more: Value) -> Value {
    let answer = ask(house, more).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

async fn prompt(more: Value) -> String {
    let house = saying("a");
    whole(&house, more).await;
    text_of(&house.last().prompt)
}

#[tokio::test]
async fn a_whole_answer() {
    let house = saying("héllo");
    let response =
        whole(&house, json!({"instructions": "Be.", "metadata": {"a": "b"}, "temperature": 0.5}))
            .await;
    assert_eq!(text_of(&house.last().prompt), "[system]Be.[user]hi");
    let id = response["id"].as_str().unwrap();
    assert!(id.starts_with("resp_") && id.len() == 37, "{id}");
    for (field, value) in [
        ("object", json!("response")),
        ("status", json!("completed")),
        ("model", json!("org/tiny")),
        ("error", Value::Null),
        ("incomplete_details", Value::Null),
        ("instructions", json!("Be.")),
        ("metadata", json!({"a": "b"})),
        ("temperature", json!(0.5)),
        ("top_p", json!(1.0)),
        ("parallel_tool_calls", json!(true)),
        ("tool_choice", json!("auto")),
        ("tools", json!([])),
        ("text", json!({"format": {"type": "text"}})),
        ("truncation", json!("disabled")),
        ("store", json!(true)),
        ("previous_response_id", Value::Null),
        ("reasoning", json!({"effort": null, "summary": null})),
    ] {
        assert_eq!(response.get(field), Some(&value), "{field}");
    }
    assert!(response["created_at"].is_u64() && response["completed_at"].is_u64());
    let item = &response["output"][0];
    assert_eq!(
        (&item["type"], &item["role"], &item["status"]),
        (&json!("message"), &json!("assistant"), &json!("completed"))
    );
    assert_eq!(
        item["content"],
        json!([{"type": "output_text", "text": "héllo", "annotations": [], "logprobs": []}])
    );
    let (prompt, said) = (house.last().prompt.len(), "héllo".len() + 1);
    assert_eq!(
        response["usage"],
        json!({"input_tokens": prompt, "input_tokens_details": {"cached_tokens": 3}, "output_tokens": said,
               "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": prompt + said})
    );
}

#[tokio::test]
async fn items_come_in_the_order_in_which_they_were_said() {
    let response = whole(&saying(OUTPUT), json!({"tools": tools()})).await;
    let items = response["output"].as_array().unwrap();
    let kinds: Vec<&str> = items.iter().map(|item| item["type"].as_str().unwrap()).collect();
    assert_eq!(
        kinds,
        ["reasoning", "message", "function_call", "function_call", "custom_tool_call"]
    );
    assert_eq!(items[0]["content"], json!([{"type": "reasoning_text", "text": "Is it \"so\"?"}]));
    assert_eq!(items[0]["summary"], json!([]));
    assert!(items[0].get("encrypted_content").is_none());
    assert_eq!(items[1]["content"][0]["text"], "I look.");
    assert_eq!(
        (&items[2]["name"], &items[2]["arguments"]),
        (&json!("weather"), &json!("{\"city\": \"Köln\"}"))
    );
    assert!(items[2].get("namespace").is_none());
    assert_eq!((&items[3]["name"], &items[3]["namespace"]), (&json!("time"), &json!("n")));
    assert_eq!((&items[4]["name"], &items[4]["input"]), (&json!("patch"), &json!("a\n\"b\"")));
    for item in &items[2..] {
        assert!(
            item["call_id"].as_str().unwrap().starts_with("call_") && item["status"] == "completed"
        );
    }
    assert!(items[2]["id"].as_str().unwrap().starts_with("fc_"));
    assert!(response["usage"]["output_tokens_details"]["reasoning_tokens"].as_u64().unwrap() > 5);
    assert_eq!(response["tools"], tools(), "they come back as they were sent");
}

#[tokio::test]
async fn a_stream_makes_the_same_items() {
    for more in [
        json!({}),
        json!({"reasoning": {"summary": "auto"}, "include": ["reasoning.encrypted_content"]}),
        json!({"include": ["message.output_text.logprobs"], "top_logprobs": 2}),
    ] {
        for output in [
            OUTPUT,
            "plain",
            "",
            "<tool_call>\n{\"name\": \"weather\", \"arguments\": {}}\n</tool_call>\nThat is all.",
        ] {
            let mut more = more.clone();
            more["tools"] = tools();
            let once = whole(&saying(output), more.clone()).await;
            more["stream"] = true.into();
            let answer = ask(&saying(output), more).await;
            assert_eq!(answer.headers["content-type"], "text/event-stream");
            // Each event is held to those before it.
            let events = told(&answer.body);
            assert_eq!(events.last().unwrap()["type"], "response.completed");
            let streamed = &events.last().unwrap()["response"];
            assert_eq!(same(streamed), same(&once), "{output}");
        }
    }
}

#[tokio::test]
async fn events_come_in_the_order_that_clients_know() {
    let answer = ask(&saying("ab"), json!({"stream": true})).await;
    let events = told(&answer.body);
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(
        kinds,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    assert_eq!(events[0]["response"]["status"], "in_progress");
    assert_eq!(events[4]["delta"], "a");
    let last = &events[9]["response"];
    assert_eq!(last["usage"]["total_tokens"], 8 + 3);
    assert_eq!(last["id"], events[0]["response"]["id"]);
}

#[tokio::test]
async fn arguments_go_out_while_they_are_written() {
    let answer = ask(&saying(OUTPUT), json!({"stream": true, "tools": tools()})).await;
    let events = told(&answer.body);
    let count = |kind: &str| events.iter().filter(|event| event["type"] == kind).count();
    assert!(count("response.function_call_arguments.delta") > 10);
    assert_eq!(count("response.function_call_arguments.done"), 2);
    assert!(count("response.reasoning_text.delta") > 5);
    assert_eq!(count("response.reasoning_summary_text.delta"), 0, "nobody asked for one");
    assert_eq!(count("response.custom_tool_call_input.delta"), 1);
    assert_eq!(count("response.output_item.done"), 5);
}

#[tokio::test]
async fn a_summary_and_what_is_kept_of_a_thought_are_told_where_they_are_asked_for() {
    let more =
        json!({"reasoning": {"summary": "auto"}, "include": ["reasoning.encrypted_content"]});
    let response = whole(&saying(OUTPUT), more).await;
    let thought = &response["output"][0];
    assert_eq!(thought["summary"], json!([{"type": "summary_text", "text": "Is it \"so\"?"}]));
    let kept = json!([{"type": "reasoning", "summary": [], "encrypted_content": thought["encrypted_content"]},
                      {"role": "assistant", "content": "x"}, {"role": "user", "content": "go"}]);
    assert_eq!(
        prompt(json!({"input": kept})).await,
        "[assistant]<think>Is it \"so\"?</think>x[user]go"
    );
}

#[tokio::test]
async fn what_the_limit_cuts_off_is_incomplete() {
    let cut = OUTPUT.find("Köln").unwrap();
    for stream in [false, true] {
        for (text, kind) in
            [(&OUTPUT[..cut], "function_call"), ("half a", "message"), ("<think>\nhm", "reasoning")]
        {
            let mut steps: Vec<Step> = text.bytes().map(|byte| Step::Token(byte.into())).collect();
            steps.push(Step::Last(b'K'.into(), Finish::Length));
            let answer = ask(&house(steps), json!({"tools": tools(), "stream": stream})).await;
            let response = if stream {
                let events = told(&answer.body);
                assert_eq!(events.last().unwrap()["type"], "response.incomplete");
                events.last().unwrap()["response"].clone()
            } else {
                answer.json()
            };
            assert_eq!(response["status"], "incomplete");
            assert_eq!(response["incomplete_details"], json!({"reason": "max_output_tokens"}));
            let last = response["output"].as_array().unwrap().last().unwrap();
            assert_eq!((&last["type"], &last["status"]), (&json!(kind), &json!("incomplete")));
            if kind == "function_call" {
                assert_eq!(last["arguments"], "{\"city\": \"K", "nobody completes it");
            }
        }
    }
}

#[tokio::test]
async fn a_stream_that_breaks_off_says_so() {
    let mut steps = say("ab");
    steps.pop();
    steps.push(Step::Pause(std::time::Duration::from_millis(50)));
    steps.push(Step::End(Finish::Failed("a shard is gone".into())));
    let house = house(steps);
    let answer = ask(&house, json!({"stream": true})).await;
    let events = told(&answer.body);
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.failed");
    assert_eq!(last["response"]["status"], "failed");
    assert_eq!(last["response"]["error"]["code"], "server_error");
    let item = &last["response"]["output"][0];
    assert_eq!(
        (&item["content"][0]["text"], &item["status"]),
        (&json!("ab"), &json!("incomplete"))
    );
    let id = last["response"]["id"].as_str().unwrap();
    let kept = house.get(&format!("/v1/responses/{id}")).await.json();
    assert_eq!(kept, last["response"]);
}

/// After pings the status is out: the failure is an event, and what it needs stands before it.
#[tokio::test(start_paused = true)]
async fn pings_are_events_and_a_failure_behind_them_is_whole() {
    let steps = vec![
        Step::Pause(std::time::Duration::from_secs(40)),
        Step::End(Finish::Failed("a shard is gone".into())),
    ];
    let house = House::with(move |_| Ok(steps.clone()), Settings::default(), json!({}));
    let answer = ask(&house, json!({"stream": true})).await;
    assert!(
        answer.body.starts_with("event: response.created\n"),
        "clients want it first: {}",
        answer.body
    );
    let ping = "event: ping\ndata: {\"type\":\"ping\"}\n\n";
    assert_eq!(answer.body.matches(ping).count(), 1, "the first was the opening");
    let events = told(&answer.body.replace(ping, ""));
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["response.created", "response.in_progress", "response.failed"]);
}

#[tokio::test]
async fn what_templates_know_as_variables_reaches_them() {
    let more = json!({"reasoning": {"effort": "low"}, "text": {"verbosity": "high"}});
    assert_eq!(prompt(more).await, "[user]hilowhigh");
    let more = json!({"chat_template_kwargs": {"enable_thinking": true}});
    assert_eq!(prompt(more).await, "[user]hi<think>\n");
    let more = json!({"reasoning": {"effort": "none"}, "enable_thinking": true});
    assert_eq!(prompt(more).await, "[user]hinone", "effort says it first");
}

#[tokio::test]
async fn forms_of_text_are_those_of_chat() {
    let house = saying("{}");
    let format =
        json!({"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": true});
    whole(&house, json!({"text": {"format": format}})).await;
    let guided = house.last().sampling.guided.unwrap();
    assert_eq!(guided.field, "text.format");
    let schema = minisgl_proto::Grammar::JsonSchema {
        schema: "{\"type\":\"object\"}".into(),
        lenient: false,
    };
    assert_eq!(guided.grammar, Some(schema));
    whole(&house, json!({"text": {"format": {"type": "text"}}})).await;
    assert!(house.last().sampling.guided.is_none());
    for (format, param) in [
        (json!({"type": "xml"}), "text.format.type"),
        (json!({"type": "json_schema", "schema": 1}), "text.format.schema"),
        (json!({"type": "json_schema", "schema": {}, "strict": 1}), "text.format.strict"),
        (json!("json"), "text.format"),
    ] {
        let answer = ask(&house, json!({"text": {"format": format}})).await;
        assert_eq!(answer.error(), (400, json!(param), json!("invalid_value")), "{}", answer.body);
    }
}

#[tokio::test]
async fn what_cannot_be_answered_is_named() {
    let house = saying("a");
    for (more, param, code) in [
        (json!({"input": 1}), "input", "invalid_value"),
        (json!({"input": []}), "input", "invalid_value"),
        (json!({"input": null}), "input", "invalid_value"),
        (json!({"input": [{"type": "web_search_call"}]}), "input", "invalid_value"),
        (
            json!({"input": [{"type": "item_reference", "id": "msg_1"}]}),
            "input[0]",
            "previous_response_not_found",
        ),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}),
            "input[0].content[0]",
            "unsupported_parameter",
        ),
        (
            json!({"previous_response_id": "resp_1"}),
            "previous_response_id",
            "previous_response_not_found",
        ),
        (json!({"background": true}), "background", "unsupported_parameter"),
        (json!({"conversation": "conv_1"}), "conversation", "unsupported_parameter"),
        (json!({"prompt": {"id": "p"}}), "prompt", "unsupported_parameter"),
        (json!({"messages": [{"role": "user"}]}), "messages", "unsupported_parameter"),
        (json!({"max_output_tokens": 0}), "max_output_tokens", "invalid_value"),
        (json!({"n": 2}), "n", "invalid_value"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].name", "invalid_value"),
        (json!({"tool_choice": {"type": "web_search"}}), "tool_choice", "invalid_value"),
        (json!({"reasoning": {"effort": 1}}), "reasoning.effort", "invalid_value"),
        (json!({"input": "x".repeat(1000)}), "input", "context_length_exceeded"),
    ] {
        let answer = ask(&house, more.clone()).await;
        assert_eq!(answer.error(), (400, json!(param), json!(code)), "{more}: {}", answer.body);
    }
}

/// Routers put defaults of their own into what they forward.
#[tokio::test]
async fn what_routers_add_changes_nothing() {
    let more = json!({"store": true, "stream": null, "temperature": 1, "priority": 0, "top_k": -1, "min_p": 0, "repetition_penalty": 1,
        "truncation": "auto", "service_tier": "auto", "background": false, "conversation": null, "prompt_cache_key": "k",
        "client_metadata": {"a": "b"}, "safety_identifier": "s", "max_tool_calls": 3, "tools": [], "n": 1});
    let response = whole(&saying("a"), more).await;
    assert_eq!(response["output"][0]["content"][0]["text"], "a");
    assert_eq!(response["max_tool_calls"], 3);
}
