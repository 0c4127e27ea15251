//! Tool calls and thoughts through the whole router, on a scripted model that speaks as Qwen 3 does.

#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod support;

use minisgl_http::{Settings, Thoughts};
use minisgl_proto::{Finish, Grammar, Guided};
use serde_json::{Value, json};
use support::{House, Step, say};

/// Says by what markers calls and thoughts stand, and opens a thought where it is told to.
const TEMPLATE: &str = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}{% if tools %}<tools>{{ tools | tojson }}</tools> <tool_call>{% endif %}<|im_start|>assistant\n{% if enable_thinking %}<think>\n{% endif %}";

const OUTPUT: &str = "<think>\nIs it \"so\"?\n</think>\n\nI look. <tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Köln\"}}\n\
                      </tool_call>\n<tool_call>\n{\"name\": \"time\", \"arguments\": {}}\n</tool_call>";

fn tools() -> Value {
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}});
    json!([tool("weather"), tool("time")])
}

fn saying(text: &str) -> House {
    house(say(text))
}

/// With a template of this text alone.
fn saying_to(template: &str, text: &str) -> House {
    let house = House::playing(say(text));
    std::fs::write(house.folder.path().join("chat_template.jinja"), template).unwrap();
    house
}

fn house(steps: Vec<Step>) -> House {
    let house = House::playing(steps);
    std::fs::write(house.folder.path().join("chat_template.jinja"), TEMPLATE).unwrap();
    house
}

/// The message that the deltas of a stream make, as OpenAI's clients put it together, and why it ended.
fn joined(events: &[Value]) -> (Value, String) {
    let (mut content, mut reasoning, mut reason) = (String::new(), String::new(), String::new());
    let mut calls: Vec<Value> = Vec::new();
    for event in events {
        let Some(choice) = event["choices"].get(0) else { continue };
        let delta = &choice["delta"];
        content += delta["content"].as_str().unwrap_or_default();
        reasoning += delta["reasoning_content"].as_str().unwrap_or_default();
        assert_eq!(delta["reasoning_content"], delta["reasoning"], "both names say the same");
        for part in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = part["index"].as_u64().unwrap() as usize;
            if index == calls.len() {
                assert_eq!(
                    (&part["type"], &part["function"]["arguments"]),
                    (&json!("function"), &json!(""))
                );
                calls.push(json!({"id": part["id"], "type": "function", "function": {
                    "name": part["function"]["name"], "arguments": ""}}));
            } else {
                let names: Vec<&String> = part.as_object().unwrap().keys().collect();
                assert_eq!(names, ["index", "function"], "nothing is repeated and nothing null");
                let function = part["function"].as_object().unwrap();
                assert_eq!(function.keys().collect::<Vec<_>>(), ["arguments"]);
                let so_far = calls[index]["function"]["arguments"].as_str().unwrap().to_owned();
                calls[index]["function"]["arguments"] =
                    (so_far + part["function"]["arguments"].as_str().unwrap()).into();
            }
        }
        if let Some(why) = choice["finish_reason"].as_str() {
            reason = why.to_owned();
        }
    }
    (json!({"content": content, "reasoning": reasoning, "calls": calls}), reason)
}

fn without_ids(mut calls: Value) -> Value {
    for call in calls.as_array_mut().unwrap() {
        let id = call["id"].take();
        assert!(id.as_str().unwrap().starts_with("call_"), "{id}");
    }
    calls
}

fn both() -> Value {
    json!([
        {"id": null, "type": "function", "function": {"name": "weather", "arguments": "{\"city\": \"Köln\"}"}},
        {"id": null, "type": "function", "function": {"name": "time", "arguments": "{}"}},
    ])
}

#[tokio::test]
async fn thoughts_calls_and_text_are_told_apart() {
    let answer = saying(OUTPUT).chat(json!({"tools": tools()})).await.json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    let message = &choice["message"];
    assert_eq!(message["content"], "I look.");
    assert_eq!(message["reasoning_content"], "Is it \"so\"?");
    assert_eq!(message["reasoning"], message["reasoning_content"]);
    assert_eq!(without_ids(message["tool_calls"].clone()), both());
    // A token is a byte here: of the opening marker the last one alone shows what it is.
    let thought = ">\nIs it \"so\"?\n</think>".len();
    assert_eq!(answer["usage"]["completion_tokens_details"]["reasoning_tokens"], thought);
}

#[tokio::test]
async fn a_stream_tells_the_same_parts() {
    let more = json!({"tools": tools(), "stream": true, "stream_options": {"include_usage": true}});
    let house = saying(OUTPUT);
    let (events, done) = house.chat(more).await.events();
    assert!(done);
    let (message, reason) = joined(&events);
    assert_eq!(reason, "tool_calls");
    assert_eq!(
        (&message["content"], &message["reasoning"]),
        (&json!("I look."), &json!("Is it \"so\"?"))
    );
    assert_eq!(without_ids(message["calls"].clone()), both());
    let texts = events.iter().filter_map(|event| {
        event["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"].as_str()
    });
    assert!(texts.count() > 10, "arguments go out while they are written");
    let usage = &events.last().unwrap()["usage"];
    assert!(usage["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap() > 10);
    let metrics = house.get("/metrics").await.body;
    assert!(
        metrics.contains("minisgl_tool_calls_total{model=\"org/tiny\",outcome=\"whole\"} 2"),
        "{metrics}"
    );
}

/// The template opens it, and the model goes on inside.
#[tokio::test]
async fn a_thought_that_the_prompt_opens_is_one() {
    let body = json!({"chat_template_kwargs": {"enable_thinking": true}});
    for body in [body, json!({"enable_thinking": true})] {
        let answer = saying("hm</think>\n\nYes.").chat(body).await.json();
        let message = &answer["choices"][0]["message"];
        assert_eq!((&message["content"], &message["reasoning"]), (&json!("Yes."), &json!("hm")));
    }
    let answer = saying("hm</think>Yes.").chat(json!({"reasoning_effort": "none"})).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], "hm</think>Yes.");
}

#[tokio::test]
async fn what_nobody_asked_to_tell_apart_is_text() {
    let answer = saying(OUTPUT).chat(json!({"separate_reasoning": false})).await.json();
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["content"], OUTPUT, "without tools nothing is a call");
    assert_eq!((&message["reasoning"], &message["tool_calls"]), (&Value::Null, &Value::Null));
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let body = json!({"tools": tools(), "tool_choice": "none", "include_reasoning": false});
    let answer = saying(OUTPUT).chat(body).await.json();
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["reasoning"], Value::Null);
    assert!(message["content"].as_str().unwrap().starts_with("I look. <tool_call>"), "{message}");
}

#[tokio::test]
async fn one_call_is_all_where_no_more_are_wanted() {
    for stream in [false, true] {
        let mut steps = say(OUTPUT);
        steps.pop();
        steps.push(Step::Hang);
        let house = house(steps);
        let body = json!({"tools": tools(), "parallel_tool_calls": false, "stream": stream});
        let answer = house.chat(body).await;
        let (calls, reason) = if stream {
            let (message, reason) = joined(&answer.events().0);
            (message["calls"].clone(), reason)
        } else {
            let choice = answer.json()["choices"][0].clone();
            let reason = choice["finish_reason"].as_str().unwrap().to_owned();
            (choice["message"]["tool_calls"].clone(), reason)
        };
        assert_eq!(without_ids(calls), json!([both()[0]]));
        assert_eq!(reason, "tool_calls");
        house.quiet().await;
    }
}

#[tokio::test]
async fn a_call_that_the_limit_cuts_off_ends_by_length() {
    let cut = OUTPUT.find("Köln").unwrap();
    let mut steps: Vec<Step> =
        OUTPUT.as_bytes()[..cut].iter().map(|&byte| Step::Token(byte.into())).collect();
    steps.push(Step::Last(b'K'.into(), Finish::Length));
    let answer = house(steps).chat(json!({"tools": tools()})).await.json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    let call = &choice["message"]["tool_calls"][0]["function"];
    assert_eq!(call["arguments"], "{\"city\": \"K", "nobody completes it");
}

#[tokio::test]
async fn what_is_no_call_stays_text() {
    let text = "<tool_call>\nnot JSON\n</tool_call>";
    let house = saying(text);
    let answer = house.chat(json!({"tools": tools()})).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], text);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let metrics = house.get("/metrics").await.body;
    assert!(metrics.contains("outcome=\"refused\"} 1"), "{metrics}");
}

/// All tokens of an answer have theirs, those of markers and thoughts as well.
#[tokio::test]
async fn log_probabilities_are_those_of_all_tokens() {
    let body = json!({"tools": tools(), "logprobs": true});
    let answer = saying(OUTPUT).chat(body.clone()).await.json();
    let tokens = |content: &Value| content.as_array().unwrap().len();
    assert_eq!(tokens(&answer["choices"][0]["logprobs"]["content"]), OUTPUT.len());
    let mut body = body;
    body["stream"] = true.into();
    let (events, _) = saying(OUTPUT).chat(body).await.events();
    let each =
        events.iter().filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(each.map(Vec::len).sum::<usize>(), OUTPUT.len());
}

#[tokio::test]
async fn choices_are_told_apart_each_by_itself() {
    let answer = saying(OUTPUT).chat(json!({"tools": tools(), "n": 3})).await.json();
    let mut ids = std::collections::HashSet::new();
    for choice in answer["choices"].as_array().unwrap() {
        for call in choice["message"]["tool_calls"].as_array().unwrap() {
            assert!(ids.insert(call["id"].to_string()));
        }
    }
    assert_eq!(ids.len(), 6);
}

#[tokio::test]
async fn a_tool_without_a_name_is_refused() {
    let house = saying("a");
    let answer = house.chat(json!({"tools": [{"type": "function", "function": {}}]})).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["error"]["param"], "tools[0].function.name");
    for choice in [json!("required"), json!({"type": "function", "function": {"name": "f"}})] {
        let answer = house.chat(json!({"tool_choice": choice})).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["error"]["param"]),
            (400, &json!("tool_choice"))
        );
    }
}

/// What the last request's output is held to.
fn guided(house: &House) -> Option<Guided> {
    house.last().sampling.guided.map(|guided| *guided)
}

#[tokio::test]
async fn calls_that_must_come_are_enforced_behind_the_thought() {
    let house = saying("a");
    let choice = json!({"type": "function", "function": {"name": "time"}});
    for (choice, has, thinks) in [
        (json!("required"), "weather", true),
        (json!("required"), "weather", false),
        (choice, "time", true),
    ] {
        let body = json!({"tools": tools(), "tool_choice": choice, "enable_thinking": thinks});
        assert_eq!(house.chat(body).await.status, 200);
        let Guided { grammar: Some(Grammar::Calls(lark)), thought, field } =
            guided(&house).unwrap()
        else {
            panic!("no grammar of calls");
        };
        assert!(lark.contains(has) && lark.contains("time"), "{lark}");
        assert_eq!(lark.contains("weather"), has == "weather", "only what may be called");
        assert_eq!(field, "tool_choice");
        // The tokenizer of these tests has no token for what opens a thought.
        let close = thought.map(|thought| (thought.open, thought.close));
        assert_eq!(close, thinks.then(|| (Vec::new(), vec!["</think>".to_owned()])));
    }
    house.chat(json!({"tools": tools()})).await;
    assert_eq!(guided(&house), None, "a model that may call is free");
}

#[tokio::test]
async fn strict_tools_and_forms_go_together() {
    let house = saying("a");
    let strict = json!([{"type": "function", "function": {"name": "f", "strict": true}}]);
    house.chat(json!({"tools": strict})).await;
    assert!(matches!(guided(&house).unwrap().grammar, Some(Grammar::Calls(_))));
    let schema = json!({"type": "object", "properties": {"zyx": {"type": "string"}}});
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
    house.chat(json!({"tools": tools(), "response_format": format})).await;
    let Some(Grammar::Calls(lark)) = guided(&house).unwrap().grammar else { panic!("no calls") };
    assert!(
        lark.contains("zyx") && lark.contains("weather"),
        "calls, or an answer of the form: {lark}"
    );
    house.chat(json!({"tools": tools(), "response_format": format, "tool_choice": "none"})).await;
    assert!(matches!(guided(&house).unwrap().grammar, Some(Grammar::JsonSchema { .. })));
    house.chat(json!({"tools": tools(), "regex": "a+"})).await;
    assert_eq!(guided(&house).unwrap().grammar, Some(Grammar::Regex("a+".into())));
}

#[tokio::test]
async fn a_budget_closes_a_thought() {
    let house = saying("a");
    let body = json!({"enable_thinking": true, "thinking_token_budget": 5});
    house.chat(body).await;
    let Guided { grammar, thought, field } = guided(&house).unwrap();
    assert_eq!((grammar, &*field), (None, "thinking_token_budget"));
    let close: Vec<u32> = "</think>".bytes().map(u32::from).collect();
    assert_eq!(thought.unwrap().budget, Some((5, close)));
    house.chat(json!({"thinking_token_budget": 5})).await;
    assert_eq!(guided(&house), None, "nothing is thought");
    let answer = house.chat(json!({"thinking_token_budget": -7})).await;
    assert_eq!(answer.json()["error"]["param"], "thinking_token_budget");
}

#[tokio::test]
async fn tools_that_are_too_much_are_refused_by_name() {
    let tool = |at: usize| {
        let schema = json!({"type": "object", "properties": {"a": {"enum": [format!("{at}{}", "x".repeat(1000))]}}});
        json!({"type": "function", "function": {"name": format!("f{at}"), "parameters": schema}})
    };
    let tools: Vec<Value> = (0..300).map(tool).collect();
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "tools": tools, "tool_choice": "required"});
    let house = saying_to("no tools", "a");
    let answer = house.post("/v1/chat/completions", body).await;
    let error = answer.json()["error"].clone();
    assert_eq!((answer.status.as_u16(), &error["param"]), (400, &json!("tool_choice")), "{error}");
    assert!(error["message"].as_str().unwrap().contains("262144"), "{error}");
}

#[tokio::test]
async fn thoughts_have_the_names_that_the_operator_chose() {
    for (thoughts, content, other) in [
        (Thoughts::Both, true, true),
        (Thoughts::ReasoningContent, true, false),
        (Thoughts::Reasoning, false, true),
    ] {
        let settings = Settings { thoughts, ..Settings::default() };
        let house = House::with(|_| Ok(say(OUTPUT)), settings, json!({}));
        std::fs::write(house.folder.path().join("chat_template.jinja"), TEMPLATE).unwrap();
        let message = house.chat(json!({})).await.json()["choices"][0]["message"].clone();
        let has = |name: &str| message.get(name).is_some();
        assert_eq!((has("reasoning_content"), has("reasoning")), (content, other), "{thoughts:?}");
        let (events, _) = house.chat(json!({"stream": true})).await.events();
        let any = |name: &str| {
            events.iter().any(|event| event["choices"][0]["delta"].get(name).is_some())
        };
        assert_eq!((any("reasoning_content"), any("reasoning")), (content, other), "{thoughts:?}");
    }
}

/// A thought of harmony's is a message among others: its end would end any of them.
#[tokio::test]
async fn messages_have_no_budget() {
    let house = saying_to("{{ messages[0].content }}<|start|>assistant{# <|channel|> #}", "a");
    let answer = house.chat(json!({"thinking_token_budget": 5})).await;
    assert_eq!((answer.status.as_u16(), guided(&house)), (200, None));
}

/// A call that breaks is none: whoever ends a turn by it would run it.
#[tokio::test]
async fn a_broken_call_is_no_call_made() {
    let text =
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": oops}}\n</tool_call>";
    for stream in [false, true] {
        let answer = saying(text).chat(json!({"tools": tools(), "stream": stream})).await;
        let reason = if stream {
            joined(&answer.events().0).1
        } else {
            answer.json()["choices"][0]["finish_reason"].as_str().unwrap().to_owned()
        };
        assert_eq!(reason, "stop");
    }
}

/// Tools that nobody asked to enforce are no reason to refuse a form.
#[tokio::test]
async fn a_form_holds_beside_tools_that_cannot_be_written() {
    let house = saying("a");
    let odd = json!([{"type": "function", "function": {"name": "a\nb"}}]);
    let body = json!({"tools": odd, "response_format": {"type": "json_object"}});
    assert_eq!(house.chat(body).await.status, 200);
    assert_eq!(guided(&house).unwrap().grammar, Some(Grammar::JsonObject));
    let none = json!({"type": "allowed_tools", "mode": "auto", "tools": []});
    assert_eq!(house.chat(json!({"tools": tools(), "tool_choice": none})).await.status, 200);
}
