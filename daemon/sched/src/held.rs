//! Outputs that are held to something that the scheduler does not know, such as a grammar.
//!
//! Owns: what such a thing is, and that masks of a step's rows may be made at once. Must never: start a thread.

use std::sync::{Arc, Mutex, PoisonError};

/// What an output is held to, beyond lists of tokens.
pub trait Constraint: Send {
    /// Takes from `mask` the tokens that may not come after `output`: a bit for each token, the lowest of a word for its first.
    /// `output` is what it was when this was asked last and the tokens that have come since; or whatever it is, after a preemption.
    ///
    /// # Errors
    /// No token may come; the text is for the client.
    fn narrow(&mut self, output: &[u32], mask: &mut [u32]) -> Result<(), String>;
}

/// A constraint of a request.
#[derive(Clone)]
pub struct Held(Arc<Mutex<dyn Constraint>>);

impl Held {
    /// Of one request alone.
    pub fn new(constraint: impl Constraint + 'static) -> Held {
        Held(Arc::new(Mutex::new(constraint)))
    }

    /// See [`Constraint::narrow`].
    ///
    /// # Errors
    /// No token may come.
    pub fn narrow(&self, output: &[u32], mask: &mut [u32]) -> Result<(), String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).narrow(output, mask)
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Held")
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Held) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// A row's mask on its way.
pub struct Job<'a> {
    pub(crate) held: &'a Held,
    pub(crate) output: &'a [u32],
    pub(crate) mask: &'a mut [u32],
    /// Why there is no token, if so.
    pub(crate) stuck: Option<String>,
}

impl Job<'_> {
    /// Leaves the row without a token: there is nobody to make its mask.
    pub fn give_up(&mut self, reason: &str) {
        self.stuck = Some(reason.to_owned());
    }

    /// Makes the mask.
    pub fn run(&mut self) {
        self.stuck = self.held.narrow(self.output, self.mask).err();
    }
}

/// Who makes a step's masks, while the device computes.
pub trait Crew: Send + Sync {
    /// Runs all of them, in any order and at the same time; the scheduler waits.
    fn run(&self, jobs: &mut [Job<'_>]);
}

/// One after the other.
pub(crate) struct InTurn;

impl Crew for InTurn {
    fn run(&self, jobs: &mut [Job<'_>]) {
        jobs.iter_mut().for_each(Job::run);
    }
}

impl std::fmt::Debug for dyn Crew {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Crew")
    }
}
