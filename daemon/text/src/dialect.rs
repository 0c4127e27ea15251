//! Which dialect a folder's model speaks.
//!
//! Owns: what of the files tells it. Must never: read a dialect's marks; the crate of dialects knows them.

use std::collections::HashSet;
use std::path::Path;

use minisgl_dialect::{Checkpoint, by_name, choose};
use minisgl_proto::text::Vocabulary;
use serde_json::Value;

use crate::files::{Files, LoadError, broken, bytes};

/// The name of the dialect that somebody `chose`, or that the files show: `architectures` of `config.json`, the templates, and the
/// tokens.
///
/// # Errors
/// There is none of the name that was chosen.
pub fn find(
    dir: &Path,
    chosen: Option<&str>,
    files: &Files,
    vocabulary: Option<&Vocabulary>,
) -> Result<&'static str, LoadError> {
    let config = dir.join("config.json");
    if let Some(name) = chosen {
        return by_name(name).map(|dialect| dialect.name).map_err(|why| broken(&config, why));
    }
    // What is wrong with it is told by whoever loads the weights.
    let json: Option<Value> =
        bytes(&config).ok().flatten().and_then(|json| serde_json::from_slice(&json).ok());
    let architecture = json.as_ref().and_then(|json| json["architectures"][0].as_str());
    let templates: Vec<&str> = files.templates.iter().map(|(_, source)| &**source).collect();
    let tokens = vocabulary.into_iter().flat_map(|known| known.tokens.iter().flatten());
    let tokens: HashSet<&str> = tokens.map(|token| &*token.spelling).collect();
    Ok(choose(&Checkpoint {
        architecture: architecture.unwrap_or_default(),
        template: &templates.join("\n"),
        has_token: &|text| tokens.contains(text),
    })
    .name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find_in(config: &str, template: &str, chosen: Option<&str>) -> Result<String, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
        let files = Files::read(dir.path()).unwrap();
        find(dir.path(), chosen, &files, None).map(str::to_owned).map_err(|why| why.to_string())
    }

    #[test]
    fn files_tell_the_dialect_and_a_choice_wins() {
        let llama4 = r#"{"architectures": ["Llama4ForConditionalGeneration"]}"#;
        assert_eq!(find_in("{}", "<tool_call>", None).unwrap(), "hermes");
        assert_eq!(find_in(llama4, "", None).unwrap(), "llama");
        assert_eq!(find_in("no JSON", "", None).unwrap(), "plain");
        assert_eq!(find_in("{}", "<tool_call>", Some("mistral")).unwrap(), "mistral");
        let why = find_in("{}", "", Some("klingon")).unwrap_err();
        assert!(why.contains("klingon") && why.contains("hermes"), "{why}");
    }
}
