//! What the scheduler promises, one promise a test, through the loop that a worker runs.

use std::collections::HashMap;

use minisgl_proto::{
    CacheMode, Finish, Reject, RequestId, SamplingParams, StopParams, Submit, TokenEvent,
};
use minisgl_sched::{
    ConfigError, Driver, Event, Executor, ExecutorError, Plan, SchedConfig, Scheduler, StepOutput,
};

use crate::executor::SimExecutor;

/// The simulated executor, and every plan it was given.
struct Recorder {
    executor: SimExecutor,
    plans: Vec<Plan>,
}

impl Executor for Recorder {
    fn launch(&mut self, plan: Plan) -> Result<(), ExecutorError> {
        self.plans.push(plan.clone());
        self.executor.launch(plan)
    }

    fn wait(&mut self) -> Result<StepOutput, ExecutorError> {
        self.executor.wait()
    }

    fn reclaim(&mut self) -> Option<Plan> {
        self.executor.reclaim()
    }
}

struct Worker {
    driver: Driver<Recorder>,
    events: HashMap<u64, Vec<TokenEvent>>,
    now_s: f64,
}

fn config() -> SchedConfig {
    SchedConfig {
        pages: 64,
        page_size: 4,
        max_running: 4,
        max_waiting: 4,
        chunk_tokens: 16,
        max_len: 128,
        vocab_size: 100,
        eos_token_ids: vec![],
        cache: CacheMode::Radix,
        overlap: true,
    }
}

fn prompt(first: u32, len: u32) -> Vec<u32> {
    (0..len).map(|n| (first + n) % 100).collect()
}

fn request(id: u64, prompt: Vec<u32>, max_tokens: u32) -> Submit {
    Submit {
        id: RequestId(id),
        prompt,
        sampling: SamplingParams::default(),
        stop: StopParams { max_tokens, ..StopParams::default() },
        priority: 0,
    }
}

impl Worker {
    fn new(config: SchedConfig) -> Worker {
        let executor = SimExecutor::new(&config);
        let recorder = Recorder { executor, plans: Vec::new() };
        let scheduler = Scheduler::new(config).unwrap();
        Worker { driver: Driver::new(scheduler, recorder), events: HashMap::new(), now_s: 0.0 }
    }

    /// One turn of the loop; returns what flushes freed.
    fn turn(&mut self, events: impl IntoIterator<Item = Event>) -> Vec<u64> {
        self.now_s += 1.0;
        let step = self.driver.begin(events, self.now_s).unwrap();
        for event in step.token_events {
            self.events.entry(event.id.0).or_default().push(event);
        }
        self.driver.scheduler_mut().check_integrity().unwrap();
        self.driver.finish().unwrap();
        step.flushed
    }

    fn submit(&mut self, submits: impl IntoIterator<Item = Submit>) {
        self.turn(submits.into_iter().map(Event::Submit));
    }

    fn run_until_idle(&mut self) {
        for _ in 0..10_000 {
            if self.driver.is_idle() {
                return;
            }
            self.turn([]);
        }
        panic!("no end in sight");
    }

    fn tokens(&self, id: u64) -> Vec<u32> {
        let events = self.events.get(&id).into_iter().flatten();
        events.filter_map(|event| Some(event.sampled.as_ref()?.token)).collect()
    }

    fn finish(&self, id: u64) -> Option<&Finish> {
        self.events.get(&id)?.last()?.finish.as_ref()
    }

    fn cached(&self, id: u64) -> Option<u32> {
        self.events[&id][0].cached_tokens
    }

    fn plans(&self) -> &[Plan] {
        &self.driver.executor().plans
    }

    fn fed(&self) -> usize {
        self.plans().iter().map(|plan| plan.tokens.len()).sum()
    }
}

/// What a request gets that has a worker for itself.
fn alone(submit: &Submit) -> Vec<u32> {
    let mut worker = Worker::new(config());
    worker.submit([submit.clone()]);
    worker.run_until_idle();
    worker.tokens(submit.id.0)
}

#[test]
fn a_request_gets_its_tokens_and_leaves_nothing() {
    for overlap in [false, true] {
        let mut worker = Worker::new(SchedConfig { overlap, ..config() });
        worker.submit([request(1, prompt(0, 10), 5)]);
        worker.run_until_idle();
        assert_eq!(worker.tokens(1).len(), 5);
        assert_eq!(worker.finish(1), Some(&Finish::Length));
        assert_eq!(worker.fed(), 10 + 4, "no row is run in vain");
        assert_eq!(worker.events[&1][0].queue_s, Some(0.0));
        let stats = worker.driver.scheduler_mut().stats();
        assert_eq!(
            (stats.pages_owned, stats.pages_cached),
            (0, 3),
            "13 computed tokens are 3 pages"
        );
        assert_eq!((stats.steps, stats.generated_tokens), (5, 5));
        assert_eq!(worker.turn([Event::Flush]), [3]);
        assert_eq!(worker.driver.scheduler_mut().stats().pages_free, 64);
    }
}

#[test]
fn with_overlap_a_decode_feeds_the_row_before() {
    let mut worker = Worker::new(config());
    worker.submit([request(1, prompt(0, 3), 3)]);
    worker.run_until_idle();
    let fed: Vec<_> = worker.plans().iter().map(|plan| plan.tokens.clone()).collect();
    assert_eq!(fed, [vec![0, 1, 2], vec![-1], vec![-1]]);
}

#[test]
fn a_stop_token_ends_it_one_row_late() {
    let submit = request(1, prompt(0, 10), 20);
    let eos = alone(&submit)[3];
    let stop = alone(&submit).iter().position(|&token| token == eos).unwrap();
    for overlap in [false, true] {
        let mut worker = Worker::new(SchedConfig { eos_token_ids: vec![eos], overlap, ..config() });
        worker.submit([submit.clone()]);
        worker.run_until_idle();
        assert_eq!(worker.tokens(1), alone(&submit)[..=stop]);
        assert_eq!(worker.finish(1), Some(&Finish::Stop));
        assert_eq!(worker.fed(), 10 + stop + usize::from(overlap));
    }
    let mut ignoring = submit.clone();
    ignoring.stop.ignore_eos = true;
    let mut worker = Worker::new(SchedConfig { eos_token_ids: vec![eos], ..config() });
    worker.submit([ignoring]);
    worker.run_until_idle();
    assert_eq!(worker.tokens(1), alone(&submit));
}

#[test]
fn a_long_prompt_stalls_no_stream() {
    let mut worker = Worker::new(config());
    worker.submit([request(1, prompt(0, 5), 40)]);
    worker.turn([]);
    worker.submit([request(2, prompt(50, 100), 1)]);
    while worker.finish(2).is_none() {
        let before = worker.tokens(1).len();
        worker.turn([]);
        assert_eq!(worker.tokens(1).len(), before + 1);
    }
    assert!(worker.finish(1).is_none());
    assert!(worker.plans().iter().all(|plan| plan.tokens.len() <= 16));
}

#[test]
fn a_known_prefix_is_not_computed_again() {
    let mut worker =
        Worker::new(SchedConfig { pages: 600, max_len: 2_000, chunk_tokens: 512, ..config() });
    let shared: Vec<u32> = (0..1_000).map(|n| n * n % 97).collect();
    let ask = |id, question| request(id, [&shared[..], &prompt(question, 20)].concat(), 1);
    worker.submit([ask(1, 0)]);
    worker.run_until_idle();
    let first = worker.fed();
    worker.submit([ask(2, 40)]);
    worker.run_until_idle();
    assert_eq!(worker.cached(1), Some(0));
    assert_eq!(worker.cached(2), Some(1_000));
    assert_eq!(worker.fed() - first, 20);
    let stats = worker.driver.scheduler_mut().stats();
    assert_eq!((stats.prompt_tokens, stats.cached_tokens), (2_040, 1_000));
}

#[test]
fn a_prefix_that_is_being_computed_is_waited_for() {
    let mut worker = Worker::new(SchedConfig { chunk_tokens: 64, ..config() });
    worker.submit((1..=4).map(|id| request(id, prompt(0, 41), 1)));
    worker.run_until_idle();
    assert_eq!(worker.fed(), 41 + 3);
    assert_eq!(worker.cached(4), Some(40));
}

#[test]
fn one_token_is_computed_even_if_all_are_known() {
    let mut worker = Worker::new(config());
    for id in 1..=2 {
        worker.submit([request(id, prompt(0, 8), 1)]);
        worker.run_until_idle();
    }
    assert_eq!(worker.cached(2), Some(4));
    assert_eq!(worker.tokens(1), worker.tokens(2));
}

#[test]
fn naive_mode_shares_nothing() {
    let mut worker = Worker::new(SchedConfig { cache: CacheMode::Naive, ..config() });
    for id in 1..=2 {
        worker.submit([request(id, prompt(0, 9), 1)]);
        worker.run_until_idle();
    }
    assert_eq!((worker.cached(2), worker.fed()), (Some(0), 18));
    assert_eq!(worker.driver.scheduler_mut().stats().pages_free, 64);
}

#[test]
fn priority_goes_first_then_arrival() {
    let mut worker = Worker::new(SchedConfig { max_running: 1, ..config() });
    let priority = |id, priority| Submit { priority, ..request(id, prompt(id as u32 * 20, 4), 2) };
    worker.submit([priority(1, 0)]);
    worker.submit([priority(2, 0), priority(3, 5), priority(4, 5), priority(5, -1)]);
    let mut order = Vec::new();
    while !worker.driver.is_idle() {
        worker.turn([]);
        let ended = (1..=5).filter(|&id| worker.finish(id).is_some());
        let new: Vec<_> = ended.filter(|id| !order.contains(id)).collect();
        order.extend(new);
    }
    assert_eq!(order, [1, 3, 4, 2, 5]);
}

#[test]
fn the_lowest_and_youngest_is_preempted_and_nobody_can_tell() {
    for overlap in [false, true] {
        // Each fits alone (24 of 36 tokens), two do not fit together for long.
        let small = SchedConfig { pages: 9, overlap, ..config() };
        let mut worker = Worker::new(small);
        let low = Submit { priority: -1, ..request(1, prompt(0, 4), 20) };
        let old = request(2, prompt(30, 4), 20);
        let young = request(3, prompt(60, 4), 20);
        worker.submit([low.clone(), old.clone(), young.clone()]);
        let mut order = Vec::new();
        while !worker.driver.is_idle() {
            worker.turn([]);
            let ended = (1..=3).filter(|&id| worker.finish(id).is_some());
            let new: Vec<_> = ended.filter(|id| !order.contains(id)).collect();
            order.extend(new);
        }
        assert_eq!(order, [2, 3, 1]);
        assert!(worker.driver.scheduler_mut().stats().preemptions >= 2);
        for submit in [low, old, young] {
            assert_eq!(worker.tokens(submit.id.0), alone(&submit));
            let finishes = worker.events[&submit.id.0].iter().filter(|e| e.finish.is_some());
            assert_eq!(finishes.count(), 1);
        }
    }
}

#[test]
fn a_resumed_request_is_installed_with_what_it_had() {
    let mut worker = Worker::new(SchedConfig { pages: 8, ..config() });
    let mut young = request(2, prompt(60, 4), 20);
    young.sampling.presence_penalty = 0.5;
    young.stop.min_tokens = 20;
    young.stop.stop_token_ids = vec![1, 2, 1_000];
    worker.submit([request(1, prompt(0, 4), 24), young]);
    worker.run_until_idle();
    let mut installs = worker.plans().iter().flat_map(|plan| &plan.installs);
    let resumed = installs.find(|install| install.generated > 0).expect("it was preempted");
    assert_eq!(resumed.prompt_len, 4);
    assert_eq!(resumed.history.len() as u32, 4 + resumed.generated);
    assert_eq!(resumed.history[4..], worker.tokens(2)[..resumed.generated as usize]);
    assert_eq!((resumed.min_tokens, &resumed.banned_until_min[..]), (20, &[1, 2][..]));
}

#[test]
fn an_abort_ends_it_wherever_it_is() {
    // Turn 0: waiting or just admitted, 1 to 6: prefilling in chunks, then decoding.
    for overlap in [false, true] {
        for turns in 0..12 {
            let mut worker = Worker::new(SchedConfig { overlap, max_running: 2, ..config() });
            worker.submit([request(1, prompt(0, 90), 20), request(2, prompt(0, 90), 20)]);
            (0..turns).for_each(|_| drop(worker.turn([])));
            worker.turn([1, 2, 77].map(|id| Event::Abort(RequestId(id))));
            assert_eq!(worker.finish(1), Some(&Finish::Aborted));
            assert_eq!(worker.finish(2), Some(&Finish::Aborted));
            let stats = worker.driver.scheduler_mut().stats();
            assert_eq!((stats.running, stats.waiting, stats.pages_owned), (0, 0, 0));
            let events = worker.events[&1].len();
            worker.run_until_idle();
            assert_eq!(worker.events[&1].len(), events, "nothing comes after the end");
        }
    }
}

#[test]
fn a_step_has_one_event_for_a_request() {
    let mut worker = Worker::new(config());
    worker.submit([request(1, prompt(0, 4), 20)]);
    worker.turn([Event::Abort(RequestId(1))]);
    worker.turn([]);
    let [event] = &worker.events[&1][..] else { panic!("{:?}", worker.events) };
    assert_eq!(event.finish, Some(Finish::Aborted));
}

#[test]
fn what_can_never_run_is_refused_with_the_reason() {
    let refused = |config: SchedConfig, submit: Submit| {
        let mut worker = Worker::new(config);
        let id = submit.id.0;
        worker.submit([submit]);
        assert!(worker.driver.is_idle());
        worker.finish(id).cloned()
    };
    let reject = |reject| Some(Finish::Rejected(reject));
    assert_eq!(refused(config(), request(1, vec![], 1)), reject(Reject::Empty));
    assert_eq!(
        refused(config(), request(1, vec![5, 100], 1)),
        reject(Reject::BadToken { token: 100, vocab_size: 100 })
    );
    let mut biased = request(1, vec![5], 1);
    biased.sampling.logit_bias = vec![(7, 1.0), (101, 1.0)];
    assert_eq!(refused(config(), biased), reject(Reject::BadToken { token: 101, vocab_size: 100 }));
    assert_eq!(
        refused(config(), request(1, prompt(0, 128), 1)),
        reject(Reject::TooLong { prompt: 128, limit: 127 })
    );
    assert_eq!(
        refused(SchedConfig { pages: 2, ..config() }, request(1, prompt(0, 9), 1)),
        reject(Reject::TooLong { prompt: 9, limit: 8 })
    );
    assert_eq!(refused(config(), request(1, prompt(0, 9), 0)), Some(Finish::Length));
}

#[test]
fn output_is_cut_to_what_context_and_pool_leave() {
    for (config, len) in [(config(), 128), (SchedConfig { pages: 2, ..config() }, 9)] {
        let mut worker = Worker::new(config);
        worker.submit([request(1, prompt(0, 5), u32::MAX)]);
        worker.run_until_idle();
        assert_eq!(worker.finish(1), Some(&Finish::Length));
        assert_eq!(worker.tokens(1).len(), len - 5);
    }
}

#[test]
fn the_queue_is_bounded() {
    let mut worker = Worker::new(config());
    worker.submit((1..=9).map(|id| request(id, prompt(id as u32 * 10, 6), 2)));
    let full = Finish::Rejected(Reject::QueueFull { limit: 4 });
    assert_eq!(worker.finish(9), Some(&full));
    worker.run_until_idle();
    for id in 1..=8 {
        assert_eq!(worker.tokens(id), alone(&request(id, prompt(id as u32 * 10, 6), 2)));
    }
}

#[test]
fn draining_refuses_new_ones_and_finishes_the_rest() {
    let mut worker = Worker::new(config());
    worker.submit([request(1, prompt(0, 6), 8)]);
    worker.turn([Event::Drain, Event::Submit(request(2, prompt(0, 6), 8))]);
    assert_eq!(worker.finish(2), Some(&Finish::Rejected(Reject::Draining)));
    assert!(!worker.driver.scheduler().is_drained());
    worker.run_until_idle();
    assert_eq!(worker.tokens(1).len(), 8);
    assert!(worker.driver.scheduler().is_drained());
}

#[test]
fn a_flush_spares_what_is_in_use() {
    let mut worker = Worker::new(config());
    worker.submit([request(1, prompt(0, 8), 1)]);
    worker.run_until_idle();
    worker.submit([request(2, prompt(50, 8), 9)]);
    assert_eq!(worker.turn([Event::Flush]), [2]);
    worker.run_until_idle();
    assert_eq!(worker.tokens(2), alone(&request(2, prompt(50, 8), 9)));
}

#[test]
fn an_id_in_use_is_not_taken_again() {
    let mut worker = Worker::new(config());
    worker.submit([request(1, prompt(0, 6), 3), request(1, prompt(9, 6), 30)]);
    worker.run_until_idle();
    assert_eq!(worker.tokens(1), alone(&request(1, prompt(0, 6), 3)));
}

#[test]
fn waiting_time_is_told_with_the_first_token() {
    let mut worker = Worker::new(SchedConfig { max_running: 1, overlap: false, ..config() });
    worker.submit([request(1, prompt(0, 4), 5), request(2, prompt(30, 4), 2)]);
    worker.run_until_idle();
    let queue_s: Vec<_> = worker.events[&2].iter().map(|event| event.queue_s).collect();
    assert_eq!(queue_s, [Some(5.0), None]);
}

#[test]
fn nonsense_configurations_are_refused() {
    let zero = Scheduler::new(SchedConfig { pages: 0, ..config() }).unwrap_err();
    assert_eq!(zero, ConfigError::Zero { field: "pages" });
    let short = Scheduler::new(SchedConfig { max_len: 1, ..config() }).unwrap_err();
    assert_eq!(short, ConfigError::TooShort { max_len: 1 });
}
