//! What clients send and expect beside the documented shapes.

#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use minisgl_http::Settings;
use minisgl_proto::{Finish, Unavailable};
use serde_json::{Value, json};
use support::{House, MAX_LEN, PATIENCE, Step, chat_body, say, text_of, until};
use tokio::sync::Notify;
use tower::ServiceExt;

/// A house whose model has this chat template.
fn with_template(template: &str) -> House {
    let house = House::saying("a");
    std::fs::write(house.folder.path().join("chat_template.jinja"), template).unwrap();
    house
}

/// The prompt that messages make with a template.
async fn rendered(template: &str, messages: Value) -> String {
    let house = with_template(template);
    let answer = house.chat(json!({"messages": messages})).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    text_of(&house.last().prompt)
}

const KNOWN_ROLES: &str = "{% for m in messages %}{% if m.role in ['system','user','assistant','tool'] %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}";

#[tokio::test]
async fn no_role_is_lost() {
    let developer = json!([{"role": "developer", "content": "Answer in French."}, {"role": "user", "content": "Hi"}]);
    assert_eq!(rendered(KNOWN_ROLES, developer.clone()).await, "[system]Answer in French.[user]Hi");
    let knows = KNOWN_ROLES.replace("'system'", "'system','developer'");
    assert_eq!(rendered(&knows, developer).await, "[developer]Answer in French.[user]Hi");
    let old = json!([
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{\"a\": 1}"}},
        {"role": "function", "name": "f", "content": "ok"},
    ]);
    let template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for t in m.tool_calls or [] %}<{{ t.function.name }} {{ t.function.arguments.a }}>{% endfor %}{% endfor %}";
    assert_eq!(rendered(template, old).await, "[user]Hi[assistant]<f 1>[tool]ok");
}

#[tokio::test]
async fn a_late_system_message_goes_where_the_template_reads_it() {
    let messages = json!([
        {"role": "system", "content": "one"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "b"},
        {"role": "system", "content": "two"},
        {"role": "user", "content": "c"},
    ]);
    let refuses = "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('system must be first') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}";
    let expected = "[system]one\n\ntwo[user]Hi[assistant]b[user]c";
    assert_eq!(rendered(refuses, messages.clone()).await, expected);
    let takes = "[system]one[user]Hi[assistant]b[system]two[user]c";
    assert_eq!(rendered(KNOWN_ROLES, messages).await, takes);
}

#[tokio::test]
async fn a_refusal_is_what_the_assistant_said() {
    let template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}";
    let messages = json!([
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": null, "refusal": "I cannot.", "audio": null},
        {"role": "user", "content": "Why?"},
    ]);
    assert_eq!(rendered(template, messages).await, "[user]Hi[assistant]I cannot.[user]Why?");
}

#[tokio::test]
async fn an_empty_list_of_calls_is_none() {
    let template = "{% for m in messages %}{% if 'tool_calls' in m %}{% if m.tool_calls | length != 1 %}{{ raise_exception('single tool-calls only') }}{% endif %}{% else %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}";
    let messages = json!([
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "4", "tool_calls": []},
        {"role": "user", "content": "Hi"},
    ]);
    assert_eq!(rendered(template, messages).await, "[user]Hi[assistant]4[user]Hi");
}

#[tokio::test]
async fn calls_beside_a_content_of_null_are_not_lost() {
    let template = "{% for m in messages %}{% if m.role == 'assistant' and m.content is none %}<call {{ m.tool_calls[0].function.name }}>{% elif m.content is not none %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}";
    let messages = |content: Value| {
        json!([
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": content, "tool_calls": [{"id": "c1", "type": "function",
             "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "ok"},
        ])
    };
    assert_eq!(rendered(template, messages(json!(null))).await, "[user]Hi<call f>[tool]ok");
    // Where an empty content shows the calls, too, there is no "None" in the prompt.
    let joins = "{% for m in messages %}{{ m.content }}{% for t in m.tool_calls or [] %}<{{ t.function.name }}>{% endfor %}{% endfor %}";
    assert_eq!(rendered(joins, messages(json!(null))).await, "Hi<f>ok");
    // A template that joins arguments to text gets their JSON, its digits as they were.
    let text = "{% for m in messages %}{% for t in m.tool_calls or [] %}{{ '<call>' + t.function.name + ' ' + t.function.arguments }}{% endfor %}{% endfor %}";
    assert_eq!(rendered(text, messages(json!(""))).await, "<call>f {\"a\": 1}");
}

#[tokio::test]
async fn reasoning_reaches_the_template_by_any_name() {
    let template = "{% for m in messages %}{% if m.reasoning_content is string %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}{% endfor %}";
    for name in ["reasoning", "reasoning_content", "thinking"] {
        let messages = json!([
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "4", name: "2+2", "refusal": null},
        ]);
        assert_eq!(rendered(template, messages).await, "Hi<think>2+2</think>4", "{name}");
    }
}

#[tokio::test]
async fn numbers_of_tools_and_arguments_keep_their_digits() {
    let house = with_template(
        "{{ tools | tojson }}{{ messages[1].tool_calls[0].function.arguments | tojson }}",
    );
    let body = r#"{"tools": [{"name": "f", "default": 0.9205746819217139}], "messages": [{"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{\"x\": 21.900000000000002}"}}]}]}"#;
    let answer = house.post_bytes("/v1/chat/completions", body.into()).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let prompt = text_of(&house.last().prompt);
    assert_eq!(
        prompt,
        "[{\"name\": \"f\", \"default\": 0.9205746819217139}]{\"x\": 21.900000000000002}"
    );
}

#[tokio::test]
async fn numbers_and_names_as_python_writes_them() {
    let house = House::saying("a");
    let body = r#"{"messages": [{"role": "user", "content": "no"}], "max_tokens": 7.0, "top_k": 3.0,
        "min_tokens": 2, "min_new_tokens": 2, "n": 1.0, "seed": 9, "sampling_seed": 9,
        "messages": [{"role": "user", "content": "yes"}]}"#;
    let answer = house.post_bytes("/v1/chat/completions", body.into()).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let request = house.last();
    assert!(text_of(&request.prompt).contains("yes"), "the last of a name counts");
    assert_eq!((request.stop.max_tokens, request.stop.min_tokens), (7, 2));
    assert_eq!((request.sampling.top_k, request.sampling.seed), (3, 9));
    let answer = house.chat(json!({"min_tokens": 2, "min_new_tokens": 3})).await;
    assert_eq!(answer.error(), (400, json!("min_new_tokens"), json!("invalid_value")));
}

#[tokio::test]
async fn more_tokens_than_there_is_room_for_are_clamped_and_it_is_said() {
    let house = House::saying("a");
    let answer = house.chat(json!({"max_tokens": 100_000})).await;
    let room = MAX_LEN - house.last().prompt.len() as u32;
    assert_eq!((answer.status.as_u16(), house.last().stop.max_tokens), (200, room));
    assert_eq!(answer.headers["x-max-tokens"], room.to_string());
    let answer = house.chat(json!({"max_tokens": 5})).await;
    assert!(!answer.headers.contains_key("x-max-tokens"));
    for (path, body) in [
        ("/v1/chat/completions", chat_body(json!({"max_tokens": -1}))),
        ("/v1/completions", json!({"prompt": "a", "max_tokens": -1})),
        ("/generate", json!({"text": "a", "sampling_params": {"max_new_tokens": -1}})),
    ] {
        assert_eq!(house.post(path, body).await.status, 200, "{path}");
        let request = house.last();
        assert_eq!(request.stop.max_tokens, MAX_LEN - request.prompt.len() as u32, "{path}");
    }
}

#[tokio::test]
async fn a_prompt_that_is_too_long_is_told_in_the_words_that_clients_look_for() {
    let house = House::saying("a");
    let long = json!([{"role": "user", "content": "x".repeat(600)}]);
    for (path, body) in [
        ("/v1/chat/completions", json!({"messages": long})),
        ("/v1/completions", json!({"prompt": vec![97; 600]})),
        ("/generate", json!({"text": "x".repeat(600)})),
    ] {
        let answer = house.post(path, body).await;
        assert_eq!(answer.error().2, json!("context_length_exceeded"), "{path}");
        for phrase in ["This model's maximum context length is 512 tokens", "prompt is too long"] {
            assert!(answer.body.contains(phrase), "{}", answer.body);
        }
    }
}

#[tokio::test]
async fn priority_is_for_the_operator_to_allow() {
    let house = House::saying("a");
    assert_eq!(house.chat(json!({"priority": 7})).await.status, 200);
    assert_eq!(house.last().priority, 0);
    let body = json!({"text": "a", "priority": 7});
    assert_eq!(house.post("/generate", body).await.status, 200);
    assert_eq!(house.last().priority, 0);
    assert_eq!(house.chat(json!({"priority": 1_i64 << 40})).await.error().1, json!("priority"));
}

#[tokio::test]
async fn what_a_client_wrote_is_not_echoed_without_end() {
    let house = House::saying("a");
    let long = "x".repeat(1 << 20);
    let answer = house.chat(json!({"model": long})).await;
    assert_eq!(answer.error(), (404, json!("model"), json!("model_not_found")));
    assert!(answer.body.len() < 500, "{}", answer.body.len());
    for more in [json!({"temperature": long}), json!({"logit_bias": {long.clone(): 1}})] {
        let answer = house.chat(more).await;
        assert_eq!(answer.status, 400);
        assert!(answer.body.len() < 2000, "{}", answer.body.len());
    }
    for rid in ["", "a b", &"x".repeat(200)] {
        let answer = house.post("/generate", json!({"text": "a", "rid": rid})).await;
        assert_eq!(answer.error(), (400, json!("rid"), json!("invalid_value")));
    }
    let json = house.post("/generate", json!({"text": "a", "rid": "job-7.b"})).await.json();
    assert_eq!(json["meta_info"]["id"], "job-7.b");
}

#[tokio::test]
async fn ids_differ_though_a_client_repeats_its_own_and_the_backend_hears_it() {
    let house = House::saying("a");
    let ask = async || {
        let body = Body::from(chat_body(json!({})).to_string());
        let request = Request::post("/v1/chat/completions").header("x-request-id", "again");
        house.send(request.body(body).unwrap()).await
    };
    let (first, second) = (ask().await, ask().await);
    assert_eq!(first.headers["x-request-id"], "again");
    assert_ne!(first.json()["id"], second.json()["id"]);
    assert_eq!((house.last().request_id.as_str(), house.last().key), ("again", None));
}

#[tokio::test]
async fn what_other_servers_know_is_refused_where_it_would_change_the_answer() {
    let house = House::saying("a");
    for (more, param) in [
        (json!({"web_search_options": {"search_context_size": "low"}}), "web_search_options"),
        (json!({"echo": true}), "echo"),
        (json!({"add_special_tokens": true}), "add_special_tokens"),
        (json!({"return_token_ids": true}), "return_token_ids"),
        (json!({"return_tokens_as_token_ids": true}), "return_tokens_as_token_ids"),
        (json!({"logprob_token_ids": [1]}), "logprob_token_ids"),
        (json!({"cache_salt": "s"}), "cache_salt"),
        (json!({"kv_transfer_params": {"a": 1}}), "kv_transfer_params"),
        (json!({"return_hidden_states": true}), "return_hidden_states"),
        (json!({"typical_p": 0.9}), "typical_p"),
        (json!({"dry_multiplier": 0.8}), "dry_multiplier"),
        (json!({"xtc_probability": 0.5}), "xtc_probability"),
        (json!({"mirostat": 2}), "mirostat"),
    ] {
        let answer = house.chat(more).await;
        assert_eq!(answer.error(), (400, json!(param), json!("unsupported_parameter")));
    }
    let harmless = json!({
        "user": "u", "metadata": {"a": "b"}, "store": true, "service_tier": "auto", "length_penalty": 2,
        "prediction": {"type": "content", "content": "x"}, "parallel_tool_calls": false, "typical_p": 1,
        "dry_multiplier": 0, "mirostat": 0, "return_token_ids": false, "cache_salt": null,
        "separate_reasoning": true, "nobody_knows_this": [1, 2, 3],
    });
    assert_eq!(house.chat(harmless).await.status, 200);
    let house = with_template("{{ verbosity }}");
    house.chat(json!({"verbosity": "low"})).await;
    assert_eq!(text_of(&house.last().prompt), "low");
}

#[tokio::test]
async fn counting_tokens_has_no_context() {
    let house = House::saying("a");
    for size in [600, 200_000] {
        let text = "x".repeat(size);
        let json = house.post("/tokenize", json!({"prompt": text})).await.json();
        assert_eq!(json["count"], size + 1);
        let messages = json!([{"role": "user", "content": text}]);
        let json = house.post("/tokenize", json!({"messages": messages})).await.json();
        assert!(json["count"].as_u64().unwrap() > size as u64, "{json}");
    }
}

/// A house that pings soon.
fn pinging(steps: Vec<Step>) -> House {
    let settings =
        Settings { ping_interval: Some(Duration::from_millis(30)), ..Settings::default() };
    House::with(move |_| Ok(steps.clone()), settings, json!({}))
}

/// Reads on until `times` more pings came; all that came.
async fn read_pings(body: &mut Body, times: usize) -> String {
    let mut text = String::new();
    while text.matches(": ping\n\n").count() < times {
        let frame = tokio::time::timeout(PATIENCE, body.frame()).await.expect("no ping");
        let bytes = frame.expect("the stream ended").unwrap().into_data().unwrap();
        text += std::str::from_utf8(&bytes).unwrap();
    }
    text
}

#[tokio::test]
async fn a_stream_that_waits_says_so() {
    let [first, second] = [(); 2].map(|()| Arc::new(Notify::new()));
    let wait = |told: &Arc<Notify>| Step::Until(Arc::clone(told));
    let last = Step::Last(98, Finish::Length);
    let house = pinging(vec![wait(&first), Step::Token(97), wait(&second), last.clone()]);
    let body = Body::from(chat_body(json!({"stream": true})).to_string());
    let request = Request::post("/v1/chat/completions").body(body).unwrap();
    let response = house.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    let before = read_pings(&mut body, 2).await;
    assert!(before.starts_with(": ping\n\n") && !before.contains("data"), "{before}");
    first.notify_one();
    let mut after = String::new();
    while !after.contains("\"content\":\"a\"") {
        after += &read_pings(&mut body, 1).await;
    }
    read_pings(&mut body, 2).await;
    second.notify_one();
    let rest = body.collect().await.unwrap().to_bytes();
    assert!(rest.ends_with(b"data: [DONE]\n\n"), "{rest:?}");
    // Without the setting, and where an answer is whole, there is none.
    let pause = Step::Pause(Duration::from_millis(300));
    let steps = vec![pause.clone(), Step::Token(97), pause, last];
    let settings = Settings { ping_interval: None, ..Settings::default() };
    let house = House::with(move |_| Ok(steps.clone()), settings, json!({}));
    assert!(!house.chat(json!({"stream": true})).await.body.contains("ping"));
}

#[tokio::test]
async fn an_error_has_a_status_until_the_first_ping() {
    let failed = || Step::End(Finish::Failed("gone".into()));
    let house = House::playing(vec![failed()]);
    assert_eq!(house.chat(json!({"stream": true})).await.error().0, 500);
    // The answer begins with the first ping, and what comes then comes too late for a status.
    let too_late = Arc::new(Notify::new());
    let house = pinging(vec![Step::Until(Arc::clone(&too_late)), failed()]);
    let body = Body::from(chat_body(json!({"stream": true})).to_string());
    let request = Request::post("/v1/chat/completions").body(body).unwrap();
    let response = house.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    too_late.notify_one();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body = std::str::from_utf8(&body).unwrap();
    let last = body.trim_end().rsplit("\n\n").next().unwrap();
    let error: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(error["error"]["code"], "model_failed");
    let house = House::with(
        |_| Err(Unavailable::Busy { name: "org/tiny".into(), limit: 8 }),
        Settings::default(),
        json!({}),
    );
    assert_eq!(house.chat(json!({"stream": true})).await.status, 429);
}

#[tokio::test]
async fn all_that_is_ready_at_once_is_one_write() {
    let house = House::saying("abcdefghijklmnopqrstuvwxyz");
    let body = Body::from(chat_body(json!({"stream": true})).to_string());
    let request = Request::post("/v1/chat/completions").body(body).unwrap();
    let mut body = house.router.clone().oneshot(request).await.unwrap().into_body();
    let mut frames = Vec::new();
    loop {
        // The model is done long before the next look.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let Some(frame) = body.frame().await else { break };
        frames.push(String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap());
    }
    assert!(frames.len() <= 2, "{} writes", frames.len());
    let text = frames.concat();
    assert_eq!(text.matches("data: {").count(), 1 + 26 + 1, "each token has a line of its own");
}

#[tokio::test]
async fn generate_streams_what_is_new_if_asked_to() {
    let house = House::saying("abé");
    let body = json!({"text": "x", "stream": true, "stream_output": true, "return_logprob": true});
    let (events, done) = house.post("/generate", body).await.events();
    assert!(done);
    let texts: Vec<&str> = events.iter().map(|event| event["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["a", "b", "é", ""]);
    let ids: Vec<usize> =
        events.iter().map(|event| event["output_ids"].as_array().unwrap().len()).collect();
    assert_eq!(ids, [1, 1, 2, 1]);
    let scored =
        |event: &Value| event["meta_info"]["output_token_logprobs"].as_array().unwrap().len();
    assert_eq!(events.iter().map(scored).collect::<Vec<_>>(), [1, 1, 2, 0]);
    assert_eq!(events[3]["meta_info"]["completion_tokens"], 5);
}

#[tokio::test]
async fn a_long_cumulative_stream_is_not_quadratic() {
    let steps: Vec<Step> = std::iter::repeat_n(Step::Token(97), 450).collect();
    let house = House::playing([steps, vec![Step::Last(98, Finish::Length)]].concat());
    let body = json!({"text": "x", "stream": true, "return_logprob": true, "top_logprobs_num": 20,
                      "sampling_params": {"max_new_tokens": 500}});
    let answer = house.post("/generate", body).await;
    let (events, done) = answer.events();
    assert!(done);
    let last = events.last().unwrap();
    assert_eq!(last["output_ids"].as_array().unwrap().len(), 451);
    assert_eq!(last["meta_info"]["output_top_logprobs"].as_array().unwrap().len(), 451);
    assert!(events.len() < 350, "{} events", events.len());
    let whole = last.to_string().len();
    assert!(answer.body.len() < 110 * whole, "{} bytes of {whole}", answer.body.len());
}

#[tokio::test]
async fn lists_that_no_request_needs_are_refused_before_they_are_kept() {
    let house = House::saying("a");
    let tools = vec![json!([]); 200_000];
    let answer = house.chat(json!({"tools": tools})).await;
    assert_eq!(answer.status, 400);
    let nested = json!({"chat_template_kwargs": {"a": vec![json!([]); 200_000]}});
    let answer = house.chat(nested).await;
    let (status, param, code) = answer.error();
    assert_eq!((status, code), (400, json!("invalid_type")));
    assert!(param.as_str().unwrap().starts_with("chat_template_kwargs.a["), "{param}");
    assert!(answer.body.contains("100000 JSON values"), "{}", answer.body);
    // The same inside of the arguments of a call, which are JSON in a string.
    let arguments = format!("{{\"a\": [{}]}}", vec!["[]"; 200_000].join(","));
    let messages = json!([{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]);
    let answer = house.chat(json!({"messages": messages})).await;
    assert_eq!(answer.status, 200, "they stay text: {}", answer.body);
}

#[tokio::test]
async fn a_request_holds_its_bytes_until_its_prompt_is_tokens() {
    let settings =
        Settings { body_bytes_max: 90_000, bodies_bytes_max: 100_000, ..Settings::default() };
    let house = std::sync::Arc::new(House::with(|_| Ok(say("a")), settings, json!({})));
    let count = || {
        let house = std::sync::Arc::clone(&house);
        let body = json!({"prompt": "x".repeat(60_000)});
        tokio::spawn(async move { house.post("/tokenize", body).await })
    };
    let gate = std::sync::Arc::clone(&house.model.text_gate);
    let closed = gate.acquire_many(8).await.unwrap();
    let first = count();
    // It has a place in the budget once the tokenizer is what it waits for.
    until("it never comes to the tokenizer", || {
        house.model.text_waiting.load(Ordering::SeqCst) == 1
    })
    .await;
    let refused = tokio::time::timeout(PATIENCE, count());
    let refused = refused.await.expect("it does not wait for the tokenizer").unwrap();
    assert_eq!(refused.error(), (503, Value::Null, json!("unavailable")));
    first.abort();
    assert!(first.await.is_err());
    drop(closed);
    assert_eq!(count().await.unwrap().json()["count"], 60_001, "the first gave its bytes back");
}

/// A model that was trained further: its tokenizer ends a turn with a token that its configuration does not name.
#[tokio::test]
async fn the_tokenizers_end_token_ends_a_generation() {
    let house = House::saying("a");
    house.chat(json!({})).await;
    assert_eq!(house.last().stop.stop_token_ids, [0; 0], "the model's own needs no word");
    let house = House::saying("a");
    let path = house.folder.path().join("tokenizer_config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, config.replace("\"<|im_end|>\"}", "\"<s>\"}")).unwrap();
    house.chat(json!({})).await;
    assert_eq!(house.last().stop.stop_token_ids, [support::BOS]);
    house.chat(json!({"ignore_eos": true})).await;
    assert_eq!(house.last().stop.stop_token_ids, [0; 0]);
}
