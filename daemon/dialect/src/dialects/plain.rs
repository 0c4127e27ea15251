//! Nothing is known: all is text, and calls are as Hermes writes them, where a request has tools.

use crate::dialect::{Dialect, Ids, Talk};
use crate::dialects::tool_call::{CALLS, ENFORCEMENT};
use crate::flow::Flow;

/// See the file's head.
pub(crate) static DIALECT: Dialect = Dialect {
    name: "plain",
    about: "none of the others: all is text, calls as Hermes writes them",
    known_by: |_| true,
    talk: Talk::Flow(Flow { thought: None, calls: CALLS, silent: &[], frame: None, bare: &[] }),
    ids: Ids::Any,
    enforcement: ENFORCEMENT,
};
