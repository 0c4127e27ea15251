//! Real chat templates, rendered by transformers (tests/fixtures/make_corpus.py) and here, byte for byte.
//!
//! `cargo xtask test` fetches the templates and says in `MINISGL_CORPUS` where the prompts are.

#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

use std::sync::atomic::AtomicBool;

use minisgl_proto::integers;
use minisgl_text::{ChatTemplate, TemplateError};
use serde_json::{Map, Value};

/// Templates and conversations at least, and prompts that must be there: what does not render is refused alike, but
/// most renders.
const TEMPLATES_MIN: usize = 180;
const CONVERSATIONS_MIN: usize = 40;

fn conversation(given: &Value) -> minisgl_proto::text::Conversation {
    let mut kwargs: Map<String, Value> = given.as_object().unwrap().clone();
    let mut take = |name: &str| kwargs.shift_remove(name);
    minisgl_proto::text::Conversation {
        messages: take("messages").unwrap().as_array().unwrap().clone(),
        tools: take("tools").and_then(|tools| tools.as_array().cloned()),
        add_generation_prompt: take("add_generation_prompt").is_none_or(|v| v == true),
        kwargs,
    }
}

fn load(template: &Value, special: &Value) -> Result<ChatTemplate, String> {
    let dir = tempfile::tempdir().unwrap();
    let mut config = special.clone();
    config["chat_template"] = template["template"].clone();
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    ChatTemplate::load(dir.path()).map(Option::unwrap).map_err(|why| why.to_string())
}

/// What differs, in words; nothing where both have the same text, or neither has one.
fn difference(made: &Result<String, TemplateError>, right: &Value) -> Option<String> {
    match (made, right["rendered"].as_str()) {
        (Ok(made), Some(right)) if made == right => None,
        (Err(TemplateError::Refused(_) | TemplateError::Failed(_)), None) => None,
        (_, rendered) => {
            let right = if rendered.is_some() { &right["rendered"] } else { &right["error"] };
            Some(format!("   right {right:?}\n   made  {made:?}"))
        }
    }
}

#[test]
fn real_templates_make_the_prompts_that_transformers_makes() {
    let Some(path) = std::env::var_os("MINISGL_CORPUS") else {
        eprintln!("skipped: MINISGL_CORPUS is not set; `cargo xtask test` makes the corpus");
        return;
    };
    let text = std::fs::read_to_string(path).unwrap();
    let corpus: Value = serde_json::from_str(&integers::mark(&text)).unwrap();
    let templates = corpus["templates"].as_array().unwrap();
    assert!(templates.len() >= TEMPLATES_MIN, "only {} templates", templates.len());
    let (mut wrong, mut prompts, mut texts) = (Vec::new(), 0, 0);
    for template in templates {
        let name = template["name"].as_str().unwrap();
        let own = match (load(template, &corpus["special"]), template["unusable"].is_string()) {
            (Ok(own), false) => own,
            (Err(_), true) => continue,
            (own, _) => {
                wrong.push(format!("{name}: {:?}, {}", own.err(), template["unusable"]));
                continue;
            }
        };
        let conversations = template["conversations"].as_array().unwrap();
        assert!(conversations.len() >= CONVERSATIONS_MIN, "{name}");
        for case in conversations {
            let given = conversation(&case["given"]);
            let mut check = |how: &str, made: Result<String, TemplateError>, right: &Value| {
                prompts += 1;
                texts += usize::from(right["rendered"].is_string());
                let different = difference(&made, right);
                wrong.extend(
                    different.map(|what| format!("{name}, {}, {how}:\n{what}", case["name"])),
                );
            };
            check("as it is", own.render_plain(&given), case);
            if let right @ Value::Object(_) = &case["right"] {
                check("adapted", own.render(&given, &AtomicBool::new(false)), right);
            }
        }
    }
    let alike = prompts - wrong.len();
    println!("{} templates, {alike} of {prompts} prompts alike, {texts} texts", templates.len());
    assert!(wrong.is_empty(), "{} of {prompts}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(texts * 10 > prompts * 7, "most are refused: {texts} texts of {prompts}");
}
