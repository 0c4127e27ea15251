//! Llama 3.1 to 3.3, and 4: JSON or Python, as the whole answer or behind a marker.
//!
//! ```text
//!   {"name": "f", "parameters": {"a": 1}}                     the whole answer; several with `;` between them
//!   <|python_tag|>{"name": "f", "parameters": {"a": 1}}
//!   <|python_tag|>brave_search.call(query="x")                tools that the model knows by itself
//!   [f(city="Paris"), g()]                                    the whole answer (3.2 and later)
//!   <|python_start|>[f(city="Paris")]<|python_end|>           Llama 4
//!   <|python_start|>I look.<|python_end|>{"name": "f", "parameters": {"a": 1}}       Llama 4, as its template writes it
//! ```
//!
//! Without a marker only tools of the request are called: an answer in JSON is no call. Code behind `<|python_tag|>` is text, and so
//! is what stands between `<|python_start|>` and its end.

use crate::body::{Body, Either, JsonCall, JsonForm, PythonCall, PythonForm, behind_bracket};
use crate::dialect::{Dialect, Ids, Talk};
use crate::flow::{Flow, Opener};
use crate::grammar::{Arguments, Enforcement, Tag};

static JSON: JsonForm =
    JsonForm { close: &[], list: true, single: true, between: &[";", ","], lead: &[] };

static LIST: PythonForm = PythonForm { single: false, close: &[], suffix: "" };

static BUILT_IN: PythonForm = PythonForm { single: true, close: &[], suffix: ".call" };

static LLAMA4: PythonForm = PythonForm { single: true, close: &["<|python_end|>"], suffix: "" };

/// A list of objects, or of calls.
pub(super) fn bracket() -> Box<dyn Body> {
    Box::new(Either::new(|text| {
        Some(match behind_bracket(text)? {
            '{' => Box::new(JsonCall::new(&JSON)),
            _ => Box::new(PythonCall::new(&LIST)),
        })
    }))
}

/// An object, a list, or a call.
fn tagged() -> Box<dyn Body> {
    Box::new(Either::new(|text| {
        Some(match text.as_bytes().first()? {
            b'{' => Box::new(JsonCall::new(&JSON)),
            b'[' if behind_bracket(text)? == '{' => Box::new(JsonCall::new(&JSON)),
            _ => Box::new(PythonCall::new(&BUILT_IN)),
        })
    }))
}

/// See the file's head.
pub(crate) static DIALECT: Dialect = Dialect {
    name: "llama",
    about: "Llama 3.1 to 4: JSON or Python, bare or behind <|python_tag|>",
    known_by: |checkpoint| {
        // functionary's template has the same words, and calls in tags.
        let llama = checkpoint.says("<|python_tag|>")
            || checkpoint.says("Environment: ipython")
            || checkpoint.is("Llama4")
            || checkpoint.is("Llama") && (checkpoint.has_token)("<|python_tag|>");
        llama && !checkpoint.says("<function=")
    },
    talk: Talk::Flow(Flow {
        thought: None,
        calls: &[
            Opener { marker: "<|python_tag|>", body: tagged },
            Opener { marker: "<|python_start|>", body: || Box::new(PythonCall::new(&LLAMA4)) },
        ],
        silent: &[],
        // Llama 4's template writes the text before a call between these, also an empty one.
        frame: Some((&["<|python_start|>"], &["<|python_end|>"])),
        bare: &[('{', || Box::new(JsonCall::new(&JSON))), ('[', bracket)],
    }),
    ids: Ids::Any,
    enforcement: Enforcement {
        tag: Some(Tag {
            first: "",
            begin: "{\"name\": \"NAME\", \"parameters\": ",
            arguments: Arguments::Json,
            end: "}",
            between: "; ",
            last: "",
        }),
        other: None,
        inner_markers: &[],
    },
};
