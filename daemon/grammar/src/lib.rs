//! What an output must look like, as masks over tokens.
//!
//! ```text
//!   Grammar --compile, cached--> Compiled --begin--> State --after each token--> mask
//!                                                    Outline: a thought, then a State
//! ```
//!
//! By llguidance: a lexer of derivatives of regular expressions under an Earley parser, walked together with a trie of all tokens.
//!
//! Owns: which grammars there are, their limits, and states of outputs. Must never: know a request, a thread, or what samples a
//! token.

mod compile;
mod ebnf;
mod grammar;
mod lark;
mod limits;
mod outline;
mod rewrite;
mod state;
mod tags;
mod text;
mod vocabulary;
mod ways;

pub use compile::{Compiled, Compiler};
pub use grammar::GrammarError;
pub use limits::{COMPILE_STACK_BYTES, Limits, STEP_STACK_BYTES};
pub use outline::Outline;
pub use state::{State, StateError};
pub use vocabulary::{Vocabulary, VocabularyError};
