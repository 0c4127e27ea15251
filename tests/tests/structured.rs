//! Outputs that follow a grammar, from a model whose weights are random: whatever it would say, it says what was asked for.

#![allow(clippy::unwrap_used)] // Helpers outside of #[test] functions are tests too.

use std::time::{Duration, Instant};

use minisgl_proto::LoadOptions;
use minisgl_tests::{Daemon, dummy_folder, model_options, paths};
use serde_json::{Value, json};

fn daemon() -> Daemon {
    let daemon = Daemon::start();
    let dir = dummy_folder("qwen3", &daemon.dir());
    daemon.load("dummy", &dir, LoadOptions { dummy_weights: true, ..model_options() });
    daemon
}

fn chat(more: Value) -> Value {
    let mut body = json!({
        "model": "dummy", "messages": [{"role": "user", "content": "Who was Ada?"}], "temperature": 1.5, "max_tokens": 400,
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// The text of a whole answer that has ended by itself.
fn content(daemon: &Daemon, more: Value) -> String {
    let answer = daemon.post("/v1/chat/completions", &chat(more)).ok();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "stop", "{answer}");
    choice["message"]["content"].as_str().unwrap().to_owned()
}

fn person_schema() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Person", "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20, "description": "in full"},
            "born": {"type": "integer", "minimum": 1800, "maximum": 1900},
            "likes": {"type": "array", "items": {"$ref": "#/$defs/like"}, "maxItems": 2},
        },
        "required": ["name", "born", "likes"], "additionalProperties": false,
        "$defs": {"like": {"enum": ["music", "numbers"]}},
    })
}

fn check(text: &str) {
    let person: Value = serde_json::from_str(text).unwrap_or_else(|why| panic!("{why}: {text}"));
    let fields = person.as_object().unwrap();
    // In the order of the schema as it was sent.
    let sent = person_schema();
    let order: Vec<&String> = sent["properties"].as_object().unwrap().keys().collect();
    assert_eq!(fields.keys().collect::<Vec<_>>(), order, "{text}");
    assert!(fields["name"].as_str().unwrap().chars().count() <= 20, "{text}");
    assert!((1800..=1900).contains(&fields["born"].as_i64().unwrap()), "{text}");
    let likes = fields["likes"].as_array().unwrap();
    assert!(likes.len() <= 2 && likes.iter().all(|l| l == "music" || l == "numbers"), "{text}");
}

fn strict(schema: &Value) -> Value {
    let format = json!({"type": "json_schema", "json_schema": {"name": "p", "strict": true, "schema": schema}});
    json!({"response_format": format})
}

#[test]
fn random_weights_say_what_the_schema_says() {
    let daemon = daemon();
    for seed in 0..12 {
        let mut more = strict(&person_schema());
        more["seed"] = json!(seed);
        let answer = daemon.post("/v1/chat/completions", &chat(more.clone())).ok();
        let choice = &answer["choices"][0];
        let text = choice["message"]["content"].as_str().unwrap();
        assert_eq!(choice["finish_reason"], "stop", "{answer}");
        check(text);
        // A stream says the same.
        more["stream"] = json!(true);
        let events = daemon.events("/v1/chat/completions", &chat(more)).rest().unwrap();
        let deltas = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str());
        assert_eq!(deltas.collect::<String>(), text);
    }
    daemon.assert_all_pages_back("dummy");
}

#[test]
fn every_dialect_of_asking_is_held_to() {
    let daemon = daemon();
    let names = json!(["Ada", "Grace \"Amazing\"", "\u{c9}milie"]);
    let is_name = |text: &str| names.as_array().unwrap().iter().any(|name| name == text);
    let dates = |text: &str| text.len() == 10 && text[..4].parse::<u32>().is_ok();
    let date = "[0-9]{4}-[01][0-9]-[0-3][0-9]";
    let ebnf = "root ::= \"<\" [a-c]{2,4} \">\"";
    let is_ebnf = |text: &str| {
        let inner = text.strip_prefix('<').and_then(|rest| rest.strip_suffix('>'));
        inner.is_some_and(|inner| {
            (2..=4).contains(&inner.len()) && inner.bytes().all(|b| b"abc".contains(&b))
        })
    };
    for seed in 0..4 {
        let with = |mut more: Value| {
            more["seed"] = json!(seed);
            content(&daemon, more)
        };
        assert!(is_name(&with(json!({"guided_choice": names}))));
        assert!(is_name(&with(json!({"structured_outputs": {"choice": names}}))));
        assert!(dates(&with(json!({"guided_regex": date}))));
        assert!(dates(&with(json!({"regex": date}))));
        assert!(is_ebnf(&with(json!({"ebnf": ebnf}))));
        assert!(is_ebnf(&with(json!({"guided_grammar": "start: \"<\" /[a-c]{2,4}/ \">\""}))));
        let number = with(json!({"guided_json": {"type": "integer", "minimum": 3, "maximum": 17}}));
        assert!((3..=17).contains(&number.parse::<i32>().unwrap()), "{number}");
    }
    // Text with tags in it, or tags alone.
    let tag = json!({
        "type": "structural_tag", "triggers": ["<date>"],
        "structures": [{"begin": "<date>", "schema": {"type": "string", "pattern": format!("^{date}$")}, "end": "</date>"}],
    });
    let must = json!({
        "type": "structural_tag",
        "format": {"type": "tag", "begin": "<date>", "content": {"type": "regex", "pattern": date}, "end": "</date>"},
    });
    let tagged = |text: &str, quote: &str| {
        let inner = text.strip_prefix(&format!("<date>{quote}"));
        inner.and_then(|rest| rest.strip_suffix(&format!("{quote}</date>"))).is_some_and(dates)
    };
    for more in [
        json!({"response_format": must}),
        json!({"structural_tag": must.to_string()}),
        json!({"structured_outputs": {"structural_tag": must.to_string()}}),
    ] {
        let text = content(&daemon, more);
        assert!(tagged(&text, ""), "{text}");
    }
    let format = json!({
        "type": "triggered_tags", "triggers": tag["triggers"], "at_least_one": true, "stop_after_first": true,
        "tags": [{"begin": "<date>", "content": {"type": "json_schema", "json_schema": tag["structures"][0]["schema"]}, "end": "</date>"}],
    });
    let one = json!({"type": "structural_tag", "format": format});
    let text = content(&daemon, json!({"response_format": one}));
    assert!(tagged(&text, "\""), "{text}");
    let free = chat(json!({"response_format": tag, "max_tokens": 12}));
    let answer = daemon.post("/v1/chat/completions", &free).ok();
    assert!(!answer["choices"][0]["message"]["content"].as_str().unwrap().is_empty(), "{answer}");
    // The other surfaces, and several at once.
    let body = json!({"model": "dummy", "prompt": ["a", "b"], "n": 3, "temperature": 2.0, "max_tokens": 50, "guided_choice": names});
    let answer = daemon.post("/v1/completions", &body).ok();
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 6);
    assert!(choices.iter().all(|choice| is_name(choice["text"].as_str().unwrap())), "{answer}");
    let params = json!({"regex": date, "max_new_tokens": 50, "temperature": 1.0});
    let answer = daemon.post("/generate", &json!({"text": "a", "sampling_params": params})).ok();
    assert!(dates(answer["text"].as_str().unwrap()), "{answer}");
}

/// Qwen 3's tokenizer has a token that opens a thought.
#[test]
fn a_model_that_is_told_not_to_think_opens_no_thought() {
    let daemon = Daemon::start();
    let dir = paths::dummy_folder_with("agent", &paths::tokenizer("qwen3"), &daemon.dir());
    let options =
        LoadOptions { dummy_weights: true, dialect: Some("hermes".into()), ..model_options() };
    daemon.load("dummy", &dir, options);
    let thoughts = |more: Value| {
        let thinks_in = |seed: u32| {
            let mut body = chat(json!({"regex": "[a-c]{3}", "seed": seed, "max_tokens": 12}));
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let answer = daemon.post("/v1/chat/completions", &body).ok();
            !answer["choices"][0]["message"]["reasoning_content"].is_null()
        };
        (0..16).filter(|&seed| thinks_in(seed)).count()
    };
    assert!(thoughts(json!({})) > 0, "else this test says nothing");
    assert_eq!(thoughts(json!({"enable_thinking": false})), 0);
    assert_eq!(thoughts(json!({"reasoning_effort": "none"})), 0);
}

#[test]
fn what_cannot_be_held_to_is_refused_before_the_stream() {
    let daemon = daemon();
    for (more, param, told) in [
        (strict(&json!({"type": "array", "uniqueItems": true})), "response_format", "uniqueItems"),
        (json!({"guided_regex": "(a"}), "guided_regex", "regular expression"),
        (json!({"guided_grammar": "root ::= x"}), "guided_grammar", "no rule x"),
        (json!({"guided_regex": "a".repeat(300_000)}), "guided_regex", "the limit is 262144"),
    ] {
        for stream in [false, true] {
            let mut more = more.clone();
            more["stream"] = json!(stream);
            let began = Instant::now();
            let answer = daemon.post("/v1/chat/completions", &chat(more));
            assert!(began.elapsed() < Duration::from_secs(5), "{param}");
            let error = &answer.json()["error"];
            assert_eq!((answer.status, &error["param"]), (400, &json!(param)), "{error}");
            assert!(error["message"].as_str().unwrap().contains(told), "{error}");
        }
    }
    assert_eq!(content(&daemon, json!({"guided_choice": ["on"]})), "on");
}

/// What the request says beside its grammar leaves no token: an error, of the stream too.
#[test]
fn an_output_that_cannot_go_on_is_told() {
    let daemon = daemon();
    let late = json!({"guided_choice": ["on"], "min_tokens": 20});
    let early = json!({"guided_choice": ["on"], "allowed_token_ids": [5]});
    for more in [&late, &early] {
        let answer = daemon.post("/v1/chat/completions", &chat(more.clone()));
        let error = &answer.json()["error"];
        assert_eq!((answer.status, &error["param"]), (400, &json!("guided_choice")), "{error}");
    }
    // Stop tokens may follow the grammar's end, up to the limit.
    let on = json!({"guided_choice": ["on"], "ignore_eos": true, "max_tokens": 8});
    let answer = daemon.post("/v1/chat/completions", &chat(on)).json();
    assert_eq!(answer["usage"]["completion_tokens"], 8, "{answer}");
    let mut stream = chat(late);
    stream["stream"] = json!(true);
    let events = daemon.events("/v1/chat/completions", &stream).rest().unwrap();
    assert_eq!(events.last().unwrap()["error"]["param"], "guided_choice", "{events:?}");
    daemon.assert_all_pages_back("dummy");
}

/// A model without a tokenizer answers token ids, and holds none of them to a grammar.
#[test]
fn a_model_without_a_tokenizer_says_so() {
    let daemon = daemon();
    std::fs::remove_file(daemon.status("dummy").info.unwrap().dir.join("tokenizer.json")).unwrap();
    daemon.unload("dummy", false);
    let dir = daemon.dir().join("qwen3");
    daemon.load("dummy", &dir, LoadOptions { dummy_weights: true, ..model_options() });
    let params = json!({"regex": "a", "max_new_tokens": 5});
    let answer = daemon.post("/generate", &json!({"input_ids": [5], "sampling_params": params}));
    let error = answer.json()["error"].to_string();
    assert!(answer.status == 400 && error.contains("tokenizer.json"), "{error}");
}
