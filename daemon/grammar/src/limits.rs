//! What grammars may cost.

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
    /// Characters of a regular expression, and the root of the sum of the squares of all in a grammar: building one takes
    /// memory that grows with its square, 1 GB with 20,000 (`a?` again and again).
    pub pattern_chars: usize,
    /// Bytes of a grammar in Lark or EBNF, whose terminals are regular expressions of any length, and of operators in it that
    /// make one of two.
    pub lark_bytes: usize,
    /// See there.
    pub lark_operators: usize,
    /// Alternatives of a schema's `anyOf` or `oneOf`, each of which takes part in every mask before one is decided for.
    pub branches: usize,
    /// Texts to choose from.
    pub choices: usize,
    /// An integer's `multipleOf`, which takes as many states.
    pub multiple_of: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            text_bytes: minisgl_proto::limits::GRAMMAR_BYTES_MAX,
            definitions: 2_000,
            cache_bytes: 16 << 20,
            cache_entries: 64,
            pattern_chars: 4_000,
            lark_bytes: 16 << 10,
            lark_operators: 4,
            branches: 512,
            choices: 10_000,
            multiple_of: 10_000,
        }
    }
}

impl Limits {
    /// Those of the parser.
    pub(crate) fn parser(&self) -> ParserLimits {
        ParserLimits { max_lexer_states: 100_000, verbose_errors: false, ..ParserLimits::default() }
    }
}
