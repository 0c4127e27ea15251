//! Special tokens by name and without, as transformers 5 reads them (`PreTrainedTokenizerBase._from_pretrained`).
//!
//! Owns: which field wins. Must never: look at the tokenizer.

use serde_json::{Map, Value};

/// Names that every tokenizer knows, in the order in which their tokens are added.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Fields that list further special tokens, of transformers 4 and 5.
const OLD_EXTRA: &str = "additional_special_tokens";
const EXTRA: &str = "extra_special_tokens";
/// Those of a model of its own, by name.
const SPECIFIC: &str = "model_specific_special_tokens";

/// Tokens as the files have them: strings, or objects with flags.
#[derive(Debug, Default)]
pub struct Special {
    /// By name; templates may mention them.
    pub named: Vec<(String, Value)>,
    /// Without one.
    pub extra: Vec<Value>,
}

impl Special {
    /// Of `tokenizer_config.json`, and of `special_tokens_map.json`, which wins.
    pub fn read(mut fields: Map<String, Value>, map: Map<String, Value>) -> Special {
        let has_extra = fields.get(EXTRA).is_some_and(|value| match value {
            Value::Array(tokens) => !tokens.is_empty(),
            Value::Object(tokens) => !tokens.is_empty(),
            _ => false,
        });
        if !has_extra && let Some(old) = fields.shift_remove(OLD_EXTRA) {
            fields.insert(EXTRA.to_owned(), old);
        }
        // What a model names by itself: fields of its own, or the two forms of transformers 5.
        let mut specific = own_names(&fields, Value::is_string);
        specific.extend(named_in(fields.shift_remove(EXTRA), &mut fields));
        if specific.is_empty() {
            specific.extend(as_pairs(fields.get(SPECIFIC)));
        }
        fields.retain(|name, value| !(is_own_name(name) && value.is_string()));
        for (name, value) in map {
            let value = match value {
                Value::Object(mut flags) if name != EXTRA => {
                    flags.insert("special".to_owned(), true.into());
                    Value::Object(flags)
                }
                Value::Array(more) if name == EXTRA => {
                    let mut all = match fields.get(EXTRA) {
                        Some(Value::Array(tokens)) => tokens.clone(),
                        _ => Vec::new(),
                    };
                    all.extend(
                        more.into_iter().filter(|token| !all.contains(token)).collect::<Vec<_>>(),
                    );
                    Value::Array(all)
                }
                value => value,
            };
            fields.insert(name, value);
        }
        let more = named_in(fields.shift_remove(EXTRA), &mut fields);
        specific.extend(more);
        if !fields.contains_key(EXTRA)
            && let Some(old) = fields.shift_remove(OLD_EXTRA)
        {
            fields.insert(EXTRA.to_owned(), old);
        }
        let known =
            NAMES.iter().filter_map(|name| Some(((*name).to_owned(), fields.get(*name)?.clone())));
        let mut named: Vec<(String, Value)> = known.collect();
        named.extend(own_names(&fields, is_token));
        for (name, value) in specific {
            match named.iter_mut().find(|(other, _)| *other == name) {
                Some(found) => found.1 = value,
                None => named.push((name, value)),
            }
        }
        named.retain(|(_, value)| is_token(value));
        let extra = match fields.shift_remove(EXTRA) {
            Some(Value::Array(tokens)) => tokens,
            _ => Vec::new(),
        };
        Special { named, extra }
    }

    /// Whether this is one of them, but for those of a model's own names. The configuration's objects, which are typed,
    /// are not looked into.
    pub fn names(&self, content: &str) -> bool {
        let is = |value: &Value| match value {
            Value::Object(token) if token.contains_key("__type") => false,
            value => value.as_str().or(value["content"].as_str()) == Some(content),
        };
        self.named.iter().any(|(name, value)| NAMES.contains(&&**name) && is(value))
            || self.extra.iter().any(is)
    }
}

fn is_token(value: &Value) -> bool {
    value.is_string() || value["content"].is_string()
}

fn is_own_name(name: &str) -> bool {
    name.ends_with("_token") && !NAMES.contains(&name)
}

fn own_names(fields: &Map<String, Value>, fits: impl Fn(&Value) -> bool) -> Vec<(String, Value)> {
    let own = fields.iter().filter(|(name, value)| is_own_name(name) && fits(value));
    own.map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn as_pairs(named: Option<&Value>) -> Vec<(String, Value)> {
    let fields = named.and_then(Value::as_object).into_iter().flatten();
    fields.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The named ones of `extra`, if that is what it holds; else it goes back.
fn named_in(extra: Option<Value>, fields: &mut Map<String, Value>) -> Vec<(String, Value)> {
    match extra {
        Some(named @ Value::Object(_)) => as_pairs(Some(&named)),
        Some(other) => {
            fields.insert(EXTRA.to_owned(), other);
            Vec::new()
        }
        None => Vec::new(),
    }
}
