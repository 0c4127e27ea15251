//! Chats rendered by transformers (tests/fixtures/templates) against ours, byte for byte.

#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

use std::path::{Path, PathBuf};

use std::sync::atomic::AtomicBool;

use minisgl_proto::text::Conversation;
use minisgl_text::{ChatTemplate, TemplateError};
use serde_json::{Map, Value, json};

fn fixture(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/templates")
        .join(name)
        .with_extension("json");
    serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap()
}

/// A model folder that xtask fetched. Without one the test has nothing to say, unless the run was
/// told where models are: then it must be there.
fn model_dir(name: &str) -> Option<PathBuf> {
    let told = std::env::var_os("MINISGL_MODELS_DIR");
    let models = told.clone().map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/models"),
        PathBuf::from,
    );
    let dir = models.join(name);
    if dir.is_dir() {
        return Some(dir);
    }
    assert!(told.is_none(), "{} is missing", dir.display());
    eprintln!("skipped: {} is missing; `cargo xtask model` fetches it", dir.display());
    None
}

fn conversation(given: &Value) -> Conversation {
    let mut kwargs: Map<String, Value> = given.as_object().unwrap().clone();
    let mut take = |name: &str| kwargs.shift_remove(name);
    Conversation {
        messages: take("messages").unwrap().as_array().unwrap().clone(),
        tools: take("tools").and_then(|tools| tools.as_array().cloned()),
        add_generation_prompt: take("add_generation_prompt").is_some_and(|v| v == true),
        kwargs,
    }
}

/// What was rendered with arguments of calls as text, if the text had been that of an object: where a template takes
/// both, it gets objects, as vLLM gives them.
fn with_objects(rendered: &str, given: &Value) -> String {
    let mut rendered = rendered.to_owned();
    for message in given["messages"].as_array().into_iter().flatten() {
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            let Some(text) = call["function"]["arguments"].as_str() else { continue };
            let Ok(Value::Object(fields)) = serde_json::from_str(text) else { continue };
            let fields = fields.iter().map(|(name, value)| format!("\"{name}\": {value}"));
            let object = format!("{{{}}}", fields.collect::<Vec<_>>().join(", "));
            rendered = rendered.replace(text, &object);
        }
    }
    rendered
}

#[track_caller]
fn check(case: &Value, template: &ChatTemplate) {
    let (name, given) = (&case["name"], conversation(&case["given"]));
    match (
        template.render(&given, &AtomicBool::new(false)),
        case["rendered"].as_str(),
        case["error"].as_str(),
    ) {
        (Ok(rendered), Some(expected), _) => {
            assert_eq!(rendered, with_objects(expected, &case["given"]), "case {name}");
        }
        (Err(TemplateError::Refused(why)), None, Some(expected)) => {
            assert!(expected.contains(&why), "case {name}: {why:?} is not {expected:?}");
        }
        (result, ..) => panic!("case {name}: {result:?}"),
    }
}

#[track_caller]
fn check_model(fixture_name: &str, dir: &str) {
    let Some(dir) = model_dir(dir) else { return };
    let template = ChatTemplate::load(&dir).unwrap().unwrap();
    let fixture = fixture(fixture_name);
    let cases = fixture["cases"].as_array().unwrap();
    assert!(cases.len() >= 5);
    for case in cases {
        check(case, &template);
    }
}

#[test]
fn smollm2() {
    check_model("smollm2", "SmolLM2-135M-Instruct");
}

#[test]
fn qwen3() {
    check_model("qwen3", "tokenizers/qwen3");
}

#[test]
fn llama3_1() {
    check_model("llama3_1", "tokenizers/llama3_1");
}

#[test]
fn constructs_that_templates_use() {
    for case in fixture("constructs")["cases"].as_array().unwrap() {
        let dir = tempfile::tempdir().unwrap();
        // The special tokens of SmolLM2, which the cases were made with.
        let config = json!({
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "pad_token": "<|im_end|>",
            "chat_template": case["template"],
        });
        std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        let template = ChatTemplate::load(dir.path()).unwrap().unwrap();
        check(case, &template);
    }
}

#[test]
fn a_template_file_wins_and_tools_have_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({"chat_template": [
        {"name": "default", "template": "old"},
        {"name": "tool_use", "template": "tools: {{ tools | length }}"},
    ]});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    std::fs::write(dir.path().join("chat_template.jinja"), "new\n").unwrap();
    let template = ChatTemplate::load(dir.path()).unwrap().unwrap();
    let mut conversation = Conversation::default();
    assert_eq!(template.render(&conversation, &AtomicBool::new(false)).unwrap(), "new");
    conversation.tools = Some(vec![json!({}), json!({})]);
    assert_eq!(template.render(&conversation, &AtomicBool::new(false)).unwrap(), "tools: 2");
}

/// What transformers 5 saves and reads: named templates as files beside the default, or as an object.
#[test]
fn named_templates_are_files_or_an_object() {
    let with_tools = |dir: &Path, tools: Option<Vec<Value>>| {
        let template = ChatTemplate::load(dir).unwrap().unwrap();
        let conversation = Conversation { tools, ..Conversation::default() };
        template.render(&conversation, &AtomicBool::new(false)).unwrap()
    };
    let tool = || Some(vec![json!({"type": "function", "function": {"name": "f"}})]);
    let dir = tempfile::tempdir().unwrap();
    let more = dir.path().join("additional_chat_templates");
    std::fs::create_dir(&more).unwrap();
    std::fs::write(dir.path().join("chat_template.jinja"), "default").unwrap();
    std::fs::write(more.join("tool_use.jinja"), "{{ tools | tojson }}").unwrap();
    assert_eq!(with_tools(dir.path(), None), "default");
    let right = r#"[{"type": "function", "function": {"name": "f"}}]"#;
    assert_eq!(with_tools(dir.path(), tool()), right);

    let dir = tempfile::tempdir().unwrap();
    let config = json!({"chat_template": {"default": "a", "tool_use": "b", "rag": "c"}});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    assert_eq!(
        (with_tools(dir.path(), None), with_tools(dir.path(), tool())),
        ("a".into(), "b".into())
    );
}

#[test]
fn a_broken_template_says_where() {
    let dir = tempfile::tempdir().unwrap();
    assert!(ChatTemplate::load(dir.path()).unwrap().is_none());
    std::fs::write(dir.path().join("chat_template.jinja"), "a\n{% if %}").unwrap();
    let why = ChatTemplate::load(dir.path()).err().unwrap().to_string();
    assert!(why.contains("line 2"), "{why}");
}
