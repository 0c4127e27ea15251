//! What a request wants, whatever the surface.
//!
//! Owns: the one form that all surfaces' bodies become. Must never: know a model.

use crate::input::Input;
use crate::json::Int;
use crate::prompt::Dialogue;
use crate::sampling::SamplingFields;
use crate::usage::Telling;

/// A generation that is wanted.
pub struct Intent {
    /// Name of the model; without one, the only one there is.
    pub model: Option<String>,
    /// What is generated from.
    pub prompts: Prompts,
    /// The field it is in.
    pub param: &'static str,
    /// How.
    pub sampling: SamplingFields,
    /// Name of the field that limits the output, and its value.
    pub max_tokens: Option<(&'static str, Int)>,
    /// Generated tokens when the client says nothing; `None` means what the context leaves.
    pub max_tokens_default: Option<u32>,
    /// How many log-probabilities beside that of each generated token.
    pub logprobs: Option<u32>,
    /// How many beside that of each prompt token, and the position from which on.
    pub prompt_logprobs: Option<(u32, u32)>,
    /// Whether the answer is a stream.
    pub stream: bool,
    /// When `usage` is told.
    pub telling: Telling,
    /// Whether the answer repeats the prompt's text.
    pub echo: bool,
    /// Whether token ids are part of the answer.
    pub ids: bool,
}

/// What is generated from.
pub enum Prompts {
    /// A conversation.
    Chat(Box<Dialogue>),
    /// Texts or token ids as they are.
    Bare {
        /// They.
        input: Input,
        /// With the tokens that the tokenizer puts around a text.
        add_special: bool,
    },
}
