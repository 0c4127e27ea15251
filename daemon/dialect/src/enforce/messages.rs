//! The grammar of harmony's messages.
//!
//! ```text
//!   analysis? call                                 where calls must come
//!   (analysis | preamble)* (final | call)          elsewhere
//! ```
//!
//! It begins with the output, behind `<|start|>assistant`: a thought is a message, and part of it. What ends the last message is
//! a stop token of these models, so that it may be missing.

use super::Wanted;
use super::lark::{Lark, quoted};
use crate::harmony::MARKERS;

const NEXT: &str = "<|start|>assistant";

/// What an output is, made of the rule of a call up to the end of its arguments.
pub(super) fn start(call: &str, wanted: &Wanted<'_>, lark: &mut Lark<'_>) -> String {
    let banned: Vec<String> = MARKERS.iter().map(|marker| quoted(marker)).collect();
    let next = lark.text(NEXT);
    let end = lark.text("<|call|>");
    let text = lark.until(&banned, "<|end|>");
    let message = |channel: &str, lark: &mut Lark<'_>| {
        let header = lark.text(&format!("<|channel|>{channel}<|message|>"));
        lark.rule(format!("{header} {text} {next}"))
    };
    let thought = message("analysis", lark);
    let calls = match wanted.single {
        true => format!("{call} ({end})?"),
        false => format!("{call} ({end} {next} {call})* ({end})?"),
    };
    if wanted.required {
        return format!("{thought}? {calls}");
    }
    let preamble = message("commentary", lark);
    let header = lark.text("<|channel|>final<|message|>");
    let (before, answer) = match wanted.answer {
        // Text before it would be text that does not have the form.
        Some(answer) => {
            let answer = lark.rule(answer.to_owned());
            (thought, format!("{header} {answer} ({})?", lark.text("<|return|>")))
        }
        None => {
            let (free, whole) = (lark.free(&banned), lark.until(&banned, "<|return|>"));
            (format!("{thought} | {preamble}"), format!("{header} ({whole} | {free})"))
        }
    };
    let answer = lark.rule(answer);
    let calls = lark.rule(calls);
    format!("({before})* ({calls} | {answer})")
}
