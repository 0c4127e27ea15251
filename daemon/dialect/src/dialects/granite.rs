//! Granite: a list behind a marker that nothing closes (3.x), or Hermes' tags (4).
//!
//! ```text
//!   <|tool_call|>[{"name": "f", "arguments": {"a": 1}}]                                        3.0 to 3.3
//!   <tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>                            4
//!   <think>thought</think><response>text</response>                                            3.3
//!   Here is my thought process: thought Here is my response: text                              3.2
//! ```

use crate::body::{JsonCall, JsonForm};
use crate::dialect::{Dialect, Ids, Talk};
use crate::dialects::tool_call;
use crate::flow::{Flow, Opener, Thought};
use crate::grammar::{Arguments, Enforcement, Tag};

static LIST: JsonForm = JsonForm { close: &[], list: true, single: true, between: &[], lead: &[] };

/// See the file's head.
pub(crate) static DIALECT: Dialect = Dialect {
    name: "granite",
    about: "Granite 3 and 4: JSON behind <|tool_call|>, or in <tool_call>",
    known_by: |checkpoint| checkpoint.is("Granite") || checkpoint.says("<|start_of_role|>"),
    talk: Talk::Flow(Flow {
        thought: Some(Thought {
            open: &["<think>", "Here is my thought process:", "Here's my thought process:"],
            close: &["</think>", "Here is my response:", "Here's my response:"],
            anywhere: false,
        }),
        calls: &[
            Opener { marker: "<|tool_call|>", body: || Box::new(JsonCall::new(&LIST)) },
            Opener { marker: "<tool_call>", body: || Box::new(JsonCall::new(&tool_call::FORM)) },
        ],
        silent: &[],
        frame: Some((&["<response>"], &["</response>"])),
        bare: &[],
    }),
    ids: Ids::Any,
    enforcement: Enforcement {
        other: Some((
            |has_token| has_token("<|tool_call|>") && !has_token("<tool_call>"),
            Tag {
                first: "<|tool_call|>[",
                begin: "{\"name\": \"NAME\", \"arguments\": ",
                arguments: Arguments::Json,
                end: "}",
                between: ", ",
                last: "]",
            },
        )),
        ..tool_call::ENFORCEMENT
    },
};
