//! What the rows of a layer see: a window, a sink, or simply all up to their own.
//!
//! Owns: how windows are said and checked. Layers may differ in theirs, and a step is planned for each window once. Must
//! never: know a backend.

use half::bf16;

use crate::abi::Address;
use crate::check::Check;
use crate::{Array, LaunchError};

/// What the rows of a layer see.
#[derive(Clone, Copy, Default)]
pub struct View<'a> {
    /// As many tokens, a row's own the last; `None`: all up to it.
    pub window: Option<u32>,
    /// `[q_heads]`: one more logit in the softmax of each head, a natural logarithm. Its probability belongs to no
    /// value.
    pub sinks: Option<Array<'a, bf16>>,
}

impl View<'_> {
    /// Whether rows see all up to their own, and nothing else.
    pub(super) fn is_plain(&self) -> bool {
        self.window.is_none() && self.sinks.is_none()
    }

    /// Where the sinks are; 0 for none.
    pub(super) fn check(&self, check: &Check<'_>, q_heads: usize) -> Result<Address, LaunchError> {
        self.sinks.as_ref().map_or(Ok(0), |sinks| check.scalars("sinks", sinks, &[q_heads]))
    }

    /// What was planned for this window.
    pub(super) fn find<'p, P>(
        &self,
        plans: &'p [P],
        window: impl Fn(&P) -> Option<u32>,
    ) -> Result<&'p P, LaunchError> {
        plans.iter().find(|plan| window(plan) == self.window).ok_or_else(|| {
            let planned: Vec<_> = plans.iter().map(window).collect();
            let what = format!("the window is {:?}, planned were {planned:?}", self.window);
            LaunchError::Argument { op: "attention", what }
        })
    }
}

/// Refuses a window without a token, and no window at all: what is seen whole is `None`.
pub(super) fn check_windows(check: &Check<'_>, windows: &[Option<u32>]) -> Result<(), LaunchError> {
    check.that(!windows.is_empty() && !windows.contains(&Some(0)), || {
        format!("windows are {windows:?}: there is one at least, and it has a token at least")
    })
}

/// Tokens before a row's own that it sees; negative for all.
pub(super) fn window_left(window: Option<u32>) -> i32 {
    window.map_or(-1, |window| window.saturating_sub(1).min(WINDOW_LEFT_MAX) as i32)
}

/// More tokens than a request has; the templates add positions to it in 32 bits.
pub(super) const WINDOW_LEFT_MAX: u32 = 1 << 30;
