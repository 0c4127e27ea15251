//! What grammars may cost.

use std::num::NonZeroUsize;

use llguidance::api::ParserLimits;

/// What the stack of a thread must have that compiles grammars, or walks the whole of an output: 30 KB for each of
/// [`Limits::definitions`] were seen in a build without optimisation. Most of it is never touched.
pub const COMPILE_STACK_BYTES: usize = 512 << 20;

/// The same of a thread that makes masks.
pub const STEP_STACK_BYTES: usize = 64 << 20;

/// What grammars may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a grammar's text.
    pub text_bytes: usize,
    /// Rules of a grammar, or references of a schema, which may lead from one to the next: each takes of the stack while they are
    /// compiled. As many properties may an object have.
    pub definitions: usize,
    /// Bytes of text of all grammars in the cache.
    pub cache_bytes: usize,
    /// Grammars in the cache.
    pub cache_entries: usize,
    /// How many outputs of a grammar can be moved on at once without waiting for each other: what lexers learn is shared by those in
    /// a lane.
    pub lanes: NonZeroUsize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            text_bytes: 256 << 10,
            definitions: 2_000,
            cache_bytes: 16 << 20,
            cache_entries: 128,
            lanes: NonZeroUsize::MIN.saturating_add(3),
        }
    }
}

impl Limits {
    /// Those of the parser: of the order of 20 ms for a grammar, and of some ms for a token.
    pub(crate) fn parser(&self) -> ParserLimits {
        ParserLimits { max_lexer_states: 50_000, verbose_errors: false, ..ParserLimits::default() }
    }
}
