//! The frames between the daemon and a model's text process, which alone reads `tokenizer.json` and the chat
//! template.
//!
//! ```text
//!   daemon                         text process
//!     | -- Load(TextSpec) ----------> |
//!     | <---- Loaded(TextInfo) ------ |  or LoadFailed, then the process exits
//!     | -- Job(id, ..), Abandon(id) > |  several at a time
//!     | <---- Done(id, ..) ---------- |  one for each job, in any order
//! ```
//!
//! A process that reads the end of the stream exits.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Tokens that one job answers with at most, over all its texts: what fits into a frame.
pub const JOB_TOKENS_MAX: u32 = 8 << 20;
/// Ids that a vocabulary may have; the daemon keeps a table of them.
pub const VOCABULARY_MAX: u32 = 4 << 20;
/// Bytes of a rendered prompt at most.
pub const PROMPT_BYTES_MAX: usize = 64 << 20;
/// Bytes of a rendered prompt's end that its answer tells.
pub const PROMPT_END_BYTES: usize = 1024;

/// Bytes of a chat template that the daemon is told; a longer one it is not.
pub const TEMPLATE_TOLD_BYTES_MAX: usize = 64 << 10;
/// Bytes of a special token that the daemon is told by name.
pub const NAMED_TOKEN_BYTES_MAX: usize = 256;

/// What a text process is to read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextSpec {
    /// [`crate::VERSION`] of the daemon; the process refuses another.
    pub version: String,
    /// Folder with `tokenizer.json`, `tokenizer_config.json`, templates and `generation_config.json`.
    pub dir: PathBuf,
    /// The dialect that it was loaded with; without one, the folder's files decide.
    pub dialect: Option<String>,
}

/// Daemon to text process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToText {
    /// First frame, once.
    Load(TextSpec),
    /// Something to do.
    Job {
        /// Names the answer.
        id: u64,
        /// What.
        job: TextJob,
    },
    /// Nobody waits for this job any more. It is answered all the same, sooner.
    Abandon(u64),
}

/// What a text process can do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum TextJob {
    /// Texts to token ids.
    Encode {
        /// Each on its own.
        texts: Vec<String>,
        /// With what the tokenizer puts around a bare prompt.
        add_special: bool,
        /// Tokens of a text at most: one that has more is not tokenized to its end.
        tokens_max: u32,
    },
    /// A conversation to the token ids of its prompt.
    EncodeChat {
        /// A [`Conversation`] as JSON: numbers keep their digits.
        conversation: String,
        /// As for `Encode`.
        tokens_max: u32,
    },
    /// Token ids to texts.
    Decode {
        /// Each on its own.
        lists: Vec<Vec<u32>>,
        /// Without special tokens.
        skip_special: bool,
    },
}

/// What a chat template makes a prompt of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Conversation {
    /// The messages, in OpenAI's form; arguments of tool calls as a string or an object.
    pub messages: Vec<serde_json::Value>,
    /// Tools the model may call, in OpenAI's form.
    pub tools: Option<Vec<serde_json::Value>>,
    /// End with the opening of an assistant message.
    pub add_generation_prompt: bool,
    /// More variables, such as `enable_thinking`.
    pub kwargs: serde_json::Map<String, serde_json::Value>,
}

/// Text process to daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromText {
    /// Jobs are welcome.
    Loaded(Box<TextInfo>),
    /// The folder's text side is broken; names the file. The process exits.
    LoadFailed(String),
    /// A job ended.
    Done {
        /// Which.
        id: u64,
        /// How.
        answer: Result<TextAnswer, TextFault>,
    },
}

/// What a job made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum TextAnswer {
    /// Of `Encode`, one list a text.
    Tokens(Vec<Vec<u32>>),
    /// Of `EncodeChat`.
    Prompt {
        /// The prompt's tokens.
        ids: Vec<u32>,
        /// The end of its text, [`PROMPT_END_BYTES`] at most: there stands whether the template has opened a thought.
        end: String,
    },
    /// Of `Decode`.
    Texts(Vec<String>),
}

/// Why a job made nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum TextFault {
    /// The folder has no `tokenizer.json`.
    #[error("the model's folder has no tokenizer.json")]
    NoTokenizer,
    /// The folder has no chat template.
    #[error("the model has no chat template")]
    NoTemplate,
    /// More tokens than may be.
    #[error("the text has more than {tokens_max} tokens")]
    TooLong {
        /// How many may be.
        tokens_max: u32,
    },
    /// A stretch of text that can only be tokenized in one go, and is too long for that.
    #[error(
        "the text has {bytes} bytes without a place between two words where it can be divided; the limit is {limit}"
    )]
    Unbroken {
        /// Its bytes.
        bytes: usize,
        /// Bytes that may be.
        limit: usize,
    },
    /// The template called `raise_exception`.
    #[error("the chat template refuses this conversation: {0}")]
    Refused(String),
    /// The template failed on the conversation.
    #[error("the chat template cannot render this conversation: {0}")]
    TemplateFailed(String),
    /// The tokenizer failed.
    #[error("the tokenizer failed: {0}")]
    TokenizerFailed(String),
    /// Nobody waited for it any more.
    #[error("the request was abandoned")]
    Abandoned,
    /// The job took the process with it, or too long.
    #[error("this text cannot be handled: {0}")]
    Killed(String),
    /// Too much waits already.
    #[error("{0}")]
    Busy(String),
    /// The process is gone and does not come back.
    #[error("the model's text process is gone: {0}")]
    Gone(String),
}

/// What the daemon knows of a model's text side.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TextInfo {
    /// `None` for a folder without `tokenizer.json`.
    pub vocabulary: Option<Vocabulary>,
    /// Whether there is a chat template.
    pub has_template: bool,
    /// What the template can be told; all false without one.
    pub template: TemplateTraits,
    /// How the model writes tool calls and thoughts: the name of a dialect.
    pub dialect: String,
    /// `bos_token`, `eos_token` and their kind by name, where the folder has them.
    pub named: Vec<(String, String)>,
    /// Source of the chat template for conversations without tools, of [`TEMPLATE_TOLD_BYTES_MAX`] at most.
    pub template_source: Option<String>,
    /// The folder's recommended sampling.
    pub defaults: GenerationDefaults,
    /// What the text side cannot do, for people.
    pub notes: Vec<String>,
}

/// What a chat template did with conversations made to try it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateTraits {
    /// A message of role `system` reaches the prompt.
    pub system: bool,
    /// A message of role `developer` does.
    pub developer: bool,
    /// A `system` message after another message does.
    pub late_system: bool,
    /// Tools do.
    pub tools: bool,
    /// The arguments of a tool call must be a JSON string, not an object.
    pub arguments_as_text: bool,
}

/// Sampling values that a model's `generation_config.json` recommends; see [`crate::SamplingParams`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GenerationDefaults {
    /// `temperature`.
    pub temperature: Option<f64>,
    /// `top_k`.
    pub top_k: Option<i64>,
    /// `top_p`.
    pub top_p: Option<f64>,
    /// `min_p`.
    pub min_p: Option<f64>,
    /// `repetition_penalty`.
    pub repetition_penalty: Option<f64>,
}

/// A vocabulary: all that is needed to make text of tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Vocabulary {
    /// By id; `None` for an id that no token has.
    pub tokens: Vec<Option<Token>>,
    /// What is done to a list of tokens, in order; the results are concatenated.
    pub decoder: Vec<DecodeStep>,
    /// Bytes of text that one token stands for at most; `None` when there is no such limit.
    pub token_bytes_max: Option<u32>,
    /// `eos_token` of `tokenizer_config.json`.
    pub eos: Option<u32>,
}

/// A token of a vocabulary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The vocabulary's own spelling.
    pub spelling: String,
    /// What the decoder begins with, where that is not the spelling: steps that look at one token alone were done already.
    pub piece: Option<String>,
    /// Left out of text unless asked for.
    pub special: bool,
}

/// One step of a Hugging Face decoder, on a list of strings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DecodeStep {
    /// A space between tokens: what happens without a decoder.
    Spaces,
    /// GPT-2's alphabet to bytes, all tokens to one string.
    ByteLevel,
    /// Runs of `<0xNN>` to text.
    ByteFallback,
    /// In each string.
    Replace {
        /// This,
        from: String,
        /// by this.
        to: String,
    },
    /// Off each string.
    Strip {
        /// This character,
        content: char,
        /// so many times from its start,
        start: u32,
        /// and from its end.
        stop: u32,
    },
    /// All strings to one.
    Fuse,
    /// SentencePiece's mark to a space; at the start of the text to nothing.
    Metaspace {
        /// The mark.
        mark: char,
        /// Also at the start to a space.
        keep_first: bool,
    },
    /// A space before each but the first that does not begin with the prefix, which is taken off.
    WordPiece {
        /// Usually `##`.
        prefix: String,
        /// Without the spaces before punctuation.
        cleanup: bool,
    },
    /// The suffix to a space; in the last to nothing.
    Bpe {
        /// Usually `</w>`.
        suffix: String,
    },
    /// Repeats and padding out.
    Ctc {
        /// Taken out.
        pad: String,
        /// Becomes a space.
        delimiter: String,
        /// Without the spaces before punctuation; without it the delimiter stays, too.
        cleanup: bool,
    },
}
