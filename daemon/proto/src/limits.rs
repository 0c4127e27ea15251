//! How much one request may ask for.
//!
//! Owns: the numbers that the front enforces, the scheduler refuses beyond, and the engine's tables are made
//! for: one place, so that nothing is ever cut in silence.

/// Tokens in `logit_bias`, each once.
pub const LOGIT_BIAS_MAX: usize = 1024;

/// Bytes of a grammar.
pub const GRAMMAR_BYTES_MAX: usize = 256 << 10;

/// Tokens in `allowed_token_ids`.
pub const ALLOWED_TOKENS_MAX: usize = 4096;

/// Sequences in `bad_words`.
pub const BAD_WORDS_MAX: usize = 256;

/// Tokens of one of them.
pub const BAD_WORD_TOKENS_MAX: usize = 32;

/// Most likely tokens whose log-probabilities are reported beside the sampled one's.
pub const TOP_LOGPROBS_MAX: u32 = 20;

/// Stop token ids of a request.
pub const STOP_TOKENS_MAX: usize = 64;

/// End-of-sequence tokens of a model.
pub const END_TOKENS_MAX: usize = 64;

/// Tokens that may be banned until `min_tokens` are generated: all of those above.
pub const BANNED_MAX: usize = STOP_TOKENS_MAX + END_TOKENS_MAX;

/// Seconds that a step on a GPU may take, at most, however much it is to do: then its worker gives it up and ends. The
/// daemon kills a worker that is silent for longer.
pub const STEP_PATIENCE_MAX_S: u64 = 240;
