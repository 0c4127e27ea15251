//! One generation request and what comes back from it, in token ids.

use serde::{Deserialize, Serialize};

use crate::grammar::Guided;

/// Names a request between daemon and worker; unique for the life of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestId(pub u64);

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// How the next token is chosen from the logits. The order of operations is the field's usual one:
/// logit bias, penalties, temperature, then top-k, top-p and min-p on what remains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// 0 means greedy: the exact argmax, ties to the lowest token id. Otherwise logits are divided by it.
    pub temperature: f32,
    /// Keep the `top_k` most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of most likely tokens whose probability reaches `top_p`, in (0, 1].
    pub top_p: f32,
    /// Drop tokens less likely than `min_p` times the most likely one, in [0, 1].
    pub min_p: f32,
    /// Divide positive and multiply negative logits of every token seen in prompt or output; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of every token seen in the output, in [-2, 2].
    pub presence_penalty: f32,
    /// Subtracted from a token's logit for each time it is in the output, in [-2, 2].
    pub frequency_penalty: f32,
    /// Added to the logits of these token ids, in [-100, 100]; at most
    /// [`LOGIT_BIAS_MAX`](crate::limits::LOGIT_BIAS_MAX).
    pub logit_bias: Vec<(u32, f32)>,
    /// With the position of the sampled token, all that the randomness depends on.
    pub seed: u64,
    /// Report the log-probability of the sampled token and of this many most likely ones.
    /// They are taken from the raw logits, before bias, penalties and temperature. At most
    /// [`TOP_LOGPROBS_MAX`](crate::limits::TOP_LOGPROBS_MAX).
    pub logprobs: Option<u32>,
    /// Report the log-probability of each prompt token from position `prompt_logprobs_from` on, and of this
    /// many most likely ones there, as `logprobs` does of sampled tokens. Position 0 has none. What stands
    /// before may come from the prefix cache. With `max_tokens` 0 the request ends when all are reported.
    pub prompt_logprobs: Option<u32>,
    /// See `prompt_logprobs`.
    pub prompt_logprobs_from: u32,
    /// No other tokens are sampled; empty allows all. At most
    /// [`ALLOWED_TOKENS_MAX`](crate::limits::ALLOWED_TOKENS_MAX).
    pub allowed_token_ids: Vec<u32>,
    /// Sequences of tokens that the output never has: the last token of each is not sampled after those before
    /// it. At most [`BAD_WORDS_MAX`](crate::limits::BAD_WORDS_MAX), each of 1 to
    /// [`BAD_WORD_TOKENS_MAX`](crate::limits::BAD_WORD_TOKENS_MAX) tokens.
    pub bad_words: Vec<Vec<u32>>,
    /// What the output must look like, if that is not free.
    pub guided: Option<Box<Guided>>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
            prompt_logprobs: None,
            prompt_logprobs_from: 0,
            allowed_token_ids: Vec::new(),
            bad_words: Vec::new(),
            guided: None,
        }
    }
}

impl SamplingParams {
    /// Whether sampling needs to know which tokens came before.
    pub fn needs_history(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }
}

/// When a request ends, in tokens. Stop strings are the front's business: it sees text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopParams {
    /// Generated tokens at most; the worker lowers it to what the context leaves room for. With 0 nothing is
    /// generated; see [`SamplingParams::prompt_logprobs`].
    pub max_tokens: u32,
    /// End-of-sequence and stop tokens are not sampled before this many tokens.
    pub min_tokens: u32,
    /// Token ids that end the request, besides the model's own end-of-sequence tokens; at most
    /// [`STOP_TOKENS_MAX`](crate::limits::STOP_TOKENS_MAX).
    pub stop_token_ids: Vec<u32>,
    /// Go on past the model's end-of-sequence tokens.
    pub ignore_eos: bool,
}

impl Default for StopParams {
    fn default() -> Self {
        StopParams { max_tokens: 16, min_tokens: 0, stop_token_ids: Vec::new(), ignore_eos: false }
    }
}

/// A request for tokens, before it has an id.
#[derive(Clone, Debug, PartialEq)]
pub struct Generate {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// When it ends.
    pub stop: StopParams,
    /// Higher goes first.
    pub priority: i32,
    /// The request's id in the log and for its client; several generations may have the same.
    pub request_id: String,
    /// Name of the API key it came with.
    pub key: Option<String>,
}

/// Why there is no model of a name, or no generation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// No model of that name.
    #[error("model \"{name}\" is not loaded; {hint}")]
    NotFound {
        /// As asked for.
        name: String,
        /// What is loaded, or how to load.
        hint: String,
    },
    /// There is one, but it takes no requests now.
    #[error("model \"{name}\" is not ready: {reason}")]
    NotReady {
        /// As asked for.
        name: String,
        /// Its state, and why.
        reason: String,
    },
    /// As many requests are running and waiting as may.
    #[error(
        "model \"{name}\" has {limit} requests running and waiting, which is its limit; retry later"
    )]
    Busy {
        /// As asked for.
        name: String,
        /// Running plus waiting requests at most.
        limit: u32,
    },
}

/// A request as it enters a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Submit {
    /// Chosen by the daemon.
    pub id: RequestId,
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// Tokens that an earlier worker generated and that were delivered. They count as output for penalties, for
    /// `min_tokens` and for `max_tokens`; the next token sampled is the one after them. Empty for a new request.
    pub generated: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// When it ends.
    pub stop: StopParams,
    /// Higher goes first; equal priorities are served in order of arrival.
    pub priority: i32,
}

/// A token and its log-probability (natural logarithm).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// Token id.
    pub token: u32,
    /// Natural logarithm of its probability under the raw logits.
    pub logprob: f32,
}

/// In place of a token whose logits are broken: one of them is NaN, or none is above -inf. Beyond every vocabulary.
pub const NO_TOKEN: u32 = u32::MAX;

/// One sampled token, or a prompt's own with its log-probability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampled {
    /// Token id, or [`NO_TOKEN`], which comes with nothing else that means anything.
    pub token: u32,
    /// Its log-probability, if asked for.
    pub logprob: Option<f32>,
    /// The most likely tokens, most likely first, as many as were asked for.
    pub top: Vec<TokenLogprob>,
}

/// What happened to one request in one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenEvent {
    /// Whose event this is.
    pub id: RequestId,
    /// The token sampled for it, absent when the request ended without one.
    pub sampled: Option<Sampled>,
    /// Prompt tokens whose log-probabilities were asked for, in the order of positions. They come as chunks of
    /// the prompt are computed, in one event or several, each position once, all of them before or with the
    /// first token.
    pub prompt_logprobs: Vec<Sampled>,
    /// With the request's first token, or the end of one that generates none, once in its life: how many prompt
    /// tokens came from the prefix cache.
    pub cached_tokens: Option<u32>,
    /// With `cached_tokens`: seconds from submission to the first plan it was in.
    pub queue_s: Option<f32>,
    /// Set on the last event of a request, and only there.
    pub finish: Option<Finish>,
}

/// Why a request ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finish {
    /// An end-of-sequence or stop token was sampled (it is the event's token).
    Stop,
    /// `max_tokens` or the end of the context was reached.
    Length,
    /// Aborted by the daemon.
    Aborted,
    /// Never started; or it has ruled every token out.
    Rejected(Reject),
    /// The worker or its engine failed; the text says what.
    Failed(String),
}

/// Why a worker refused a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Reject {
    /// The waiting queue has reached its limit.
    #[error("the queue is full: {limit} requests are waiting; retry later")]
    QueueFull {
        /// Waiting requests at most.
        limit: u32,
    },
    /// The prompt leaves no room for a generated token.
    #[error(
        "the prompt has {prompt} tokens; as the model is loaded now, {limit} fit, with one left to generate: send fewer, or have it \
         loaded with a larger kv_tokens or max_len"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt: u32,
        /// Prompt tokens at most.
        limit: u32,
    },
    /// The prompt has no token.
    #[error("the prompt is empty: it needs at least one token")]
    Empty,
    /// A token id is not in the vocabulary.
    #[error("token id {token} is outside the vocabulary of {vocab_size}")]
    BadToken {
        /// The offending id.
        token: u32,
        /// Valid ids are below this.
        vocab_size: u32,
    },
    /// More of something than the tables of the engine hold; see [`limits`](crate::limits).
    #[error("{field} asks for {count}, the limit is {limit}")]
    TooMany {
        /// The field that asks.
        field: String,
        /// What it asks for.
        count: u32,
        /// What it may ask for.
        limit: u32,
    },
    /// A bad word has no tokens, or what the request says of its output allows no token there.
    #[error(
        "no token may come next: the grammar, bad_words, allowed_token_ids and min_tokens, which rules end tokens out, leave none \
         together; allow more tokens, or lower min_tokens"
    )]
    NothingAllowed {
        /// The first of these fields that the request has.
        field: String,
    },
    /// The grammar that the output is to follow is refused, or allows nothing any more; the text says what and why.
    #[error("{reason}")]
    Grammar {
        /// The field that asks for it.
        field: String,
        /// Names the grammar.
        reason: String,
    },
    /// The worker is draining.
    #[error("the model is being unloaded")]
    Draining,
}
