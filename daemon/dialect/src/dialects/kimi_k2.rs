//! Kimi K2: an id that holds the name, and JSON, between markers.
//!
//! ```text
//!   <|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{"a": 1}<|tool_call_end|><|tool_calls_section_end|>
//! ```
//!
//! The template wants the id back as it was. Kimi K2 Thinking thinks in `<think>`, which it opens itself and at times does
//! not close before a call; older Kimis in `◁think▷`.

use crate::body::{NamedCall, NamedForm};
use crate::dialect::{Dialect, Ids, Talk};
use crate::flow::{Flow, Opener, Thought};
use crate::grammar::{Arguments, Enforcement, Tag};

static FORM: NamedForm = NamedForm {
    separators: &["<|tool_call_argument_begin|>"],
    brace: false,
    head,
    trail: &[],
    close: &["<|tool_call_end|>"],
};

/// `functions.NAME:INDEX`; either end may be missing.
fn head(text: &str) -> Option<(&str, Option<&str>)> {
    let id = text.trim();
    let name = match id.rsplit_once(':') {
        Some((name, index)) if index.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => id,
    };
    Some((name.strip_prefix("functions.").unwrap_or(name), Some(id)))
}

/// See the file's head.
pub(crate) static DIALECT: Dialect = Dialect {
    name: "kimi_k2",
    about: "Kimi K2: JSON behind an id between <|tool_call_begin|> and its end",
    known_by: |checkpoint| checkpoint.says("<|tool_call_argument_begin|>"),
    talk: Talk::Flow(Flow {
        thought: Some(Thought {
            open: &["<think>", "◁think▷"],
            close: &["</think>", "◁/think▷"],
            anywhere: false,
        }),
        calls: &[Opener {
            marker: "<|tool_call_begin|>",
            body: || Box::new(NamedCall::new(&FORM)),
        }],
        silent: &["<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"],
        frame: None,
        bare: &[],
    }),
    ids: Ids::Own,
    enforcement: Enforcement {
        tag: Some(Tag {
            first: "<|tool_calls_section_begin|>",
            begin: "<|tool_call_begin|>functions.NAME:INDEX<|tool_call_argument_begin|>",
            arguments: Arguments::Json,
            end: "<|tool_call_end|>",
            between: "",
            last: "<|tool_calls_section_end|>",
        }),
        other: None,
        inner_markers: &["<|tool_call_argument_begin|>"],
    },
};
