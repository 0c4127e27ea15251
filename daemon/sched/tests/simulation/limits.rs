//! What the scheduler refuses or cuts short, and what it says then.

use minisgl_proto::{Finish, Reject, Submit};
use minisgl_sched::{ConfigError, Event, Executor, SchedConfig, Scheduler};

use crate::executor::SimExecutor;
use crate::worker::{Worker, alone, config, prompt, request};

#[test]
fn a_token_outside_the_vocabulary_fails_its_request_alone() {
    let mut scheduler = Scheduler::new(config()).unwrap();
    let mut executor = SimExecutor::new(scheduler.config());
    let submits = [request(1, prompt(0, 4), 5), request(2, prompt(50, 4), 5)];
    executor.launch(scheduler.step(submits.map(Event::Submit), 0.0).plan.unwrap()).unwrap();
    let mut output = executor.wait().unwrap();
    output.sampled[0].token = 100;
    let step = scheduler.step([Event::Finished(output)], 1.0);
    assert!(
        matches!(&step.token_events[0].finish, Some(Finish::Failed(why)) if why.contains("100"))
    );
    assert_eq!(step.token_events[1].finish, None);
    assert_eq!(step.plan.expect("2 goes on").rows.len(), 1);
    scheduler.check_integrity().unwrap();
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
    let too_many =
        |field: &str, count, limit| reject(Reject::TooMany { field: field.into(), count, limit });
    let mut biased = request(1, vec![5], 1);
    biased.sampling.logit_bias = vec![(7, 1.0); 1025];
    assert_eq!(refused(config(), biased), too_many("logit_bias", 1025, 1024));
    let mut curious = request(1, vec![5], 1);
    curious.sampling.logprobs = Some(21);
    assert_eq!(refused(config(), curious), too_many("logprobs", 21, 20));
    let mut curious = request(1, vec![5, 6], 0);
    curious.sampling.prompt_logprobs = Some(21);
    assert_eq!(refused(config(), curious), too_many("prompt_logprobs", 21, 20));
    let mut stopped = request(1, vec![5], 1);
    stopped.stop.stop_token_ids = vec![7; 65];
    assert_eq!(refused(config(), stopped), too_many("stop_token_ids", 65, 64));
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
fn an_id_in_use_is_not_taken_again() {
    let mut worker = Worker::new(config());
    worker.submit([request(1, prompt(0, 6), 3), request(1, prompt(9, 6), 30)]);
    worker.run_until_idle();
    assert_eq!(worker.tokens(1), alone(&request(1, prompt(0, 6), 3)));
}

#[test]
fn nonsense_configurations_are_refused() {
    let zero = Scheduler::new(SchedConfig { pages: 0, ..config() }).unwrap_err();
    assert_eq!(zero, ConfigError::Zero { field: "pages" });
    let short = Scheduler::new(SchedConfig { max_len: 1, ..config() }).unwrap_err();
    assert_eq!(short, ConfigError::TooShort { max_len: 1 });
}
