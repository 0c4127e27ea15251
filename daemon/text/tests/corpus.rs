//! Real chat templates, rendered by Jinja2 (tests/fixtures/make_corpus.py) and here, byte for byte.
//!
//! `cargo xtask test` fetches the templates and says in `MINISGL_CORPUS` where the prompts are.

#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

use minisgl_text::{ChatTemplate, TemplateError};
use serde_json::{Map, Value, json};

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

#[test]
fn real_templates_make_the_prompts_that_jinja2_makes() {
    let Some(path) = std::env::var_os("MINISGL_CORPUS") else {
        eprintln!("skipped: MINISGL_CORPUS is not set; `cargo xtask test` makes the corpus");
        return;
    };
    let corpus: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let templates = corpus["templates"].as_array().unwrap();
    assert!(templates.len() >= 50, "only {} templates", templates.len());
    let (mut wrong, mut prompts, mut alike) = (Vec::new(), 0, 0);
    for template in templates {
        let dir = tempfile::tempdir().unwrap();
        let mut config = corpus["special"].clone();
        config["chat_template"] = template["template"].clone();
        std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        let name = template["name"].as_str().unwrap();
        let own = match ChatTemplate::load(dir.path()) {
            Ok(own) => own.unwrap(),
            Err(_) if template["unusable"].is_string() => continue,
            Err(why) => {
                wrong.push(format!("{name}: {why}"));
                continue;
            }
        };
        for case in template["conversations"].as_array().unwrap() {
            prompts += 1;
            let made = own.render_plain(&conversation(&case["given"]));
            let right = case["rendered"].as_str();
            match (&made, right) {
                (Ok(made), Some(right)) if made == right => alike += 1,
                (Err(TemplateError::Refused(_) | TemplateError::Failed(_)), None) => alike += 1,
                _ => wrong.push(format!(
                    "{name}, {}:\n   right {:?}\n   made  {made:?}",
                    case["name"],
                    right.map_or(json!(case["error"]), |right| json!(right))
                )),
            }
        }
    }
    println!("{} templates, {alike} of {prompts} prompts alike", templates.len());
    assert!(wrong.is_empty(), "{} of {prompts}:\n{}", wrong.len(), wrong.join("\n"));
}
