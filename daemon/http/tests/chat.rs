//! Chat completions through the whole router, on a scripted model.

mod support;

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
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 3);
}

#[tokio::test]
async fn a_stream() {
    let house = House::saying("héllo 🦀");
    let answer =
        house.chat(json!({"stream": true, "stream_options": {"include_usage": true}})).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    let (events, done) = answer.events();
    assert!(done);
    let delta = |event: &Value| event["choices"][0]["delta"].clone();
    assert_eq!(delta(&events[0]), json!({"role": "assistant", "content": ""}));
    let text: Vec<_> = events
        .iter()
        .filter_map(|event| delta(event)["content"].as_str().map(str::to_string))
        .filter(|text| !text.is_empty())
        .collect();
    assert_eq!(text, ["h", "é", "l", "l", "o", " ", "🦀"]);
    let last = &events[events.len() - 2];
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert_eq!(delta(last), json!({}));
    let usage = &events[events.len() - 1];
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], "héllo 🦀".len() + 1);
    assert!(events[..events.len() - 1].iter().all(|event| event["usage"].is_null()));
}
