//! The seam: a dialect, what is asked of it, and the parser that it gives.
//!
//! Owns: what another crate sees. Must never: know a dialect by name.

use std::sync::Arc;

use crate::calls::Sink;
use crate::checkpoint::Checkpoint;
use crate::flow::{Flow, Machine, Thought};
use crate::grammar::Enforcement;
use crate::harmony::{self, Harmony};
use crate::part::{Left, Part, Phase};
use crate::tools::Tools;

/// How a model family talks.
pub struct Dialect {
    /// Its name: `--dialect`, `minisglctl show`, labels of metrics.
    pub name: &'static str,
    /// Whose it is, in a line for people.
    pub about: &'static str,
    /// Whether a checkpoint speaks it.
    pub(crate) known_by: fn(&Checkpoint<'_>) -> bool,
    pub(crate) talk: Talk,
    /// Ids of calls that its template takes.
    pub ids: Ids,
    /// What a grammar must be made of to enforce calls.
    pub(crate) enforcement: Enforcement,
}

/// The machine that reads it.
pub(crate) enum Talk {
    Flow(Flow),
    Harmony,
}

/// What an id of a call must look like when it comes back in a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ids {
    /// Anything.
    Any,
    /// Nine letters and digits (Mistral).
    NineLetters,
    /// The model's own, `functions.NAME:INDEX` (Kimi K2): [`Part::Begin`] has it.
    Own,
}

/// Where the answer of an output begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// It may begin at once, or one of these stands before something else.
    pub open: &'static [&'static str],
    /// Behind which it begins then.
    pub behind: &'static [&'static str],
}

/// What is asked of a parser.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// The tools of the request. Made once a request, shared by its choices.
    pub tools: Arc<Tools>,
    /// Whether calls are looked for. `false` (no tools, or `tool_choice: "none"`): what looks like one is text.
    pub calls: bool,
    /// Whether thoughts are told from text. `false` (`separate_reasoning: false`): they are text, markers and all.
    pub reasoning: bool,
    /// Whether the output begins inside a thought: [`Dialect::is_in_thought`] of the prompt's end.
    pub in_thought: bool,
    /// The end of the prompt's text, from the beginning of the model's own turn on or earlier; harmony reads there in which
    /// message the output begins, the others nothing. The last 1,024 bytes are enough.
    pub tail: String,
}

impl Dialect {
    /// Tokens whose text the parser must see, also where special tokens are left out of texts: whoever makes text of
    /// tokens keeps these. Those of them that a vocabulary does not have are written out by the model, as text.
    pub fn keeps(&self) -> Vec<&'static str> {
        let flow = match &self.talk {
            Talk::Harmony => return harmony::MARKERS.to_vec(),
            Talk::Flow(flow) => flow,
        };
        let mut keeps: Vec<&str> = Vec::new();
        if let Some(thought) = &flow.thought {
            keeps.extend(thought.open.iter().chain(thought.close));
        }
        for call in flow.calls {
            keeps.push(call.marker);
            keeps.extend((call.body)().closes());
        }
        keeps.extend(flow.silent);
        if let Some((begin, end)) = flow.frame {
            keeps.extend(begin.iter().chain(end));
        }
        keeps.extend(self.enforcement.inner_markers);
        keeps.sort_unstable();
        keeps.dedup();
        keeps
    }

    /// Whether all that it writes is text, as far as it is asked: then there is nothing to parse.
    pub fn is_plain(&self, asked: &Asked) -> bool {
        let Talk::Flow(flow) = &self.talk else { return false };
        let marks = flow.silent.len() + flow.frame(asked.calls).map_or(0, |_| 1);
        let calls = if asked.calls { flow.calls.len() + flow.bare.len() } else { 0 };
        flow.thought.is_none() && marks + calls == 0
    }

    /// Whether a thought is a message among others: the grammar of its calls has it, and begins with the output.
    pub fn thinks_in_messages(&self) -> bool {
        matches!(self.talk, Talk::Harmony)
    }

    /// Behind which texts an answer begins that is to be of some form, where thoughts and other things may come first: what opens
    /// them, which is nothing where the output begins inside of them.
    pub fn answer(&self, is_in_thought: bool) -> Option<Answer> {
        match &self.talk {
            Talk::Flow(flow) => flow.thought.map(|thought| Answer {
                open: if is_in_thought { &[] } else { thought.open },
                behind: thought.close,
            }),
            Talk::Harmony => Some(Answer { open: &[], behind: harmony::FINAL }),
        }
    }

    /// How a thought stands in its text; the first marker that closes one is what ends a thought that is over its budget.
    pub fn thought(&self) -> Option<Thought> {
        match &self.talk {
            Talk::Flow(flow) => flow.thought,
            Talk::Harmony => Some(Thought {
                open: &["<|channel|>analysis<|message|>"],
                close: &["<|end|>"],
                anywhere: true,
            }),
        }
    }

    /// Whether a prompt that ends so has opened a thought: many templates write the marker themselves. `continued` is the
    /// assistant's own text that the prompt ends with and the model goes on writing; empty elsewhere.
    pub fn is_in_thought(&self, prompt_end: &str, continued: &str) -> bool {
        let Some(thought) = self.thought() else { return false };
        let last = |markers: &[&str]| markers.iter().filter_map(|m| continued.rfind(m)).max();
        match (last(thought.open), last(thought.close)) {
            (Some(open), close) => close.is_none_or(|close| close < open),
            (None, Some(_)) => false,
            (None, None) => {
                let before = prompt_end.strip_suffix(continued).unwrap_or(prompt_end).trim_end();
                thought.open.iter().any(|open| before.ends_with(open.trim_end()))
            }
        }
    }

    /// A parser for one output.
    pub fn parser(&'static self, asked: &Asked) -> Parser {
        let tools = Arc::clone(&asked.tools);
        let (calls, reasoning) = (asked.calls, asked.reasoning);
        Parser(match &self.talk {
            Talk::Flow(flow) => {
                Kind::Flow(Machine::new(flow, tools, calls, reasoning, asked.in_thought))
            }
            Talk::Harmony => Kind::Harmony(Harmony::new(tools, calls, reasoning, &asked.tail)),
        })
    }

    /// What a grammar must be made of to enforce its calls.
    pub fn enforcement(&self) -> &Enforcement {
        &self.enforcement
    }
}

/// One output on its way from text to parts.
///
/// The parts depend on the text alone, not on how it came in pieces. Time is linear in the text; what is held is at most
/// [`crate::HELD_BYTES_MAX`] before a call begins and [`crate::VALUE_BYTES_MAX`] of an argument whose type is not clear.
pub struct Parser(Kind);

// Both are about as large; a box would be an allocation a request for nothing.
#[allow(clippy::large_enum_variant)]
enum Kind {
    Flow(Machine),
    Harmony(Harmony),
}

impl Parser {
    /// Takes the next piece of text, whole characters of any number, and gives the parts that are certain by now.
    pub fn push(&mut self, text: &str, sink: &mut dyn FnMut(Part<'_>)) {
        let sink: &mut Sink<'_> = sink;
        match &mut self.0 {
            Kind::Flow(machine) => machine.push(text, sink),
            Kind::Harmony(machine) => machine.push(text, sink),
        }
    }

    /// Takes the end of the output, and gives all that was held: an open call ends as cut, anything else is text.
    pub fn finish(mut self, sink: &mut dyn FnMut(Part<'_>)) -> Left {
        let sink: &mut Sink<'_> = sink;
        match &mut self.0 {
            Kind::Flow(machine) => machine.finish(sink),
            Kind::Harmony(machine) => machine.finish(sink),
        }
    }

    /// What the text so far ends in. Of tokens it says whether they count as reasoning.
    pub fn phase(&self) -> Phase {
        match &self.0 {
            Kind::Flow(machine) => machine.phase(),
            Kind::Harmony(machine) => machine.phase(),
        }
    }

    /// Bytes of text that came and of which no part says anything yet: ids and log-probabilities of their tokens wait
    /// with them. Of a call that has begun it counts only what may be its closing marker.
    pub fn held(&self) -> usize {
        match &self.0 {
            Kind::Flow(machine) => machine.held(),
            Kind::Harmony(machine) => machine.held(),
        }
    }
}
