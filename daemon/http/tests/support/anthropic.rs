//! What Anthropic's clients send, and how they read it.

use minisgl_http::Settings;
use serde_json::{Value, json};

use super::{Answer, House, Step, say, text_of};

/// Says by what markers calls and thoughts stand, opens a thought where it is told to, and shows calls and thoughts.
pub const TEMPLATE: &str = "{% if tools %}<tools>{{ tools | tojson }}</tools> <tool_call>{% endif %}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m['content'] }}{% for c in m.tool_calls or [] %}{{ '<tool_call>' + c.function | tojson + '</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}{% if effort %}{{ effort }}{% endif %}<|im_start|>assistant\n{% if enable_thinking %}<think>\n{% endif %}";

pub const OUTPUT: &str = "<think>\nIs it \"so\"?\n</think>\n\nI look. <tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Köln\"}}\n\
                      </tool_call>\n<tool_call>\n{\"name\": \"time\", \"arguments\": {}}\n</tool_call> There.";

pub fn house(steps: Vec<Step>) -> House {
    with(steps, Settings::default())
}

pub fn with(steps: Vec<Step>, settings: Settings) -> House {
    let house = House::with(move |_| Ok(steps.clone()), settings, json!({}));
    std::fs::write(house.folder.path().join("chat_template.jinja"), TEMPLATE).unwrap();
    house
}

pub fn saying(text: &str) -> House {
    house(say(text))
}

pub fn body(more: Value) -> Value {
    let mut body = json!({"model": "org/tiny", "max_tokens": 400, "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

pub async fn ask(house: &House, more: Value) -> Answer {
    house.post("/v1/messages?beta=true", body(more)).await
}

/// The prompt that the model got for this body.
pub async fn prompt(house: &House, more: Value) -> String {
    let answer = ask(house, more).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    text_of(&house.last().prompt)
}

pub fn tools() -> Value {
    let tool = |name: &str| json!({"name": name, "input_schema": {"type": "object"}});
    json!([tool("weather"), tool("time")])
}

/// The events of a stream, whose lines agree in their types.
pub fn events(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    let events = answer.body.split_terminator("\n\n").map(|event| {
        let (kind, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(data["type"], kind.strip_prefix("event: ").unwrap());
        data
    });
    events.collect()
}

/// The message that events make, as Anthropic's clients put it together; they come in the order that those want.
pub fn joined(events: &[Value]) -> Value {
    let mut message = Value::Null;
    let (mut open, mut json, mut stopped) = (None, String::new(), false);
    for event in events {
        assert!(!stopped, "nothing follows message_stop: {event}");
        let index = event["index"].as_u64().map(|index| index as usize);
        match event["type"].as_str().unwrap() {
            "ping" => {}
            "message_start" => {
                assert_eq!(message, Value::Null);
                message = event["message"].clone();
            }
            "content_block_start" => {
                let content = message["content"].as_array_mut().unwrap();
                assert_eq!((open, index), (None, Some(content.len())));
                content.push(event["content_block"].clone());
                (open, json) = (index, String::new());
            }
            "content_block_delta" => {
                assert!(open.is_some() && open == index, "{event}");
                let block = &mut message["content"][index.unwrap()];
                let delta = &event["delta"];
                let (kind, name) = match delta["type"].as_str().unwrap() {
                    "text_delta" => ("text", "text"),
                    "thinking_delta" => ("thinking", "thinking"),
                    "signature_delta" => ("thinking", "signature"),
                    "input_json_delta" => ("tool_use", "partial_json"),
                    other => panic!("{other}"),
                };
                assert_eq!(block["type"], kind);
                let more = delta[name].as_str().unwrap();
                assert!(!more.is_empty());
                match name {
                    "partial_json" => json += more,
                    // The last one counts.
                    "signature" => block[name] = more.into(),
                    _ => block[name] = (block[name].as_str().unwrap().to_owned() + more).into(),
                }
            }
            "content_block_stop" => {
                assert!(open.is_some() && open == index, "{event}");
                let block = &mut message["content"][index.unwrap()];
                if let Ok(input) = serde_json::from_str(&json)
                    && block["type"] == "tool_use"
                {
                    block["input"] = input;
                }
                open = None;
            }
            "message_delta" => {
                assert_eq!(open, None);
                let delta = event["delta"].as_object().unwrap().clone();
                message.as_object_mut().unwrap().extend(delta);
                let usage = event["usage"].as_object().unwrap().clone();
                message["usage"].as_object_mut().unwrap().extend(usage);
            }
            "message_stop" => stopped = true,
            other => panic!("{other}"),
        }
    }
    assert!(stopped);
    message
}

/// Without what no two answers share.
pub fn without_ids(mut message: Value) -> Value {
    let id = message["id"].take();
    assert!(id.as_str().unwrap().starts_with("msg_"), "{id}");
    for block in message["content"].as_array_mut().unwrap() {
        if block["type"] == "tool_use" {
            let id = block["id"].take();
            assert!(id.as_str().unwrap().len() > 8, "{id}");
        }
    }
    message
}

/// The message of both ways to answer, which must be the same.
pub async fn both(steps: &[Step], more: Value) -> Value {
    let mut more = more;
    let whole = ask(&house(steps.to_vec()), more.clone()).await;
    assert_eq!(whole.status, 200, "{}", whole.body);
    assert_eq!(whole.headers["content-type"], "application/json");
    more["stream"] = true.into();
    let streamed = joined(&events(&ask(&house(steps.to_vec()), more).await));
    let whole = without_ids(whole.json());
    assert_eq!(without_ids(streamed), whole);
    whole
}

/// Status and message of a refusal, in the form that Anthropic's clients read.
#[track_caller]
pub fn refusal(answer: &Answer) -> (u16, String) {
    let json = answer.json();
    assert_eq!(json["type"], "error", "{}", answer.body);
    let error = json["error"].as_object().unwrap();
    assert_eq!(error.keys().collect::<Vec<_>>(), ["type", "message"]);
    let kind = match answer.status.as_u16() {
        400 => "invalid_request_error",
        401 => "authentication_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        status => panic!("{status}: {}", answer.body),
    };
    assert_eq!(error["type"], kind);
    assert_eq!(answer.headers["request-id"], answer.headers["x-request-id"]);
    (answer.status.as_u16(), error["message"].as_str().unwrap().to_owned())
}
