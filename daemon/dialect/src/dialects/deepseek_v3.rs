//! DeepSeek V3 and R1: a type, a name, and a fence of JSON between markers.
//!
//! ```text
//!   <think>\nthought\n</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{"a": 1}\n```<｜tool▁call▁end｜>
//!   \n<｜tool▁call▁begin｜>...<｜tool▁call▁end｜><｜tool▁calls▁end｜>
//! ```
//!
//! R1's template opens the thought itself; its distilled models have this template as well.

use crate::body::{NamedCall, NamedForm};
use crate::dialect::{Dialect, Ids, Talk};
use crate::dialects::think::THOUGHT;
use crate::flow::{Flow, Opener};
use crate::grammar::{Arguments, Enforcement, Tag};

/// What stands around all calls of an output.
pub(super) const SECTION: &[&str] = &["<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"];

static FORM: NamedForm = NamedForm {
    separators: &["\n```json"],
    brace: false,
    head: |text| {
        let (_, name) = text.split_once("<｜tool▁sep｜>")?;
        Some((name.trim(), None))
    },
    trail: &["```"],
    close: &["<｜tool▁call▁end｜>"],
};

/// See the file's head.
pub(crate) static DIALECT: Dialect = Dialect {
    name: "deepseek_v3",
    about: "DeepSeek V3, R1 and its distilled models: a fence between <｜tool▁call▁begin｜> and its end",
    known_by: |checkpoint| checkpoint.says("<｜tool▁sep｜>") && checkpoint.says("```json"),
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
            begin: "<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\n",
            arguments: Arguments::Json,
            end: "\n```<｜tool▁call▁end｜>",
            between: "\n",
            last: "<｜tool▁calls▁end｜>",
        }),
        other: None,
        inner_markers: &["<｜tool▁sep｜>"],
    },
};
