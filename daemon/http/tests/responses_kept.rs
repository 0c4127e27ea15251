//! Responses that later requests go on with, and the second turns of coding agents, in their own forms.

#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod support;

use std::sync::Arc;

use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use minisgl_http::backend::Unavailable;
use minisgl_http::{KeyList, Keys, Rule};
use serde_json::{Value, json};
use support::events::told;
use support::{Answer, House, PATIENCE, Step, say, text_of};
use tokio::sync::Notify;
use tower::ServiceExt;

const TEMPLATE: &str = "{% for m in messages %}[{{ m.role }}]{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content or '' }}{% for t in m.tool_calls or [] %}<tool_call>{{ t.function.name }} {{ t.function.arguments | tojson }}</tool_call>{% endfor %}{% endfor %}{% for t in tools or [] %}<{{ t.function.name }}>{% endfor %}";

const CALL: &str = "<think>\nhm\n</think>\n\nI look. <tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";

fn house(steps: Vec<Step>) -> House {
    let house = House::playing(steps);
    std::fs::write(house.folder.path().join("chat_template.jinja"), TEMPLATE).unwrap();
    house
}

fn tools() -> Value {
    json!([{"type": "function", "name": "f", "parameters": {"type": "object"}}])
}

async fn ask(house: &House, more: Value) -> Answer {
    let mut body = json!({"model": "org/tiny", "tools": tools()});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    house.post("/v1/responses", body).await
}

async fn answered(house: &House, more: Value) -> Value {
    let answer = ask(house, more).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

async fn send(house: &House, method: &str, path: &str) -> Answer {
    house.send(Request::builder().method(method).uri(path).body(Body::empty()).unwrap()).await
}

fn path(response: &Value) -> String {
    format!("/v1/responses/{}", response["id"].as_str().unwrap())
}

/// What the model is given is the same whether the client sends all of it or names what is kept.
#[tokio::test]
async fn a_conversation_goes_on_from_what_is_kept() {
    let house = house(say(CALL));
    let first = answered(&house, json!({"input": "hi", "instructions": "Be."})).await;
    let call = &first["output"][2];
    let result =
        json!({"type": "function_call_output", "call_id": call["call_id"], "output": "ok"});
    let more =
        json!({"previous_response_id": first["id"], "input": [result], "instructions": "Go."});
    let second = answered(&house, more).await;
    assert_eq!(second["previous_response_id"], first["id"]);
    let expected = "[system]Go.[user]hi[assistant]<think>hm</think>I look.<tool_call>f {\"a\": 1}</tool_call>[tool]ok<f>";
    assert_eq!(text_of(&house.last().prompt), expected, "instructions are not carried on");
    let mut items = vec![json!({"role": "user", "content": "hi"})];
    items.extend(first["output"].as_array().unwrap().clone());
    items.push(result.clone());
    answered(&house, json!({"input": items, "instructions": "Go.", "store": false})).await;
    assert_eq!(text_of(&house.last().prompt), expected);
    // As clients do that keep ids alone.
    let reference = |at: usize| json!({"type": "item_reference", "id": first["output"][at]["id"]});
    let items = json!([{"role": "user", "content": "hi"}, reference(0), reference(1), {"id": first["output"][2]["id"]}, result]);
    answered(&house, json!({"input": items, "instructions": "Go."})).await;
    assert_eq!(text_of(&house.last().prompt), expected);
    // And on from there.
    answered(&house, json!({"previous_response_id": second["id"], "input": "so?"})).await;
    let prompt = text_of(&house.last().prompt);
    assert_eq!(prompt.matches("I look.").count(), 2, "{prompt}");
    assert!(prompt.ends_with("[user]so?<f>"), "{prompt}");
}

#[tokio::test]
async fn what_is_kept_can_be_asked_for_until_it_is_deleted() {
    let house = house(say(CALL));
    for stream in [false, true] {
        let answer = ask(&house, json!({"input": "hi", "stream": stream})).await;
        let response = if stream {
            told(&answer.body).pop().unwrap()["response"].take()
        } else {
            answer.json()
        };
        let path = path(&response);
        let kept = house.get(&path).await;
        assert_eq!(kept.headers["content-type"], "application/json");
        assert_eq!(kept.json(), response);
        let list = house.get(&format!("{path}/input_items")).await.json();
        assert_eq!((&list["object"], &list["has_more"]), (&json!("list"), &json!(false)));
        let item = &list["data"][0];
        assert_eq!((&item["type"], &item["role"]), (&json!("message"), &json!("user")));
        assert_eq!(item["content"], json!([{"type": "input_text", "text": "hi"}]));
        assert_eq!(item["id"], list["first_id"]);
        let cancel = send(&house, "POST", &format!("{path}/cancel")).await;
        assert_eq!(
            cancel.error(),
            (400, json!("response_id"), json!("invalid_value")),
            "it is over"
        );
        let deleted = send(&house, "DELETE", &path).await.json();
        assert_eq!(deleted, json!({"id": response["id"], "object": "response", "deleted": true}));
        for (method, path) in [
            ("GET", path.clone()),
            ("DELETE", path.clone()),
            ("GET", format!("{path}/input_items")),
            ("POST", format!("{path}/cancel")),
        ] {
            let answer = send(&house, method, &path).await;
            assert_eq!(answer.error(), (404, Value::Null, json!("response_not_found")), "{method}");
            assert!(answer.body.contains("forgotten") && answer.body.contains("send the whole"));
        }
        let answer =
            ask(&house, json!({"previous_response_id": response["id"], "input": "a"})).await;
        let code = json!("previous_response_not_found");
        assert_eq!(answer.error(), (400, json!("previous_response_id"), code));
    }
    let metrics = house.get("/metrics").await.body;
    assert!(metrics.contains("endpoint=\"/v1/responses\""), "{metrics}");
    assert!(!metrics.contains("endpoint=\"other\""), "{metrics}");
}

#[tokio::test]
async fn what_is_not_to_be_stored_is_not() {
    let house = house(say("a"));
    let response = answered(&house, json!({"input": "hi", "store": false})).await;
    assert_eq!(response["store"], false);
    assert_eq!(house.get(&path(&response)).await.status, 404);
}

#[tokio::test]
async fn a_response_is_there_for_the_key_that_made_it_alone() {
    for names in [("alice:", "bob:"), ("", "bob:"), ("", "")] {
        for_the_key_alone(names).await;
    }
}

async fn for_the_key_alone((of_alice, of_bob): (&str, &str)) {
    let (alice, bob) = ("sk-alice-0123456789", "sk-bob-0123456789ab");
    let keys = KeyList::parse(&format!("{of_alice}{alice}\n{of_bob}{bob}\n")).unwrap();
    let house = house(say("a"));
    let router = house.keyed(Keys::new(Rule { keys, ..Rule::default() }));
    let send = async |key: &str, method: &str, path: &str, body: Value| {
        let request = Request::builder().method(method).uri(path);
        let request = request.header("authorization", format!("Bearer {key}"));
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        support::send(&router, request.body(body).unwrap()).await
    };
    let ask = json!({"model": "org/tiny", "input": "hi"});
    let response = send(alice, "POST", "/v1/responses", ask).await.json();
    let path = path(&response);
    let on = json!({"model": "org/tiny", "input": "b", "previous_response_id": response["id"]});
    let item = json!([{"role": "user", "content": "b"}, {"type": "item_reference", "id": response["output"][0]["id"]}]);
    let by_item = json!({"model": "org/tiny", "input": item});
    for (key, status, refused) in [(bob, 404, 400), (alice, 200, 200)] {
        assert_eq!(
            send(key, "GET", &path, Value::Null).await.status,
            status,
            "{of_alice:?} {of_bob:?}"
        );
        assert_eq!(send(key, "POST", "/v1/responses", on.clone()).await.status, refused);
        assert_eq!(send(key, "POST", "/v1/responses", by_item.clone()).await.status, refused);
        assert_eq!(send(key, "DELETE", &path, Value::Null).await.status, status);
    }
}

#[tokio::test]
async fn one_that_is_being_generated_can_be_cancelled() {
    let mut steps = say("ab");
    steps.pop();
    steps.push(Step::Hang);
    let house = house(steps);
    let body = json!({"model": "org/tiny", "input": "hi", "stream": true}).to_string();
    let request = Request::post("/v1/responses").body(Body::from(body)).unwrap();
    let mut stream = house.router.clone().oneshot(request).await.unwrap().into_body();
    let mut text = String::new();
    while !text.contains("\"delta\":\"b\"") {
        let frame = stream.frame().await.unwrap().unwrap().into_data().unwrap();
        text += std::str::from_utf8(&frame).unwrap();
    }
    let begun = text.split("data: ").nth(1).unwrap().split("\n\n").next().unwrap();
    let begun: Value = serde_json::from_str(begun).unwrap();
    let path = path(&begun["response"]);
    assert_eq!(house.get(&path).await.json(), begun["response"], "it is in progress");
    let cancelled = send(&house, "POST", &format!("{path}/cancel")).await;
    assert_eq!(
        (cancelled.status.as_u16(), &cancelled.json()["status"]),
        (200, &json!("cancelled"))
    );
    let rest = tokio::time::timeout(PATIENCE, stream.collect()).await.unwrap().unwrap().to_bytes();
    text += std::str::from_utf8(&rest).unwrap();
    house.quiet().await;
    let events = told(&text);
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.incomplete");
    assert_eq!(last["response"]["status"], "cancelled");
    assert_eq!(last["response"]["error"], Value::Null);
    assert_eq!(last["response"]["output"][0]["content"][0]["text"], "ab");
    assert_eq!(house.get(&path).await.json(), last["response"]);
    let metrics = house.get("/metrics").await.body;
    assert!(metrics.contains("outcome=\"cancelled\""), "{metrics}");
}

/// What is held of those that are being generated is bounded; one more is answered, and says that it is not kept.
#[tokio::test]
async fn what_finds_no_room_is_not_stored() {
    let mut steps = say("ab");
    steps.insert(1, Step::Hang);
    let house = house(steps);
    // A thought that nothing follows is kept, and is nothing to the model.
    let thought = json!([{"type": "reasoning_text", "text": "x".repeat((4 << 20) - 200)}]);
    let input =
        json!([{"role": "user", "content": "hi"}, {"type": "reasoning", "content": thought}]);
    let body = json!({"model": "org/tiny", "input": input, "stream": true}).to_string();
    let begin = async || {
        let request = Request::post("/v1/responses").body(Body::from(body.clone())).unwrap();
        let mut stream = house.router.clone().oneshot(request).await.unwrap().into_body();
        let frame = stream.frame().await.unwrap().unwrap().into_data().unwrap();
        let text = String::from_utf8(frame.to_vec()).unwrap();
        let created = text.split("data: ").nth(1).unwrap().split("\n\n").next().unwrap();
        let created: Value = serde_json::from_str(created).unwrap();
        (stream, created["response"]["store"] == true)
    };
    let mut streams = Vec::new();
    for number in 0..17 {
        let (stream, is_stored) = begin().await;
        assert_eq!(is_stored, number < 16, "{number}");
        streams.push(stream);
    }
    drop(streams);
    house.quiet().await;
    assert!(begin().await.1, "there is room again");
}

#[tokio::test]
async fn one_that_is_deleted_while_it_is_generated_goes_on_and_is_not_kept() {
    let go_on = Arc::new(Notify::new());
    let mut steps = say("ab");
    steps.insert(1, Step::Until(Arc::clone(&go_on)));
    let house = house(steps);
    let body = json!({"model": "org/tiny", "input": "hi", "stream": true}).to_string();
    let request = Request::post("/v1/responses").body(Body::from(body)).unwrap();
    let mut stream = house.router.clone().oneshot(request).await.unwrap().into_body();
    let frame = stream.frame().await.unwrap().unwrap().into_data().unwrap();
    let text = std::str::from_utf8(&frame).unwrap();
    let id = text.split("resp_").nth(1).unwrap().split('"').next().unwrap();
    let path = format!("/v1/responses/resp_{id}");
    let deleted = send(&house, "DELETE", &path).await;
    assert_eq!((deleted.status.as_u16(), deleted.json()["deleted"].clone()), (200, json!(true)));
    assert_eq!(house.get(&path).await.status, 404);
    go_on.notify_one();
    let rest = tokio::time::timeout(PATIENCE, stream.collect()).await.unwrap().unwrap().to_bytes();
    let rest = std::str::from_utf8(&rest).unwrap();
    assert!(rest.contains("response.completed"), "{rest}");
    assert_eq!(house.get(&path).await.status, 404);
}

/// As OpenAI's: the last item comes first, unless it is asked for otherwise.
#[tokio::test]
async fn input_items_come_in_pages() {
    let house = house(say("a"));
    let mut items = vec![json!({"role": "user", "content": "0", "id": "mine"})];
    items.extend((1..25).map(|at| json!({"role": "user", "content": at.to_string()})));
    items.insert(1, json!({"type": "unknown", "text": "left out"}));
    let response = answered(&house, json!({"input": items})).await;
    let path = format!("{}/input_items", path(&response));
    let page = async |query: &str| {
        let answer = house.get(&format!("{path}?{query}")).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let list = answer.json();
        let data = list["data"].as_array().unwrap();
        let said = |item: &Value| item["content"][0]["text"].as_str().unwrap().to_owned();
        assert_eq!(list["first_id"], data.first().map_or(Value::Null, |item| item["id"].clone()));
        assert_eq!(list["last_id"], data.last().map_or(Value::Null, |item| item["id"].clone()));
        let said: Vec<String> = data.iter().map(said).collect();
        (said, list["has_more"] == true, list["last_id"].clone())
    };
    let named = |range: Vec<u32>| range.iter().map(u32::to_string).collect::<Vec<_>>();
    let (said, more, last) = page("").await;
    assert_eq!((said, more), (named((5..25).rev().collect()), true));
    let (said, more, last) = page(&format!("after={}", last.as_str().unwrap())).await;
    assert_eq!((said, more, last), (named((0..5).rev().collect()), false, json!("mine")));
    let (said, more, _) = page("order=asc&limit=2&after=mine&include[]=x&include[]=y").await;
    assert_eq!((said, more), (named(vec![1, 2]), true));
    let (said, more, _) = page("order=asc&limit=100").await;
    assert_eq!((said, more), (named((0..25).collect()), false));
    let (said, more, last) = page("order=desc&limit=1&after=mine").await;
    assert_eq!((said.len(), more, last), (0, false, Value::Null));
    for (query, param) in [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("order=up", "order"),
        ("after=nobody", "after"),
    ] {
        let error = house.get(&format!("{path}?{query}")).await.error();
        assert_eq!(error, (400, json!(param), json!("invalid_value")), "{query}");
    }
}

#[tokio::test]
async fn of_one_whose_client_went_away_nothing_is_left() {
    let mut steps = say("ab");
    steps.pop();
    steps.push(Step::Hang);
    let house = house(steps);
    let body = json!({"model": "org/tiny", "input": "hi", "stream": true}).to_string();
    let request = Request::post("/v1/responses").body(Body::from(body)).unwrap();
    let mut stream = house.router.clone().oneshot(request).await.unwrap().into_body();
    let frame = stream.frame().await.unwrap().unwrap().into_data().unwrap();
    let text = std::str::from_utf8(&frame).unwrap();
    let id = text.split("resp_").nth(1).unwrap().split('"').next().unwrap();
    let path = format!("/v1/responses/resp_{id}");
    assert_eq!(house.get(&path).await.status, 200);
    drop(stream);
    house.quiet().await;
    assert_eq!(house.get(&path).await.status, 404);
}

#[tokio::test]
async fn websockets_are_refused_in_the_way_that_makes_clients_go_on() {
    let house = house(say("a"));
    for upgrade in [false, true] {
        let mut request = Request::get("/v1/responses");
        if upgrade {
            request = request.header("connection", "upgrade").header("upgrade", "websocket");
        }
        let answer = house.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.error().0, 426);
        assert!(answer.headers.contains_key("upgrade"), "a 426 says to what");
    }
    assert_eq!(send(&house, "PUT", "/v1/responses").await.status, 405);
}

/// Codex fails at once on a 429 that does not say when to come back.
#[tokio::test]
async fn whoever_is_refused_hears_when_to_come_back() {
    for stream in [false, true] {
        let house = House::new(|_| Err(Unavailable::Busy { name: "org/tiny".into(), limit: 8 }));
        let answer = ask(&house, json!({"input": "a", "stream": stream})).await;
        assert_eq!(answer.error().0, 429);
        assert_eq!(answer.headers["retry-after"], "1");
    }
}

/// The prompt that a body makes, whose answer says `done`, as a stream.
async fn turn(body: Value) -> (String, Value) {
    let house = house(say("done"));
    let answer = house.post("/v1/responses", body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let last = told(&answer.body).pop().unwrap();
    assert_eq!(last["type"], "response.completed");
    assert_eq!(last["response"]["output"][0]["content"][0]["text"], "done");
    (text_of(&house.last().prompt), last["response"].clone())
}

#[tokio::test]
async fn a_second_turn_of_codex() {
    let text = |kind: &str, text: &str| json!([{"type": kind, "text": text}]);
    let (prompt, response) = turn(json!({
        "model": "org/tiny",
        "instructions": "",
        "input": [
            {"type": "message", "role": "developer", "id": "msg_d", "content": text("input_text", "perms"),
             "internal_chat_message_metadata_passthrough": {"turn_id": "1"}},
            {"type": "message", "role": "user", "content": text("input_text", "run it")},
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}],
             "content": [{"type": "reasoning_text", "text": "hm"}], "encrypted_content": "minisgl.thought:hm"},
            {"type": "function_call", "id": "fc_1", "status": "completed", "name": "shell", "arguments": "{\"c\":\"echo\"}", "call_id": "call_1"},
            {"type": "function_call", "id": "fc_2", "name": "spawn_agent", "namespace": "multi_agent_v1", "arguments": "{}", "call_id": "call_2"},
            {"type": "function_call_output", "id": "fco_1", "call_id": "call_1", "output": "hi"},
            {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_image", "image_url": "data:,", "detail": "high"}]},
            {"type": "message", "role": "developer", "content": text("input_text", "more")},
        ],
        "tools": [
            {"type": "function", "name": "shell", "description": "d", "strict": false,
             "parameters": {"type": "object", "properties": {"c": {"type": "string"}}, "additionalProperties": false}},
            {"type": "namespace", "name": "multi_agent_v1", "description": "d", "tools": [
                {"type": "function", "name": "spawn_agent", "strict": false, "parameters": {"type": "object", "properties": {}}}]},
            {"type": "web_search", "external_web_access": false},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": false,
        "reasoning": {"summary": "auto"},
        "store": false,
        "stream": true,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0123",
        "text": {"verbosity": "low"},
        "client_metadata": {"x-codex-installation-id": "1"},
    })).await;
    assert_eq!(
        prompt,
        "[developer]perms[user]run it[assistant]<think>hm</think><tool_call>shell {\"c\": \"echo\"}</tool_call>\
         <tool_call>multi_agent_v1__spawn_agent {}</tool_call>[tool]hi[tool][image: not shown; this model reads text only]\
         [developer]more<shell><multi_agent_v1__spawn_agent>"
    );
    assert_eq!(response["parallel_tool_calls"], false);
    assert!(response["usage"]["total_tokens"].is_u64(), "it fails without");
}

/// Models that Codex knows get their tools in an item, and an editor that takes free text.
#[tokio::test]
async fn a_turn_of_codex_whose_tools_are_an_item() {
    let tools = json!([
        {"type": "custom", "name": "exec", "description": "d", "format": {"type": "text"}},
        {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "g", "parameters": {}}]},
        {"type": "tool_search"},
    ]);
    let (prompt, _) = turn(json!({
        "model": "org/tiny", "stream": true, "store": false,
        "input": [
            {"type": "additional_tools", "role": "developer", "tools": tools},
            {"role": "user", "content": "a"},
            {"type": "custom_tool_call", "id": "ctc_1", "status": "completed", "call_id": "c", "name": "exec", "input": "ls"},
            {"type": "custom_tool_call_output", "call_id": "c", "output": "x"},
        ],
    }))
    .await;
    assert_eq!(
        prompt,
        "[user]a[assistant]<tool_call>exec {\"input\": \"ls\"}</tool_call>[tool]x<exec><n__g>"
    );
}

#[tokio::test]
async fn second_turns_of_opencode_and_pi() {
    let (prompt, _) = turn(json!({
        "model": "org/tiny", "stream": true, "store": false, "max_output_tokens": 100, "prompt_cache_key": "ses_1",
        "input": [
            {"role": "system", "content": "You are."},
            {"role": "user", "content": [{"type": "input_text", "text": "run it"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "I look."}], "id": "msg_1"},
            {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "hi\n"},
        ],
        "tools": [{"type": "function", "name": "f", "description": "d", "parameters": {"$schema": "s", "type": "object"}}],
        "tool_choice": "auto",
    })).await;
    assert_eq!(
        prompt,
        "[system]You are.[user]run it[assistant]I look.<tool_call>f {}</tool_call>[tool]hi\n<f>"
    );
    let (prompt, _) = turn(json!({
        "model": "org/tiny", "stream": true, "store": false, "max_output_tokens": 100,
        "include": ["reasoning.encrypted_content"], "reasoning": {"effort": "medium", "summary": "auto"},
        "input": [
            {"role": "developer", "content": "You are."},
            {"role": "user", "content": [{"type": "input_text", "text": "run it"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}], "status": "completed"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "So.", "annotations": []}], "status": "completed", "id": "msg_1"},
            {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "hi"},
        ],
        "tools": [{"type": "function", "name": "f", "description": "d", "parameters": {}, "strict": false}],
    })).await;
    assert_eq!(
        prompt,
        "[developer]You are.[user]run it[assistant]<think>hm</think>So.<tool_call>f {}</tool_call>[tool]hi<f>"
    );
}

/// The prompt of a small context leaves no room: the code says so where agents look for it.
#[tokio::test]
async fn a_conversation_that_grows_too_long_is_told_as_that() {
    let house = house(say("a"));
    let mut previous = answered(&house, json!({"input": "x".repeat(200)})).await;
    let mut told = false;
    for _ in 0..4 {
        let more = json!({"input": "x".repeat(200), "previous_response_id": previous["id"]});
        let answer = ask(&house, more).await;
        if answer.status == 400 {
            assert_eq!(answer.json()["error"]["code"], "context_length_exceeded");
            told = true;
            break;
        }
        previous = answer.json();
    }
    assert!(told, "each turn is longer than the one before");
}
