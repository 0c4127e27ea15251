//! Everything is text.

use crate::dialect::{Dialect, Ids, Talk};
use crate::flow::Flow;
use crate::grammar::Enforcement;

/// See the file's head.
pub(crate) static DIALECT: Dialect = Dialect {
    name: "plain",
    about: "everything is text",
    known_by: |_| true,
    talk: Talk::Flow(Flow { thought: None, calls: &[], silent: &[], frame: None, bare: &[] }),
    ids: Ids::Any,
    enforcement: Enforcement::NONE,
};
