//! The engine over ranks whose device is a clock.

use std::time::Instant;

use minisgl_proto::Sampled;
use minisgl_sched::{Grown, Row, Want};

use super::*;
use crate::collective::Group;
use crate::ops::{OpResult, Pending};
use crate::rank::{Loaded, Runner};

const STEP: Duration = Duration::from_millis(20);

/// A device that enqueues: steps run one after the other, each for [`STEP`], while the rank goes on.
struct Clockwork {
    free_at: Instant,
    /// Whether it measures its steps.
    measures: bool,
}

struct Running {
    ends: Instant,
    measures: bool,
}

impl Pending for Running {
    fn is_over(&self) -> bool {
        Instant::now() >= self.ends
    }

    fn device_s(&self) -> Option<f32> {
        self.measures.then_some(STEP.as_secs_f32())
    }

    fn wait(self: Box<Self>) -> OpResult<Vec<Sampled>> {
        Ok(Vec::new())
    }
}

/// Is never over.
struct Hangs;

impl Pending for Hangs {
    fn is_over(&self) -> bool {
        false
    }

    fn wait(self: Box<Self>) -> OpResult<Vec<Sampled>> {
        loop {
            std::thread::park();
        }
    }
}

impl Runner for Clockwork {
    fn prepare(&mut self) -> OpResult {
        Ok(())
    }

    fn reserve_kv(&mut self, _pages: usize) -> OpResult {
        Ok(())
    }

    fn commit_kv(&mut self, _pages: usize) -> OpResult {
        Ok(())
    }

    fn run(&mut self, plan: Arc<Plan>) -> OpResult<Option<Box<dyn Pending>>> {
        if plan.step == HANGS_AT {
            return Ok(Some(Box::new(Hangs)));
        }
        if plan.step == SLEEPS_AT {
            loop {
                std::thread::park();
            }
        }
        self.free_at = self.free_at.max(Instant::now()) + STEP;
        match plan.masked.is_empty() {
            true => self.complete(&Late::default()).map(Some),
            false => Ok(None),
        }
    }

    /// Sampling takes no time.
    fn complete(&mut self, _late: &Late) -> OpResult<Box<dyn Pending>> {
        self.free_at = self.free_at.max(Instant::now());
        Ok(Box::new(Running { ends: self.free_at, measures: self.measures }))
    }
}

/// Steps that do not end: on the device, or before they reach it.
const HANGS_AT: u64 = 3;
const SLEEPS_AT: u64 = 100;
/// From here on no step is special.
const FIRST: u64 = 200;

const LIMITS: PlanLimits = PlanLimits {
    chunk_tokens: 8,
    slots: 1,
    penalised: 1,
    max_len: 8,
    pages: 1,
    page_size: 8,
    groups: 1,
    vocab_size: 8,
};

fn engine(tp: usize, measures: bool, base: Option<Duration>) -> Engine {
    let ranks = Ranks::spawn(tp, Group::new(tp), move |_, _| {
        let loaded = Loaded { weight_bytes: 0, read_s: 0.0 };
        Ok((Clockwork { free_at: Instant::now(), measures }, loaded))
    })
    .unwrap();
    for _ in 0..tp {
        assert!(matches!(ranks.next(), Some(Event::Loaded(_))));
    }
    let costs = base.map(|base| StepCosts {
        base,
        token_flops: 0.0,
        pair_flops: 0.0,
        kv_token_bytes: 0.0,
        token_sum_bytes: 0.0,
        logit_sum_bytes: 0.0,
    });
    Engine::new(ranks, LIMITS, costs)
}

fn plan(step: u64) -> Plan {
    Plan { step, ..Plan::default() }
}

/// Seconds of steps that overlap, and of all of them on the wall.
fn overlapped(mut engine: Engine, steps: u64) -> (Vec<f64>, f64) {
    engine.next_step = FIRST;
    let began = Instant::now();
    engine.launch(plan(FIRST)).unwrap();
    let mut all = Vec::new();
    for step in FIRST + 1..FIRST + steps {
        engine.launch(plan(step)).unwrap();
        all.push(f64::from(engine.wait().unwrap().step_s));
    }
    all.push(f64::from(engine.wait().unwrap().step_s));
    (all, began.elapsed().as_secs_f64())
}

#[test]
fn steps_that_overlap_are_not_counted_twice() {
    for tp in [1, 2] {
        let (all, wall_s) = overlapped(engine(tp, false, None), 10);
        let sum_s: f64 = all.iter().sum();
        assert!(sum_s <= wall_s, "tp {tp}: {sum_s} s of steps in {wall_s} s");
        assert!(sum_s >= 9.9 * STEP.as_secs_f64(), "tp {tp}: the device was never idle: {sum_s} s");
    }
}

#[test]
fn the_devices_own_measure_of_a_step_counts_where_there_is_one() {
    let (all, wall_s) = overlapped(engine(1, true, None), 5);
    let step_s = STEP.as_secs_f64() + 1e-6;
    assert!(all.iter().all(|&seconds| seconds <= step_s), "{all:?}");
    assert!(all.iter().sum::<f64>() <= wall_s);
}

#[test]
fn a_step_that_never_ends_breaks_the_engine_in_words() {
    for (tp, step, words) in [
        (1, HANGS_AT, "rank 0 failed in step 3: run the step: the step did not end within 0.1 s"),
        (2, HANGS_AT, "did not end within 0.1 s"),
        (1, SLEEPS_AT, "no rank told of step 100 within 0.4 s"),
    ] {
        let mut engine = engine(tp, false, Some(Duration::from_millis(100)));
        engine.next_step = step;
        engine.launch(plan(step)).unwrap();
        let error = engine.wait().unwrap_err();
        assert!(error.0.contains(words), "{error}");
        // It stays broken, and nobody waits a second time.
        assert_eq!(engine.launch(plan(step + 1)).unwrap_err(), error);
        std::mem::forget(engine);
    }
}

/// A plan whose only row has a mask.
fn masked(step: u64) -> Plan {
    let start = step.saturating_sub(FIRST) as u32;
    let row = Row { slot: 0, start, len: 1, tokens_at: 0, want: Want::Last };
    let grown = Grown { slot: 0, group: 0, at: 0, len: 1 };
    let (grown, pages) = if start == 0 { (vec![grown], vec![0]) } else { (vec![], vec![]) };
    Plan { rows: vec![row], tokens: vec![1], grown, pages, masked: vec![0], ..plan(step) }
}

fn late(step: u64) -> Late {
    Late { step, masks: vec![0b10] }
}

/// Masks that come while the forward pass runs cost nothing: the next one is there when the one before ends.
#[test]
fn a_forward_pass_runs_before_its_masks_are_there() {
    for tp in [1, 2] {
        let mut engine = engine(tp, false, None);
        engine.next_step = FIRST;
        let began = Instant::now();
        engine.launch(masked(FIRST)).unwrap();
        engine.complete(late(FIRST)).unwrap();
        for step in FIRST + 1..=FIRST + 5 {
            engine.launch(masked(step)).unwrap();
            assert_eq!(engine.wait().unwrap().step, step - 1);
            // Masks take their time, less than a forward pass does.
            std::thread::sleep(STEP / 2);
            engine.complete(late(step)).unwrap();
        }
        assert_eq!(engine.wait().unwrap().step, FIRST + 5);
        let steps = began.elapsed().as_secs_f64() / STEP.as_secs_f64();
        assert!((6.0..8.0).contains(&steps), "tp {tp}: 6 steps took as long as {steps:.2}");
    }
}

#[test]
fn masks_come_once_for_the_plan_that_waits_for_them() {
    let broken = |act: fn(&mut Engine) -> Result<(), ExecutorError>| {
        let mut engine = engine(1, false, None);
        engine.launch(masked(0)).unwrap();
        let error = act(&mut engine).unwrap_err();
        assert_eq!(engine.launch(plan(1)).unwrap_err(), error, "it stays broken");
        error.0
    };
    assert_eq!(
        broken(|engine| engine.launch(masked(1))),
        "step 1: the step before lacks its masks"
    );
    assert_eq!(broken(|engine| engine.wait().map(drop)), "the step in flight lacks its masks");
    assert_eq!(broken(|engine| engine.complete(late(1))), "step 0: masks are of step 1");
    let short = |engine: &mut Engine| engine.complete(Late::default());
    assert!(broken(short).contains("take 1 words, there are 0"));
    let twice = |engine: &mut Engine| {
        engine.complete(late(0)).unwrap();
        engine.complete(late(0))
    };
    assert_eq!(broken(twice), "no step waits for the masks of step 0");
}
