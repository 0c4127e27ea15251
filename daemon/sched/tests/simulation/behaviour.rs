//! What the scheduler promises, one promise a test, through the loop that a worker runs.

use minisgl_proto::{CacheMode, Finish, Reject, RequestId, Submit};
use minisgl_sched::{Event, Executor, SchedConfig, Scheduler};

use crate::executor::SimExecutor;
use crate::worker::{Worker, alone, config, prompt, request};

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
            (stats.pages_owned, stats.pages_cached, stats.pages_evictable),
            (0, 3, 3),
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
fn with_overlap_another_plan_is_queued_while_one_is_waited_for() {
    for overlap in [false, true] {
        let mut worker = Worker::new(SchedConfig { overlap, ..config() });
        worker.submit([request(1, prompt(0, 40), 20), request(2, prompt(50, 20), 30)]);
        worker.run_until_idle();
        let (last, before) = worker.depths().split_last().unwrap();
        assert_eq!(*last, 1, "nothing is left to plan");
        assert!(before.len() > 30);
        let depth = 1 + usize::from(overlap);
        assert!(before.iter().all(|&found| found == depth), "{before:?}");
    }
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
fn decode_rows_come_before_chunks_of_a_higher_priority() {
    let mut worker = Worker::new(config());
    worker.submit([request(1, prompt(0, 5), 20), request(2, prompt(20, 4), 20)]);
    worker.turn([]);
    worker.submit([Submit { priority: 1, ..request(3, prompt(50, 30), 2) }]);
    worker.run_until_idle();
    let plans = worker.plans().iter().filter(|plan| plan.rows.len() == 3);
    let lens: Vec<Vec<u32>> =
        plans.map(|plan| plan.rows.iter().map(|row| row.len).collect()).collect();
    assert_eq!(lens[..3], [[1, 1, 14], [1, 1, 14], [1, 1, 2]]);
    assert_eq!(worker.tokens(3).len(), 2);
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
fn a_preempted_request_waits_for_its_token_in_flight() {
    let mut scheduler = Scheduler::new(SchedConfig { pages: 3, ..config() }).unwrap();
    let mut executor = SimExecutor::new(scheduler.config());
    let submits = [request(1, prompt(0, 8), 1), request(2, prompt(50, 4), 5)];
    let plan = scheduler.step(submits.map(Event::Submit), 0.0).plan.expect("both fit");
    executor.launch(plan).unwrap();
    // 2 needs a page to go on, and is preempted by itself; 1 only waits for its result.
    assert_eq!(scheduler.step([], 1.0).plan, None);
    assert_eq!(scheduler.stats().preemptions, 1);
    // Now there is room, but the token that the plan in flight samples is not known.
    let step = scheduler.step([Event::Abort(RequestId(1))], 2.0);
    assert_eq!(step.plan, None);
    let output = executor.wait().unwrap();
    let token = output.sampled[1].token;
    let step = scheduler.step([Event::Finished(output)], 3.0);
    let [event] = &step.token_events[..] else { panic!("{:?}", step.token_events) };
    assert_eq!(event.id, RequestId(2));
    assert_eq!(event.sampled.as_ref().map(|sampled| sampled.token), Some(token));
    let resumed = step.plan.expect("it goes on");
    assert_eq!(resumed.tokens, [token as i32], "the page of its prompt is still cached");
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
    let resumed = installs.find(|install| install.history.len() > 4).expect("it was preempted");
    assert_eq!(resumed.prompt_len, 4);
    let generated = resumed.history.len() - 4;
    assert_eq!(resumed.history[4..], worker.tokens(2)[..generated]);
    assert_eq!((resumed.banned_below, &resumed.banned[..]), (4 + 20, &[1, 2][..]));
}

#[test]
fn another_worker_goes_on_at_the_next_token() {
    let mut submit = request(1, prompt(60, 9), 12);
    submit.sampling.frequency_penalty = 0.5;
    submit.sampling.seed = 7;
    submit.stop.min_tokens = 5;
    submit.stop.stop_token_ids = (0..50).collect();
    let whole = alone(&submit);
    assert!(whole.len() > 5, "{whole:?}");
    for cut in 0..whole.len() {
        let generated = whole[..cut].to_vec();
        let mut worker = Worker::new(config());
        worker.submit([Submit { generated, ..submit.clone() }]);
        worker.run_until_idle();
        assert_eq!(worker.tokens(1), whole[cut..], "cut after {cut}");
        assert_eq!(worker.cached(1).is_some(), cut == 0, "told once");
        let install = &worker.plans()[0].installs[0];
        assert_eq!((install.prompt_len, install.history.len()), (9, 9 + cut));
        assert_eq!(install.history.len(), 9 + cut);
    }
}

#[test]
fn what_is_over_already_ends_at_once() {
    let submit =
        |generated: &[u32]| Submit { generated: generated.to_vec(), ..request(1, prompt(0, 9), 4) };
    let end = |config: SchedConfig, submit: Submit| {
        let mut worker = Worker::new(config);
        worker.submit([submit]);
        assert!(worker.driver.is_idle() && worker.tokens(1).is_empty());
        worker.finish(1).cloned()
    };
    assert_eq!(end(config(), submit(&[1, 2, 3, 4])), Some(Finish::Length));
    let eos = SchedConfig { eos_token_ids: vec![3], ..config() };
    assert_eq!(end(eos.clone(), submit(&[1, 2, 3])), Some(Finish::Stop));
    // Where it goes on the context is shorter, than the prompt even.
    for max_len in [5, 9, 11] {
        let short = SchedConfig { max_len, ..config() };
        assert_eq!(end(short, submit(&[1, 2])), Some(Finish::Length));
    }
    let bad = Finish::Rejected(Reject::BadToken { token: 100, vocab_size: 100 });
    assert_eq!(end(config(), submit(&[100])), Some(bad));
    // A stop token that `min_tokens` let pass is no end.
    let mut early = submit(&[3]);
    early.stop.min_tokens = 2;
    let mut worker = Worker::new(eos);
    worker.submit([early]);
    worker.run_until_idle();
    assert_eq!(worker.tokens(1).len(), 3);
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
fn waiting_time_is_told_with_the_first_token() {
    let mut worker = Worker::new(SchedConfig { max_running: 1, overlap: false, ..config() });
    worker.submit([request(1, prompt(0, 4), 5), request(2, prompt(30, 4), 2)]);
    worker.run_until_idle();
    let queue_s: Vec<_> = worker.events[&2].iter().map(|event| event.queue_s).collect();
    assert_eq!(queue_s, [Some(5.0), None]);
}

/// With overlap the masks of a plan come while it runs, before the next is launched; the executor refuses any other order. Two
/// requests with masks and one without get what each gets alone.
#[test]
fn masks_come_between_the_halves_of_a_step() {
    for overlap in [true, false] {
        let mut guided = [request(1, prompt(0, 9), 12), request(2, prompt(40, 3), 8)];
        guided[0].sampling.allowed_token_ids = vec![3, 5, 70];
        guided[0].sampling.bad_words = vec![vec![3, 5], vec![70, 70], vec![5, 5]];
        let plain = alone(&request(2, prompt(40, 3), 8));
        guided[1].sampling.bad_words = vec![vec![plain[0], plain[1]]];
        let free = request(3, prompt(20, 5), 10);
        let mut worker = Worker::new(SchedConfig { overlap, ..config() });
        worker.submit([guided[0].clone(), guided[1].clone(), free.clone()]);
        worker.run_until_idle();
        for submit in guided.iter().chain([&free]) {
            assert_eq!(worker.tokens(submit.id.0), alone(submit), "overlap {overlap}");
        }
        let words = &guided[0].sampling.bad_words;
        let tokens = worker.tokens(1);
        assert!(tokens.iter().all(|token| [3, 5, 70].contains(token)), "{tokens:?}");
        assert!(tokens.windows(2).all(|pair| !words.contains(&pair.to_vec())), "{tokens:?}");
        assert_ne!(worker.tokens(2), plain);
        assert_eq!(worker.plans().iter().map(|plan| plan.masked.len()).sum::<usize>(), 12 + 8);
    }
}
