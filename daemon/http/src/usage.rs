//! `usage`, and when a stream tells it.

use crate::json::{Inner, fields, put};
use crate::part::Usage;

fields! {
    /// `stream_options`.
    pub struct StreamOptions {
        include_usage: bool,
        continuous_usage_stats: bool,
    }
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
    pub fn of(options: Option<Inner<StreamOptions>>) -> Telling {
        let Inner(options) = options.unwrap_or_default();
        match (options.include_usage, options.continuous_usage_stats) {
            (Some(true), Some(true)) => Telling::Always,
            (Some(true), _) => Telling::AtEnd,
            _ => Telling::Silent,
        }
    }

    /// Puts `usage` behind the other fields of a chunk with choices.
    pub fn write(self, out: &mut Vec<u8>, total: Usage) {
        match self {
            Telling::Silent => {}
            Telling::AtEnd => out.extend_from_slice(b",\"usage\":null"),
            Telling::Always => {
                out.extend_from_slice(b",\"usage\":");
                write(out, total);
            }
        }
    }
}

/// OpenAI's form.
pub fn write(out: &mut Vec<u8>, usage: Usage) {
    out.extend_from_slice(b"{\"prompt_tokens\":");
    put(out, &usage.prompt);
    out.extend_from_slice(b",\"completion_tokens\":");
    put(out, &usage.completion);
    out.extend_from_slice(b",\"total_tokens\":");
    put(out, &(usage.prompt + usage.completion));
    out.extend_from_slice(b",\"prompt_tokens_details\":{\"cached_tokens\":");
    put(out, &usage.cached);
    out.extend_from_slice(b"},\"completion_tokens_details\":{\"reasoning_tokens\":");
    put(out, &usage.reasoning);
    out.extend_from_slice(b"}}");
}
