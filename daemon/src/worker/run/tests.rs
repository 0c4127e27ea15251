//! The loop over a link whose other end is the test.

use std::io::{Read, Write};

use minisgl_proto::frame::{self, HEADER_BYTES};
use minisgl_proto::{Sampled, SamplingParams, StopParams};
use minisgl_sched::{ExecutorError, Late, Plan, StepOutput};

use super::*;

const CONFIG: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "vocab_size": 67, "hidden_size": 16,
    "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256, "rope_theta": 1000.0, "tie_word_embeddings": true,
    "eos_token_id": 2, "torch_dtype": "float32", "hidden_act": "silu"
}"#;

fn send(socket: &mut UnixStream, frame: &ToWorker) {
    let mut bytes = Vec::new();
    frame::encode(frame, &mut bytes).unwrap();
    socket.write_all(&bytes).unwrap();
}

fn receive(socket: &mut UnixStream) -> FromWorker {
    let mut header = [0; HEADER_BYTES];
    socket.read_exact(&mut header).unwrap();
    let mut payload = vec![0; frame::payload_bytes(header).unwrap()];
    socket.read_exact(&mut payload).unwrap();
    frame::decode(&payload).unwrap()
}

#[test]
fn every_step_of_a_long_prefill_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), CONFIG).unwrap();
    let (mut daemon, worker) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || serve(worker, |_| {}));
    let options = LoadOptions {
        dummy_weights: true,
        threads: 1,
        kv_tokens: Some(128),
        chunk_tokens: Some(4),
        max_running: 4,
        ..LoadOptions::default()
    };
    let (name, dir) = ("m".to_owned(), dir.path().to_owned());
    send(&mut daemon, &ToWorker::Load(WorkerSpec { protocol: PROTOCOL, name, dir, options }));
    loop {
        match receive(&mut daemon) {
            FromWorker::Progress(_) => {}
            FromWorker::Ready(_) => break,
            other => panic!("{other:?}"),
        }
    }
    send(
        &mut daemon,
        &ToWorker::Submit(Submit {
            id: RequestId(1),
            prompt: vec![5; 40],
            generated: Vec::new(),
            sampling: SamplingParams::default(),
            stop: StopParams { max_tokens: 2, ..StopParams::default() },
            priority: 0,
        }),
    );
    let mut steps = Vec::new();
    while steps.last().is_none_or(|(_, finished)| !finished) {
        let FromWorker::Step { events, stats } = receive(&mut daemon) else { continue };
        steps.push((stats.steps, events.iter().any(|event| event.finish.is_some())));
    }
    // Ten steps of four prompt tokens, then one for the second token; none is skipped.
    let mut counts: Vec<u64> = steps.into_iter().map(|(count, _)| count).collect();
    counts.dedup();
    assert_eq!(counts[counts.len() - 12..], (0..12).collect::<Vec<u64>>()[..]);
    send(&mut daemon, &ToWorker::Drain);
    thread.join().unwrap().unwrap();
}

/// Of a model that has no tokens.
fn none(link: &Link) -> Grammars {
    Grammars::new(std::path::Path::new("nowhere"), 9, vec![], link.into_inbox.clone())
}

fn config(pages: u32) -> SchedConfig {
    SchedConfig {
        pages,
        page_size: 4,
        windows: minisgl_sched::Windows::default(),
        max_running: 4,
        penalised_max: 4,
        max_waiting: 4,
        chunk_tokens: 16,
        scored_max: 8,
        max_len: 128,
        vocab_size: 100,
        eos_token_ids: vec![],
        cache: minisgl_proto::CacheMode::Radix,
        overlap: true,
    }
}

/// Samples token 5 for every row.
struct Fives(std::collections::VecDeque<Plan>);

impl Executor for Fives {
    fn launch(&mut self, plan: Plan) -> Result<(), ExecutorError> {
        self.0.push_back(plan);
        Ok(())
    }

    fn complete(&mut self, _: Late) -> Result<(), ExecutorError> {
        Ok(())
    }

    fn wait(&mut self) -> Result<StepOutput, ExecutorError> {
        let plan = self.0.pop_front().unwrap();
        let sampled = plan.rows.iter().filter(|row| row.is_sampled());
        let sampled = sampled.map(|_| Sampled { token: 5, logprob: None, top: Vec::new() });
        Ok(StepOutput { step: plan.step, sampled: sampled.collect(), step_s: 0.0 })
    }
}

/// How often a worker checks that serves a request, then nothing but pings for a while, then is drained.
fn checks(pages: u32, check_after: Duration, idle: Duration) -> u64 {
    let (mut daemon, stream) = UnixStream::pair().unwrap();
    let scheduler = Scheduler::new(config(pages));
    let driver = Driver::new(scheduler.unwrap(), Fives(std::collections::VecDeque::new()));
    let link = Link::over(stream).unwrap();
    let grammars = none(&link);
    let worker = Worker::new(link, driver, grammars, Instant::now());
    let mut worker = Worker { check_after, ..worker };
    let thread = std::thread::spawn(move || {
        worker.run().unwrap();
        worker.checks
    });
    send(
        &mut daemon,
        &ToWorker::Submit(Submit {
            id: RequestId(1),
            prompt: vec![5; 4],
            generated: Vec::new(),
            sampling: SamplingParams::default(),
            stop: StopParams { max_tokens: 2, ..StopParams::default() },
            priority: 0,
        }),
    );
    let ended = |frame: FromWorker| match frame {
        FromWorker::Step { events, .. } => events.iter().any(|event| event.finish.is_some()),
        other => panic!("{other:?}"),
    };
    while !ended(receive(&mut daemon)) {}
    let began = Instant::now();
    for nonce in 0.. {
        send(&mut daemon, &ToWorker::Ping(nonce));
        while !matches!(receive(&mut daemon), FromWorker::Pong(_)) {}
        if began.elapsed() > idle {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    send(&mut daemon, &ToWorker::Drain);
    thread.join().unwrap()
}

/// Its tokens: 0 `a`, 2 the end, 5 `b`.
#[test]
fn a_drain_waits_for_a_request_whose_grammar_is_being_compiled() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = serde_json::json!({
        "added_tokens": [{"id": 2, "content": "<|end|>", "special": true}],
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 5}, "merges": []},
    });
    std::fs::write(dir.path().join("tokenizer.json"), tokens.to_string()).unwrap();
    let (mut daemon, stream) = UnixStream::pair().unwrap();
    let fives = Fives(std::collections::VecDeque::new());
    let driver = Driver::new(Scheduler::new(config(64)).unwrap(), fives);
    let link = Link::over(stream).unwrap();
    let grammars = Grammars::new(dir.path(), 100, vec![2], link.into_inbox.clone());
    let mut worker = Worker::new(link, driver, grammars, Instant::now());
    let thread = std::thread::spawn(move || worker.run());
    let submit = |id| {
        let guided = minisgl_proto::Guided {
            grammar: Some(minisgl_proto::Grammar::Regex("b+".to_owned())),
            thought: None,
            field: "regex".to_owned(),
        };
        let guided = Some(Box::new(guided));
        ToWorker::Submit(Submit {
            id: RequestId(id),
            prompt: vec![5; 4],
            generated: Vec::new(),
            sampling: SamplingParams { guided, ..SamplingParams::default() },
            stop: StopParams { max_tokens: 2, ..StopParams::default() },
            priority: 0,
        })
    };
    for frame in [submit(1), ToWorker::Drain, submit(2)] {
        send(&mut daemon, &frame);
    }
    let mut ends = Vec::new();
    while ends.len() < 2 {
        let FromWorker::Step { events, .. } = receive(&mut daemon) else { continue };
        ends.extend(events.into_iter().filter_map(|event| Some((event.id, event.finish?))));
    }
    thread.join().unwrap().unwrap();
    ends.sort_by_key(|(id, _)| id.0);
    assert_eq!(ends[0], (RequestId(1), Finish::Length));
    assert_eq!(ends[1], (RequestId(2), Finish::Rejected(Reject::Draining)));
}

#[test]
fn accounting_is_checked_once_after_a_while_and_pings_are_no_work() {
    let (soon, hour) = (Duration::from_millis(50), Duration::from_secs(3600));
    assert_eq!(checks(64, soon, 10 * soon), 1);
    assert_eq!(checks(64, hour, soon), 0, "not as it falls idle");
    assert_eq!(checks(CHECKED_PAGES_MAX + 1, soon, 4 * soon), 0, "too long a walk");
}

#[test]
fn a_frame_that_cannot_be_sent_ends_the_worker() {
    let (sender, inbox) = std::sync::mpsc::sync_channel(1);
    sender.send(Incoming::Unsendable("a frame is too large".to_owned())).unwrap();
    let (_daemon, stream) = UnixStream::pair().unwrap();
    let mut link = Link::over(stream).unwrap();
    link.inbox = inbox;
    let config = SchedConfig {
        pages: 4,
        page_size: 4,
        windows: minisgl_sched::Windows::default(),
        max_running: 1,
        penalised_max: 1,
        max_waiting: 1,
        chunk_tokens: 4,
        scored_max: 1,
        max_len: 8,
        vocab_size: 9,
        eos_token_ids: vec![],
        cache: minisgl_proto::CacheMode::Radix,
        overlap: true,
    };
    let fives = Fives(std::collections::VecDeque::new());
    let driver = Driver::new(Scheduler::new(config).unwrap(), fives);
    let grammars = none(&link);
    let ended = Worker::new(link, driver, grammars, Instant::now()).run();
    assert_eq!(ended.unwrap_err().to_string(), "a frame is too large");
}
