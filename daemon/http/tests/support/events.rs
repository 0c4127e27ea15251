//! Events of a response, joined as OpenAI's clients join them, and held to what the response says at the end.

use serde_json::{Value, json};

/// The events of a stream. Each is held to those before it, and what they make to the last one.
#[track_caller]
pub fn told(stream: &str) -> Vec<Value> {
    let mut events = Vec::new();
    for block in stream.split("\n\n").filter(|block| !block.is_empty()) {
        let (name, data) = block.split_once('\n').unwrap_or_else(|| panic!("{block:?}"));
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
        assert_eq!(data["sequence_number"], events.len());
        events.push(data);
    }
    let output = joined(&events);
    let last = events.last().unwrap();
    assert_eq!(last["response"]["output"], output, "what was told is what is said at the end");
    events
}

fn append(text: &mut Value, more: &Value) {
    *text = format!("{}{}", text.as_str().unwrap(), more.as_str().unwrap()).into();
}

/// The items that events make.
#[track_caller]
fn joined(events: &[Value]) -> Value {
    let mut output: Vec<Value> = Vec::new();
    let mut done = 0;
    for (at, event) in events.iter().enumerate() {
        let kind = event["type"].as_str().unwrap().strip_prefix("response.").unwrap();
        if let "created" | "in_progress" | "completed" | "incomplete" | "failed" = kind {
            assert_eq!((kind == "created", kind == "in_progress"), (at == 0, at == 1), "{kind}");
            assert!(at < 2 || at + 1 == events.len(), "{kind} is the end");
            continue;
        }
        let index = event["output_index"].as_u64().unwrap() as usize;
        if kind == "output_item.added" {
            assert_eq!((index, done), (output.len(), output.len()), "one at a time");
            output.push(event["item"].clone());
            continue;
        }
        let item = &mut output[index];
        if kind == "output_item.done" {
            let said = &event["item"];
            // What stands in the last event alone.
            item["status"] = said["status"].clone();
            if let Some(kept) = said.get("encrypted_content") {
                item["encrypted_content"] = kept.clone();
            }
            assert_eq!(item, said);
            done += 1;
            continue;
        }
        assert_eq!(event["item_id"], item["id"], "{kind}");
        let (content, part) = ("content", &event["part"]);
        match kind {
            "content_part.added" => item[content].as_array_mut().unwrap().push(part.clone()),
            "reasoning_summary_part.added" => {
                item["summary"].as_array_mut().unwrap().push(part.clone());
            }
            "output_text.delta" | "reasoning_text.delta" => {
                let part = &mut item[content][event["content_index"].as_u64().unwrap() as usize];
                append(&mut part["text"], &event["delta"]);
                if let Some(scores) = event["logprobs"].as_array() {
                    part["logprobs"].as_array_mut().unwrap().extend(scores.clone());
                }
            }
            "reasoning_summary_text.delta" => {
                let place = event["summary_index"].as_u64().unwrap() as usize;
                append(&mut item["summary"][place]["text"], &event["delta"]);
            }
            "function_call_arguments.delta" => append(&mut item["arguments"], &event["delta"]),
            "custom_tool_call_input.delta" => append(&mut item["input"], &event["delta"]),
            "output_text.done" | "reasoning_text.done" => {
                assert_eq!(event["text"], item[content][0]["text"]);
            }
            "content_part.done" => assert_eq!(*part, item[content][0]),
            "reasoning_summary_text.done" => assert_eq!(event["text"], item["summary"][0]["text"]),
            "reasoning_summary_part.done" => assert_eq!(*part, item["summary"][0]),
            "function_call_arguments.done" => {
                assert_eq!(
                    (&event["arguments"], &event["name"]),
                    (&item["arguments"], &item["name"])
                );
            }
            "custom_tool_call_input.done" => assert_eq!(event["input"], item["input"]),
            other => panic!("{other} is no event that is known"),
        }
    }
    // Of a stream that broke off, the last item was never done.
    if done < output.len() {
        let last = output.last_mut().unwrap();
        last["status"] = json!("incomplete");
    }
    output.into()
}

/// A response without what differs from one to the next: ids and times.
pub fn same(response: &Value) -> Value {
    let mut response = response.clone();
    for field in ["id", "created_at", "completed_at"] {
        assert!(!response[field].take().is_null(), "{field}");
    }
    for item in response["output"].as_array_mut().unwrap() {
        assert!(!item["id"].take().is_null());
        if item.get("call_id").is_some() {
            item["call_id"].take();
        }
    }
    response
}
