//! packaging/minisgld.toml against the code: every key, with its default.

use std::collections::BTreeSet;

use minisgl_proto::LoadOptions;

use super::Config;

const SHIPPED: &str = include_str!("../../../packaging/minisgld.toml");

/// A line that sets something, once its `#` is gone; prose has a space after it.
fn is_setting(line: &str) -> bool {
    line.strip_prefix('#')
        .is_some_and(|rest| rest.starts_with(|c: char| c == '[' || c.is_alphabetic()))
}

fn uncommented() -> String {
    let line = |line: &'static str| if is_setting(line) { &line[1..] } else { line };
    SHIPPED.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// The keys that the code knows in a table, in the words of its refusal of another.
fn known(text: &str) -> BTreeSet<String> {
    let error = toml::from_str::<Config>(text).expect_err("there is no such key").to_string();
    let (_, list) = error.split_once("expected ").expect("the keys there are");
    list.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn keys(value: &toml::Value) -> BTreeSet<String> {
    value.as_table().expect("a table").keys().cloned().collect()
}

#[test]
fn as_it_is_shipped_it_changes_nothing() {
    let config: Config = toml::from_str(SHIPPED).unwrap();
    assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
}

#[test]
fn every_value_is_the_default() {
    let mut config: Config = toml::from_str(&uncommented()).unwrap();
    let [model] = &config.model[..] else { panic!("one model as an example: {:?}", config.model) };
    let options = LoadOptions {
        kv_tokens: None,
        memory_ratio: None,
        chunk_tokens: None,
        max_len: None,
        dialect: None,
        ..model.options.clone()
    };
    assert_eq!(options, LoadOptions::default());
    // What has no default has an example.
    config.model.clear();
    for example in [
        &mut config.admin.socket,
        &mut config.http.api_keys_file,
        &mut config.http.tls_cert,
        &mut config.http.tls_key,
        &mut config.hub.cache_dir,
        &mut config.hub.token_file,
        &mut config.gpu.libraries,
        &mut config.state.dir,
    ] {
        assert!(example.take().is_some_and(|path| path.is_absolute()));
    }
    assert_eq!(config.hub.endpoint.take().as_deref(), Some("https://huggingface.co"));
    assert_eq!(format!("{config:#?}"), format!("{:#?}", Config::default()));
}

#[test]
fn no_key_is_forgotten() {
    let shipped: toml::Value = toml::from_str(&uncommented()).unwrap();
    assert_eq!(keys(&shipped), known("nonsense = 1"));
    for table in keys(&shipped) {
        let (there, refused) = match &shipped[table.as_str()] {
            toml::Value::Array(entries) => (&entries[0], "[[model]]\nnonsense = 1".to_owned()),
            value => (value, format!("[{table}]\nnonsense = 1")),
        };
        assert_eq!(keys(there), known(&refused), "[{table}]");
    }
    let mut options = known("[[model]]\nmodel = \"m\"\noptions = { nonsense = 1 }");
    assert!(options.remove("gpus_taken"), "between the daemon and its workers");
    assert_eq!(keys(&shipped["model"][0]["options"]), options);
}

#[test]
fn every_key_has_a_word_before_it() {
    let lines: Vec<&str> = SHIPPED.lines().collect();
    for pair in lines.windows(2) {
        let is_key = is_setting(pair[1]) && !pair[1].starts_with("#[");
        assert!(!is_key || pair[0].starts_with("# "), "no word on {}", pair[1]);
    }
}
