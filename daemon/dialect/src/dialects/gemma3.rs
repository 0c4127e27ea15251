//! Gemma 3: no markers; what a prompt asks for, in the ways that Google's own prompts ask.
//!
//! ```text
//!   [f(city="Paris"), g()]                       the whole answer
//!   {"name": "f", "parameters": {"a": 1}}        the whole answer, at times in a fence
//!   ```tool_code\nf(city="Paris")\n```           anywhere
//! ```
//!
//! Without a marker only tools of the request are called.

use crate::body::{JsonCall, JsonForm, PythonCall, PythonForm};
use crate::dialect::{Dialect, Ids, Talk};
use crate::dialects::llama::bracket;
use crate::flow::{Flow, Opener};
use crate::grammar::{Arguments, Enforcement, Tag};

static JSON: JsonForm =
    JsonForm { close: &[], list: true, single: true, between: &[",", ";"], lead: &[] };

static FENCE: JsonForm = JsonForm {
    close: &["```"],
    list: true,
    single: true,
    between: &[",", ";"],
    lead: &["```json", "```tool_call", "```"],
};

static CODE: PythonForm = PythonForm { single: true, close: &["```"], suffix: "" };

/// See the file's head.
pub(crate) static DIALECT: Dialect = Dialect {
    name: "gemma3",
    about: "Gemma 3: Python or JSON as the whole answer, or ```tool_code",
    known_by: |checkpoint| checkpoint.is("Gemma3"),
    talk: Talk::Flow(Flow {
        thought: None,
        calls: &[Opener { marker: "```tool_code", body: || Box::new(PythonCall::new(&CODE)) }],
        silent: &[],
        frame: None,
        bare: &[
            ('[', bracket),
            ('{', || Box::new(JsonCall::new(&JSON))),
            ('`', || Box::new(JsonCall::new(&FENCE))),
        ],
    }),
    ids: Ids::Any,
    enforcement: Enforcement {
        tag: Some(Tag {
            first: "[",
            begin: "NAME(",
            arguments: Arguments::Python,
            end: ")",
            between: ", ",
            last: "]",
        }),
        other: None,
        inner_markers: &[],
    },
};
