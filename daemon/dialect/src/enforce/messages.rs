//! The grammar of harmony's messages.
//!
//! ```text
//!   analysis? call                                 where calls must come
//!   (analysis | preamble)* (final | call)          elsewhere
//! ```
//!
//! It begins with the output, behind `<|start|>assistant`: a thought is a message, and part of it. What ends the last message is
//! a stop token of these models, so that it may be missing.

use super::lark::{Lark, quoted};
use crate::harmony::MARKERS;

const NEXT: &str = "<|start|>assistant";

/// What an output is, made of the rule of a call up to the end of its arguments.
pub(super) fn start(call: &str, required: bool, single: bool, lark: &mut Lark<'_>) -> String {
    let banned: Vec<String> = MARKERS.iter().map(|marker| quoted(marker)).collect();
    let next = lark.text(NEXT);
    let end = lark.text("<|call|>");
    let text = lark.until(&banned, "<|end|>");
    let message = |channel: &str, lark: &mut Lark<'_>| {
        let header = lark.text(&format!("<|channel|>{channel}<|message|>"));
        lark.rule(format!("{header} {text} {next}"))
    };
    let thought = message("analysis", lark);
    let calls = match single {
        true => format!("{call} ({end})?"),
        false => format!("{call} ({end} {next} {call})* ({end})?"),
    };
    if required {
        return format!("{thought}? {calls}");
    }
    let preamble = message("commentary", lark);
    let header = lark.text("<|channel|>final<|message|>");
    let (free, whole) = (lark.free(&banned), lark.until(&banned, "<|return|>"));
    let answer = lark.rule(format!("{header} ({whole} | {free})"));
    let calls = lark.rule(calls);
    format!("({thought} | {preamble})* ({calls} | {answer})")
}
