//! Chat completions through the whole router, on a scripted model.

#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod support;

use std::sync::atomic::Ordering;

use minisgl_http::Settings;
use minisgl_proto::Finish;
use serde_json::{Value, json};
use support::{House, IM_END, Step, say, text_of};

#[tokio::test]
async fn a_whole_answer() {
    let house = House::saying("héllo 🦀");
    let answer = house.chat(json!({})).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let json = answer.json();
    assert_eq!(json["object"], "chat.completion");
    assert_eq!(json["model"], "org/tiny");
    let choice = &json["choices"][0];
    assert_eq!(choice["message"]["content"], "héllo 🦀");
    assert_eq!(choice["finish_reason"], "stop");
    let prompt = house.last().prompt;
    assert_eq!(text_of(&prompt), "<s><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(prompt.iter().filter(|&&token| token == support::BOS).count(), 1);
    let usage = &json["usage"];
    assert_eq!(usage["prompt_tokens"], prompt.len());
    assert_eq!(usage["completion_tokens"], "héllo 🦀".len() + 1);
    assert_eq!(usage["total_tokens"], prompt.len() + "héllo 🦀".len() + 1);
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 3);
    assert_eq!(house.alive(), 0);
}

fn delta(event: &Value) -> &Value {
    &event["choices"][0]["delta"]
}

#[tokio::test]
async fn a_stream() {
    let house = House::saying("héllo 🦀");
    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    let answer = house.chat(more).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    let (events, done) = answer.events();
    assert!(done);
    assert_eq!(delta(&events[0]), &json!({"role": "assistant", "content": ""}));
    let text: Vec<_> = events.iter().filter_map(|event| delta(event)["content"].as_str()).collect();
    assert_eq!(text, ["", "h", "é", "l", "l", "o", " ", "🦀"]);
    let last = &events[events.len() - 2];
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert_eq!(delta(last), &json!({}));
    let usage = &events[events.len() - 1];
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], "héllo 🦀".len() + 1);
    assert!(events[..events.len() - 1].iter().all(|event| event["usage"].is_null()));
    assert!(events.iter().all(|event| event["id"] == events[0]["id"]));
}

#[tokio::test]
async fn without_options_a_stream_has_no_usage() {
    let (events, done) = House::saying("a").chat(json!({"stream": true})).await.events();
    assert!(done && events.iter().all(|event| event.get("usage").is_none()));
}

#[tokio::test]
async fn a_stop_string_ends_the_text_and_the_generation() {
    for stream in [false, true] {
        let mut steps: Vec<_> =
            "one 🦀 STOP".bytes().map(|byte| Step::Token(byte.into())).collect();
        steps.push(Step::Hang);
        let house = House::playing(steps);
        let answer = house.chat(json!({"stop": ["🦀 ST", "x"], "stream": stream})).await;
        let text = if stream {
            let (events, done) = answer.events();
            assert!(done);
            assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "stop");
            events.iter().filter_map(|event| delta(event)["content"].as_str()).collect()
        } else {
            let json = answer.json();
            assert_eq!(json["choices"][0]["finish_reason"], "stop");
            assert_eq!(json["usage"]["completion_tokens"], "one 🦀 ST".len());
            json["choices"][0]["message"]["content"].as_str().unwrap().to_string()
        };
        assert_eq!(text, "one ");
        house.quiet().await;
    }
}

#[tokio::test]
async fn a_held_back_start_of_a_stop_string_is_delivered_at_the_end() {
    let house = House::saying("a ST");
    let answer = house.chat(json!({"stop": "STOP"})).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], "a ST");
    let mut steps = say("ab\u{0}");
    steps.truncate(2);
    steps.push(Step::Last(0xc3, Finish::Length));
    let answer = House::playing(steps).chat(json!({"stop": "bX", "max_tokens": 3})).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], "ab\u{fffd}");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn stop_strings_can_be_included_and_wait_for_min_tokens() {
    let house = House::saying("a.b.c.d");
    let more = json!({"stop": ".", "include_stop_str_in_output": true});
    assert_eq!(house.chat(more).await.json()["choices"][0]["message"]["content"], "a.");
    let more = json!({"stop": ".", "min_tokens": 3});
    assert_eq!(house.chat(more).await.json()["choices"][0]["message"]["content"], "a.b");
    assert_eq!(house.last().stop.min_tokens, 3);
}

#[tokio::test]
async fn several_choices_have_seeds_of_their_own() {
    let house = House::new(|request| Ok(say(if request.sampling.seed == 5 { "a" } else { "b" })));
    let answer = house.chat(json!({"n": 3, "seed": 5})).await.json();
    let choices = answer["choices"].as_array().unwrap();
    let text = |index: usize| choices[index]["message"]["content"].as_str().unwrap();
    assert_eq!((text(0), text(1), text(2)), ("a", "b", "b"));
    let seeds: Vec<_> =
        house.model.submitted.lock().unwrap().iter().map(|r| r.sampling.seed).collect();
    assert!(seeds[0] == 5 && seeds[1] != seeds[2]);
    let usage = &answer["usage"];
    assert_eq!(usage["prompt_tokens"], house.last().prompt.len());
    assert_eq!(usage["completion_tokens"], 6);
    let (events, done) = house.chat(json!({"n": 2, "stream": true, "seed": 5})).await.events();
    assert!(done);
    for choice in 0..2 {
        let of_it: Vec<_> = events.iter().filter(|e| e["choices"][0]["index"] == choice).collect();
        assert_eq!(delta(of_it[0])["role"], "assistant");
        assert_eq!(delta(of_it[1])["content"], if choice == 0 { "a" } else { "b" });
        assert_eq!(of_it[2]["choices"][0]["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn seeds_differ_when_nobody_chose() {
    let house = House::saying("a");
    house.chat(json!({})).await;
    house.chat(json!({})).await;
    let submitted = house.model.submitted.lock().unwrap();
    assert_ne!(submitted[0].sampling.seed, submitted[1].sampling.seed);
}

#[tokio::test]
async fn log_probabilities() {
    let house = House::saying("aé");
    let more = json!({"logprobs": true, "top_logprobs": 2});
    let answer = house.chat(more).await.json();
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(content.len(), 3, "the end-of-sequence token is not part of the text");
    assert_eq!(content[0]["token"], "a");
    assert_eq!(content[0]["bytes"], json!([97]));
    assert!((content[0]["logprob"].as_f64().unwrap() + 0.97).abs() < 1e-6);
    assert_eq!(content[0]["top_logprobs"][1]["token"], "b");
    assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 2);
    assert_eq!(content[1]["token"], "\\xc3");
    assert_eq!(content[1]["bytes"], json!([0xc3]));
    let more = json!({"logprobs": true, "stream": true});
    let (events, _) = house.chat(more).await.events();
    let tokens: Vec<usize> = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array())
        .map(Vec::len)
        .collect();
    assert_eq!(tokens, [1, 2], "both halves come with the whole character");
}

#[tokio::test]
async fn sampling_fields_reach_the_model() {
    let config = json!({"temperature": 0.6, "top_k": 20, "top_p": 0.95, "do_sample": true});
    let settings = Settings { client_priority: true, ..Settings::default() };
    let house = House::with(|_| Ok(say("a")), settings, config);
    house.chat(json!({})).await;
    let request = house.last();
    assert_eq!((request.sampling.temperature, request.sampling.top_k), (0.6, 20));
    assert_eq!(request.stop.max_tokens, support::MAX_LEN - request.prompt.len() as u32);
    let more = json!({
        "temperature": 0, "top_p": 0.5, "top_k": -1, "min_p": 0.1, "repetition_penalty": 1.1,
        "presence_penalty": -1, "frequency_penalty": 2, "logit_bias": {"7": -100, "8": 1.5},
        "seed": -1, "stop_token_ids": [9], "ignore_eos": true, "min_tokens": 2, "priority": 3,
        "allowed_token_ids": [7, 8], "bad_words": ["ab", "  b"],
        "max_completion_tokens": 5, "max_tokens": null, "user": "u", "unknown": {"a": 1},
        "response_format": {"type": "text"}, "tool_choice": "auto", "parallel_tool_calls": true,
    });
    assert_eq!(house.chat(more).await.status, 200);
    let request = house.last();
    let s = &request.sampling;
    assert_eq!((s.temperature, s.top_p, s.top_k, s.min_p), (0.0, 0.5, 0, 0.1));
    assert_eq!((s.repetition_penalty, s.presence_penalty, s.frequency_penalty), (1.1, -1.0, 2.0));
    assert_eq!((&s.logit_bias[..], s.seed), (&[(7, -100.0), (8, 1.5)][..], u64::MAX));
    assert_eq!(s.allowed_token_ids, [7, 8]);
    let words = ["ab", "b"].map(|word| (word.as_bytes(), [b" ", word.as_bytes()].concat()));
    for (plain, spaced) in words {
        let ids = |text: &[u8]| text.iter().map(|&byte| u32::from(byte)).collect::<Vec<_>>();
        assert!(s.bad_words.contains(&ids(plain)) && s.bad_words.contains(&ids(&spaced)));
    }
    assert_eq!(s.bad_words.len(), 4, "each with a space in front and without");
    assert_eq!(request.stop.stop_token_ids, [9]);
    assert!(request.stop.ignore_eos && request.priority == 3);
    assert_eq!((request.stop.max_tokens, request.stop.min_tokens), (5, 2));
    house.chat(json!({"temperature": 1e-9})).await;
    assert_eq!(house.last().sampling.temperature, 0.0);
}

#[tokio::test]
async fn messages_come_in_many_forms() {
    let house = House::saying("a");
    let messages = json!([
        {"role": "system", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]},
        {"role": "assistant", "content": null, "tool_calls": null},
        {"role": "user", "content": "ü"},
    ]);
    let tools =
        json!([{"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": 2}}}]);
    let answer = house.chat(json!({"messages": messages, "tools": tools})).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let expected = "<s><|im_start|>system\nx\ny<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n\
                    <|im_start|>user\nü<|im_end|>\n[[{\"type\": \"function\", \"function\": \
                    {\"name\": \"f\", \"parameters\": {\"b\": 1, \"a\": 2}}}]]<|im_start|>assistant\n";
    assert_eq!(text_of(&house.last().prompt), expected);
    house.chat(json!({"tools": tools, "tool_choice": "none"})).await;
    assert!(!text_of(&house.last().prompt).contains('['));
}

#[tokio::test]
async fn special_tokens_show_when_asked_for() {
    let steps = vec![Step::Token(IM_END), Step::Last(97, Finish::Length)];
    let house = House::playing(steps);
    let more = json!({"skip_special_tokens": false, "ignore_eos": true});
    assert_eq!(house.chat(more).await.json()["choices"][0]["message"]["content"], "<|im_end|>a");
    assert_eq!(house.chat(json!({})).await.json()["choices"][0]["message"]["content"], "a");
}

#[tokio::test]
async fn a_model_loaded_again_is_read_again() {
    let house = House::saying("a");
    house.chat(json!({})).await;
    std::fs::write(house.folder.path().join("chat_template.jinja"), "new").unwrap();
    house.chat(json!({})).await;
    assert_ne!(text_of(&house.last().prompt), "new", "files are read once");
    house.backend.generation.fetch_add(1, Ordering::SeqCst);
    house.chat(json!({})).await;
    assert_eq!(text_of(&house.last().prompt), "new");
}

#[tokio::test]
async fn reasoning_effort_is_a_variable_of_the_template() {
    let house = House::saying("a");
    let template = "{{ reasoning_effort | default('none given') }}";
    std::fs::write(house.folder.path().join("chat_template.jinja"), template).unwrap();
    for (more, expected) in [
        (json!({}), "none given"),
        (json!({"reasoning_effort": "low"}), "low"),
        (
            json!({"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "x"}}),
            "x",
        ),
    ] {
        assert_eq!(house.chat(more).await.status, 200);
        assert_eq!(text_of(&house.last().prompt), expected);
    }
}

#[tokio::test]
async fn integers_of_any_size_reach_the_template_as_in_python() {
    let house = House::saying("a");
    let template = "{{ tools | tojson }} {{ x }} {{ messages[1].tool_calls[0].function.arguments }} \
                    {{ messages[1].tool_calls[1].function.arguments.n + 1 }}";
    std::fs::write(house.folder.path().join("chat_template.jinja"), template).unwrap();
    let body = r#"{"model": "org/tiny", "seed": 7.0,
        "messages": [{"role": "user", "content": "Hi 123456789012345678901234567890"},
            {"role": "assistant", "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f",
                    "arguments": "{\"n\": 1000000000000000000000000000000000000000000001, \"s\": \"99999999999999999999\"}"}},
                {"id": "2", "type": "function", "function": {"name": "f",
                    "arguments": {"n": 340282366920938463463374607431}}}]}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {
            "maximum": 18446744073709551616, "minimum": -9223372036854775809, "zero": -0, "f": -0.0,
            "most": 115792089237316195423570985008687907853269984665640564039457584007913129639935}}}],
        "chat_template_kwargs": {"x": [-123456789012345678901234567890, 18446744073709551615, 1e22]}}"#;
    let answer = house.post_bytes("/v1/chat/completions", body.as_bytes().to_vec()).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    // What Jinja2 makes of json.loads(body).
    let expected = "[{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {\"maximum\": 18446744073709551616, \
        \"minimum\": -9223372036854775809, \"zero\": 0, \"f\": -0.0, \
        \"most\": 115792089237316195423570985008687907853269984665640564039457584007913129639935}}}] \
        [-123456789012345678901234567890, 18446744073709551615, 1e+22] \
        {'n': 1000000000000000000000000000000000000000000001, 's': '99999999999999999999'} \
        340282366920938463463374607432";
    assert_eq!(text_of(&house.last().prompt), expected);
    // A field that is no template's is read as before.
    let refused = house.post_bytes(
        "/v1/chat/completions",
        br#"{"model": "org/tiny", "messages": [{"role": "user", "content": "a"}], "seed": 18446744073709551616}"#
            .to_vec(),
    );
    assert!(refused.await.body.contains("is not a whole number"));
}
