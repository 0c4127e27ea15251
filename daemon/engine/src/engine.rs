//! The engine: a loaded model that runs plans.
//!
//! Owns: [`Executor`] for the scheduler; `engine/load.rs` is how it comes about. Must never: look into a
//! request, or go on after a rank has failed.

mod fit;
mod load;
mod options;
mod spawn;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use minisgl_sched::{Executor, ExecutorError, Late, Plan, StepOutput, StepProfile};

use crate::batch::{IN_FLIGHT_MAX, PlanCheck, PlanLimits};
use crate::kv_groups::KvGroups;
use crate::patience::StepCosts;
use crate::rank::{Event, Hashes, Outcome, Ranks, redeem};

/// Plans that have run and are kept to be given back, at most: a rank lets go of a plan when it takes
/// the next.
const DONE_MAX: usize = IN_FLIGHT_MAX + 1;

/// A rank that has told nothing of a step for so many times the step's patience hangs on the host: it enqueues the step,
/// waits for the device, and reports it, and none of that takes as long.
const SILENCE: u32 = 4;

/// What is known of a model once it is loaded; see `minisgl_proto::ModelInfo` for the meanings.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the fields of ModelInfo")]
pub struct EngineInfo {
    pub architecture: String,
    pub device: String,
    pub dtype: String,
    pub parameters: u64,
    pub weight_bytes: u64,
    pub kv_dtype: String,
    pub kv_bytes: u64,
    pub kv_tokens: u64,
    /// KV pages, of `page_size` tokens of a group of layers: plans may name pages below this.
    pub kv_pages: u32,
    pub page_size: u32,
    /// Which layers share pages.
    pub groups: KvGroups,
    pub vocab_size: u32,
    pub max_len: u32,
    pub context_len: u32,
    pub chunk_tokens: u32,
    /// Prompt tokens whose log-probabilities a step can report.
    pub scored_max: u32,
    /// Requests with penalties that can run at once.
    pub penalised_max: u32,
    pub eos_token_ids: Vec<u32>,
    pub tp: u32,
    pub gpus: Vec<u32>,
    pub read_bytes: u64,
    pub read_s: f64,
}

/// A loaded model.
pub struct Engine {
    ranks: Ranks,
    check: PlanCheck,
    /// By what it is known how long a step may take; `None` on the CPU, where it takes as long as it takes.
    costs: Option<StepCosts>,
    /// Plans launched and not waited for, and how long each may take.
    in_flight: VecDeque<(Arc<Plan>, Option<Duration>)>,
    /// The plan launched last lacks its masks.
    is_waiting: bool,
    /// Plans that have run, the oldest first.
    done: VecDeque<Arc<Plan>>,
    next_step: u64,
    failed: Option<ExecutorError>,
    /// When the step last waited for ended.
    last_ended: Option<Instant>,
    /// Of the step last waited for.
    profile: StepProfile,
    /// What ranks told of steps, where they are compared.
    hashes: Hashes,
}

impl Engine {
    fn new(ranks: Ranks, limits: PlanLimits, costs: Option<StepCosts>) -> Engine {
        Engine {
            ranks,
            check: PlanCheck::new(limits),
            costs,
            in_flight: VecDeque::new(),
            is_waiting: false,
            done: VecDeque::new(),
            next_step: 0,
            failed: None,
            last_ended: None,
            profile: StepProfile::default(),
            hashes: Hashes::default(),
        }
    }

    /// Forgets the steps that ran, once all ranks have told of them.
    fn restart(&mut self) -> Result<(), ExecutorError> {
        while !self.hashes.is_empty() {
            match self.ranks.next() {
                Some(event) => self.aside(event)?,
                None => return Err(self.fail("all ranks are gone".to_owned())),
            }
        }
        self.next_step = 0;
        self.check.restart();
        self.done.clear();
        Ok(())
    }

    /// Takes what is not the outcome of a step.
    fn aside(&mut self, event: Event) -> Result<(), ExecutorError> {
        match event {
            // A rank may lag: what it ran is compared when it says so.
            Event::Ran { rank, step, hash } => {
                let ranks = self.ranks.count();
                self.hashes.add(ranks, step, rank, hash).map_err(|told| self.fail(told))
            }
            Event::Failed { rank, operation, reason } => {
                Err(self.fail(format!("rank {rank} failed in {operation}: {reason}")))
            }
            _ => Err(self.fail("a rank told of something that it was not asked for".to_owned())),
        }
    }

    /// The oldest plan in flight has run.
    fn ran(&mut self, step: u64) {
        if let Some((plan, _)) = self.in_flight.pop_front() {
            debug_assert_eq!(step, plan.step);
            if self.done.len() == DONE_MAX {
                self.done.pop_front();
            }
            self.done.push_back(plan);
        }
    }

    /// The next event, while the oldest plan in flight may still be running.
    fn next(&mut self) -> Result<Event, ExecutorError> {
        let told = match self.in_flight.front() {
            Some((plan, Some(patience))) => {
                let silence = *patience * SILENCE;
                self.ranks.next_within(silence).map_err(|error| match error {
                    RecvTimeoutError::Timeout => format!(
                        "no rank told of step {} within {:.1} s: a driver hangs; see dmesg",
                        plan.step,
                        silence.as_secs_f64()
                    ),
                    RecvTimeoutError::Disconnected => "all ranks are gone".to_owned(),
                })
            }
            _ => self.ranks.next().ok_or_else(|| "all ranks are gone".to_owned()),
        };
        told.map_err(|reason| self.fail(reason))
    }

    /// What the scheduler gets of a step that rank 0 took up at `started`.
    fn output(
        &mut self,
        step: u64,
        started: Instant,
        enqueue_s: f32,
        outcome: Outcome,
    ) -> StepOutput {
        let Outcome { ended, device_s, sampled } = outcome;
        self.profile = StepProfile { enqueue_s: Some(enqueue_s), device_s };
        // With overlap the rank took it up while the one before ran: that time is not this step's.
        let began = self.last_ended.map_or(started, |last| last.max(started));
        self.last_ended = Some(ended);
        let host_s = ended.saturating_duration_since(began).as_secs_f32();
        let step_s = device_s.map_or(host_s, |device_s| device_s.min(host_s));
        StepOutput { step, sampled, step_s }
    }

    fn fail(&mut self, message: String) -> ExecutorError {
        self.failed.get_or_insert(ExecutorError(message)).clone()
    }
}

impl Executor for Engine {
    fn launch(&mut self, plan: Plan) -> Result<(), ExecutorError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let step = plan.step;
        if self.in_flight.len() == IN_FLIGHT_MAX {
            return Err(self.fail(format!("step {step}: {IN_FLIGHT_MAX} plans are in flight")));
        }
        if step != self.next_step {
            return Err(self.fail(format!("step {step} launched, step {} is next", self.next_step)));
        }
        if self.is_waiting {
            return Err(self.fail(format!("step {step}: the step before lacks its masks")));
        }
        if let Err(reason) = self.check.check(&plan) {
            return Err(self.fail(format!("step {step}: {reason}")));
        }
        let patience = self.costs.map(|costs| costs.patience(&plan));
        self.is_waiting = !plan.masked.is_empty();
        let plan = Arc::new(plan);
        self.ranks.run(&plan, patience.unwrap_or(Duration::MAX));
        self.in_flight.push_back((plan, patience));
        self.next_step += 1;
        Ok(())
    }

    fn complete(&mut self, late: Late) -> Result<(), ExecutorError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let Some((plan, _)) = self.in_flight.back().filter(|_| self.is_waiting) else {
            return Err(self.fail(format!("no step waits for the masks of step {}", late.step)));
        };
        if let Err(reason) = self.check.check_late(plan, &late) {
            let step = plan.step;
            return Err(self.fail(format!("step {step}: {reason}")));
        }
        self.is_waiting = false;
        self.ranks.complete(&Arc::new(late));
        Ok(())
    }

    fn wait(&mut self) -> Result<StepOutput, ExecutorError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.is_waiting && self.in_flight.len() == 1 {
            return Err(self.fail("the step in flight lacks its masks".to_owned()));
        }
        if self.in_flight.is_empty() {
            return Err(ExecutorError("nothing is in flight to wait for".to_owned()));
        }
        loop {
            match self.next()? {
                Event::Step { step, started, enqueue_s, patience, pending } => {
                    self.ran(step);
                    return match redeem(pending, patience) {
                        Ok(outcome) => Ok(self.output(step, started, enqueue_s, outcome)),
                        Err(error) => {
                            Err(self.fail(format!("rank 0 failed in step {step}: {error}")))
                        }
                    };
                }
                Event::Done { step, started, enqueue_s, outcome } => {
                    self.ran(step);
                    return Ok(self.output(step, started, enqueue_s, outcome));
                }
                event => self.aside(event)?,
            }
        }
    }

    /// The oldest plan that has run, once every rank has let go of it.
    fn reclaim(&mut self) -> Option<Plan> {
        match Arc::try_unwrap(self.done.pop_front()?) {
            Ok(plan) => Some(plan),
            Err(plan) => {
                self.done.push_front(plan);
                None
            }
        }
    }

    fn profile(&self) -> StepProfile {
        self.profile
    }
}

#[cfg(test)]
mod tests;
