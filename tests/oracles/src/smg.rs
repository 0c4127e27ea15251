//! `tool-parser` and `reasoning-parser`, as a gateway runs them: thoughts first, then calls in what is left.
//!
//! Owns: which of their parsers a dialect has. Must never: mend what they say.

use std::collections::BTreeMap;

use openai_protocol::common::Tool;
use reasoning_parser::{ParserFactory as Thoughts, ReasoningParser};
use serde_json::{Value, json};
use tool_parser::{ParserFactory as Calls, ToolParser, types::ToolCallItem};

/// Dialect, parsers of calls (each is run), parser of thoughts.
const PARSERS: &[(&str, &[&str], &str)] = &[
    ("command", &["cohere"], "cohere_cmd"),
    ("deepseek_v3", &["deepseek"], "deepseek_v31"),
    ("deepseek_v31", &["deepseek31"], "deepseek_v31"),
    ("gemma3", &["pythonic", "json"], ""),
    ("gemma4", &["gemma4"], "gemma4"),
    ("glm", &["glm45_moe", "glm47_moe"], "glm45"),
    ("granite", &["qwen"], ""),
    ("hermes", &["qwen"], "qwen3"),
    ("kimi_k2", &["kimik2"], "kimi_thinking"),
    ("llama", &["llama", "pythonic", "json"], ""),
    ("minimax_m2", &["minimax_m2"], "qwen3"),
    ("mistral", &["mistral"], ""),
    ("nemotron", &["nemotron"], "qwen3"),
    ("plain", &["qwen"], ""),
    ("qwen3_coder", &["qwen_xml"], "qwen3"),
    ("smollm3", &["qwen"], "qwen3"),
    ("think", &["qwen"], "qwen3"),
];

type Said = Result<(String, String, Vec<(String, String)>), String>;

fn thoughts(name: &str, in_thought: bool) -> Option<Box<dyn ReasoningParser>> {
    let mut parser =
        (!name.is_empty()).then(|| Thoughts::new().registry().create_parser(name))??;
    if in_thought {
        parser.mark_reasoning_started();
    }
    Some(parser)
}

fn error(e: impl std::fmt::Display) -> String {
    e.to_string()
}

async fn whole(
    output: &str,
    tools: &[Tool],
    calls: &dyn ToolParser,
    thoughts: Option<Box<dyn ReasoningParser>>,
) -> Said {
    let (text, thought) = match thoughts {
        None => (output.to_string(), String::new()),
        Some(mut parser) => {
            let read = parser.detect_and_parse_reasoning(output).map_err(error)?;
            (read.normal_text, read.reasoning_text)
        }
    };
    let (text, calls) = calls.parse_complete_with_tools(&text, tools).await.map_err(error)?;
    let calls = calls.into_iter().map(|call| (call.function.name, call.function.arguments));
    Ok((text, thought, calls.collect()))
}

async fn streamed(
    mut pieces: Vec<String>,
    tools: &[Tool],
    calls: &mut dyn ToolParser,
    mut thoughts: Option<Box<dyn ReasoningParser>>,
) -> Said {
    let (mut text, mut thought) = (String::new(), String::new());
    let mut read: BTreeMap<usize, (String, String)> = BTreeMap::new();
    let mut take = |items: Vec<ToolCallItem>| {
        for item in items {
            let call = read.entry(item.tool_index).or_default();
            call.0.push_str(&item.name.unwrap_or_default());
            call.1.push_str(&item.parameters);
        }
    };
    pieces.push(String::new());
    for piece in &pieces {
        let is_last = piece.is_empty();
        let plain = match &mut thoughts {
            None => piece.clone(),
            Some(parser) => {
                let read = if is_last {
                    parser.flush()
                } else {
                    parser.parse_reasoning_streaming_incremental(piece)
                };
                let read = read.map_err(error)?;
                thought.push_str(&read.reasoning_text);
                read.normal_text
            }
        };
        if !plain.is_empty() {
            let result = calls.parse_incremental(&plain, tools).await.map_err(error)?;
            text.push_str(&result.normal_text);
            take(result.calls);
        }
    }
    take(calls.get_unstreamed_tool_args().unwrap_or_default());
    text.push_str(&calls.take_unstreamed_normal_text());
    Ok((text, thought, read.into_values().collect()))
}

/// A text as tokens would bring it: markers whole, words, and all else a character at a time.
fn tokens(text: &str, markers: &[&str]) -> Vec<String> {
    let (mut pieces, mut rest) = (Vec::new(), text);
    while let Some(first) = rest.chars().next() {
        let marker =
            markers.iter().filter(|marker| rest.starts_with(**marker)).map(|m| m.len()).max();
        let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let (piece, behind) = rest.split_at(marker.unwrap_or(word.max(first.len_utf8())));
        pieces.push(piece.to_string());
        rest = behind;
    }
    pieces
}

fn value(said: Said) -> Value {
    match said {
        Err(error) => json!({"error": error}),
        Ok((text, thought, calls)) => {
            let calls: Vec<Value> = calls
                .into_iter()
                .map(|(name, arguments)| json!({"name": name, "arguments": arguments}))
                .collect();
            json!({"text": text, "thought": thought, "calls": calls})
        }
    }
}

/// What they read of all cases.
pub fn run(recorded: &Value) -> Value {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let tools: Vec<Tool> = recorded["tools"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|tool| {
            let parameters =
                if tool["parameters"].is_null() { json!({}) } else { tool["parameters"].clone() };
            let function = json!({"name": tool["name"], "parameters": parameters});
            serde_json::from_value(json!({"type": "function", "function": function}))
                .expect("a tool")
        })
        .collect();
    let mut results = Vec::new();
    for (index, case) in recorded["cases"].as_array().into_iter().flatten().enumerate() {
        let output = case["output"].as_str().unwrap_or_default();
        let in_thought = case["in_thought"] == true;
        let Some((_, parsers, thinks)) =
            PARSERS.iter().find(|(name, ..)| case["dialect"] == **name)
        else {
            continue;
        };
        let markers = recorded["markers"][&case["dialect"].as_str().unwrap_or_default()]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let markers: Vec<&str> = markers.iter().filter_map(Value::as_str).collect();
        for name in *parsers {
            let make = || Calls::new().registry().create_parser(name).expect("a parser");
            let at_once =
                runtime.block_on(whole(output, &tools, &*make(), thoughts(thinks, in_thought)));
            let stream = |pieces| {
                value(runtime.block_on(streamed(
                    pieces,
                    &tools,
                    &mut *make(),
                    thoughts(thinks, in_thought),
                )))
            };
            let by_token = stream(tokens(output, &markers));
            let by_char = stream(output.chars().map(String::from).collect());
            results.push(json!({"case": index, "parser": name, "whole": value(at_once), "tokens": by_token, "chars": by_char}));
        }
    }
    json!({"of": "tool-parser and reasoning-parser 1.10", "results": results})
}
