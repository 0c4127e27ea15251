//! An output from its first token: a thought, then a grammar.
//!
//! ```text
//!   [ thought: free, up to its budget ] close [ line breaks ] [ grammar: a State ]
//! ```
//!
//! As a [`State`], it is told the whole output each time, and takes what is new.
//!
//! Owns: where the thought ends. Must never: look for its end in tokens: a marker's letters may be divided among them in
//! many ways.

use std::sync::Arc;

use minisgl_proto::Thought;

use crate::state::{State, StateError};
use crate::vocabulary::Vocabulary;

/// See the file's head.
pub struct Outline {
    thought: Option<Thought>,
    /// `None`: what follows the thought is free.
    state: Option<State>,
    vocabulary: Arc<Vocabulary>,
    at: At,
    /// Tokens of the output that were looked at.
    seen: usize,
    /// Bytes of the thought that may begin what closes it.
    tail: Vec<u8>,
}

/// Where an output stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Nothing is there yet, and a thought may be opened.
    Start,
    /// In a thought that began with this token.
    Thought(usize),
    /// The thought ended before this token; line breaks may follow.
    Closed(usize),
    /// The grammar holds from this token on.
    Grammar(usize),
}

impl Outline {
    pub(crate) fn new(
        thought: Option<Thought>,
        state: Option<State>,
        vocabulary: Arc<Vocabulary>,
    ) -> Outline {
        let at = Outline::start(thought.as_ref());
        Outline { thought, state, vocabulary, at, seen: 0, tail: Vec::new() }
    }

    fn start(thought: Option<&Thought>) -> At {
        match thought {
            None => At::Grammar(0),
            Some(thought) if thought.open.is_empty() => At::Thought(0),
            Some(_) => At::Start,
        }
    }

    /// Takes an output that was there before.
    ///
    /// # Errors
    /// It left its grammar.
    pub fn catch_up(&mut self, output: &[u32]) -> Result<(), StateError> {
        self.look(output);
        match (self.at, &mut self.state) {
            (At::Grammar(from), Some(state)) => state.take(&output[from..]),
            _ => Ok(()),
        }
    }

    /// Takes from `mask` the tokens that may not come after `output`; see [`State::narrow`].
    ///
    /// # Errors
    /// The output left its grammar, or no token may come.
    pub fn narrow(&mut self, output: &[u32], mask: &mut [u32]) -> Result<(), StateError> {
        self.look(output);
        match self.at {
            At::Thought(from) => {
                // What follows a grammar has an answer, and no output ends before.
                if self.state.is_some() {
                    self.vocabulary.stop.iter().for_each(|&token| clear(mask, token));
                }
                self.spend(output.len() - from, mask);
                Ok(())
            }
            At::Start => {
                let open = self.thought.as_ref().map_or(&[][..], |thought| &thought.open);
                narrow_but_for(self.state.as_mut(), output, open, mask)
            }
            At::Closed(from) => {
                let breaks = &self.vocabulary.breaks;
                narrow_but_for(self.state.as_mut(), &output[from..], breaks, mask)
            }
            At::Grammar(from) => match &mut self.state {
                Some(state) => state.narrow(&output[from..], mask),
                None => Ok(()),
            },
        }
    }

    /// A thought of so many tokens that has no more to spend goes on with what closes it.
    fn spend(&self, tokens: usize, mask: &mut [u32]) {
        let budget = self.thought.as_ref().and_then(|thought| thought.budget.as_ref());
        let Some((budget, close)) = budget else { return };
        let over = tokens.checked_sub(*budget as usize);
        if let Some(&token) = over.and_then(|over| close.get(over)) {
            mask.fill(0);
            set(mask, token);
        }
    }

    fn look(&mut self, output: &[u32]) {
        if output.len() < self.seen {
            self.at = Outline::start(self.thought.as_ref());
            (self.seen, self.tail) = (0, Vec::new());
        }
        while self.seen < output.len() {
            let (token, next) = (output[self.seen], self.seen + 1);
            let at = self.at;
            self.at = match at {
                At::Start if self.opens(token) => At::Thought(next),
                // Nothing holds yet, and white space goes with the marker behind it.
                At::Start if self.state.is_none() && self.is_space(token) => At::Start,
                At::Start => At::Grammar(0),
                At::Thought(_) if self.closes(token) => At::Closed(next),
                At::Closed(from)
                    if from == self.seen && self.vocabulary.breaks.contains(&token) =>
                {
                    At::Grammar(next)
                }
                At::Closed(from) => At::Grammar(from),
                at @ (At::Thought(_) | At::Grammar(_)) => at,
            };
            self.seen = next;
        }
    }

    fn opens(&self, token: u32) -> bool {
        self.thought.as_ref().is_some_and(|thought| thought.open.contains(&token))
    }

    fn is_space(&self, token: u32) -> bool {
        let bytes = self.vocabulary.bytes(token);
        !bytes.is_empty() && bytes.iter().all(u8::is_ascii_whitespace)
    }

    /// Whether the thought ends with this token.
    fn closes(&mut self, token: u32) -> bool {
        let Some(thought) = &self.thought else { return false };
        self.tail.extend_from_slice(self.vocabulary.bytes(token));
        let mut markers = thought.close.iter().map(|close| close.as_bytes());
        let ends = |close: &[u8]| self.tail.windows(close.len().max(1)).any(|part| part == close);
        if markers.any(ends) {
            return true;
        }
        let longest = thought.close.iter().map(String::len).max().unwrap_or(0);
        let kept = self.tail.len().min(longest.saturating_sub(1));
        self.tail.drain(..self.tail.len() - kept);
        false
    }
}

/// As [`State::narrow`], and leaves these tokens allowed all the same.
fn narrow_but_for(
    state: Option<&mut State>,
    output: &[u32],
    tokens: &[u32],
    mask: &mut [u32],
) -> Result<(), StateError> {
    let Some(state) = state else { return Ok(()) };
    let kept: Vec<u32> = tokens.iter().copied().filter(|&token| is_set(mask, token)).collect();
    state.narrow(output, mask)?;
    kept.into_iter().for_each(|token| set(mask, token));
    Ok(())
}

fn is_set(mask: &[u32], token: u32) -> bool {
    mask.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
}

fn clear(mask: &mut [u32], token: u32) {
    if let Some(word) = mask.get_mut(token as usize / 32) {
        *word &= !(1 << (token % 32));
    }
}

fn set(mask: &mut [u32], token: u32) {
    if let Some(word) = mask.get_mut(token as usize / 32) {
        *word |= 1 << (token % 32);
    }
}
