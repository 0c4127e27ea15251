//! What a generation says: a stream of parts, whatever the surface.
//!
//! ```text
//!   tokens -> text -> stop strings -> Part -> Wire (a surface's JSON)
//! ```
//!
//! Owns: the kinds of parts, and their fold to a whole. Must never: know a surface.

use minisgl_proto::Sampled;

/// A piece of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Part<'a> {
    /// Text for the reader.
    Text(&'a str),
    /// What the model thinks before it answers.
    Reasoning(&'a str),
    /// A piece of a tool call.
    ToolCall {
        /// Counts the calls of a choice from 0.
        index: usize,
        /// Id and name of the function, with the call's first piece alone.
        start: Option<(&'a str, &'a str)>,
        /// The next piece of the arguments' JSON.
        arguments: &'a str,
    },
    /// A tool call ends; at most one is open at a time.
    CallEnd {
        /// Which.
        index: usize,
        /// Whether its arguments are a whole JSON object: the output may have ended inside, or the model may have broken off.
        whole: bool,
    },
}

impl<'a> Part<'a> {
    /// Its text, for a surface that does not tell parts apart.
    pub fn text(&self) -> &'a str {
        match self {
            Part::Text(text) | Part::Reasoning(text) | Part::ToolCall { arguments: text, .. } => {
                text
            }
            Part::CallEnd { .. } => "",
        }
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        match self {
            Part::Text(text) | Part::Reasoning(text) => text.is_empty(),
            Part::ToolCall { .. } | Part::CallEnd { .. } => false,
        }
    }
}

/// A whole tool call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// Its id.
    pub id: String,
    /// Name of the function.
    pub name: String,
    /// JSON of the arguments.
    pub arguments: String,
    /// As in [`Part::CallEnd`].
    pub whole: bool,
}

/// A stretch of a whole answer in which nothing else comes between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// So many bytes of its text.
    Text(usize),
    /// So many bytes of its reasoning.
    Reasoning(usize),
    /// The call in this place.
    Call(usize),
}

/// Why a choice ended well.
#[derive(Clone, Debug, PartialEq)]
pub enum Ended {
    /// A stop token of this id, which is not part of the text; absent if the worker did not say.
    StopToken(Option<u32>),
    /// A stop string.
    StopString(String),
    /// The one tool call that was asked for.
    Called,
    /// `max_tokens`, or the end of the context.
    Length {
        /// Tokens of the output.
        tokens: usize,
        /// Tokens of prompt and output that the model takes now, where those are fewer than it took when the request
        /// came: it was loaded again.
        room: Option<usize>,
    },
}

impl Ended {
    /// OpenAI's `finish_reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Ended::StopToken(_) | Ended::StopString(_) | Ended::Called => "stop",
            Ended::Length { .. } => "length",
        }
    }
}

/// Token counts so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Those of them that came from the prefix cache.
    pub cached: usize,
    /// Tokens generated, a stop token included.
    pub completion: usize,
    /// Those of them that the model thought, markers included.
    pub reasoning: usize,
}

/// A token with its log-probability, and where its text stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// Itself.
    pub sampled: Sampled,
    /// Characters of its choice's text before it.
    pub at: usize,
}

/// The next piece of one choice.
#[derive(Clone, Copy, Debug)]
pub struct Delta<'a> {
    /// Which choice: prompts in order, `n` choices each.
    pub choice: usize,
    /// Whole characters; may be empty when the choice ends.
    pub part: Part<'a>,
    /// The tokens of the part, if log-probabilities were asked for. Those of a stop token or a stop string that
    /// is not part of the text are not there.
    pub tokens: &'a [Scored],
    /// The ids of all tokens since the last delta, if they were asked for; a stop token and those of a stop
    /// string are there.
    pub ids: &'a [u32],
    /// The prompt's own tokens, with the choice's first delta, if their log-probabilities were asked for.
    pub prompt: &'a [Sampled],
    /// Set on the choice's last delta.
    pub ended: Option<&'a Ended>,
    /// Counts of the choice.
    pub usage: Usage,
    /// Counts of the whole request: a prompt counts once, however many choices it has.
    pub total: Usage,
}

/// All parts of one choice together.
#[derive(Clone, Debug, Default)]
pub struct Whole {
    /// Its text.
    pub text: String,
    /// Its reasoning.
    pub reasoning: String,
    /// Its tool calls.
    pub calls: Vec<Call>,
    /// In which order these came.
    pub runs: Vec<Run>,
    /// As in [`Delta`], all of them.
    pub tokens: Vec<Scored>,
    /// As in [`Delta`], all of them.
    pub ids: Vec<u32>,
    /// As in [`Delta`].
    pub prompt: Vec<Sampled>,
    /// Why it ended.
    pub ended: Option<Ended>,
    /// Its counts.
    pub usage: Usage,
}

impl Whole {
    /// Takes the next piece.
    pub fn fold(&mut self, delta: &Delta<'_>) {
        match delta.part {
            Part::Text("") | Part::Reasoning("") => {}
            Part::Text(text) => {
                self.text.push_str(text);
                match self.runs.last_mut() {
                    Some(Run::Text(bytes)) => *bytes += text.len(),
                    _ => self.runs.push(Run::Text(text.len())),
                }
            }
            Part::Reasoning(text) => {
                self.reasoning.push_str(text);
                match self.runs.last_mut() {
                    Some(Run::Reasoning(bytes)) => *bytes += text.len(),
                    _ => self.runs.push(Run::Reasoning(text.len())),
                }
            }
            Part::ToolCall { index, start, arguments } => {
                if self.calls.len() <= index {
                    self.calls.resize_with(index + 1, Call::default);
                }
                let call = &mut self.calls[index];
                if let Some((id, name)) = start {
                    (call.id, call.name) = (id.to_string(), name.to_string());
                    self.runs.push(Run::Call(index));
                }
                call.arguments.push_str(arguments);
            }
            Part::CallEnd { index, whole } => {
                if let Some(call) = self.calls.get_mut(index) {
                    call.whole = whole;
                }
            }
        }
        self.tokens.extend_from_slice(delta.tokens);
        self.ids.extend_from_slice(delta.ids);
        self.prompt.extend_from_slice(delta.prompt);
        self.ended = delta.ended.cloned();
        self.usage = delta.usage;
    }
}
