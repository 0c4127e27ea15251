//! `usage`, and when a stream tells it.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::choices::Usage;

/// `stream_options`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct StreamOptions {
    include_usage: Option<bool>,
    continuous_usage_stats: Option<bool>,
}

/// When a stream tells its usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// Never.
    Silent,
    /// In a last chunk without choices; `usage` is null in the others.
    AtEnd,
    /// In every chunk, too.
    Always,
}

impl Telling {
    /// What the client asked for.
    pub fn of(options: Option<StreamOptions>) -> Telling {
        let options = options.unwrap_or_default();
        match (options.include_usage, options.continuous_usage_stats) {
            (Some(true), Some(true)) => Telling::Always,
            (Some(true), _) => Telling::AtEnd,
            _ => Telling::Silent,
        }
    }

    /// Puts `usage` into a chunk with choices.
    pub fn write(self, chunk: &mut Value, total: Usage) {
        match self {
            Telling::Silent => {}
            Telling::AtEnd => chunk["usage"] = Value::Null,
            Telling::Always => chunk["usage"] = to_json(total),
        }
    }
}

/// OpenAI's form.
pub fn to_json(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    })
}
