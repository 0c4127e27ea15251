//! Limits of the HTTP surface. Everything a client can make large has one.

use std::time::Duration;

/// Bytes of all request bodies at once, at most.
pub const BODIES_BYTES_MAX: usize = 128 << 20;

/// What thoughts are called in messages and deltas of chat completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thoughts {
    /// `reasoning_content` and `reasoning`, both with the whole text: some clients read the one, some the other.
    Both,
    /// DeepSeek's name, which SGLang has.
    ReasoningContent,
    /// OpenRouter's, which vLLM has.
    Reasoning,
}

/// Limits, with the defaults an operator can live with.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Bytes of a request body, at most; more is answered with 413.
    pub body_bytes_max: usize,
    /// Bytes of all requests that are not submitted yet, at most; more is answered with 503. Never less than
    /// one body may have.
    pub bodies_bytes_max: usize,
    /// Time a client has to send its body.
    pub body_timeout: Duration,
    /// Time a client has to send its request line and headers.
    pub header_timeout: Duration,
    /// Time a client has to take at least some of what is written to it; then it is cut off.
    pub write_timeout: Duration,
    /// Open connections, at most; more wait in the kernel's backlog.
    pub connections_max: usize,
    /// Generations (prompts times `n`) that one HTTP request may start.
    pub choices_max: usize,
    /// Stop strings of one request, at most.
    pub stop_strings_max: usize,
    /// Bytes of one stop string, at most.
    pub stop_bytes_max: usize,
    /// Templates rendered and prompts tokenized at once, at most; 0 means one a core.
    pub tokenizer_threads: usize,
    /// Whether a `max_tokens` for which the context has no room is cut to the room; else it is refused.
    pub clamp_max_tokens: bool,
    /// Silence after which a stream gets a comment, so that no proxy takes it for dead; `None` is never.
    pub ping_interval: Option<Duration>,
    /// What thoughts are called in chat completions.
    pub thoughts: Thoughts,
    /// Whether the `priority` of a request counts.
    pub client_priority: bool,
    /// Whether clients may empty prefix caches.
    pub client_flush: bool,
    /// Whether Ollama's API is served, too.
    pub ollama: bool,
    /// Whether prompts are in the log.
    pub log_prompts: bool,
    /// Seconds after which a refused client is told to come back, at least.
    pub retry_after_s: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            body_bytes_max: 32 << 20,
            bodies_bytes_max: BODIES_BYTES_MAX,
            body_timeout: Duration::from_secs(60),
            header_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(60),
            connections_max: 4096,
            choices_max: 128,
            stop_strings_max: 64,
            stop_bytes_max: 1024,
            tokenizer_threads: 0,
            clamp_max_tokens: true,
            ping_interval: Some(Duration::from_secs(15)),
            thoughts: Thoughts::Both,
            client_priority: false,
            client_flush: false,
            ollama: false,
            log_prompts: false,
            retry_after_s: 1,
        }
    }
}
