//! gpt-oss: harmony's messages. `harmony.rs` says how they stand.

use crate::dialect::{Dialect, Ids, Talk};
use crate::grammar::{Arguments, Enforcement, Tag};

/// See the file's head.
pub(crate) static DIALECT: Dialect = Dialect {
    name: "gpt_oss",
    about: "gpt-oss: harmony's channels and recipients",
    known_by: |checkpoint| {
        checkpoint.is("GptOss") || checkpoint.says("<|channel|>") && checkpoint.says("<|start|>")
    },
    talk: Talk::Harmony,
    ids: Ids::Any,
    enforcement: Enforcement {
        tag: Some(Tag {
            first: "",
            begin: "<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>",
            arguments: Arguments::Json,
            end: "<|call|>",
            between: "<|start|>assistant",
            last: "",
        }),
        other: None,
        inner_markers: &[],
    },
};
