//! Command R7B, Command A and Command R+: a list of actions.
//!
//! ```text
//!   <|START_THINKING|>plan<|END_THINKING|><|START_ACTION|>[
//!       {"tool_call_id": "0", "tool_name": "f", "parameters": {"a": 1}}
//!   ]<|END_ACTION|>
//!   <|START_RESPONSE|>text<|END_RESPONSE|>
//!   Action:\n```json\n[{"tool_name": "f", "parameters": {"a": 1}}]```                  Command R+
//! ```
//!
//! Citations (`<co>`) stay in the text.

use crate::body::{JsonCall, JsonForm};
use crate::dialect::{Dialect, Ids, Talk};
use crate::flow::{Flow, Opener, Thought};
use crate::grammar::{Arguments, Enforcement, Tag};

static FORM: JsonForm =
    JsonForm { close: &["<|END_ACTION|>"], list: true, single: true, between: &[","], lead: &[] };

static FENCE: JsonForm =
    JsonForm { close: &["```"], list: true, single: false, between: &[], lead: &[] };

/// See the file's head.
pub(crate) static DIALECT: Dialect = Dialect {
    name: "command",
    about: "Command A, R7B and R+: <|START_ACTION|>, or Action: with a fence",
    known_by: |checkpoint| {
        checkpoint.says("<|START_ACTION|>")
            || checkpoint.says("Action:") && checkpoint.says("tool_name")
    },
    talk: Talk::Flow(Flow {
        thought: Some(Thought {
            open: &["<|START_THINKING|>"],
            close: &["<|END_THINKING|>"],
            anywhere: true,
        }),
        calls: &[
            Opener { marker: "<|START_ACTION|>", body: || Box::new(JsonCall::new(&FORM)) },
            Opener { marker: "Action:\n```json", body: || Box::new(JsonCall::new(&FENCE)) },
            Opener { marker: "Action: ```json", body: || Box::new(JsonCall::new(&FENCE)) },
        ],
        silent: &["<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"],
        frame: None,
        bare: &[],
    }),
    ids: Ids::Any,
    enforcement: Enforcement {
        tag: Some(Tag {
            first: "<|START_ACTION|>[\n",
            begin: "    {\"tool_call_id\": \"INDEX\", \"tool_name\": \"NAME\", \"parameters\": ",
            arguments: Arguments::Json,
            end: "}",
            between: ",\n",
            last: "\n]<|END_ACTION|>",
        }),
        other: None,
        inner_markers: &[],
    },
};
