//! Thoughts in `<think>`, and no calls that are known.

use crate::dialect::{Dialect, Ids, Talk};
use crate::flow::{Flow, Thought};
use crate::grammar::Enforcement;

/// The thought of many families.
pub(super) const THOUGHT: Thought =
    Thought { open: &["<think>"], close: &["</think>"], anywhere: false };

/// See the file's head.
pub(crate) static DIALECT: Dialect = Dialect {
    name: "think",
    about: "thoughts in <think>, calls are text",
    known_by: |checkpoint| {
        checkpoint.says("<think>")
            || checkpoint.says("</think>")
            || (checkpoint.has_token)("<think>")
    },
    talk: Talk::Flow(Flow {
        thought: Some(THOUGHT),
        calls: &[],
        silent: &[],
        frame: None,
        bare: &[],
    }),
    ids: Ids::Any,
    enforcement: Enforcement::NONE,
};
