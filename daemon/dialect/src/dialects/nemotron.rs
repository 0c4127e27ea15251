//! Nemotron: a list in tags (Llama-Nemotron, Nano v2), or Qwen3-Coder's tags (Nemotron 3).
//!
//! ```text
//!   <think>\nthought\n</think>\n\n<TOOLCALL>[{"name": "f", "arguments": {"a": 1}}]</TOOLCALL>
//!   <tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>
//! ```

use crate::body::{JsonCall, JsonForm, XmlCall};
use crate::dialect::{Dialect, Ids, Talk};
use crate::dialects::qwen3_coder;
use crate::dialects::think::THOUGHT;
use crate::flow::{Flow, Opener};
use crate::grammar::{Arguments, Enforcement, Tag};

static FORM: JsonForm =
    JsonForm { close: &["</TOOLCALL>"], list: true, single: true, between: &[","], lead: &[] };

/// See the file's head.
pub(crate) static DIALECT: Dialect = Dialect {
    name: "nemotron",
    about: "Nemotron Nano v2 and Llama-Nemotron: JSON in <TOOLCALL>; Nemotron 3: Qwen3-Coder's tags",
    known_by: |checkpoint| {
        checkpoint.says("<TOOLCALL>") || checkpoint.is("NemotronH") && checkpoint.says("<function=")
    },
    talk: Talk::Flow(Flow {
        thought: Some(THOUGHT),
        calls: &[
            Opener { marker: "<TOOLCALL>", body: || Box::new(JsonCall::new(&FORM)) },
            Opener { marker: "<tool_call>", body: || Box::new(XmlCall::new(&qwen3_coder::FORM)) },
        ],
        silent: &[],
        frame: None,
        bare: &[],
    }),
    ids: Ids::Any,
    enforcement: Enforcement {
        tag: Some(Tag {
            first: "<TOOLCALL>[",
            begin: "{\"name\": \"NAME\", \"arguments\": ",
            arguments: Arguments::Json,
            end: "}",
            between: ", ",
            last: "]</TOOLCALL>",
        }),
        other: Some((
            |has_token| has_token("<tool_call>") && !has_token("<TOOLCALL>"),
            qwen3_coder::TAG,
        )),
        inner_markers: &[],
    },
};
