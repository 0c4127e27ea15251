//! Log-probabilities of prompts: each position once, in bounded steps, wherever a request is interrupted.

use minisgl_proto::{Finish, RequestId, Sampled, Submit};
use minisgl_sched::{Event, Executor, SchedConfig, Scheduler, Want};

use crate::executor::SimExecutor;
use crate::model::{Kv, feed, score};
use crate::worker::{Worker, alone, config, prompt, request};

fn scoring(id: u64, prompt: Vec<u32>, from: u32, max_tokens: u32) -> Submit {
    let mut submit = request(id, prompt, max_tokens);
    submit.sampling.prompt_logprobs = Some(2);
    submit.sampling.prompt_logprobs_from = from;
    submit
}

/// The scores of `prompt` from position `from` on.
fn expected(prompt: &[u32], from: usize) -> Vec<Sampled> {
    let mut last: Option<Kv> = None;
    let mut all = Vec::new();
    for (position, &token) in prompt.iter().enumerate() {
        all.extend(last.filter(|_| position >= from).map(|last| score(last, token, 2)));
        last = Some(feed(last, token));
    }
    all
}

#[test]
fn every_position_but_the_first_is_reported_before_the_first_token() {
    for overlap in [false, true] {
        let mut worker = Worker::new(SchedConfig { overlap, ..config() });
        worker.submit([scoring(1, prompt(0, 30), 0, 5)]);
        worker.run_until_idle();
        assert_eq!(worker.scored(1), expected(&prompt(0, 30), 0));
        assert_eq!(worker.tokens(1), alone(&request(1, prompt(0, 30), 5)));
        let wants: Vec<Want> = worker.plans().iter().map(|plan| plan.rows[0].want).collect();
        let each = |next| Want::Each { first: 0, next };
        let chunks = [each(Some(8)), each(Some(16)), each(Some(24)), each(None)];
        assert_eq!(wants[..4], chunks, "8 positions a step");
        assert!(wants[4..].iter().all(|&want| want == Want::Last));
        assert_eq!(worker.fed(), 30 + 4);
    }
}

#[test]
fn a_prompt_is_scored_without_a_token_and_its_last_is_not_computed() {
    for overlap in [false, true] {
        let mut worker = Worker::new(SchedConfig { overlap, ..config() });
        worker.submit([scoring(1, prompt(0, 20), 0, 0), scoring(2, vec![7], 0, 0)]);
        worker.run_until_idle();
        assert_eq!(worker.scored(1), expected(&prompt(0, 20), 0));
        assert_eq!((worker.tokens(1), worker.finish(1)), (vec![], Some(&Finish::Length)));
        let last = worker.events[&1].last().unwrap();
        assert_eq!((last.cached_tokens, last.queue_s), (Some(0), Some(0.0)));
        assert_eq!(worker.fed(), 19);
        assert_eq!(worker.finish(2), Some(&Finish::Length), "one token has nothing before it");
        assert_eq!(worker.driver.scheduler_mut().stats().generated_tokens, 0);
    }
}

#[test]
fn what_stands_before_comes_from_the_cache_and_the_rest_does_not() {
    let mut worker = Worker::new(config());
    worker.submit([request(1, prompt(0, 40), 1)]);
    worker.run_until_idle();
    for (id, from, cached) in
        [(2, 0, 0), (3, 4, 0), (4, 5, 4), (5, 23, 20), (6, 40, 36), (7, 99, 36)]
    {
        let before = worker.fed();
        worker.submit([scoring(id, prompt(0, 40), from, 1)]);
        worker.run_until_idle();
        assert_eq!(
            worker.cached(id).max(worker.events[&id].last().unwrap().cached_tokens),
            Some(cached)
        );
        assert_eq!(worker.scored(id), expected(&prompt(0, 40), from as usize), "from {from}");
        assert_eq!(worker.fed() - before, 40 - cached as usize);
    }
}

#[test]
fn scoring_stalls_no_stream_and_shares_its_part_of_a_step() {
    let mut worker = Worker::new(config());
    worker.submit([request(1, prompt(0, 5), 60)]);
    worker.turn([]);
    worker.submit([scoring(2, prompt(20, 60), 0, 0), scoring(3, prompt(50, 60), 30, 1)]);
    worker.submit([request(4, prompt(90, 8), 3)]);
    while worker.finish(3).is_none() {
        let before = worker.tokens(1).len();
        worker.turn([]);
        assert_eq!(worker.tokens(1).len(), before + 1);
    }
    assert_eq!(worker.scored(2), expected(&prompt(20, 60), 0));
    assert_eq!(worker.scored(3), expected(&prompt(50, 60), 30));
    assert_eq!(worker.tokens(4), alone(&request(4, prompt(90, 8), 3)));
    let scored = |plan: &minisgl_sched::Plan| plan.rows.iter().map(|row| row.scored()).sum::<u32>();
    assert_eq!(worker.plans().iter().map(scored).max(), Some(8));
}

#[test]
fn a_preempted_prompt_is_not_scored_twice() {
    for overlap in [false, true] {
        // 36 tokens: the older request needs pages while the younger one is being scored.
        let mut worker = Worker::new(SchedConfig { pages: 9, scored_max: 2, overlap, ..config() });
        worker.submit([request(1, prompt(0, 4), 30), scoring(2, prompt(60, 24), 0, 3)]);
        worker.run_until_idle();
        assert!(worker.driver.scheduler_mut().stats().preemptions > 0);
        assert_eq!(worker.scored(2), expected(&prompt(60, 24), 0));
        assert_eq!(worker.tokens(2), alone(&request(2, prompt(60, 24), 3)));
    }
}

#[test]
fn a_preempted_request_waits_for_its_scores_in_flight() {
    let mut scheduler = Scheduler::new(SchedConfig { pages: 4, ..config() }).unwrap();
    let mut executor = SimExecutor::new(scheduler.config());
    let submits = [request(1, prompt(0, 8), 5), scoring(2, prompt(50, 8), 0, 0)];
    let plan = scheduler.step(submits.map(Event::Submit), 0.0).plan.expect("both fit");
    executor.launch(plan).unwrap();
    let plan = scheduler.step([], 1.0).plan.expect("1 goes on with the page of 2");
    executor.launch(plan).unwrap();
    assert_eq!(scheduler.stats().preemptions, 1);
    // Now there is room, and nothing left to compute but to wait for.
    let output = executor.wait().unwrap();
    let step = scheduler.step([Event::Abort(RequestId(1))], 2.0);
    assert_eq!(step.plan, None);
    let step = scheduler.step([Event::Finished(output)], 3.0);
    let [event] = &step.token_events[..] else { panic!("{:?}", step.token_events) };
    assert_eq!((event.id, &event.finish), (RequestId(2), &Some(Finish::Length)));
    assert_eq!(event.prompt_logprobs, expected(&prompt(50, 8), 0));
}

#[test]
fn an_abort_ends_it_wherever_it_is() {
    for overlap in [false, true] {
        for turns in 0..10 {
            let mut worker = Worker::new(SchedConfig { overlap, ..config() });
            worker.submit([scoring(1, prompt(0, 40), 0, 0), scoring(2, prompt(0, 40), 0, 9)]);
            (0..turns).for_each(|_| drop(worker.turn([])));
            worker.turn([1, 2].map(|id| Event::Abort(RequestId(id))));
            worker.run_until_idle();
            for id in [1, 2] {
                let all = expected(&prompt(0, 40), 0);
                assert!(all.starts_with(&worker.scored(id)), "none is left out");
                assert!(worker.finish(id).is_some());
                let ends = worker.events[&id].iter().filter(|event| event.finish.is_some());
                assert_eq!(ends.count(), 1);
            }
            assert_eq!(worker.driver.scheduler_mut().stats().pages_owned, 0);
        }
    }
}
