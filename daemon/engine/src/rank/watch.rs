//! A thread beside each of several ranks that waits for its steps.
//!
//! Owns: that a rank whose device fails or hangs is told of, whichever rank it is; and the check that ranks do not
//! diverge. Must never: hold a rank up: a step is handed over and forgotten.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::mpsc::{Sender, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use minisgl_proto::Sampled;
use minisgl_sched::Plan;

use super::{Event, redeem};
use crate::batch::IN_FLIGHT_MAX;
use crate::error::OpError;
use crate::ops::{OpResult, Pending};

/// Anything but `0` in this variable and every step's plan and tokens are compared over all ranks.
const CHECK_RANKS: &str = "MINISGL_CHECK_RANKS";

/// Whether ranks are compared.
fn check_ranks() -> bool {
    std::env::var_os(CHECK_RANKS).is_some_and(|value| value != "0")
}

/// A step that was enqueued; see [`Event::Step`].
pub(super) struct Enqueued {
    pub(super) step: u64,
    pub(super) started: Instant,
    pub(super) enqueue_s: f32,
    pub(super) patience: Duration,
    pub(super) pending: Box<dyn Pending>,
    /// Of its plan, if ranks are compared.
    pub(super) hash: Option<DefaultHasher>,
}

/// A rank's end of its watcher.
pub(super) struct Watcher {
    steps: Option<SyncSender<Enqueued>>,
    thread: Option<JoinHandle<()>>,
    checks: bool,
}

impl Watcher {
    pub(super) fn start(rank: usize, events: &Sender<Event>) -> OpResult<Watcher> {
        // One more than plans in flight: the watcher may hold one that is over.
        let (steps, enqueued) = sync_channel::<Enqueued>(IN_FLIGHT_MAX + 1);
        let events = events.clone();
        let thread = std::thread::Builder::new()
            .name(format!("rank{rank}-watch"))
            .spawn(move || {
                for enqueued in enqueued {
                    let (event, last) = outcome(rank, enqueued);
                    let gone = event.into_iter().any(|event| events.send(event).is_err());
                    if last || gone {
                        return;
                    }
                }
            })
            .map_err(|error| OpError { operation: "start a thread", reason: error.to_string() })?;
        Ok(Watcher { steps: Some(steps), thread: Some(thread), checks: check_ranks() })
    }

    /// The beginning of a step's hash, if ranks are compared.
    pub(super) fn hash(&self, plan: &Plan) -> Option<DefaultHasher> {
        self.checks.then(|| {
            let mut hasher = DefaultHasher::new();
            format!("{plan:?}").hash(&mut hasher);
            hasher
        })
    }

    pub(super) fn watch(&self, enqueued: Enqueued) {
        if let Some(steps) = &self.steps {
            // A watcher that is gone has told why.
            let _ = steps.send(enqueued);
        }
    }
}

impl Drop for Watcher {
    /// What it waits for must not outlive the rank's device.
    fn drop(&mut self) {
        self.steps = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What a step came to, and whether it was this rank's last.
fn outcome(rank: usize, enqueued: Enqueued) -> (Vec<Event>, bool) {
    let Enqueued { step, started, enqueue_s, patience, pending, hash } = enqueued;
    match redeem(pending, patience) {
        Ok(outcome) => {
            let sampled = &outcome.sampled;
            let hash = hash.map(|hasher| Event::Ran { rank, step, hash: of(hasher, sampled) });
            let done = Event::Done { step, started, enqueue_s, outcome };
            (hash.into_iter().chain((rank == 0).then_some(done)).collect(), false)
        }
        Err(error) => {
            let operation = format!("step {step}");
            (vec![Event::Failed { rank, operation, reason: error.to_string() }], true)
        }
    }
}

fn of(mut hasher: DefaultHasher, sampled: &[Sampled]) -> u64 {
    for sampled in sampled {
        sampled.token.hash(&mut hasher);
        sampled.logprob.map(f32::to_bits).hash(&mut hasher);
    }
    hasher.finish()
}

/// What ranks said of steps that not all of them have spoken of.
#[derive(Debug, Default)]
pub(crate) struct Hashes {
    steps: Vec<(u64, Vec<(usize, u64)>)>,
}

impl Hashes {
    /// Whether all ranks have spoken of all steps.
    pub(crate) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Takes what `rank` of `ranks` says of `step`.
    ///
    /// # Errors
    /// It is not what another rank said, in words.
    pub(crate) fn add(
        &mut self,
        ranks: usize,
        step: u64,
        rank: usize,
        hash: u64,
    ) -> Result<(), String> {
        let at = self.steps.iter().position(|(known, _)| *known == step);
        let at = at.unwrap_or_else(|| {
            self.steps.push((step, Vec::new()));
            self.steps.len() - 1
        });
        let (_, said) = &mut self.steps[at];
        if let Some((other, _)) = said.iter().find(|(_, known)| *known != hash) {
            return Err(format!(
                "ranks have diverged: rank {rank} and rank {other} ran step {step} differently"
            ));
        }
        said.push((rank, hash));
        if said.len() == ranks {
            self.steps.swap_remove(at);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_that_differ_are_told_of() {
        let mut hashes = Hashes::default();
        for (step, rank) in [(7, 0), (8, 1), (7, 1), (8, 0), (7, 2)] {
            hashes.add(3, step, rank, step * 10).unwrap();
        }
        assert_eq!(hashes.steps.len(), 1, "all have spoken of step 7");
        let told = hashes.add(3, 8, 2, 81).unwrap_err();
        assert_eq!(told, "ranks have diverged: rank 2 and rank 1 ran step 8 differently");
    }
}
