//! Gemma 4: a notation of its own between markers, and thoughts in a channel.
//!
//! ```text
//!   <|channel>thought\nthought\n<channel|>text<|tool_call>call:f{city:<|"|>Paris<|"|>,days:2}<tool_call|>
//! ```
//!
//! Where a request does not think, the prompt ends in an empty thought. FunctionGemma is not this dialect.

use crate::body::GemmaCall;
use crate::dialect::{Dialect, Ids, Talk};
use crate::flow::{Flow, Opener, Thought};
use crate::grammar::{Arguments, Enforcement, Tag};

/// See the file's head.
pub(crate) static DIALECT: Dialect = Dialect {
    name: "gemma4",
    about: "Gemma 4: call:f{..} in <|tool_call>, thoughts in a channel",
    known_by: |checkpoint| checkpoint.is("Gemma4") || checkpoint.says("<|tool_call>"),
    talk: Talk::Flow(Flow {
        thought: Some(Thought {
            open: &["<|channel>thought"],
            close: &["<channel|>"],
            anywhere: true,
        }),
        calls: &[Opener { marker: "<|tool_call>", body: || Box::new(GemmaCall::new()) }],
        silent: &[],
        frame: None,
        bare: &[],
    }),
    ids: Ids::Any,
    enforcement: Enforcement {
        tag: Some(Tag {
            first: "",
            begin: "<|tool_call>call:NAME",
            arguments: Arguments::Gemma,
            end: "<tool_call|>",
            between: "",
            last: "",
        }),
        other: None,
        inner_markers: &["<|\"|>", "<|channel>"],
    },
};
