//! Calls as Hermes writes them, which several families do, and those that have no way of their own.
//!
//! ```text
//!   <tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>
//! ```

use crate::body::{JsonCall, JsonForm};
use crate::flow::Opener;
use crate::grammar::{Arguments, Enforcement, Tag};

/// What stands between the tags.
pub(super) static FORM: JsonForm =
    JsonForm { close: &["</tool_call>"], list: true, single: true, between: &[","], lead: &[] };

/// What opens them.
pub(super) static CALLS: &[Opener] =
    &[Opener { marker: "<tool_call>", body: || Box::new(JsonCall::new(&FORM)) }];

/// What a grammar makes of them.
pub(super) const ENFORCEMENT: Enforcement = Enforcement {
    tag: Some(Tag {
        first: "",
        begin: "<tool_call>\n{\"name\": \"NAME\", \"arguments\": ",
        arguments: Arguments::Json,
        end: "}\n</tool_call>",
        between: "\n",
        last: "",
    }),
    other: None,
    inner_markers: &[],
};
