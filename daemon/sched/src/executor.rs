//! The seam between scheduling and computing.

use crate::plan::{Late, Plan, StepOutput};

/// Runs plans, strictly in the order they are launched. Two may be in flight: one running, one
/// queued behind it, whose device-fed tokens come from the one before.
///
/// A plan runs in two phases: the forward pass, for which it is complete, and sampling, for which one with
/// [`Plan::masked`] rows waits for what comes late. Others sample at once.
///
/// ```text
///   launch(n)   complete(n)   launch(n + 1)   wait -> n   complete(n + 1)   launch(n + 2)   wait -> n + 1
///   device:     forward n ... sample n, forward n + 1 ................... sample n + 1, forward n + 2
/// ```
pub trait Executor {
    /// Hands over the next plan and returns without waiting for it to run.
    ///
    /// # Errors
    /// The engine is broken for good; the worker says so and exits.
    fn launch(&mut self, plan: Plan) -> Result<(), ExecutorError>;

    /// Hands over what the plan launched last waits for, before another is launched or that one is waited for.
    ///
    /// # Errors
    /// As `launch`. What no plan waits for is an error too.
    fn complete(&mut self, late: Late) -> Result<(), ExecutorError>;

    /// Waits for the oldest plan in flight.
    ///
    /// # Errors
    /// As `launch`. Calling it with nothing in flight is an error too.
    fn wait(&mut self) -> Result<StepOutput, ExecutorError>;

    /// Gives back a plan that has run, so that the next one can use its memory. Optional: at page
    /// size 1 a plan is a megabyte, and allocating it anew costs a third of the step.
    fn reclaim(&mut self) -> Option<Plan> {
        None
    }

    /// Where the time of the step last waited for went. Optional: for benchmarks.
    fn profile(&self) -> StepProfile {
        StepProfile::default()
    }
}

/// Seconds of one step, where they were measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepProfile {
    /// The first rank's thread, from taking up the plan until all of it was enqueued on the device.
    pub enqueue_s: Option<f32>,
    /// The device, from its first kernel to its last: copies before and after are left out.
    pub device_s: Option<f32>,
}

/// The engine cannot go on: which operation, on which rank, with which shapes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ExecutorError(pub String);
