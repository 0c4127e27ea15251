//! The scheduler: from what happened to what runs next.
//!
//! ```text
//!   Submit ------------------------------------------------------+
//!     |                                                          |
//!     v         admit                    last chunk              | refused
//!   WAITING ------------> PREFILLING ------------> DECODING      |
//!     ^  |                  |   |                   |    |       |
//!     |  |    preempt       |   |                   |    |       |
//!     +--|------------------+---|-------------------+    |       |
//!        |                      |                        |       |
//!        | Abort, last token    | Abort                  | stop token, length, Abort
//!        v                      v                        v       v
//!   ENDED: exactly one event with `finish`; it holds no page, no slot, no place in the queue
//! ```
//!
//! A waiting request holds nothing. A running one (prefilling or decoding) holds a slot and a page
//! table. When a request is preempted its computed pages go into the tree and it waits again, in
//! front of its class, with prompt and output together as its prefix. A token that a plan in flight
//! is still sampling for it reaches it while it waits; it is not admitted again before.
//!
//! # Overlap
//!
//! With overlap two plans are in flight: plan `n + 1` is built while plan `n` runs, and refers to
//! the tokens that `n` samples by row. Plans run in order, and everything that is safe here follows
//! from that:
//!
//! - Pages that a plan writes go into the tree as soon as it is built: later plans run after it.
//!   Not earlier, so no row reads what another row of the same plan writes.
//! - Pages that a request gives up may be handed out again at once: a plan in flight still writes
//!   them before their new owner does. But never within the plan that writes them, so requests are
//!   planned by rank, and those preempted for want of pages come after the last one planned.
//! - Pages of layers that see a window are given up before the row is planned that does not read them any more: those that did are
//!   in plans before it.
//! - A mask may depend on the token that the plan in flight samples. So a plan whose rows have masks is launched without them:
//!   its forward pass runs, and waits for [`Late`] before it samples. That follows once the plan before has
//!   run, and comes before another plan is launched.
//! - An end that depends on a token's value is seen one step late; the row planned meanwhile is run
//!   and its result discarded. An end by length is known ahead, and no such row is planned.
//!
//! # Progress
//!
//! Running requests are served strictly by rank: priority, then arrival. The first of them can take
//! pages from all others, and no request is accepted that would not fit into the pool alone. So
//! each step computes at least one token of the request that is first, which will therefore end.
//!
//! Owns: requests, their queue, slots and pages. Must never: do I/O, read a clock, or wait.

use std::collections::{BTreeMap, HashMap, VecDeque};

use minisgl_cache::{Mode, PrefixCache};
use minisgl_proto::{CacheMode, RequestId, StepStats, Submit, TokenEvent};

use crate::config::{ConfigError, SchedConfig};
use crate::held::{Crew, Held, InTurn};
use crate::plan::{CountsId, Late, Plan, SlotId, StepOutput};
use crate::request::Rank;
use crate::requests::{Key, Requests};

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A new request. An id that is in use already is ignored.
    Submit(Submit),
    /// The same, whose output is held to something.
    SubmitHeld(Submit, Held),
    /// End this request now. Unknown ids are ignored: it may have ended meanwhile.
    Abort(RequestId),
    /// The oldest plan in flight has run.
    Finished(StepOutput),
    /// Evict every page that no running request uses.
    Flush,
    /// Refuse new requests from now on.
    Drain,
}

/// What follows from what happened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// What the plan in flight waits for before it samples; handed over before `plan` is launched.
    pub late: Option<Late>,
    /// To be launched; absent when there is nothing to run, or enough in flight.
    pub plan: Option<Plan>,
    /// What `plan` itself waits for, where nothing before it is unknown; handed over behind it.
    pub own_late: Option<Late>,
    /// At most one for each request, if no more than one plan finished.
    pub token_events: Vec<TokenEvent>,
    /// Pages freed by each [`Event::Flush`], in order.
    pub flushed: Vec<u64>,
}

/// A plan that has been handed out and has not finished.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) step: u64,
    pub(crate) rows: u32,
    pub(crate) prefill_tokens: u32,
    /// What its output holds for whom, in the order of rows. Some may have ended.
    pub(crate) wanted: Vec<Wanted>,
    /// Whose rows wait for a mask; none once it was told.
    pub(crate) masked: Vec<Key>,
}

/// What a row's logits become.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) key: Key,
    /// Prompt tokens reported with their log-probability,
    pub(crate) scored: u32,
    /// then a token that is sampled.
    pub(crate) sampled: bool,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) config: SchedConfig,
    pub(crate) cache: PrefixCache,
    pub(crate) requests: Requests,
    pub(crate) keys: HashMap<RequestId, Key>,
    /// First to be admitted first.
    pub(crate) waiting: BTreeMap<Rank, Key>,
    /// By rank: the last one is preempted first.
    pub(crate) running: Vec<Key>,
    pub(crate) free_slots: Vec<SlotId>,
    /// Tables of token counts that no running request has.
    pub(crate) free_counts: Vec<CountsId>,
    /// Oldest first.
    pub(crate) in_flight: VecDeque<InFlight>,
    /// The first in the queue did not fit, and nothing has changed for the better since.
    pub(crate) admission_blocked: bool,
    pub(crate) draining: bool,
    pub(crate) arrivals: u64,
    pub(crate) plans: u64,
    /// Plans that have run, whose memory the next ones use; at most as many as can be in flight.
    pub(crate) spare: Vec<Plan>,
    /// Totals and the last step's numbers; the rest is filled in by [`Scheduler::stats`].
    pub(crate) totals: StepStats,
    /// Who makes masks.
    pub(crate) crew: Box<dyn Crew>,
}

impl Scheduler {
    /// A scheduler without requests.
    ///
    /// # Errors
    /// The configuration has a limit that no request could meet.
    pub fn new(config: SchedConfig) -> Result<Scheduler, ConfigError> {
        config.check()?;
        let mode = match config.cache {
            CacheMode::Radix => Mode::Radix,
            CacheMode::Naive => Mode::Naive,
        };
        Ok(Scheduler {
            cache: PrefixCache::new(config.pages, config.page_size, config.windows, mode),
            requests: Requests::default(),
            keys: HashMap::new(),
            waiting: BTreeMap::new(),
            running: Vec::new(),
            free_slots: (0..config.slots() as SlotId).rev().collect(),
            free_counts: (0..config.penalised() as CountsId).rev().collect(),
            in_flight: VecDeque::new(),
            admission_blocked: false,
            draining: false,
            arrivals: 0,
            plans: 0,
            spare: Vec::new(),
            totals: StepStats::default(),
            crew: Box::new(InTurn),
            config,
        })
    }

    /// Has masks made by `crew`; they are made one after the other otherwise.
    pub fn set_crew(&mut self, crew: impl Crew + 'static) {
        self.crew = Box::new(crew);
    }

    /// Takes in what happened, in order, and plans the next step. `now_s` is the time on any clock
    /// that does not go back, in seconds.
    ///
    /// Never more than two plans are in flight, one without overlap; beyond that no plan is built.
    ///
    /// # Panics
    /// If a [`StepOutput`] does not belong to the oldest plan in flight.
    pub fn step(&mut self, events: impl IntoIterator<Item = Event>, now_s: f64) -> Step {
        let mut step = Step::default();
        for event in events {
            match event {
                Event::Submit(submit) => {
                    self.submit((submit, None), now_s, &mut step.token_events);
                }
                Event::SubmitHeld(submit, held) => {
                    self.submit((submit, Some(held)), now_s, &mut step.token_events);
                }
                Event::Abort(id) => self.abort(id, &mut step.token_events),
                Event::Finished(output) => self.take_output(output, &mut step.token_events),
                Event::Flush => {
                    step.flushed.push(self.cache.flush() as u64);
                    self.admission_blocked = false;
                }
                Event::Drain => self.draining = true,
            }
        }
        step.late = self.late();
        if self.in_flight.len() < self.config.plans_in_flight() {
            step.plan = self.plan(now_s);
        }
        // Where nothing else is in flight, nothing is unknown that the masks of this one depend on.
        step.own_late = self.late();
        step
    }

    /// Takes back a plan that has run, for its memory. Optional, see [`crate::Executor::reclaim`].
    pub fn recycle(&mut self, plan: Plan) {
        if self.spare.len() < self.config.plans_in_flight() {
            self.spare.push(plan);
        }
    }

    /// The configuration it was made with.
    pub fn config(&self) -> &SchedConfig {
        &self.config
    }

    /// Plans handed out that have not finished.
    pub fn plans_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// No request, and no plan in flight: nothing will happen without a new event.
    pub fn is_idle(&self) -> bool {
        self.requests.len() == 0 && self.in_flight.is_empty()
    }

    /// Idle for good: no new request is taken.
    pub fn is_drained(&self) -> bool {
        self.draining && self.is_idle()
    }

    /// Counters as of now.
    pub fn stats(&mut self) -> StepStats {
        let counts = self.cache.counts();
        StepStats {
            running: self.running.len() as u32,
            waiting: self.waiting.len() as u32,
            pages_total: u64::from(self.config.pages),
            pages_free: counts.free as u64,
            pages_cached: counts.cached as u64,
            pages_evictable: counts.evictable as u64,
            pages_owned: counts.owned as u64,
            ..self.totals
        }
    }
}
