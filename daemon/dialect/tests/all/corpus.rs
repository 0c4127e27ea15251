//! What real templates write of a call in a conversation is what a model writes, and is read as that call.
//!
//! `cargo xtask test` fetches the templates and says in `MINISGL_CORPUS` where the conversations are, as Jinja2 renders them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::support::{Item, parse};
use minisgl_dialect::{Checkpoint, Outcome, Tool, Tools, choose};
use serde_json::{Value, json};

/// Templates whose history is not what a model writes: an older one of Qwen3-Coder writes lists and objects in Python's notation.
const OTHERWISE: [&str; 1] = ["library/qwen3-coder:30b"];

fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => String::new(),
    }
}

#[test]
fn calls_of_real_templates_are_read() {
    let Some(path) = std::env::var_os("MINISGL_CORPUS") else {
        eprintln!("skipped: MINISGL_CORPUS is not set; `cargo xtask test` makes the corpus");
        return;
    };
    let corpus: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut read: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut wrong, mut otherwise) = (Vec::new(), BTreeSet::new());
    for template in corpus["templates"].as_array().unwrap() {
        let (file, text) =
            (template["name"].as_str().unwrap(), template["template"].as_str().unwrap());
        let dialect =
            choose(&Checkpoint { architecture: "", template: text, has_token: &|_| false });
        if matches!(dialect.name, "plain" | "think") {
            continue;
        }
        for case in template["conversations"].as_array().unwrap() {
            let messages = case["given"]["messages"].as_array().unwrap();
            let Some(rendered) = case["rendered"].as_str() else { continue };
            let calls: Vec<(String, Value)> = messages
                .iter()
                .flat_map(|message| message["tool_calls"].as_array().cloned().unwrap_or_default())
                .map(|call| {
                    let call = &call["function"];
                    let arguments = match &call["arguments"] {
                        Value::String(text) => serde_json::from_str(text).unwrap_or(json!({})),
                        Value::Null => json!({}),
                        other => other.clone(),
                    };
                    (call["name"].as_str().unwrap_or_default().to_string(), arguments)
                })
                .collect();
            let Some(first) = messages.iter().position(|message| message["tool_calls"].is_array())
            else {
                continue;
            };
            let asked_last = messages[..first].iter().rfind(|message| message["role"] == "user");
            let Some(user) = asked_last.map(|message| text_of(&message["content"])) else {
                continue;
            };
            let Some(at) = rendered.find(user.trim()) else { continue };
            // Arguments that came as text some templates write in quotes, and none at all as nothing, as no model does.
            let as_written = messages
                .iter()
                .flat_map(|message| message["tool_calls"].as_array().into_iter().flatten())
                .all(|call| call["function"]["arguments"].is_object());
            if calls.is_empty() || !as_written {
                continue;
            }
            let mut tools: Vec<Tool> = case["given"]["tools"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|tool| &tool["function"])
                .map(|tool| Tool {
                    name: tool["name"].as_str().unwrap().to_string(),
                    parameters: tool["parameters"].clone(),
                })
                .collect();
            for (name, _) in &calls {
                tools.push(Tool { name: name.clone(), parameters: Value::Null });
            }
            let mut asked = crate::support::asked(dialect, "");
            asked.tools = Arc::new(Tools::new(&tools));
            // From the user's last word on: what stands between is text to the parser, but where a call needs no marker.
            let output = &rendered[at + user.trim().len()..];
            // Some templates leave calls out of history.
            if !calls.iter().all(|(name, _)| output.contains(name.as_str())) {
                continue;
            }
            // Llama's marker of calls is none: each turn of its own.
            let headers: &[&str] = match dialect.name {
                "llama" => &["assistant<|end_header_id|>\n\n", "assistant<|header_end|>\n\n"],
                _ => &[],
            };
            let mut turns = vec![output];
            for header in headers {
                turns = turns.into_iter().flat_map(|turn| turn.split(header)).collect();
            }
            let mut found: Vec<(String, Value)> = Vec::new();
            for turn in turns {
                for item in parse(dialect, &asked, [turn]).0 {
                    if let Item::Call { name, json, outcome: Some(Outcome::Whole), .. } = item {
                        found.push((name, serde_json::from_str(&json).unwrap()));
                    }
                }
            }
            if found == calls {
                *read.entry(dialect.name).or_default() += 1;
            } else if OTHERWISE.contains(&file) {
                otherwise.insert(file);
            } else {
                wrong.push(format!(
                    "{file}, {} ({}):\n  {calls:?}\n  {found:?}\n  {output:?}",
                    case["name"], dialect.name
                ));
            }
        }
    }
    println!("calls of conversations that are read, by dialect: {read:?}");
    assert!(read.len() >= 14, "{read:?}");
    assert_eq!(
        otherwise,
        BTreeSet::from(OTHERWISE),
        "one is read now: it is no exception any more"
    );
    assert!(wrong.is_empty(), "{} are read otherwise:\n{}", wrong.len(), wrong.join("\n"));
}
