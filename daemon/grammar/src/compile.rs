//! Grammars compiled once, and shared by all requests that have them.
//!
//! Owns: the cache. Must never: run a grammar.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::Matcher;

use minisgl_proto::{Grammar, Guided};

use crate::grammar::{readable, source};
use crate::limits::Limits;
use crate::{GrammarError, Outline, State, Vocabulary};

/// A grammar that outputs can be held to.
pub struct Compiled {
    /// At an empty output, whose mask has been made.
    base: Mutex<Matcher>,
    stop: Arc<[u32]>,
    size: usize,
}

impl Compiled {
    /// The state of an empty output. What an output teaches its lexer is its own: a lexer that has grown too large ends one
    /// output, and no other.
    pub fn begin(&self) -> State {
        let matcher = self.base.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
        State::new(matcher, Arc::clone(&self.stop), self.size)
    }
}

type Slot = Arc<OnceLock<Result<Arc<Compiled>, GrammarError>>>;

/// Compiles grammars for one model.
pub struct Compiler {
    vocabulary: Arc<Vocabulary>,
    limits: Limits,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    /// Each with when it was asked for last.
    slots: HashMap<Grammar, (Slot, u64)>,
    bytes: usize,
    clock: u64,
}

impl Cache {
    fn slot(&mut self, grammar: &Grammar, limits: &Limits) -> Slot {
        self.clock += 1;
        if let Some((slot, asked)) = self.slots.get_mut(grammar) {
            *asked = self.clock;
            return Arc::clone(slot);
        }
        while self.slots.len() >= limits.cache_entries
            || self.bytes + grammar.bytes() > limits.cache_bytes
        {
            let oldest = self.slots.iter().min_by_key(|(_, (_, asked))| *asked);
            let Some(oldest) = oldest.map(|(grammar, _)| grammar.clone()) else { break };
            self.bytes -= oldest.bytes();
            self.slots.remove(&oldest);
        }
        self.bytes += grammar.bytes();
        let slot = Slot::default();
        self.slots.insert(grammar.clone(), (Arc::clone(&slot), self.clock));
        slot
    }
}

impl Compiler {
    /// For outputs of tokens of `vocabulary`.
    pub fn new(vocabulary: Vocabulary, limits: Limits) -> Compiler {
        Compiler { vocabulary: Arc::new(vocabulary), limits, cache: Mutex::default() }
    }

    /// The outline of one output that is held to `guided`; its grammar is compiled as by [`Compiler::compile`].
    ///
    /// # Errors
    /// See [`GrammarError`].
    pub fn outline(&self, guided: &Guided) -> Result<Outline, GrammarError> {
        let compiled = guided.grammar.as_ref().map(|grammar| self.compile(grammar)).transpose()?;
        let state = compiled.map(|compiled| compiled.begin());
        Ok(Outline::new(guided.thought.clone(), state, Arc::clone(&self.vocabulary)))
    }

    /// The compiled grammar: at once if it was compiled before, else after some milliseconds, in the caller's thread. Whoever asks for the same meanwhile
    /// waits for it.
    ///
    /// # Errors
    /// See [`GrammarError`].
    pub fn compile(&self, grammar: &Grammar) -> Result<Arc<Compiled>, GrammarError> {
        let (bytes, limit) = (grammar.bytes(), self.limits.text_bytes);
        if bytes > limit {
            return Err(GrammarError::TooLong { what: grammar.what(), bytes, limit });
        }
        let slot = {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            cache.slot(grammar, &self.limits)
        };
        slot.get_or_init(|| self.compile_anew(grammar)).clone()
    }

    fn compile_anew(&self, grammar: &Grammar) -> Result<Arc<Compiled>, GrammarError> {
        let special = |text: &str| self.vocabulary.special(text);
        let source = source(grammar, &special, &self.limits)?;
        let refused =
            |reason: &str| GrammarError::Refused { what: grammar.what(), reason: readable(reason) };
        // llguidance returns what it panics with as an error.
        let mut matcher = Matcher::new(self.vocabulary.factory.create_parser(source));
        if let Some(reason) = matcher.get_error() {
            return Err(refused(&reason));
        }
        // The first mask is the dearest, and the same for all.
        matcher.compute_mask().map_err(|error| refused(&error.to_string()))?;
        let (base, stop) = (Mutex::new(matcher), Arc::clone(&self.vocabulary.stop));
        Ok(Arc::new(Compiled { base, stop, size: self.vocabulary.size() }))
    }
}
