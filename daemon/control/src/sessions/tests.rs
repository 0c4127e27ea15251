use minisgl_proto::admin::RequestState;
use minisgl_proto::{Sampled, SamplingParams, StopParams, Submit};

use super::*;

const MUCH: usize = 1 << 20;

fn request(prompt: &[u32]) -> Generate {
    Generate {
        prompt: prompt.to_vec(),
        sampling: SamplingParams::default(),
        stop: StopParams::default(),
        priority: 0,
        request_id: format!("req-{}", prompt[0]),
        key: None,
    }
}

fn token(id: u64, token: u32) -> TokenEvent {
    TokenEvent {
        id: RequestId(id),
        sampled: Some(Sampled { token, logprob: None, top: Vec::new() }),
        prompt_logprobs: Vec::new(),
        cached_tokens: None,
        queue_s: None,
        finish: None,
    }
}

fn attach(sessions: &Sessions, epoch: u32, limit: u32) -> mpsc::Receiver<ToWorker> {
    let (outbox, frames) = mpsc::channel(outbox_capacity(limit as usize));
    sessions.attach(epoch, outbox, limit);
    frames
}

fn open(limit: u32, buffer: usize) -> (Arc<Sessions>, mpsc::Receiver<ToWorker>) {
    let sessions = Arc::new(Sessions::new("m".into(), buffer, MUCH));
    let frames = attach(&sessions, 1, limit);
    (sessions, frames)
}

type Reader = (mpsc::Receiver<TokenEvent>, AbortGuard);

fn submit(sessions: &Arc<Sessions>, id: u64) -> Result<Reader, Refused> {
    sessions.submit(RequestId(id), request(&[id as u32]))
}

fn frames(receiver: &mut mpsc::Receiver<ToWorker>) -> Vec<ToWorker> {
    std::iter::from_fn(|| receiver.try_recv().ok()).collect()
}

/// Ids and tokens so far of the requests sent.
fn sent(receiver: &mut mpsc::Receiver<ToWorker>) -> Vec<(u64, Vec<u32>)> {
    let submits = frames(receiver).into_iter().filter_map(|frame| match frame {
        ToWorker::Submit(submit) => Some((submit.id.0, submit.generated)),
        _ => None,
    });
    submits.collect()
}

fn events(reader: &mut Reader) -> Vec<TokenEvent> {
    std::iter::from_fn(|| reader.0.try_recv().ok()).collect()
}

fn tokens(reader: &mut Reader) -> Vec<u32> {
    events(reader).into_iter().filter_map(|event| Some(event.sampled?.token)).collect()
}

fn finish(reader: &mut Reader) -> Option<Finish> {
    events(reader).pop()?.finish
}

fn failure(reader: &mut Reader) -> String {
    match finish(reader) {
        Some(Finish::Failed(why)) => why,
        other => panic!("{other:?} is no failure"),
    }
}

#[test]
fn a_full_model_refuses_and_a_finished_request_makes_room() {
    let (sessions, _frames) = open(2, 8);
    let first = submit(&sessions, 1).unwrap();
    let _second = submit(&sessions, 2).unwrap();
    assert_eq!(submit(&sessions, 3).err(), Some(Refused::Full(2)));
    sessions.route(1, vec![last_event(RequestId(1), Finish::Length)]);
    assert!(submit(&sessions, 3).is_ok());
    drop(first);
}

#[test]
fn a_dropped_guard_aborts_once_and_keeps_the_place_until_the_worker_answers() {
    let (sessions, mut sent) = open(1, 8);
    let (_events, guard) = submit(&sessions, 1).unwrap();
    drop(guard);
    let aborts = frames(&mut sent);
    assert!(matches!(&aborts[..], [ToWorker::Submit(_), ToWorker::Abort(RequestId(1))]));
    assert_eq!(submit(&sessions, 2).err(), Some(Refused::Full(1)));
    sessions.route(1, vec![last_event(RequestId(1), Finish::Aborted)]);
    assert_eq!((sessions.in_flight(), sessions.sent()), (0, 0));
}

#[test]
fn a_finished_request_is_not_aborted() {
    let (sessions, mut sent) = open(1, 8);
    let mut reader = submit(&sessions, 1).unwrap();
    sessions.route(1, vec![last_event(RequestId(1), Finish::Stop)]);
    assert_eq!(finish(&mut reader), Some(Finish::Stop));
    drop(reader);
    assert!(matches!(&frames(&mut sent)[..], [ToWorker::Submit(_)]));
}

#[test]
fn a_slow_reader_is_cut_off_without_a_finish_and_its_neighbour_is_not() {
    let (sessions, mut sent) = open(2, 3);
    let mut slow = submit(&sessions, 1).unwrap();
    let mut quick = submit(&sessions, 2).unwrap();
    for n in 0..10 {
        sessions.route(1, vec![token(1, n), token(2, n)]);
        assert_eq!(tokens(&mut quick), [n]);
    }
    let got = events(&mut slow);
    assert_eq!(got.len(), 3);
    assert!(got.iter().all(|event| event.finish.is_none()));
    assert!(matches!(slow.0.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
    let aborts = frames(&mut sent).into_iter().filter(|f| matches!(f, ToWorker::Abort(_)));
    assert_eq!(aborts.collect::<Vec<_>>(), [ToWorker::Abort(RequestId(1))]);
}

#[test]
fn the_last_event_always_fits() {
    let (sessions, _sent) = open(1, 3);
    let mut reader = submit(&sessions, 1).unwrap();
    for n in 0..3 {
        sessions.route(1, vec![token(1, n)]);
    }
    assert_eq!(sessions.fail_all("the model is given up"), 1);
    assert_eq!(failure(&mut reader), "the model is given up");
    assert_eq!(submit(&sessions, 2).err(), Some(Refused::Closed));
}

#[test]
fn opened_and_dropped_requests_never_overflow_the_outbox() {
    let (sessions, mut sent) = open(4, 4);
    let mut next = 0;
    let mut held = std::collections::VecDeque::new();
    // The worker answers only what it has read; requests come and go as fast as they can.
    for _ in 0..1000 {
        while let Ok(generation) = submit(&sessions, next) {
            held.push_back(generation);
            next += 1;
        }
        while held.len() > 1 {
            held.pop_front();
        }
        let capacity = sessions.lock().instance.as_ref().unwrap().outbox.capacity();
        assert!(capacity >= OUTBOX_SPARE);
        if let Ok(ToWorker::Submit(Submit { id, .. })) = sent.try_recv() {
            sessions.route(1, vec![last_event(id, Finish::Length)]);
        }
    }
    assert!(next > 100, "only {next} were submitted");
}

#[test]
fn another_instance_goes_on_after_the_last_token_that_was_delivered() {
    let (sessions, mut first) = open(8, 16);
    let mut high =
        sessions.submit(RequestId(3), Generate { priority: 1, ..request(&[3]) }).unwrap();
    let mut a = submit(&sessions, 1).unwrap();
    let mut b = submit(&sessions, 2).unwrap();
    assert_eq!(sent(&mut first).len(), 3);
    sessions.route(1, vec![token(1, 10), token(3, 30)]);
    sessions.route(1, vec![token(1, 11)]);
    sessions.suspend();
    // What is still in the socket counts; what comes in now waits.
    sessions.route(1, vec![token(1, 12)]);
    let mut late = submit(&sessions, 4).unwrap();
    let parked = sessions.park(Blame::Much, "died");
    assert_eq!(parked, Parked { waiting: 4, had_progress: true, ..Parked::default() });
    // An instance that is gone is not heard.
    sessions.route(1, vec![token(1, 99)]);
    let states: Vec<_> = sessions.list().into_iter().map(|s| (s.id, s.state, s.moves)).collect();
    use RequestState::Parked as P;
    assert_eq!(states, [(1, P, 1), (2, P, 1), (3, P, 1), (4, P, 0)]);

    let mut second = attach(&sessions, 2, 8);
    let expected = [(3, vec![30]), (1, vec![10, 11, 12]), (2, vec![]), (4, vec![])];
    assert_eq!(sent(&mut second), expected, "by priority, then in the order they came");
    sessions.route(1, vec![token(1, 98)]);
    sessions.route(2, vec![token(1, 13), token(2, 20), token(3, 31), token(4, 40)]);
    assert_eq!(tokens(&mut a), [10, 11, 12, 13], "nothing lost, nothing twice");
    assert_eq!(
        (tokens(&mut b), tokens(&mut high), tokens(&mut late)),
        (vec![20], vec![30, 31], vec![40])
    );
}

#[test]
fn waiting_time_before_the_first_token_has_all_instances_in_it() {
    // The first token may be the last.
    for finish in [None, Some(Finish::Length)] {
        let (sessions, _first) = open(1, 8);
        let began = Instant::now();
        let mut reader = submit(&sessions, 1).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        sessions.park(Blame::Much, "died");
        let _second = attach(&sessions, 2, 1);
        sessions.route(2, vec![TokenEvent { queue_s: Some(1.0), finish, ..token(1, 7) }]);
        let queue_s = events(&mut reader)[0].queue_s.unwrap();
        let most = 1.001 + began.elapsed().as_secs_f32();
        assert!((1.02..=most).contains(&queue_s), "{queue_s}, {most} at most");
    }
}

#[test]
fn those_that_wait_can_leave() {
    let (sessions, _first) = open(2, 8);
    let left = submit(&sessions, 1).unwrap();
    let leaving = submit(&sessions, 2).unwrap();
    drop(leaving); // its instance dies before it has let go
    sessions.park(Blame::Much, "died");
    assert_eq!(sessions.in_flight(), 1);
    drop(left);
    assert_eq!((sessions.in_flight(), sessions.parked()), (0, 0));
    let mut second = attach(&sessions, 2, 2);
    assert!(sent(&mut second).is_empty());
    assert_eq!(sessions.lock().bytes, 0);
}

#[test]
fn a_request_with_which_two_instances_died_is_given_up_alone() {
    let (sessions, _first) = open(4, 8);
    let mut healthy = submit(&sessions, 1).unwrap();
    let mut poison = submit(&sessions, 2).unwrap();
    sessions.route(1, vec![token(1, 10)]);
    assert_eq!(sessions.park(Blame::Much, "died").given_up, 0);
    let _second = attach(&sessions, 2, 4);
    sessions.route(2, vec![token(1, 11)]);
    let parked = sessions.park(Blame::Much, "exited with status 7");
    assert_eq!((parked.given_up, parked.waiting), (1, 1));
    let why = failure(&mut poison);
    assert!(why.contains("status 7") && why.contains("given up"), "{why}");
    let mut third = attach(&sessions, 3, 4);
    assert_eq!(sent(&mut third), [(1, vec![10, 11])]);
    assert_eq!(tokens(&mut healthy), [10, 11]);
}

#[test]
fn of_several_suspects_one_at_a_time_is_tried_until_the_cause_is_found() {
    let (sessions, _first) = open(8, 8);
    // Four that get no token before two deaths; the third is the cause.
    let mut readers: Vec<Reader> = (1..=4).map(|id| submit(&sessions, id).unwrap()).collect();
    sessions.park(Blame::Much, "died");
    let _second = attach(&sessions, 2, 8);
    assert_eq!(sessions.park(Blame::Much, "died").given_up, 0, "it may be any");
    let mut third = attach(&sessions, 3, 8);
    assert_eq!(sent(&mut third), [(1, vec![])]);
    let _new = submit(&sessions, 5).unwrap();
    sessions.route(3, vec![token(1, 10)]);
    assert_eq!(sent(&mut third), [(5, vec![]), (2, vec![])], "who is no suspect does not wait");
    sessions.route(3, vec![last_event(RequestId(2), Finish::Stop)]);
    assert_eq!(sent(&mut third), [(3, vec![])]);
    assert_eq!(sessions.park(Blame::None, "made room").given_up, 0, "a restart proves nothing");
    let mut fourth = attach(&sessions, 4, 8);
    assert_eq!(sent(&mut fourth), [(1, vec![10]), (3, vec![]), (5, vec![])]);
    let parked = sessions.park(Blame::Much, "died");
    assert_eq!(parked.given_up, 1);
    assert!(failure(&mut readers[2]).contains("given up"));
    let mut fifth = attach(&sessions, 5, 8);
    assert_eq!(sent(&mut fifth), [(1, vec![10]), (4, vec![]), (5, vec![])]);
}

#[test]
fn a_restart_blames_nobody_and_a_kill_from_outside_little() {
    let (sessions, _first) = open(4, 8);
    let mut reader = submit(&sessions, 1).unwrap();
    for (epoch, blame) in (2..).zip([Blame::Little, Blame::None, Blame::Little, Blame::Little]) {
        let parked = sessions.park(blame, "was killed");
        assert_eq!(parked.given_up, 0, "{epoch}");
        let _frames = attach(&sessions, epoch, 4);
    }
    assert_eq!(sessions.park(Blame::Little, "was killed").given_up, 1, "four in a row are");
    assert!(failure(&mut reader).contains("given up"));
    // A token between is a new start.
    let _frames = attach(&sessions, 9, 4);
    let _reader = submit(&sessions, 2).unwrap();
    for epoch in 10..20 {
        assert_eq!(sessions.park(Blame::Much, "died").given_up, 0);
        let _frames = attach(&sessions, epoch, 4);
        sessions.route(epoch, vec![token(2, 5)]);
        let _ = sessions.park(Blame::None, "made room");
        let _frames = attach(&sessions, epoch, 4);
    }
}

#[test]
fn nobody_waits_for_ever() {
    let (sessions, _first) = open(4, 8);
    let mut old = submit(&sessions, 1).unwrap();
    sessions.park(Blame::Much, "died");
    std::thread::sleep(Duration::from_millis(1));
    let between = Instant::now();
    let mut new = submit(&sessions, 2).unwrap();
    // One has waited for longer than a minute then, the other for less.
    let minute = Duration::from_secs(60);
    assert_eq!(sessions.expire_at(minute, between + minute), 1);
    let why = failure(&mut old);
    assert!(why.contains("no worker") && why.contains("retry"), "{why}");
    assert_eq!((sessions.parked(), sessions.in_flight()), (1, 1));
    let _second = attach(&sessions, 2, 4);
    let late = Instant::now() + 2 * minute;
    assert_eq!(sessions.expire_at(minute, late), 0, "one that a worker has may queue");
    assert!(events(&mut new).is_empty());
}

#[test]
fn what_is_kept_is_bounded() {
    let sessions = Arc::new(Sessions::new("m".into(), 64, 4000));
    let _first = attach(&sessions, 1, 8);
    let mut kept = submit(&sessions, 1).unwrap();
    let mut grows = submit(&sessions, 2).unwrap();
    let mut large = sessions.submit(RequestId(3), request(&[3; 900])).unwrap();
    for n in 0..40 {
        sessions.route(1, vec![token(2, n)]);
    }
    assert!(sessions.lock().bytes <= 4000);
    let parked = sessions.park(Blame::Much, "died");
    assert_eq!((parked.waiting, parked.lost), (2, 1), "there was no room to keep the large one");
    assert!(failure(&mut large).contains("park_bytes_max"));
    // Without an instance there is only what is kept.
    let refused = sessions.submit(RequestId(4), request(&[3; 900])).err();
    assert_eq!(refused, Some(Refused::NoRoom));
    let mut second = attach(&sessions, 2, 8);
    assert_eq!(sent(&mut second), [(1, vec![]), (2, (0..40).collect())]);
    for n in 40..60 {
        for event in events(&mut grows) {
            assert_eq!(event.finish, None);
        }
        sessions.route(2, vec![token(2, n)]);
    }
    // One that grows beyond the limit goes on as long as its instance lives.
    let mut third = sessions.submit(RequestId(5), request(&[5; 500])).unwrap();
    for n in 0..200 {
        sessions.route(2, vec![token(1, n), token(2, n), token(5, n)]);
        assert!(sessions.lock().bytes <= 4000 + 8);
        for reader in [&mut kept, &mut grows, &mut third] {
            assert_eq!(tokens(reader).pop(), Some(n));
        }
    }
    assert!(sessions.park(Blame::Much, "died").lost >= 1);
}

#[test]
fn a_smaller_instance_gets_as_many_as_it_takes_and_then_the_rest() {
    let (sessions, _first) = open(3, 8);
    let mut readers: Vec<Reader> = (1..=3).map(|id| submit(&sessions, id).unwrap()).collect();
    sessions.park(Blame::None, "made room");
    let mut second = attach(&sessions, 2, 1);
    assert_eq!(sent(&mut second), [(1, vec![])]);
    assert_eq!(submit(&sessions, 4).err(), Some(Refused::Full(1)));
    sessions.route(2, vec![last_event(RequestId(1), Finish::Stop)]);
    assert_eq!(sent(&mut second), [(2, vec![])]);
    sessions.close("the model is unloaded");
    assert_eq!(failure(&mut readers[2]), "the model is unloaded");
    assert_eq!((sessions.sent(), sessions.in_flight()), (1, 1), "the one it has goes on");
}

#[test]
fn an_operator_ends_requests_by_either_id() {
    let (sessions, mut first) = open(4, 8);
    let mut by_number = submit(&sessions, 1).unwrap();
    let mut by_name = submit(&sessions, 2).unwrap();
    let mut other = submit(&sessions, 3).unwrap();
    assert_eq!(
        (sessions.cancel("1"), sessions.cancel("req-2"), sessions.cancel("req-9")),
        (1, 1, 0)
    );
    assert_eq!(sessions.cancel("1"), 0, "it is on its way out");
    for reader in [&mut by_number, &mut by_name] {
        assert_eq!(finish(reader), Some(Finish::Aborted));
    }
    let aborts = frames(&mut first).into_iter().filter(|f| matches!(f, ToWorker::Abort(_))).count();
    assert_eq!((aborts, sessions.list().len()), (2, 1));
    sessions.park(Blame::Much, "died");
    assert_eq!(sessions.cancel("req-3"), 1);
    assert_eq!((finish(&mut other), sessions.in_flight()), (Some(Finish::Aborted), 0));
}

#[test]
fn a_prompt_is_scored_on_where_the_instance_before_stopped() {
    let sessions = Arc::new(Sessions::new("m".into(), 8, MUCH));
    let mut first = attach(&sessions, 1, 4);
    let score = |tokens: &[u32]| TokenEvent {
        sampled: None,
        prompt_logprobs: tokens
            .iter()
            .map(|&token| Sampled { token, logprob: Some(-1.0), top: Vec::new() })
            .collect(),
        ..token(1, 0)
    };
    let mut scored = request(&[10, 11, 12, 13]);
    scored.sampling.prompt_logprobs = Some(2);
    let _reader = sessions.submit(RequestId(1), scored).unwrap();
    sessions.route(1, vec![score(&[11, 12])]);
    sessions.park(Blame::Little, "was killed");
    let wanted = |receiver: &mut mpsc::Receiver<ToWorker>| {
        let submit = frames(receiver).into_iter().find_map(|frame| match frame {
            ToWorker::Submit(submit) => Some(submit),
            _ => None,
        });
        let SamplingParams { prompt_logprobs, prompt_logprobs_from, .. } = submit.unwrap().sampling;
        (prompt_logprobs, prompt_logprobs_from)
    };
    assert_eq!(wanted(&mut first), (Some(2), 0));
    let mut second = attach(&sessions, 2, 4);
    assert_eq!(wanted(&mut second), (Some(2), 3));
    sessions.route(2, vec![score(&[13])]);
    sessions.park(Blame::Little, "was killed");
    let mut third = attach(&sessions, 3, 4);
    assert_eq!(wanted(&mut third).0, None, "every score was delivered");
}

#[test]
fn a_client_ends_what_came_with_its_key() {
    let (sessions, _first) = open(8, 8);
    let mut readers = Vec::new();
    for (id, key) in [(1, Some("ann")), (2, Some("ann")), (3, Some("bob")), (4, None)] {
        let request = Generate { key: key.map(str::to_owned), ..request(&[5]) };
        let request = Generate { request_id: format!("req-{id}"), ..request };
        readers.push(sessions.submit(RequestId(id), request).unwrap());
    }
    let abort = |key, id| sessions.abort_of(key, id);
    assert_eq!((abort(Some("bob"), Some("req-1")), abort(None, Some("req-1"))), (0, 0));
    assert_eq!(abort(Some("ann"), Some("req-1")), 1);
    assert_eq!(abort(Some("ann"), Some("1")), 0, "a number is the operator's");
    assert_eq!((abort(Some("ann"), None), abort(None, Some("req-4"))), (1, 1));
    assert_eq!(sessions.abort_of(Some("bob"), None), 1);
}
