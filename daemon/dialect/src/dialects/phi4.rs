//! Phi-4: JSON in tags of its own, or behind the word `functools`.
//!
//! ```text
//!   <|tool_call|>{"name": "f", "arguments": {"a": 1}}<|/tool_call|>       a list as well
//!   functools[{"name": "f", "arguments": {"a": 1}}]                       Phi-4-mini by its older prompt
//!   <think>thought</think>text                                            Phi-4-reasoning
//! ```

use crate::body::{JsonCall, JsonForm};
use crate::dialect::{Dialect, Ids, Talk};
use crate::dialects::think::THOUGHT;
use crate::flow::{Flow, Opener};
use crate::grammar::{Arguments, Enforcement, Tag};

static TAGS: JsonForm = JsonForm {
    close: &["<|/tool_call|>", "</|tool_call|>"],
    list: true,
    single: true,
    between: &[","],
    lead: &[],
};

static LIST: JsonForm = JsonForm { close: &[], list: true, single: false, between: &[], lead: &[] };

/// See the file's head.
pub(crate) static DIALECT: Dialect = Dialect {
    name: "phi4",
    about: "Phi-4 mini and reasoning: JSON in <|tool_call|>, or behind functools",
    known_by: |checkpoint| {
        let phi = checkpoint.is("Phi") || checkpoint.says("<|tool|>");
        phi && (checkpoint.says("<|tool_call|>")
            || checkpoint.says("<|tool|>")
            || checkpoint.says("functools")
            || (checkpoint.has_token)("<|tool_call|>"))
    },
    talk: Talk::Flow(Flow {
        thought: Some(THOUGHT),
        calls: &[
            Opener { marker: "<|tool_call|>", body: || Box::new(JsonCall::new(&TAGS)) },
            Opener { marker: "functools", body: || Box::new(JsonCall::new(&LIST)) },
        ],
        silent: &[],
        frame: None,
        bare: &[],
    }),
    ids: Ids::Any,
    enforcement: Enforcement {
        tag: Some(Tag {
            first: "",
            begin: "<|tool_call|>{\"name\": \"NAME\", \"arguments\": ",
            arguments: Arguments::Json,
            end: "}<|/tool_call|>",
            between: "",
            last: "",
        }),
        other: None,
        inner_markers: &[],
    },
};
