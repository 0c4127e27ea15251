//! A step on its way through a rank's thread.
//!
//! Owns: what is known of it until it is over, and who is told then. Must never: wait.

use std::hash::DefaultHasher;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use super::Event;
use super::watch::{Enqueued, Watcher};
use crate::ops::Pending;

/// A step that was enqueued, or its forward pass.
pub(super) struct Begun {
    pub(super) step: u64,
    pub(super) started: Instant,
    pub(super) enqueue_s: f32,
    pub(super) patience: Duration,
    /// Of its plan, if ranks are compared.
    pub(super) hash: Option<DefaultHasher>,
}

impl Begun {
    /// Tells of the step once it is over: the engine waits for that of an only rank, a watcher for those of several.
    pub(super) fn hand_over(
        self,
        pending: Box<dyn Pending>,
        watcher: Option<&Watcher>,
        events: &Sender<Event>,
    ) {
        let Begun { step, started, enqueue_s, patience, hash } = self;
        match watcher {
            Some(watcher) => {
                watcher.watch(Enqueued { step, started, enqueue_s, patience, pending, hash });
            }
            None => {
                let _ = events.send(Event::Step { step, started, enqueue_s, patience, pending });
            }
        }
    }
}
