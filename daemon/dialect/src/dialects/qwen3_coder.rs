//! Qwen3-Coder, Qwen 3.5 and later: tags for function and parameters.
//!
//! ```text
//!   <think>\nthought\n</think>\n\ntext\n\n<tool_call>\n<function=f>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>
//! ```
//!
//! Values are text, typed by the tool's schema; a line break on either side is the format's. Qwen 3.5's template opens the
//! thought itself. Models leave `<tool_call>` out at times.

use crate::body::{XmlCall, XmlForm};
use crate::dialect::{Dialect, Ids, Talk};
use crate::dialects::think::THOUGHT;
use crate::flow::{Flow, Opener};
use crate::grammar::{Arguments, Enforcement, Tag};

/// The tags, which Nemotron 3 has as well.
pub(super) static FORM: XmlForm = XmlForm {
    name_open: "<function=",
    name_close: &[(">", true)],
    key_open: "<parameter=",
    key_close: ">",
    value_open: "",
    value_close: "</parameter>",
    call_close: "</function>",
    close: &["</tool_call>"],
    lines: true,
};

/// What opens them.
pub(super) static CALLS: &[Opener] = &[
    Opener { marker: "<tool_call>", body: || Box::new(XmlCall::new(&FORM)) },
    Opener { marker: "<function=", body: || Box::new(XmlCall::at_name(&FORM)) },
];

/// What a grammar makes of them.
pub(super) const TAG: Tag = Tag {
    first: "",
    begin: "<tool_call>\n<function=NAME>\n",
    arguments: Arguments::Tagged { open: "<parameter=", middle: ">\n", close: "\n</parameter>\n" },
    end: "</function>\n</tool_call>",
    between: "\n",
    last: "",
};

/// See the file's head.
pub(crate) static DIALECT: Dialect = Dialect {
    name: "qwen3_coder",
    about: "Qwen3-Coder, Qwen 3.5 and later: <function=..><parameter=..> in <tool_call>",
    // Seed-OSS has the inner tags in an outer one of its own, functionary JSON in them.
    known_by: |checkpoint| {
        ["<function=", "<parameter=", "<tool_call>"].iter().all(|tag| checkpoint.says(tag))
    },
    talk: Talk::Flow(Flow {
        thought: Some(THOUGHT),
        calls: CALLS,
        silent: &[],
        frame: None,
        bare: &[],
    }),
    ids: Ids::Any,
    enforcement: Enforcement { tag: Some(TAG), other: None, inner_markers: &[] },
};
