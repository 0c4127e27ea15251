//! Ollama's API over a scripted model, as its clients read it.

#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod support;

use std::time::Duration;

use minisgl_http::Settings;
use minisgl_http::backend::Generate;
use minisgl_proto::Finish;
use serde_json::{Value, json};
use support::{Answer, House, Step, VOCAB, say, text_of};

/// As Qwen 3's: calls in markers, a thought that is opened where it is wanted, results by name.
const TEMPLATE: &str = "{% for m in messages %}[{{ m.role }}{% if m.name %}:{{ m.name }}{% endif %}]{{ m.content }}{% for t in m.tool_calls or [] %}<call {{ t.function.name }} {{ t.function.arguments.city }}>{% endfor %}{% endfor %}{% if tools %}<tools>{{ tools | tojson }}</tools> <tool_call>{% endif %}{% if reasoning_effort %}({{ reasoning_effort }}){% endif %}<|im_start|>assistant\n{% if enable_thinking %}<think>\n{% endif %}";

const OUTPUT: &str = "<think>\nhm\n</think>\n\nI look. <tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\":\n \"Köln\"}}\n</tool_call>";

fn house(steps: Vec<Step>) -> House {
    let settings = Settings { ollama: true, ..Settings::default() };
    let house = House::with(move |_: &Generate| Ok(steps.clone()), settings, json!({}));
    std::fs::write(house.folder.path().join("chat_template.jinja"), TEMPLATE).unwrap();
    house
}

fn hi(more: Value) -> Value {
    let mut body = json!({"model": "org/tiny", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn tools() -> Value {
    json!([{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}])
}

/// The tag is not looked up, and every line repeats it.
#[tokio::test]
async fn a_name_with_a_tag_is_bounded_as_a_name_is() {
    let house = house(say("a"));
    let send = async |path: &str, body: Value| {
        let text = body.to_string();
        let request = axum::http::Request::post(path).header("content-length", text.len());
        house.send(request.body(axum::body::Body::from(text)).unwrap()).await
    };
    for (path, mut body) in [
        ("/api/chat", hi(json!({}))),
        ("/api/chat", json!({})),
        ("/api/generate", json!({"prompt": "x"})),
    ] {
        body["model"] = format!("org/tiny:{}", "x".repeat(191)).into();
        assert_eq!(send(path, body.clone()).await.status, 200, "{path}");
        body["model"] = format!("org/tiny:{}", "x".repeat(192)).into();
        let answer = send(path, body).await;
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.body.contains("at most 200 bytes"), "{}", answer.body);
    }
}

/// The lines of a stream, the last of which is done, and no other.
fn lines(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.headers["content-type"], "application/x-ndjson");
    assert!(answer.body.ends_with('\n'));
    let lines: Vec<Value> =
        answer.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (at, line) in lines.iter().enumerate() {
        assert_eq!(line["done"], at + 1 == lines.len(), "{line}");
    }
    lines
}

fn joined(lines: &[Value], field: &str) -> String {
    let text = |line: &Value| match line.get("message") {
        Some(message) => message[field].as_str().unwrap_or_default().to_owned(),
        None => line[field].as_str().unwrap_or_default().to_owned(),
    };
    lines.iter().map(text).collect()
}

#[track_caller]
fn check_end(end: &Value, prompt: usize, tokens: usize, reason: &str) {
    assert_eq!((&end["done_reason"], &end["load_duration"]), (&json!(reason), &json!(0)), "{end}");
    assert_eq!(
        (&end["prompt_eval_count"], &end["eval_count"]),
        (&json!(prompt), &json!(tokens)),
        "{end}"
    );
    assert!(end["total_duration"].as_u64().unwrap() >= end["eval_duration"].as_u64().unwrap());
    assert!(end["created_at"].as_str().unwrap().ends_with('Z'));
}

#[tokio::test]
async fn it_is_off_unless_the_operator_turns_it_on() {
    let house = House::saying("a");
    for path in ["/api/chat", "/api/tags", "/api/nothing/else"] {
        let answer = house.post(path, hi(json!({}))).await;
        assert_eq!(answer.status, 404);
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(error.contains("[http] ollama = true"), "{error}");
    }
    assert_eq!(house.get("/").await.status, 404);
    let house = self::house(say("a"));
    assert_eq!(house.get("/").await.body, "Ollama is running");
    let answer = house.get("/api/nothing").await;
    assert_eq!(
        (answer.status.as_u16(), answer.json()),
        (404, json!({"error": "there is no GET /api/nothing"}))
    );
    assert_eq!(house.get("/api/chat").await.status, 405);
}

#[tokio::test]
async fn a_chat_is_streamed_in_lines_and_calls_come_whole() {
    let house = house(say(OUTPUT));
    let answer = house.post("/api/chat", hi(json!({"tools": tools()}))).await;
    let lines = lines(&answer);
    assert_eq!(
        (joined(&lines, "content"), joined(&lines, "thinking")),
        ("I look.".into(), "hm".into())
    );
    let calls: Vec<&Value> = lines.iter().map(|line| &line["message"]["tool_calls"]).collect();
    let calls: Vec<&&Value> = calls.iter().filter(|calls| !calls.is_null()).collect();
    assert_eq!(
        calls,
        [&&json!([{"function": {"name": "weather", "arguments": {"city": "Köln"}}}])]
    );
    assert!(lines.len() > 8, "what is said goes out while it is said");
    assert!(
        lines
            .iter()
            .all(|line| line["model"] == "org/tiny" && line["message"]["role"] == "assistant")
    );
    let end = lines.last().unwrap();
    check_end(end, house.last().prompt.len(), OUTPUT.len() + 1, "stop");
    assert!(end["prompt_eval_duration"].is_u64());
}

#[tokio::test]
async fn a_whole_answer_says_the_same() {
    let house = house(say(OUTPUT));
    let body = hi(json!({"tools": tools(), "stream": false}));
    let answer = house.post("/api/chat", body).await;
    assert_eq!(answer.headers["content-type"], "application/json");
    let answer = answer.json();
    assert_eq!(
        answer["message"],
        json!({"role": "assistant", "content": "I look.", "thinking": "hm",
               "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Köln"}}}]})
    );
    assert_eq!(answer["done"], true);
    check_end(&answer, house.last().prompt.len(), OUTPUT.len() + 1, "stop");
}

#[tokio::test]
async fn a_call_that_is_cut_off_is_none() {
    let cut = OUTPUT.find("Köln").unwrap();
    for stream in [false, true] {
        let mut steps: Vec<Step> =
            OUTPUT.as_bytes()[..cut].iter().map(|&byte| Step::Token(byte.into())).collect();
        steps.push(Step::Last(b'K'.into(), Finish::Length));
        let answer =
            house(steps).post("/api/chat", hi(json!({"tools": tools(), "stream": stream}))).await;
        let all = if stream { lines(&answer) } else { vec![answer.json()] };
        assert!(all.iter().all(|line| line["message"]["tool_calls"].is_null()));
        assert_eq!(all.last().unwrap()["done_reason"], "length");
        assert_eq!(joined(&all, "content").trim(), "I look.");
    }
}

#[tokio::test]
async fn messages_reach_the_template_in_its_form() {
    let house = house(say("a"));
    let messages = json!([
        {"role": "system", "content": "S", "images": []},
        {"role": "user", "content": "U", "images": null},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Köln"}}}]},
        {"role": "tool", "tool_name": "weather", "content": "rain"},
    ]);
    let body = json!({"model": "org/tiny", "messages": messages, "stream": false});
    assert_eq!(house.post("/api/chat", body).await.status, 200);
    assert_eq!(
        text_of(&house.last().prompt),
        "[system]S[user]U[assistant]<call weather Köln>[tool:weather]rain<|im_start|>assistant\n"
    );
    let images = json!([{"role": "user", "content": "U", "images": ["aGk="]}]);
    let answer = house.post("/api/chat", json!({"model": "org/tiny", "messages": images})).await;
    assert_eq!(answer.status, 400);
    assert!(
        answer.json()["error"].as_str().unwrap().starts_with("messages[0].images"),
        "{}",
        answer.body
    );
}

#[tokio::test]
async fn think_is_told_to_the_template() {
    let house = house(say("hm</think>Yes."));
    let answer = house.post("/api/chat", hi(json!({"think": true, "stream": false}))).await.json();
    assert_eq!(
        (&answer["message"]["content"], &answer["message"]["thinking"]),
        (&json!("Yes."), &json!("hm"))
    );
    let answer = house.post("/api/chat", hi(json!({"think": false, "stream": false}))).await.json();
    assert_eq!(answer["message"]["content"], "hm</think>Yes.");
    house.post("/api/chat", hi(json!({"think": "low", "stream": false}))).await;
    assert!(text_of(&house.last().prompt).contains("(low)<|im_start|>assistant\n<think>"));
    assert_eq!(house.post("/api/chat", hi(json!({"think": "much"}))).await.status, 400);
}

#[tokio::test]
async fn options_are_the_sampling_and_what_concerns_the_load_is_read_over() {
    let house = house(say("a"));
    let options = json!({"temperature": 0.5, "top_k": 7, "top_p": 0.25, "min_p": 0.125, "seed": 42, "num_predict": 9,
        "repeat_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": -0.5, "stop": ["x"], "num_ctx": 8192,
        "mirostat": 0, "numa": true, "nobody": "knows"});
    let answer = house.post("/api/chat", hi(json!({"options": options, "keep_alive": "5m"}))).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let (sampling, stop) = (house.last().sampling, house.last().stop);
    assert_eq!(
        (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p),
        (0.5, 7, 0.25, 0.125)
    );
    assert_eq!(
        (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty),
        (1.5, 0.5, -0.5)
    );
    assert_eq!((sampling.seed, stop.max_tokens), (42, 9));
    for num_predict in [-1, -2] {
        let options = json!({"num_predict": num_predict, "seed": -1});
        house.post("/api/chat", hi(json!({"options": options}))).await;
        let last = house.last();
        assert_eq!(last.stop.max_tokens as usize + last.prompt.len(), support::MAX_LEN as usize);
        assert_ne!(last.sampling.seed, u64::MAX, "-1 is no seed");
    }
    let answer = house.post("/api/chat", hi(json!({"options": {"mirostat": 2}}))).await;
    assert!(
        answer.json()["error"].as_str().unwrap().starts_with("options.mirostat"),
        "{}",
        answer.body
    );
    let answer = house.post("/api/chat", hi(json!({"options": {"temperature": "hot"}}))).await;
    assert_eq!(answer.status, 400);
}

#[tokio::test]
async fn a_format_is_a_grammar() {
    let house = house(say("{}"));
    for (format, is_held) in [
        (json!("json"), true),
        (json!({"type": "object"}), true),
        (json!(""), false),
        (json!(null), false),
    ] {
        let answer = house.post("/api/chat", hi(json!({"format": format}))).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let guided = house.last().sampling.guided;
        assert_eq!(guided.is_some_and(|guided| guided.grammar.is_some()), is_held, "{format}");
    }
    assert_eq!(house.post("/api/chat", hi(json!({"format": "xml"}))).await.status, 400);
}

#[tokio::test]
async fn generate_is_a_conversation_of_one_message_or_raw() {
    let house = house(say("<think>\nhm\n</think>\n\nYes."));
    let body = json!({"model": "org/tiny", "prompt": "hi", "system": "S"});
    let lines = lines(&house.post("/api/generate", body.clone()).await);
    assert_eq!(text_of(&house.last().prompt), "[system]S[user]hi<|im_start|>assistant\n");
    assert_eq!(
        (joined(&lines, "response"), joined(&lines, "thinking")),
        ("Yes.".into(), "hm".into())
    );
    assert!(lines.iter().all(|line| line.get("message").is_none()));
    let raw = json!({"model": "org/tiny", "prompt": "hi", "raw": true, "stream": false});
    let answer = house.post("/api/generate", raw).await.json();
    assert_eq!(text_of(&house.last().prompt), "<s>hi");
    assert_eq!(answer["response"], "<think>\nhm\n</think>\n\nYes.", "raw is told as it is");
    check_end(&answer, 5 - 2, "<think>\nhm\n</think>\n\nYes.".len() + 1, "stop");
    for (field, value) in [
        ("suffix", json!("x")),
        ("context", json!([1])),
        ("images", json!(["aGk="])),
        ("template", json!("{{ .Prompt }}")),
        ("logprobs", json!(true)),
    ] {
        let mut body = body.clone();
        body[field] = value;
        let answer = house.post("/api/generate", body).await;
        assert!(answer.json()["error"].as_str().unwrap().starts_with(field), "{}", answer.body);
    }
}

#[tokio::test]
async fn what_asks_for_nothing_is_a_load_which_is_done() {
    let house = house(say("a"));
    let send = async |path: &str, body: Value| {
        let text = body.to_string();
        let request = axum::http::Request::post(path).header("content-length", text.len());
        house.send(request.body(axum::body::Body::from(text)).unwrap()).await
    };
    let answer = send("/api/generate", json!({"model": "org/tiny:latest"})).await.json();
    assert_eq!(
        (&answer["model"], &answer["response"], &answer["done"], &answer["done_reason"]),
        (&json!("org/tiny:latest"), &json!(""), &json!(true), &json!("load"))
    );
    let answer = send("/api/chat", json!({"model": "org/tiny", "messages": [], "keep_alive": 0}))
        .await
        .json();
    assert_eq!(
        (&answer["message"]["content"], &answer["done_reason"]),
        (&json!(""), &json!("unload"))
    );
    assert_eq!(send("/api/generate", json!({"model": "other"})).await.status, 404);
    assert_eq!(house.model.submitted.lock().unwrap().len(), 0);
    // What has a prompt is generated, whatever its length says.
    let answer =
        send("/api/generate", json!({"model": "org/tiny", "prompt": "x", "stream": false})).await;
    assert_eq!(answer.json()["response"], "a");
}

#[tokio::test]
async fn a_tag_is_taken_off_where_only_the_rest_is_known() {
    let house = house(say("a"));
    for name in ["org/tiny:latest", "org/tiny:1b"] {
        let mut body = hi(json!({"stream": false}));
        body["model"] = name.into();
        assert_eq!(house.post("/api/chat", body).await.json()["model"], name);
    }
    for name in ["other:latest", ":latest", "", "host:80/org/tiny"] {
        let mut body = hi(json!({}));
        body["model"] = name.into();
        let status = house.post("/api/chat", body).await.status.as_u16();
        assert_eq!(status, if name.is_empty() { 400 } else { 404 }, "{name}");
    }
    *house.backend.name.lock().unwrap() = "tiny:8b".into();
    let mut body = hi(json!({"stream": false}));
    body["model"] = "tiny:8b".into();
    assert_eq!(house.post("/api/chat", body).await.status, 200);
}

#[tokio::test]
async fn models_are_listed_and_shown() {
    let house = house(say("a"));
    let tags = house.get("/api/tags").await.json();
    let model = &tags["models"][0];
    assert_eq!((&model["name"], &model["model"]), (&json!("org/tiny"), &json!("org/tiny")));
    assert_eq!(model["modified_at"], "2023-11-14T22:13:20.000000Z");
    assert_eq!(model["digest"].as_str().unwrap().len(), 64);
    assert_eq!(model["details"]["family"], "LlamaForCausalLM");
    let ps = house.get("/api/ps").await.json();
    assert_eq!(
        (&ps["models"][0]["context_length"], &ps["models"][0]["size_vram"]),
        (&json!(512), &json!(0))
    );
    for body in [json!({"model": "org/tiny"}), json!({"name": "org/tiny:latest"})] {
        let shown = house.post("/api/show", body).await.json();
        assert_eq!(shown["template"], TEMPLATE);
        assert_eq!(shown["model_info"]["LlamaForCausalLM.vocab_size"], VOCAB);
        assert_eq!(shown["capabilities"], json!(["completion", "tools", "thinking"]));
    }
    assert_eq!(house.post("/api/show", json!({})).await.status, 400);
    assert_eq!(house.post("/api/show", json!({"model": "other"})).await.status, 404);
    assert!(house.get("/api/version").await.json()["version"].is_string());
    *house.backend.not_ready.lock().unwrap() = Some("it is being loaded".into());
    assert_eq!(house.get("/api/tags").await.json(), json!({"models": []}));
}

#[tokio::test]
async fn what_is_the_operators_or_not_built_is_501() {
    let house = house(say("a"));
    for path in ["/api/embed", "/api/embeddings", "/api/pull", "/api/create", "/api/delete"] {
        let answer = house.post(path, json!({"model": "org/tiny"})).await;
        assert_eq!(answer.status, 501, "{path}");
        assert!(answer.json()["error"].is_string());
    }
}

/// A client parses every line: there are no comments.
#[tokio::test(start_paused = true)]
async fn silence_and_failure_are_lines_too() {
    let settings = Settings {
        ollama: true,
        ping_interval: Some(Duration::from_secs(5)),
        ..Settings::default()
    };
    for (path, body) in [
        ("/api/chat", hi(json!({}))),
        ("/api/generate", json!({"model": "org/tiny", "prompt": "x"})),
    ] {
        let steps = vec![
            Step::Pause(Duration::from_secs(12)),
            Step::Token(b'a'.into()),
            Step::End(Finish::Failed("it broke".into())),
        ];
        let house = House::with(move |_| Ok(steps.clone()), settings.clone(), json!({}));
        let answer = house.post(path, body).await;
        let lines: Vec<Value> =
            answer.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.len() >= 3, "{}", answer.body);
        let said = if path == "/api/chat" {
            joined(&lines, "content")
        } else {
            joined(&lines, "response")
        };
        assert_eq!((said.as_str(), &lines[0]["done"]), ("a", &json!(false)));
        for line in &lines[..lines.len() - 1] {
            assert_eq!(line["model"], "org/tiny", "{line}");
            assert!(line["created_at"].as_str().is_some_and(|at| at.ends_with('Z')), "{line}");
        }
        let error = lines.last().unwrap()["error"].as_str().unwrap();
        assert!(error.contains("it broke"), "{error}");
    }
}
