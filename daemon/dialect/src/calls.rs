//! The calls of one output: numbers, counts, and who may be called.
//!
//! Owns: what [`Part::Begin`], [`Part::Arguments`] and [`Part::End`] promise. Must never: read a dialect.

use std::sync::Arc;

use crate::part::{Counts, Outcome, Part};
use crate::tools::Tools;

/// Where parts go.
pub(crate) type Sink<'a> = dyn FnMut(Part<'_>) + 'a;

/// See the file's head.
pub(crate) struct Calls {
    pub(crate) tools: Arc<Tools>,
    /// Only names of tools are calls: nothing but the name says that it is one.
    pub(crate) known_only: bool,
    pub(crate) counts: Counts,
    next: usize,
    open: bool,
}

impl Calls {
    pub(crate) fn new(tools: Arc<Tools>) -> Calls {
        Calls { tools, known_only: false, counts: Counts::default(), next: 0, open: false }
    }

    /// Whether a call has begun and not ended.
    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    /// Whether a call may have this name.
    pub(crate) fn accepts(&self, name: &str) -> bool {
        !name.is_empty() && (!self.known_only || self.tools.knows(name))
    }

    pub(crate) fn begin(&mut self, name: &str, id: Option<&str>, sink: &mut Sink<'_>) {
        debug_assert!(!self.open && !name.is_empty());
        self.open = true;
        sink(Part::Begin { index: self.next, name, id });
    }

    pub(crate) fn arguments(&mut self, json: &str, sink: &mut Sink<'_>) {
        debug_assert!(self.open);
        if !json.is_empty() {
            sink(Part::Arguments { index: self.next, json });
        }
    }

    pub(crate) fn end(&mut self, outcome: Outcome, sink: &mut Sink<'_>) {
        debug_assert!(self.open);
        self.open = false;
        match outcome {
            Outcome::Whole => self.counts.whole += 1,
            Outcome::Cut => self.counts.cut += 1,
            Outcome::Broken => self.counts.broken += 1,
        }
        sink(Part::End { index: self.next, outcome });
        self.next += 1;
    }

    /// A whole call at once.
    pub(crate) fn whole(&mut self, name: &str, json: &str, sink: &mut Sink<'_>) {
        self.begin(name, None, sink);
        self.arguments(json, sink);
        self.end(Outcome::Whole, sink);
    }
}
