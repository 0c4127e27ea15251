//! Hermes, Qwen 2.5, Qwen 3 and QwQ: a JSON object between tags.
//!
//! ```text
//!   <think>\nthought\n</think>\n\ntext\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>
//! ```
//!
//! QwQ's and the thinking models' templates open the thought themselves. Models also put several objects between the tags.

use crate::dialect::{Dialect, Ids, Talk};
use crate::dialects::think::THOUGHT;
use crate::dialects::tool_call::{CALLS, ENFORCEMENT};
use crate::flow::Flow;

/// See the file's head.
pub(crate) static DIALECT: Dialect = Dialect {
    name: "hermes",
    about: "Hermes 2 Pro and 3, Qwen 2.5, Qwen 3, QwQ: JSON in <tool_call>",
    // MiniMax M3 and Apriel only speak of tags of this name, and write others.
    known_by: |checkpoint| {
        let others = checkpoint.says("<invoke ") || checkpoint.says("<tool_calls>");
        checkpoint.says("<tool_call>") && !others
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
