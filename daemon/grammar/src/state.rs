//! Where an output stands in its grammar.
//!
//! A state follows from the grammar and the output alone, so that it is the same after a preemption or on another worker: it is told the
//! whole output each time, and takes what is new.
//!
//! Owns: the walk, and masks, `[size / 32]` words of a bit for each token, the lowest bit of a word for its first. Must never: choose a
//! token.

use std::sync::Arc;

use llguidance::Matcher;

use crate::grammar::readable;

/// An output that cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The output is none of this grammar's.
    #[error("the output left its grammar at token {at}: {reason}")]
    Left {
        /// Which token, counted from 0.
        at: usize,
        /// What llguidance says.
        reason: String,
    },
    /// The grammar costs too much to go on, or allows no token.
    #[error("the grammar allows no token after {at}: {reason}")]
    Stuck {
        /// Tokens of the output.
        at: usize,
        /// What llguidance says.
        reason: String,
    },
}

/// The state of one output.
pub struct State {
    /// Before the first token.
    fresh: Matcher,
    matcher: Matcher,
    /// What an output may end with.
    stop: Arc<[u32]>,
    size: usize,
    /// Tokens of the output that were taken.
    taken: usize,
}

impl State {
    pub(crate) fn new(matcher: Matcher, stop: Arc<[u32]>, size: usize) -> State {
        State { fresh: matcher.clone(), matcher, stop, size, taken: 0 }
    }

    /// Takes from `mask` the tokens that may not come after `output`. A mask has a word for every 32 tokens of the vocabulary.
    ///
    /// # Errors
    /// The output left the grammar, or no token may come: an output ends with a stop token, which the grammar allows where it may
    /// end.
    pub fn narrow(&mut self, output: &[u32], mask: &mut [u32]) -> Result<(), StateError> {
        self.take(output)?;
        let at = output.len();
        let stuck = |reason: String| StateError::Stuck { at, reason };
        let allowed = self
            .matcher
            .compute_mask_or_eos()
            .map_err(|error| stuck(readable(&error.to_string())))?;
        if allowed.is_zero() {
            return Err(stuck("there is none in the vocabulary that it wants".to_owned()));
        }
        let mut words = allowed.as_slice().iter();
        mask.iter_mut().for_each(|word| *word &= words.next().copied().unwrap_or(0));
        Ok(())
    }

    /// Whether `output` may end here, and could not go on.
    ///
    /// # Errors
    /// The output left the grammar.
    pub fn is_over(&mut self, output: &[u32]) -> Result<bool, StateError> {
        self.take(output)?;
        Ok(self.matcher.is_stopped())
    }

    /// Logits of the model.
    pub fn size(&self) -> usize {
        self.size
    }

    fn is_at_end(&mut self) -> bool {
        self.matcher.is_stopped() && self.matcher.stop_reason().is_ok()
    }

    /// Takes what is new of the output, which may be long where another worker generated it.
    ///
    /// # Errors
    /// The output left the grammar.
    pub(crate) fn take(&mut self, output: &[u32]) -> Result<(), StateError> {
        if output.len() < self.taken {
            *self = State::new(self.fresh.clone(), Arc::clone(&self.stop), self.size);
        }
        while self.taken < output.len() {
            let at = self.taken;
            self.taken += 1;
            // Only stop tokens come after the end, where a request ignores them.
            if self.stop.contains(&output[at]) && self.is_at_end() {
                continue;
            }
            self.matcher
                .consume_token(output[at])
                .map_err(|error| StateError::Left { at, reason: readable(&error.to_string()) })?;
        }
        Ok(())
    }
}
