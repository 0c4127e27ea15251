//! Thoughts in `<think>`, and no calls of its own: they are as Hermes writes them, where a request has tools.

use crate::dialect::{Dialect, Ids, Talk};
use crate::dialects::tool_call::{CALLS, ENFORCEMENT};
use crate::flow::{Flow, Thought};

/// The thought of many families.
pub(super) const THOUGHT: Thought =
    Thought { open: &["<think>"], close: &["</think>"], anywhere: false };

/// See the file's head.
pub(crate) static DIALECT: Dialect = Dialect {
    name: "think",
    about: "thoughts in <think>, calls as Hermes writes them",
    known_by: |checkpoint| {
        checkpoint.says("<think>")
            || checkpoint.says("</think>")
            || (checkpoint.has_token)("<think>")
    },
    talk: Talk::Flow(Flow {
        thought: Some(THOUGHT),
        calls: CALLS,
        silent: &[],
        frame: None,
        bare: &[],
    }),
    ids: Ids::Any,
    enforcement: ENFORCEMENT,
};
