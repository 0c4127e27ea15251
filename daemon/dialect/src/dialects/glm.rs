//! GLM 4.5 to 4.7, and 5: keys and values in tags.
//!
//! ```text
//!   \n<think>thought</think>\ntext\n<tool_call>f\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>     4.5, 4.6
//!   <think>thought</think>text<tool_call>f<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call>                4.7
//! ```
//!
//! A string stands as it is, anything else as JSON. 4.7's template opens the thought itself, 4.5's model does.

use crate::body::{XmlCall, XmlForm};
use crate::dialect::{Dialect, Ids, Talk};
use crate::dialects::think::THOUGHT;
use crate::flow::{Flow, Opener};
use crate::grammar::{Arguments, Enforcement, Tag};

static FORM: XmlForm = XmlForm {
    name_open: "",
    name_close: &[("\n", true), ("<arg_key>", false), ("</tool_call>", false)],
    key_open: "<arg_key>",
    key_close: "</arg_key>",
    value_open: "<arg_value>",
    value_close: "</arg_value>",
    call_close: "</tool_call>",
    close: &[],
    lines: false,
};

/// See the file's head.
pub(crate) static DIALECT: Dialect = Dialect {
    name: "glm",
    about: "GLM 4.5 to 5: <arg_key> and <arg_value> in <tool_call>",
    known_by: |checkpoint| checkpoint.says("<arg_key>"),
    talk: Talk::Flow(Flow {
        thought: Some(THOUGHT),
        calls: &[Opener { marker: "<tool_call>", body: || Box::new(XmlCall::new(&FORM)) }],
        silent: &[],
        frame: None,
        bare: &[],
    }),
    ids: Ids::Any,
    enforcement: Enforcement {
        tag: Some(Tag {
            first: "",
            begin: "<tool_call>NAME",
            arguments: Arguments::Tagged {
                open: "<arg_key>",
                middle: "</arg_key><arg_value>",
                close: "</arg_value>",
            },
            end: "</tool_call>",
            between: "",
            last: "",
        }),
        other: None,
        inner_markers: &["</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"],
    },
};
