//! What is told, and what is kept, when the executor or the model fails.

use minisgl_proto::{Finish, RequestId};
use minisgl_sched::{Event, Plan, SchedConfig, Scheduler, StepOutput};

use crate::worker::{Worker, alone, config, prompt, request};

#[test]
fn what_a_step_brought_is_told_when_the_next_plan_cannot_be_launched() {
    // The first request ends with step 2, while the second goes on; the plan that is made then is refused.
    for (overlap, fails_from) in [(false, 3), (true, 4)] {
        let config = SchedConfig { overlap, ..config() };
        let mut worker = Worker::with_faults(config, fails_from, u64::MAX);
        let (short, long) = (request(1, prompt(0, 4), 3), request(2, prompt(50, 4), 20));
        worker.submit([short.clone(), long.clone()]);
        let broken = (0..10).find_map(|_| worker.try_turn([]).err());
        assert_eq!(broken.expect("plans are refused").to_string(), "rank 0 is gone");
        assert_eq!(worker.tokens(1), alone(&short), "overlap {overlap}: its last token");
        assert_eq!(worker.finish(1), Some(&Finish::Length), "overlap {overlap}: and its end");
        assert_eq!(worker.tokens(2), alone(&long)[..3], "overlap {overlap}");
        assert_eq!(worker.finish(2), None, "the worker dies; another goes on with it");
    }
}

#[test]
fn a_request_whose_logits_are_no_numbers_fails_in_words_and_leaves_no_page() {
    for overlap in [false, true] {
        // Step 0 computes both prompts, step 1 a token of each. All of step 1 is broken.
        let mut worker = Worker::with_faults(SchedConfig { overlap, ..config() }, u64::MAX, 1);
        worker.submit([request(1, prompt(0, 8), 9), request(2, prompt(50, 8), 9)]);
        worker.run_until_idle();
        for id in [1, 2] {
            assert_eq!(worker.tokens(id).len(), 1, "only what was sampled before");
            let Some(Finish::Failed(why)) = worker.finish(id) else {
                panic!("{:?}", worker.events)
            };
            assert!(why.contains("no numbers"), "{why}");
        }
        let stats = worker.driver.scheduler_mut().stats();
        assert_eq!((stats.broken_logits, stats.generated_tokens), (2, 2));
        assert_eq!((stats.pages_cached, stats.pages_owned), (0, 0), "nobody reads them again");
        // The next request with that prompt computes all of it.
        let again = request(3, prompt(0, 8), 9);
        worker.submit([again.clone()]);
        worker.run_until_idle();
        assert_eq!((worker.cached(3), worker.tokens(3)), (Some(0), alone(&again)));
    }
}

#[test]
fn a_prompt_whose_scores_are_no_numbers_fails_too() {
    let mut worker = Worker::with_faults(config(), u64::MAX, 0);
    let mut scored = request(1, prompt(0, 6), 0);
    scored.sampling.prompt_logprobs = Some(0);
    worker.submit([scored]);
    worker.run_until_idle();
    assert!(worker.scored(1).is_empty(), "{:?}", worker.events);
    assert!(matches!(worker.finish(1), Some(Finish::Failed(_))), "{:?}", worker.events);
}

#[test]
fn requests_with_penalties_wait_for_a_table_of_token_counts() {
    let config = SchedConfig { penalised_max: 2, ..config() };
    let mut worker = Worker::new(config);
    let penalised = |id: u64| {
        let mut submit = request(id, prompt(10 * id as u32, 4), 6);
        submit.sampling.presence_penalty = 0.5;
        submit
    };
    let all = [penalised(1), penalised(2), request(3, prompt(30, 4), 6), penalised(4)];
    worker.submit(all.clone());
    let first: Vec<_> = worker.plans()[0].installs.iter().map(|at| at.counts).collect();
    assert_eq!(first, [Some(0), Some(1), None], "two tables for two, and none left for the fourth");
    worker.run_until_idle();
    for submit in &all {
        assert_eq!(worker.tokens(submit.id.0), alone(submit), "request {}", submit.id);
    }
    let last = worker.plans().iter().flat_map(|plan: &Plan| &plan.installs).last().unwrap();
    assert!(matches!(last.counts, Some(0 | 1)), "the fourth has the table of one that ended");
}

#[test]
fn an_abort_takes_no_end_from_an_earlier_request_of_the_same_id() {
    let mut scheduler = Scheduler::new(SchedConfig { overlap: false, ..config() }).unwrap();
    let first = scheduler.step([Event::Submit(request(1, prompt(0, 4), 1))], 0.0);
    let plan = first.plan.expect("it runs");
    let output = StepOutput {
        step: plan.step,
        sampled: vec![minisgl_proto::Sampled { token: 7, logprob: None, top: vec![] }],
        step_s: 0.0,
    };
    // It ends, and its id is used anew and aborted, all in one step.
    let again = Event::Submit(request(1, prompt(0, 4), 5));
    let step = scheduler.step([Event::Finished(output), again, Event::Abort(RequestId(1))], 1.0);
    let ends: Vec<_> = step.token_events.iter().map(|event| event.finish.clone()).collect();
    assert_eq!(ends, [Some(Finish::Length), Some(Finish::Aborted)]);
}
