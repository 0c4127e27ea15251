//! SmolLM3: Hermes' calls and `<think>`; the template says in words whether to think. Its Python tools (`<code>`) are text.

use crate::dialect::{Dialect, Ids, Talk};
use crate::dialects::think::THOUGHT;
use crate::dialects::tool_call::{CALLS, ENFORCEMENT};
use crate::flow::Flow;

/// See the file's head.
pub(crate) static DIALECT: Dialect = Dialect {
    name: "smollm3",
    about: "SmolLM3: JSON in <tool_call>",
    known_by: |checkpoint| checkpoint.is("SmolLM3") || checkpoint.says("xml_tools"),
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
