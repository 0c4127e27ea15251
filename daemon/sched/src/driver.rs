//! The worker's loop, one turn at a time: scheduler and executor together.
//!
//! Owns: when to wait for the executor. Must never: block on anything else, or read a clock; the
//! caller does both.
//!
//! ```no_run
//! # use minisgl_sched::{BeginError, Driver, Event, Executor, ExecutorError, Scheduler};
//! # fn drain_or_block(idle: bool) -> Vec<Event> { unimplemented!() }
//! # fn send<T>(_: T) {}
//! # fn now_s() -> f64 { 0.0 }
//! # fn work<E: Executor>(scheduler: Scheduler, executor: E) -> Result<(), Box<dyn std::error::Error>> {
//! let mut driver = Driver::new(scheduler, executor);
//! while !driver.scheduler().is_drained() {
//!     let inbox = drain_or_block(driver.is_idle()); // blocks only when idle
//!     let begun = driver.begin(inbox, now_s());
//!     // Before waiting: clients read while the device computes. And also if the executor is broken: what the
//!     // step before brought is true.
//!     let (step, broken) = match begun {
//!         Ok(step) => (step, None),
//!         Err(BeginError { step, error }) => (*step, Some(error)),
//!     };
//!     send(step.token_events);
//!     broken.map_or(Ok(()), Err)?;
//!     driver.finish()?;
//! }
//! # Ok(()) }
//! ```

use crate::executor::{Executor, ExecutorError};
use crate::plan::{Late, Plan, StepOutput};
use crate::scheduler::{Event, Scheduler, Step};

/// A turn whose plan could not be launched.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{error}")]
pub struct BeginError {
    /// What the turn brought nevertheless, to be told as of any other: tokens of the step before, requests that ended
    /// with it, refusals. Its plan is gone.
    pub step: Box<Step>,
    /// The executor is broken for good.
    #[source]
    pub error: ExecutorError,
}

/// Drives one executor with the plans of one scheduler.
#[derive(Debug)]
pub struct Driver<E> {
    scheduler: Scheduler,
    executor: E,
    /// The output last waited for, which the scheduler has not seen.
    output: Option<StepOutput>,
    /// The last turn launched a plan.
    launched: bool,
}

impl<E: Executor> Driver<E> {
    /// Nothing is in flight yet.
    pub fn new(scheduler: Scheduler, executor: E) -> Driver<E> {
        Driver { scheduler, executor, output: None, launched: false }
    }

    /// First half of a turn: takes in the last output, then `events`, and launches the next plan.
    /// The plan itself is gone from the answer.
    ///
    /// # Errors
    /// The executor is broken for good; with it comes what is to be told all the same.
    pub fn begin(
        &mut self,
        events: impl IntoIterator<Item = Event>,
        now_s: f64,
    ) -> Result<Step, BeginError> {
        let finished = self.output.take().map(Event::Finished);
        let mut step = self.scheduler.step(finished.into_iter().chain(events), now_s);
        let (late, plan, own_late) = (step.late.take(), step.plan.take(), step.own_late.take());
        self.launched = plan.is_some();
        match self.hand_over(late, plan, own_late) {
            Ok(()) => Ok(step),
            Err(error) => Err(BeginError { step: Box::new(step), error }),
        }
    }

    /// Hands over what a turn brought for the executor, in order.
    fn hand_over(
        &mut self,
        late: Option<Late>,
        plan: Option<Plan>,
        own_late: Option<Late>,
    ) -> Result<(), ExecutorError> {
        late.map_or(Ok(()), |late| self.executor.complete(late))?;
        plan.map_or(Ok(()), |plan| self.executor.launch(plan))?;
        own_late.map_or(Ok(()), |late| self.executor.complete(late))
    }

    /// Second half: waits for the oldest plan in flight, unless it is the only one and was launched
    /// just now with overlap: then the next one is planned while it runs.
    ///
    /// # Errors
    /// The executor is broken for good.
    pub fn finish(&mut self) -> Result<(), ExecutorError> {
        let kept = usize::from(self.launched && self.scheduler.config().overlap);
        if self.scheduler.plans_in_flight() > kept {
            self.output = Some(self.executor.wait()?);
            if let Some(plan) = self.executor.reclaim() {
                self.scheduler.recycle(plan);
            }
        }
        Ok(())
    }

    /// Nothing will happen without a new event.
    pub fn is_idle(&self) -> bool {
        self.output.is_none() && self.scheduler.is_idle()
    }

    /// The scheduler, to look at.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// The scheduler, for [`Scheduler::stats`] and [`Scheduler::check_integrity`], which first take
    /// back what dropped page tables held.
    pub fn scheduler_mut(&mut self) -> &mut Scheduler {
        &mut self.scheduler
    }

    /// The executor, to look at.
    pub fn executor(&self) -> &E {
        &self.executor
    }
}
