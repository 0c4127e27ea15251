//! Tool calls of a model whose weights are random: a grammar makes it call, in any dialect, and what comes are calls.

#![allow(clippy::unwrap_used)] // Helpers outside of #[test] functions are tests too.

use minisgl_proto::LoadOptions;
use minisgl_tests::{Daemon, dummy_folder, model_options};
use serde_json::{Value, json};

fn options(dialect: Option<&str>) -> LoadOptions {
    LoadOptions { dummy_weights: true, dialect: dialect.map(str::to_owned), ..model_options() }
}

fn daemon() -> Daemon {
    let daemon = Daemon::start();
    let dir = dummy_folder("qwen3", &daemon.dir());
    daemon.load("dummy", &dir, options(None));
    daemon
}

fn tools(strict: bool) -> Value {
    let weather = json!({"type": "object", "properties": {
        "city": {"type": "string", "enum": ["Ulm", "Paris"]}, "days": {"enum": [1, 3, 7]}},
        "required": ["city", "days"], "additionalProperties": false});
    json!([
        {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": weather, "strict": strict}},
        {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}, "additionalProperties": false}}},
    ])
}

fn chat(model: &str, more: Value) -> Value {
    let mut body = json!({
        "model": model, "messages": [{"role": "user", "content": "Who was Ada?"}], "temperature": 1.0, "max_tokens": 300,
        "tools": tools(false),
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// Checks a call, and gives its name.
fn check(call: &Value) -> String {
    assert_eq!(call["type"], "function", "{call}");
    assert!(call["id"].as_str().unwrap().len() >= 9, "{call}");
    let function = &call["function"];
    let arguments = function["arguments"].as_str().unwrap();
    let arguments: Value =
        serde_json::from_str(arguments).unwrap_or_else(|why| panic!("{why}: {arguments}"));
    match function["name"].as_str().unwrap() {
        "weather" => {
            assert!(arguments["city"] == "Ulm" || arguments["city"] == "Paris", "{call}");
            assert!([1, 3, 7].contains(&arguments["days"].as_i64().unwrap()), "{call}");
        }
        "now" => assert_eq!(arguments, json!({}), "{call}"),
        other => panic!("there is no tool {other}"),
    }
    function["name"].as_str().unwrap().to_owned()
}

/// The calls of a whole answer.
fn calls(daemon: &Daemon, body: &Value) -> Vec<Value> {
    called(&daemon.post("/v1/chat/completions", body).ok())
}

fn called(answer: &Value) -> Vec<Value> {
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
    assert_eq!(choice["message"]["content"], Value::Null, "{answer}");
    choice["message"]["tool_calls"].as_array().unwrap().clone()
}

#[test]
fn every_dialect_is_made_to_call() {
    let daemon = daemon();
    let dir = daemon.dir().join("qwen3");
    for dialect in [
        "gpt_oss",
        "gemma4",
        "kimi_k2",
        "deepseek_v3",
        "deepseek_v31",
        "minimax_m2",
        "mistral",
        "command",
        "nemotron",
        "glm",
        "granite",
        "phi4",
        "smollm3",
        "qwen3_coder",
        "hermes",
        "llama",
        "gemma3",
        "think",
        "plain",
    ] {
        let status = daemon.load(dialect, &dir, options(Some(dialect)));
        assert_eq!(status.dialect.as_deref(), Some(dialect));
        let named = json!({"type": "function", "function": {"name": "weather"}});
        let mut thoughts = 0;
        for seed in 1..=6 {
            let choice = if seed % 2 == 0 { named.clone() } else { json!("required") };
            let more = json!({"tool_choice": choice, "seed": seed, "parallel_tool_calls": false});
            let answer = daemon.post("/v1/chat/completions", &chat(dialect, more)).ok();
            // Harmony's thoughts are part of what a grammar makes, and random weights do not end one.
            let message = &answer["choices"][0]["message"];
            if dialect == "gpt_oss" && message["reasoning"].is_string() {
                thoughts += 1;
                continue;
            }
            let made = called(&answer);
            assert_eq!(made.len(), 1, "{dialect}");
            let name = check(&made[0]);
            assert!(choice == "required" || name == "weather", "{dialect}");
        }
        assert!(thoughts < 6, "{dialect}");
        daemon.unload(dialect, false);
    }
}

#[test]
fn a_stream_has_the_same_calls() {
    let daemon = daemon();
    for seed in 0..6 {
        let body = chat(
            "dummy",
            json!({"tool_choice": "required", "seed": seed, "parallel_tool_calls": false}),
        );
        let whole = calls(&daemon, &body);
        let mut streamed = body;
        streamed["stream"] = json!(true);
        let events = daemon.events("/v1/chat/completions", &streamed).rest().unwrap();
        let pieces = events.iter().filter_map(|event| {
            event["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"].as_str()
        });
        assert_eq!(pieces.collect::<String>(), whole[0]["function"]["arguments"].as_str().unwrap());
        assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    }
    daemon.assert_all_pages_back("dummy");
}

/// What may be said instead of calls has a form as well.
#[test]
fn a_form_goes_with_tools() {
    let daemon = daemon();
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 3}}, "required": ["n"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "p", "strict": true, "schema": schema}});
    let (mut called, mut said) = (0, 0);
    for seed in 0..24 {
        let more = json!({"response_format": format, "seed": seed, "parallel_tool_calls": false});
        let answer = daemon.post("/v1/chat/completions", &chat("dummy", more)).ok();
        let choice = &answer["choices"][0];
        match choice["finish_reason"].as_str().unwrap() {
            "tool_calls" => {
                check(&choice["message"]["tool_calls"][0]);
                called += 1;
            }
            "stop" => {
                let text = choice["message"]["content"].as_str().unwrap();
                let n = serde_json::from_str::<Value>(text).unwrap()["n"].as_i64().unwrap();
                assert!((1..=3).contains(&n), "{text}");
                said += 1;
            }
            _ => {}
        }
    }
    assert!(called > 0 && said > 0, "{called} calls, {said} answers");
}

#[test]
fn what_cannot_be_called_is_refused_by_name() {
    let daemon = daemon();
    let bad = json!([{"type": "function", "function": {"name": "a\nb", "parameters": {}}}]);
    let unique = json!([{"type": "function", "function": {"name": "f", "strict": true,
        "parameters": {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": true}}}}}]);
    for (more, param, told) in [
        (json!({"tools": bad, "tool_choice": "required"}), "tool_choice", "a\\nb"),
        (json!({"tools": unique, "tool_choice": "required"}), "tool_choice", "uniqueItems"),
        (json!({"tools": unique}), "tools", "uniqueItems"),
        (
            json!({"tool_choice": {"type": "function", "function": {"name": "g"}}}),
            "tool_choice",
            "\"g\"",
        ),
    ] {
        for stream in [false, true] {
            let mut more = more.clone();
            more["stream"] = json!(stream);
            let answer = daemon.post("/v1/chat/completions", &chat("dummy", more));
            let error = &answer.json()["error"];
            assert_eq!((answer.status, &error["param"]), (400, &json!(param)), "{error}");
            assert!(error["message"].as_str().unwrap().contains(told), "{error}");
        }
    }
}

/// A model of another load has another way, and one that nobody knows is refused.
#[test]
fn a_dialect_is_chosen_at_load() {
    let daemon = daemon();
    assert_eq!(daemon.status("dummy").dialect.as_deref(), Some("plain"));
    let dir = daemon.dir().join("qwen3").display().to_string();
    let run = daemon.ctl(&["load", &dir, "--name", "x", "--dialect", "klingon"]);
    let told = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(!run.status.success() && told.contains("klingon") && told.contains("hermes"), "{told}");
}
