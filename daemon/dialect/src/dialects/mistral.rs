//! Mistral: a list of JSON objects behind a marker, or marker, name and arguments for each call.
//!
//! ```text
//!   [TOOL_CALLS][{"name": "f", "arguments": {"a": 1}, "id": "abcdefghi"}]           tokenizers before v11
//!   [TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}                                v11 and later
//!   [TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{"a": 1}                                   Mistral Small 3.2
//!   [THINK]thought[/THINK]text                                                      Magistral, Ministral 3
//! ```
//!
//! Nothing closes a call. Which form stands there shows behind the marker, in each call.

use crate::body::{Body, Either, JsonCall, JsonForm, NamedCall, NamedForm};
use crate::dialect::{Dialect, Ids, Talk};
use crate::flow::{Flow, Opener, Thought};
use crate::grammar::{Arguments, Enforcement, Tag};

static LIST: JsonForm = JsonForm { close: &[], list: true, single: true, between: &[], lead: &[] };

static NAMED: NamedForm =
    NamedForm { separators: &["[ARGS]"], brace: true, head, trail: &[], close: &[] };

/// Name and, behind its marker, id.
fn head(text: &str) -> Option<(&str, Option<&str>)> {
    let (name, id) = match text.split_once("[CALL_ID]") {
        Some((name, id)) => (name, Some(id.trim()).filter(|id| !id.is_empty())),
        None => (text, None),
    };
    let name = name.trim();
    let fits = |char: char| char.is_ascii_alphanumeric() || matches!(char, '_' | '-' | '.');
    (!name.is_empty() && name.chars().all(fits)).then_some((name, id))
}

/// Either form.
fn either() -> Box<dyn Body> {
    Box::new(Either::new(|text| {
        Some(if text.starts_with(['[', '{']) {
            Box::new(JsonCall::new(&LIST))
        } else {
            Box::new(NamedCall::new(&NAMED))
        })
    }))
}

/// See the file's head.
pub(crate) static DIALECT: Dialect = Dialect {
    name: "mistral",
    about: "Mistral, Ministral, Magistral, Devstral: [TOOL_CALLS], both forms; [THINK]",
    known_by: |checkpoint| checkpoint.says("[TOOL_CALLS]"),
    talk: Talk::Flow(Flow {
        thought: Some(Thought { open: &["[THINK]"], close: &["[/THINK]"], anywhere: true }),
        calls: &[Opener { marker: "[TOOL_CALLS]", body: either }],
        silent: &[],
        frame: None,
        bare: &[],
    }),
    ids: Ids::NineLetters,
    enforcement: Enforcement {
        tag: Some(Tag {
            first: "",
            begin: "[TOOL_CALLS]NAME[ARGS]",
            arguments: Arguments::Json,
            end: "",
            between: "",
            last: "",
        }),
        other: Some((
            |has_token| has_token("[TOOL_CALLS]") && !has_token("[ARGS]"),
            Tag {
                first: "[TOOL_CALLS][",
                begin: "{\"name\": \"NAME\", \"arguments\": ",
                arguments: Arguments::Json,
                end: "}",
                between: ", ",
                last: "]",
            },
        )),
        inner_markers: &["[ARGS]", "[CALL_ID]"],
    },
};
