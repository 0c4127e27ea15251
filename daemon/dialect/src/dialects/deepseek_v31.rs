//! DeepSeek V3.1: name and JSON between markers.
//!
//! ```text
//!   <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>
//! ```
//!
//! The prompt ends in `<think>` or in `<think></think>`, or for a thought in `</think>` alone.

use crate::body::{NamedCall, NamedForm};
use crate::dialect::{Dialect, Ids, Talk};
use crate::dialects::deepseek_v3::SECTION;
use crate::dialects::think::THOUGHT;
use crate::flow::{Flow, Opener};
use crate::grammar::{Arguments, Enforcement, Tag};

static FORM: NamedForm = NamedForm {
    separators: &["<｜tool▁sep｜>"],
    brace: false,
    head: |text| Some((text.trim(), None)),
    trail: &[],
    close: &["<｜tool▁call▁end｜>"],
};

/// See the file's head.
pub(crate) static DIALECT: Dialect = Dialect {
    name: "deepseek_v31",
    about: "DeepSeek V3.1: JSON between <｜tool▁call▁begin｜> and its end",
    known_by: |checkpoint| checkpoint.says("<｜tool▁sep｜>"),
    talk: Talk::Flow(Flow {
        thought: Some(THOUGHT),
        calls: &[Opener {
            marker: "<｜tool▁call▁begin｜>",
            body: || Box::new(NamedCall::new(&FORM)),
        }],
        silent: SECTION,
        frame: None,
        bare: &[],
    }),
    ids: Ids::Any,
    enforcement: Enforcement {
        tag: Some(Tag {
            first: "<｜tool▁calls▁begin｜>",
            begin: "<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>",
            arguments: Arguments::Json,
            end: "<｜tool▁call▁end｜>",
            between: "",
            last: "<｜tool▁calls▁end｜>",
        }),
        other: None,
        inner_markers: &["<｜tool▁sep｜>"],
    },
};
