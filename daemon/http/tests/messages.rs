//! Anthropic's messages through the whole router, on a scripted model that speaks as Qwen 3 does: answers.

#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod support;

use minisgl_http::Settings;
use minisgl_proto::Finish;
use serde_json::{Value, json};
use support::anthropic::{OUTPUT, ask, both, events, house, joined, prompt, saying, tools, with};
use support::{Step, say};

#[tokio::test]
async fn thoughts_calls_and_text_are_blocks_in_their_order() {
    let message = both(&say(OUTPUT), json!({"tools": tools()})).await;
    let content = json!([
        {"type": "thinking", "thinking": "Is it \"so\"?", "signature": "minisgl"},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": null, "name": "weather", "input": {"city": "Köln"}},
        {"type": "tool_use", "id": null, "name": "time", "input": {}},
        {"type": "text", "text": "There."},
    ]);
    assert_eq!(message["content"], content);
    assert_eq!(
        (&message["stop_reason"], &message["stop_sequence"]),
        (&json!("tool_use"), &Value::Null)
    );
    assert_eq!(
        (&message["type"], &message["role"], &message["model"]),
        (&json!("message"), &json!("assistant"), &json!("org/tiny"))
    );
    let usage = &message["usage"];
    assert_eq!(
        (&usage["cache_read_input_tokens"], &usage["cache_creation_input_tokens"]),
        (&json!(3), &json!(0))
    );
    assert_eq!(usage["output_tokens"], OUTPUT.len() + 1);
    // As for chat completions: of the opening marker the last byte alone shows what it is.
    let thought = ">\nIs it \"so\"?\n</think>".len();
    assert_eq!(usage["output_tokens_details"], json!({"thinking_tokens": thought}));
}

#[tokio::test]
async fn a_text_is_one_block_that_grows() {
    let house = saying("hé");
    let answer = ask(&house, json!({"stream": true})).await;
    let events = events(&answer);
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(
        kinds,
        [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
    );
    let prompt = house.last().prompt.len();
    // What came from the cache is not among the tokens of the input; clients add them up.
    let usage = json!({"input_tokens": prompt - 3, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 3,
                       "output_tokens": 0, "output_tokens_details": {"thinking_tokens": 0}});
    assert_eq!(events[0]["message"]["usage"], usage);
    assert_eq!(events[0]["message"]["content"], json!([]));
    assert_eq!(events[0]["message"]["stop_reason"], Value::Null);
    assert_eq!(events[1]["content_block"], json!({"type": "text", "text": ""}));
    assert_eq!(
        events[3],
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "é"}})
    );
    assert_eq!(events[5]["delta"], json!({"stop_reason": "end_turn", "stop_sequence": null}));
    assert_eq!(
        (&events[5]["usage"]["output_tokens"], &events[5]["usage"]["input_tokens"]),
        (&json!(4), &json!(prompt - 3))
    );
    assert!(!answer.body.contains("[DONE]"));
}

#[tokio::test]
async fn arguments_go_out_while_they_are_written() {
    let answer = ask(&saying(OUTPUT), json!({"tools": tools(), "stream": true})).await;
    let events = events(&answer);
    let count = |kind: &str| events.iter().filter(|event| event["delta"]["type"] == kind).count();
    assert!(count("input_json_delta") > 10 && count("thinking_delta") > 5);
    let begun = events.iter().filter(|event| event["content_block"]["type"] == "tool_use");
    assert!(begun.map(|event| &event["content_block"]["input"]).all(|input| *input == json!({})));
}

#[tokio::test]
async fn an_end_has_its_reason() {
    let reason =
        |message: &Value| (message["stop_reason"].clone(), message["stop_sequence"].clone());
    let message = both(&say("one STOP two"), json!({"stop_sequences": ["x", "STOP"]})).await;
    assert_eq!(reason(&message), (json!("stop_sequence"), json!("STOP")));
    assert_eq!(message["content"][0]["text"], "one ");
    let mut steps = say("ab");
    steps.truncate(1);
    steps.push(Step::Last(b'b'.into(), Finish::Length));
    let message = both(&steps, json!({"max_tokens": 2})).await;
    assert_eq!(
        (reason(&message), &message["content"][0]["text"]),
        ((json!("max_tokens"), Value::Null), &json!("ab"))
    );
    let message = both(&say(""), json!({})).await;
    assert_eq!(
        (reason(&message), &message["content"]),
        ((json!("end_turn"), Value::Null), &json!([]))
    );
}

#[tokio::test]
async fn a_call_that_is_cut_off_has_no_input() {
    let cut = OUTPUT.find("Köln").unwrap();
    let mut steps: Vec<Step> =
        OUTPUT.as_bytes()[..cut].iter().map(|&byte| Step::Token(byte.into())).collect();
    steps.push(Step::Last(b'K'.into(), Finish::Length));
    let message = both(&steps, json!({"tools": tools()})).await;
    assert_eq!(message["stop_reason"], "max_tokens");
    let call = &message["content"][2];
    assert_eq!((&call["name"], &call["input"]), (&json!("weather"), &json!({})));
}

/// Clients would run it without its arguments.
#[tokio::test]
async fn a_call_that_the_model_broke_off_is_told_as_text() {
    let cut = OUTPUT.find("ln\"}").unwrap();
    let calls = "<tool_call>\n{\"name\": \"time\", \"arguments\": {}}\n</tool_call>";
    for (before, reason) in [("", "end_turn"), (calls, "tool_use")] {
        let output = format!("{before}{}", &OUTPUT[OUTPUT.find("<tool_call>").unwrap()..cut]);
        let steps = say(&output);
        let whole = ask(&house(steps.clone()), json!({"tools": tools()})).await.json();
        let broken = whole["content"].as_array().unwrap().last().unwrap();
        assert_eq!(*broken, json!({"type": "text", "text": "weather {\"city\": \"Kö"}));
        assert_eq!(whole["stop_reason"], reason);
        // Of a stream, its block had begun: its JSON stays as it is.
        let answer = ask(&house(steps), json!({"tools": tools(), "stream": true})).await;
        let events = events(&answer);
        let said: String =
            events.iter().filter_map(|event| event["delta"]["partial_json"].as_str()).collect();
        assert!(said.ends_with("{\"city\": \"Kö"), "{said}");
        assert_eq!(joined(&events)["stop_reason"], reason);
    }
}

#[tokio::test]
async fn one_call_is_all_where_no_more_are_wanted() {
    let mut steps = say(OUTPUT);
    steps.pop();
    steps.push(Step::Hang);
    let choice = json!({"type": "auto", "disable_parallel_tool_use": true});
    let message = both(&steps, json!({"tools": tools(), "tool_choice": choice})).await;
    let kinds: Vec<&Value> =
        message["content"].as_array().unwrap().iter().map(|block| &block["type"]).collect();
    assert_eq!(kinds, ["thinking", "text", "tool_use"]);
    assert_eq!(message["stop_reason"], "tool_use");
}

/// A client sends it back with the calls' results, and the model goes on from it.
#[tokio::test]
async fn a_thought_that_is_not_shown_comes_back() {
    let thinking = json!({"type": "adaptive", "display": "omitted"});
    let message = both(&say(OUTPUT), json!({"tools": tools(), "thinking": thinking})).await;
    let thought = &message["content"][0];
    assert_eq!(
        (&thought["thinking"], &thought["signature"]),
        (&json!(""), &json!("minisgl:Is it \"so\"?"))
    );
    let messages = json!([
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": [thought, {"type": "text", "text": "Yes."}]},
        {"role": "user", "content": "and?"},
    ]);
    let prompt = prompt(&saying("a"), json!({"messages": messages})).await;
    assert!(prompt.contains("<think>Is it \"so\"?</think>Yes.<|im_end|>"), "{prompt}");
}

#[tokio::test]
async fn a_failure_on_the_way_is_an_event() {
    let mut steps = say("ab");
    steps.pop();
    steps.push(Step::Pause(std::time::Duration::from_millis(50)));
    steps.push(Step::End(Finish::Failed("out of luck".into())));
    let answer = ask(&house(steps), json!({"stream": true})).await;
    let events = events(&answer);
    let last = events.last().unwrap();
    assert_eq!((&last["type"], &last["error"]["type"]), (&json!("error"), &json!("api_error")));
    assert!(last["error"]["message"].as_str().unwrap().contains("out of luck"));
    assert!(!answer.body.contains("message_stop"));
}

#[tokio::test]
async fn silence_is_broken_by_pings() {
    let mut steps = vec![Step::Pause(std::time::Duration::from_millis(100))];
    steps.extend(say("a"));
    let settings = Settings {
        ping_interval: Some(std::time::Duration::from_millis(10)),
        ..Settings::default()
    };
    let answer = ask(&with(steps, settings), json!({"stream": true})).await;
    let events = events(&answer);
    assert_eq!(events[0], json!({"type": "ping"}));
    assert_eq!(joined(&events)["content"][0]["text"], "a");
}

#[tokio::test]
async fn a_request_of_server_tools_alone_is_answered_without_tools() {
    let search = json!([{"type": "web_search_20250305", "name": "web_search", "max_uses": 8}]);
    let more = json!({"tools": search, "tool_choice": {"type": "auto"}});
    let message = both(&say(OUTPUT), more).await;
    let content = message["content"].as_array().unwrap();
    assert_eq!(content.len(), 2, "without tools nothing is a call");
    assert!(content[1]["text"].as_str().unwrap().starts_with("I look. <tool_call>"));
    assert_eq!(message["stop_reason"], "end_turn");
}
