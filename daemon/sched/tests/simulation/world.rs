//! One random world: a configuration, a crowd of clients, and turns in random order.

use minisgl_proto::{CacheMode, RequestId, SamplingParams, StopParams, Submit};
use minisgl_sched::{Event, Executor, SchedConfig, Scheduler, Windows};

use crate::client::Client;
use crate::executor::SimExecutor;
use crate::held;
use crate::rng::Rng;

/// What all worlds together went through.
#[derive(Debug, Default)]
pub struct Tally {
    pub events: u64,
    pub finished: u64,
    pub tokens: u64,
    pub scores: u64,
    pub preemptions: u64,
    pub resumed: u64,
    pub cached_tokens: u64,
    pub masked: u64,
    pub overlapped_masks: u64,
    pub stuck: u64,
    pub ended_rules: u64,
    pub windowed: u64,
    /// Tokens found in the cache of a model with windows.
    pub windows_cached: u64,
}

pub fn random_config(rng: &mut Rng) -> SchedConfig {
    let page_size = [1, 1, 2, 3, 16][rng.below(5)];
    let vocab_size = rng.within(2, 5) as u32;
    let windows = match rng.below(4) {
        0 | 1 => Windows::default(),
        groups => Windows { groups: groups - 1, keep: rng.below(21) },
    };
    let groups = 1 + windows.groups;
    let pages = if page_size == 16 { rng.within(1, 8) } else { rng.within(1, 40) };
    // With fewer for each group, longer requests live on what windows give up.
    let pages = if rng.one_in(2) { pages * groups } else { pages.max(groups) };
    SchedConfig {
        pages: pages as u32,
        page_size,
        windows,
        max_running: rng.within(1, 8) as u32,
        penalised_max: rng.within(1, 8) as u32,
        max_waiting: rng.within(1, 12) as u32,
        chunk_tokens: if rng.one_in(3) { rng.within(1, 6) } else { rng.within(1, 64) } as u32,
        scored_max: rng.within(1, 12) as u32,
        max_len: rng.within(2, 60) as u32,
        vocab_size,
        eos_token_ids: if rng.one_in(2) { vec![] } else { vec![rng.below(8) as u32] },
        cache: if rng.one_in(5) { CacheMode::Naive } else { CacheMode::Radix },
        overlap: !rng.one_in(3),
    }
}

pub struct World {
    rng: Rng,
    scheduler: Scheduler,
    executor: SimExecutor,
    client: Client,
    /// Beginnings that prompts share.
    beginnings: Vec<Vec<u32>>,
    next_id: u64,
    now_s: f64,
    events: u64,
    /// Its worker dies now and then.
    mortal: bool,
    /// Of workers that died.
    preemptions: u64,
    resumed: u64,
    /// Masks that came while their plan's forward pass ran.
    overlapped_masks: u64,
    /// Of workers that died.
    masked: u64,
    windowed: u64,
}

impl World {
    pub fn new(seed: u64, mortal: bool) -> World {
        let mut rng = Rng(seed);
        let config = random_config(&mut rng);
        let vocab = config.vocab_size as usize;
        let beginnings =
            (0..3).map(|_| (0..40).map(|_| rng.below(vocab) as u32).collect()).collect();
        World {
            executor: SimExecutor::new(&config),
            client: Client::new(config.clone()),
            scheduler: Scheduler::new(config).unwrap(),
            rng,
            beginnings,
            next_id: 0,
            now_s: 0.0,
            events: 0,
            mortal,
            preemptions: 0,
            resumed: 0,
            overlapped_masks: 0,
            masked: 0,
            windowed: 0,
        }
    }

    fn random_submit(&mut self) -> Submit {
        let vocab = self.scheduler.config().vocab_size as usize;
        let rng = &mut self.rng;
        let limit = self.client.limit();
        let longest = if rng.one_in(20) { limit + 2 } else { limit - 1 };
        let len = rng.below(longest + 1).max(usize::from(!rng.one_in(50)));
        let kept = rng.below(len + 1).min(40);
        let mut prompt = self.beginnings[rng.below(3)][..kept].to_vec();
        prompt.extend((kept..len).map(|_| rng.below(vocab) as u32));
        if rng.one_in(100) && len > 0 {
            prompt[len - 1] = vocab as u32;
        }
        self.next_id += 1;
        let scored = rng.one_in(3);
        let guided = rng.one_in(4);
        let words = if guided { rng.below(5) } else { 0 };
        let bad_words =
            (0..words).map(|_| (0..1 + rng.below(3)).map(|_| rng.below(vocab) as u32).collect());
        let bad_words = bad_words.collect();
        let allowed = if guided && rng.one_in(2) { 1 + rng.below(4) } else { 0 };
        let held = if rng.one_in(5) { held::held_to(rng.below(30) as u32) } else { None };
        Submit {
            id: RequestId(self.next_id),
            prompt,
            generated: Vec::new(),
            sampling: SamplingParams {
                seed: rng.next(),
                repetition_penalty: if rng.one_in(3) { 1.1 } else { 1.0 },
                prompt_logprobs: scored.then(|| rng.below(3) as u32),
                allowed_token_ids: (0..allowed).map(|_| rng.below(vocab) as u32).collect(),
                bad_words,
                guided: held,
                prompt_logprobs_from: if rng.one_in(2) { 0 } else { rng.below(len + 2) as u32 },
                ..SamplingParams::default()
            },
            stop: StopParams {
                max_tokens: match rng.below(30) {
                    0 => u32::MAX,
                    1..=9 if scored => 0,
                    _ => rng.below(40) as u32,
                },
                min_tokens: rng.below(10).saturating_sub(4) as u32,
                stop_token_ids: if rng.one_in(4) { vec![rng.below(vocab) as u32] } else { vec![] },
                ignore_eos: rng.one_in(2),
            },
            priority: rng.below(6).saturating_sub(3) as i32,
        }
    }

    /// One call of `step` with whatever came in, and the plan launched.
    fn turn(&mut self, events: Vec<Event>) {
        self.now_s += 0.01;
        self.events += events.len() as u64;
        let running_before = self.scheduler.stats();
        let step = self.scheduler.step(events, self.now_s);
        step.token_events.iter().for_each(|event| self.client.receive(event));
        if let Some(late) = step.late {
            self.overlapped_masks += 1;
            self.executor.complete(late).unwrap();
        }
        if let Some(plan) = step.plan {
            self.executor.launch(plan).unwrap();
        }
        if let Some(late) = step.own_late {
            self.executor.complete(late).unwrap();
        }
        if let Some(plan) = self.executor.reclaim().filter(|_| self.rng.one_in(2)) {
            self.scheduler.recycle(plan);
        }
        self.scheduler.check_integrity().unwrap();
        let stats = self.scheduler.stats();
        assert_eq!(stats.pages_free + stats.pages_cached + stats.pages_owned, stats.pages_total);
        assert!(stats.pages_evictable <= stats.pages_cached, "{stats:?}");
        let is_unused = stats.running == 0 && stats.waiting == 0 && self.executor.in_flight() == 0;
        assert!(!is_unused || stats.pages_evictable == stats.pages_cached, "{stats:?}");
        assert_eq!((stats.running + stats.waiting) as usize, self.client.alive());
        assert!(stats.preemptions >= running_before.preemptions);
        assert_eq!(self.scheduler.plans_in_flight(), self.executor.in_flight());
    }

    /// The worker dies with all it holds, at times with a step's events, and another goes on.
    fn die(&mut self, events_too: bool) {
        let results = self.executor.in_flight().min(1);
        let outputs: Vec<_> =
            (0..results).map(|_| Event::Finished(self.executor.wait().unwrap())).collect();
        let last = self.scheduler.step(outputs, self.now_s);
        if !events_too {
            last.token_events.iter().for_each(|event| self.client.receive(event));
        }
        self.preemptions += self.scheduler.stats().preemptions;
        let mut config = self.scheduler.config().clone();
        config.overlap = self.rng.one_in(2);
        config.cache = if self.rng.one_in(5) { CacheMode::Naive } else { CacheMode::Radix };
        self.masked += self.executor.masked();
        self.windowed += self.executor.windowed();
        self.executor = SimExecutor::new(&config);
        self.scheduler = Scheduler::new(config).unwrap();
        if self.rng.one_in(4) {
            self.scheduler.set_crew(held::Threads);
        }
        let resumed = self.client.resume();
        self.resumed += resumed.len() as u64;
        self.turn(resumed.into_iter().map(held::event).collect());
    }

    /// `pressure`: how many requests come in for a turn, in tenths.
    fn random_events(&mut self, pressure: usize) -> Vec<Event> {
        let mut events = Vec::new();
        while self.rng.below(10) < pressure {
            let submit = self.random_submit();
            self.client.submitted(&submit);
            events.push(held::event(submit));
        }
        if self.rng.one_in(12) && self.next_id > 0 {
            let recent = self.rng.below(self.next_id.min(20) as usize) as u64;
            let id = RequestId(self.next_id - recent);
            self.client.aborted(id);
            events.push(Event::Abort(id));
        }
        if self.rng.one_in(60) {
            events.push(Event::Flush);
        }
        // Mostly one result a turn, in front; now and then none, all of them, or behind the rest.
        let results = match self.rng.below(10) {
            0 => 0,
            1 => self.executor.ready(),
            _ => self.executor.ready().min(1),
        };
        let outputs: Vec<_> =
            (0..results).map(|_| Event::Finished(self.executor.wait().unwrap())).collect();
        let at = if self.rng.one_in(10) { events.len() } else { 0 };
        events.splice(at..at, outputs);
        events
    }

    pub fn run(mut self, turns: usize) -> Tally {
        let mut pressure = 3;
        for turn in 0..turns {
            if turn % 64 == 0 {
                pressure = self.rng.below(7);
            }
            let events = self.random_events(pressure);
            self.turn(events);
            if self.mortal && self.rng.one_in(50) {
                let events_too = self.rng.one_in(2);
                self.die(events_too);
            }
        }

        // From here on only results come in: all must end, in time.
        self.turn(vec![Event::Drain]);
        let prompts = self.client.alive() * (self.client.limit() + 1);
        let mut turns_left = 100 + 20 * (self.client.tokens_left() + prompts);
        while !self.scheduler.is_drained() {
            assert!(turns_left > 0, "no progress");
            turns_left -= 1;
            let kept = usize::from(self.scheduler.config().overlap && self.rng.one_in(2));
            let due = self.executor.in_flight() > kept;
            let output = due.then(|| Event::Finished(self.executor.wait().unwrap()));
            self.turn(output.into_iter().collect());
        }
        assert_eq!(self.client.alive(), 0);
        let late = self.random_submit();
        self.client.submitted(&late);
        self.turn(vec![held::event(late), Event::Flush]);
        let stats = self.scheduler.stats();
        assert_eq!(stats.pages_free, stats.pages_total);
        assert_eq!(stats.generated_tokens, self.client.tokens);
        Tally {
            events: self.events,
            finished: self.client.finished,
            tokens: self.client.all_tokens,
            scores: self.client.scores,
            preemptions: self.preemptions + stats.preemptions,
            resumed: self.resumed,
            cached_tokens: self.client.cached_tokens,
            masked: self.masked + self.executor.masked(),
            overlapped_masks: self.overlapped_masks,
            stuck: self.client.stuck,
            ended_rules: self.client.ended_rules,
            windowed: self.windowed + self.executor.windowed(),
            windows_cached: if self.scheduler.config().windows.groups > 0 {
                self.client.cached_tokens
            } else {
                0
            },
        }
    }
}
