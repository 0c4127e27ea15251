//! A worker's loop around the simulated executor, and small requests for it.

use std::collections::HashMap;

use minisgl_proto::{
    CacheMode, Finish, NO_TOKEN, RequestId, Sampled, SamplingParams, StopParams, Submit, TokenEvent,
};
use minisgl_sched::{
    BeginError, Driver, Event, Executor, ExecutorError, Late, Plan, SchedConfig, Scheduler,
    StepOutput, Windows,
};

use crate::executor::SimExecutor;

/// The simulated executor, and every plan it was given.
pub struct Recorder {
    executor: SimExecutor,
    plans: Vec<Plan>,
    /// Plans from this one on are refused.
    fails_from: u64,
    /// All logits of this step are NaN.
    breaks: u64,
}

impl Executor for Recorder {
    fn launch(&mut self, plan: Plan) -> Result<(), ExecutorError> {
        if plan.step >= self.fails_from {
            return Err(ExecutorError("rank 0 is gone".to_owned()));
        }
        self.plans.push(plan.clone());
        self.executor.launch(plan)
    }

    fn complete(&mut self, late: Late) -> Result<(), ExecutorError> {
        self.executor.complete(late)
    }

    fn wait(&mut self) -> Result<StepOutput, ExecutorError> {
        let mut output = self.executor.wait()?;
        if output.step == self.breaks {
            output.sampled.iter_mut().for_each(|sampled| sampled.token = NO_TOKEN);
        }
        Ok(output)
    }

    fn reclaim(&mut self) -> Option<Plan> {
        self.executor.reclaim()
    }
}

pub struct Worker {
    pub driver: Driver<Recorder>,
    pub events: HashMap<u64, Vec<TokenEvent>>,
    now_s: f64,
}

pub fn config() -> SchedConfig {
    SchedConfig {
        pages: 64,
        page_size: 4,
        windows: Windows::default(),
        max_running: 4,
        penalised_max: 4,
        max_waiting: 4,
        chunk_tokens: 16,
        scored_max: 8,
        max_len: 128,
        vocab_size: 100,
        eos_token_ids: vec![],
        cache: CacheMode::Radix,
        overlap: true,
    }
}

pub fn prompt(first: u32, len: u32) -> Vec<u32> {
    (0..len).map(|n| (first + n) % 100).collect()
}

pub fn request(id: u64, prompt: Vec<u32>, max_tokens: u32) -> Submit {
    Submit {
        id: RequestId(id),
        prompt,
        generated: Vec::new(),
        sampling: SamplingParams::default(),
        stop: StopParams { max_tokens, ..StopParams::default() },
        priority: 0,
    }
}

impl Worker {
    pub fn new(config: SchedConfig) -> Worker {
        Worker::with_faults(config, u64::MAX, u64::MAX)
    }

    /// One whose executor refuses plans from `fails_from` on, and gives no numbers in step `breaks`.
    pub fn with_faults(config: SchedConfig, fails_from: u64, breaks: u64) -> Worker {
        let executor = SimExecutor::new(&config);
        let recorder = Recorder { executor, plans: Vec::new(), fails_from, breaks };
        let scheduler = Scheduler::new(config).unwrap();
        Worker { driver: Driver::new(scheduler, recorder), events: HashMap::new(), now_s: 0.0 }
    }

    /// One turn of the loop; returns what flushes freed.
    pub fn turn(&mut self, events: impl IntoIterator<Item = Event>) -> Vec<u64> {
        self.try_turn(events).unwrap()
    }

    /// The same, of an executor that may be broken.
    pub fn try_turn(
        &mut self,
        events: impl IntoIterator<Item = Event>,
    ) -> Result<Vec<u64>, ExecutorError> {
        self.now_s += 1.0;
        let (step, broken) = match self.driver.begin(events, self.now_s) {
            Ok(step) => (step, None),
            Err(BeginError { step, error }) => (*step, Some(error)),
        };
        for event in step.token_events {
            self.events.entry(event.id.0).or_default().push(event);
        }
        self.driver.scheduler_mut().check_integrity().unwrap();
        broken.map_or(Ok(()), Err)?;
        self.driver.finish().unwrap();
        Ok(step.flushed)
    }

    pub fn submit(&mut self, submits: impl IntoIterator<Item = Submit>) {
        self.turn(submits.into_iter().map(Event::Submit));
    }

    pub fn run_until_idle(&mut self) {
        for _ in 0..10_000 {
            if self.driver.is_idle() {
                return;
            }
            self.turn([]);
        }
        panic!("no end in sight");
    }

    pub fn tokens(&self, id: u64) -> Vec<u32> {
        let events = self.events.get(&id).into_iter().flatten();
        events.filter_map(|event| Some(event.sampled.as_ref()?.token)).collect()
    }

    /// What came of its prompt's log-probabilities.
    pub fn scored(&self, id: u64) -> Vec<Sampled> {
        let events = self.events.get(&id).into_iter().flatten();
        events.flat_map(|event| event.prompt_logprobs.clone()).collect()
    }

    pub fn finish(&self, id: u64) -> Option<&Finish> {
        self.events.get(&id)?.last()?.finish.as_ref()
    }

    pub fn cached(&self, id: u64) -> Option<u32> {
        self.events[&id][0].cached_tokens
    }

    pub fn plans(&self) -> &[Plan] {
        &self.driver.executor().plans
    }

    pub fn depths(&self) -> &[usize] {
        self.driver.executor().executor.depths()
    }

    pub fn fed(&self) -> usize {
        self.plans().iter().map(|plan| plan.tokens.len()).sum()
    }
}

/// What a request gets that has a worker for itself.
pub fn alone(submit: &Submit) -> Vec<u32> {
    let mut worker = Worker::new(config());
    worker.submit([submit.clone()]);
    worker.run_until_idle();
    worker.tokens(submit.id.0)
}
