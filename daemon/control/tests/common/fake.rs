//! A worker that speaks the frames and computes nothing. The model's name says how it loads, the
//! first token of a prompt what happens to the request. It has as many GPUs as [`GPUS`] says, and takes the
//! first that are free when it may choose.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::Duration;

use minisgl_proto::frame::{self, HEADER_BYTES};
use minisgl_proto::worker::LoadProgress;
use minisgl_proto::{
    Device, Finish, FromWorker, LoadStage, ModelInfo, RequestId, Sampled, StepStats, ToWorker,
    TokenEvent, WorkerSpec,
};

/// `[COUNT, n]`: the tokens 0 to n - 1, then `Length`.
pub const COUNT: u32 = 1;
/// `[ENDLESS]`: a token every few milliseconds until it is aborted.
pub const ENDLESS: u32 = 2;
/// `[CRASH]`: three tokens, then the worker exits with status 7.
pub const CRASH: u32 = 3;
/// `[FLOOD, n]`: the tokens 0 to n - 1 at once and no finish until it is aborted.
pub const FLOOD: u32 = 4;
/// `[HELD, n]`: the token 0, then nothing until a file `more` is in its folder, then the others to n - 1 and `Length`.
pub const HELD: u32 = 6;
/// `[ENOUGH]`: a token every few milliseconds until a file `enough` is in its folder, then `Length` with the next.
pub const ENOUGH: u32 = 7;
/// `[GARBAGE]`: bytes that are no frame.
pub const GARBAGE: u32 = 5;

/// Loads, and fails to with a word.
pub const LOAD_FAILS: &str = "load-fails";
/// Dies while loading.
pub const LOAD_DIES: &str = "load-dies";
/// Loads once; its replacements die.
pub const RESTART_DIES: &str = "restart-dies";
/// Loads only when a file `go` is in its folder.
pub const LOAD_WAITS: &str = "load-waits";
/// Ignores `Drain` and the end of the stream.
pub const STUBBORN: &str = "stubborn";

/// A context length that it refuses.
pub const MAX_LEN_REFUSED: u32 = 77;

/// Variable with the number of GPUs of its machine.
pub const GPUS: &str = "FAKE_GPUS";

/// Runs until the daemon has no more use for it.
pub fn run() {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let mut socket = UnixStream::from(stdin);
    if socket.peer_addr().is_err() {
        return; // somebody runs every ignored test by hand
    }
    let mut input = socket.try_clone().unwrap();
    let (frames, inbox) = mpsc::channel();
    std::thread::spawn(move || {
        while let Some(frame) = receive(&mut input) {
            let _ = frames.send(frame);
        }
    });
    let Ok(ToWorker::Load(spec)) = inbox.recv() else { return };
    load(&spec, &mut socket);
    serve(&spec, &inbox, &mut socket);
    std::process::exit(0);
}

fn load(spec: &WorkerSpec, socket: &mut UnixStream) {
    let starts = spec.dir.join("starts");
    let earlier = std::fs::read_to_string(&starts).unwrap_or_default();
    std::fs::write(&starts, format!("{earlier}x")).unwrap();
    eprintln!("a worker speaks");
    for stage in [LoadStage::Read, LoadStage::WarmUp, LoadStage::KvPages] {
        let detail = "a thing".to_string();
        send(socket, &FromWorker::Progress(LoadProgress { stage, done: 1, total: 2, detail }));
    }
    match spec.name.as_str() {
        LOAD_FAILS => {
            send(socket, &FromWorker::LoadFailed("config.json has no hidden_size".into()));
            std::process::exit(1);
        }
        LOAD_DIES => {
            eprintln!("the last words");
            std::process::exit(3);
        }
        RESTART_DIES if !earlier.is_empty() => std::process::abort(),
        LOAD_WAITS => {
            while !spec.dir.join("go").exists() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        _ => {}
    }
    if spec.options.max_len == Some(MAX_LEN_REFUSED) {
        send(socket, &FromWorker::LoadFailed(format!("{MAX_LEN_REFUSED} is too long")));
        std::process::exit(1);
    }
    let gpus = place(spec).unwrap_or_else(|why| {
        send(socket, &FromWorker::LoadFailed(why));
        std::process::exit(1);
    });
    let info = ModelInfo {
        name: spec.name.clone(),
        dir: spec.dir.clone(),
        architecture: "FakeForCausalLM".into(),
        device: "none".into(),
        dtype: "f32".into(),
        parameters: 1,
        weight_bytes: 4,
        kv_dtype: "f32".into(),
        kv_bytes: 4,
        kv_tokens: 160,
        page_size: 16,
        kv_groups: 1,
        vocab_size: 100,
        max_len: 128,
        context_len: 128,
        max_running: spec.options.max_running,
        max_waiting: spec.options.max_waiting,
        chunk_tokens: 512,
        eos_token_ids: vec![0],
        tp: spec.options.tp,
        gpus,
        read_bytes: 1 << 20,
        read_s: 0.05,
        load_s: 0.1,
    };
    send(socket, &FromWorker::Ready(Box::new(info)));
}

/// The GPUs it runs on; none is the CPU.
fn place(spec: &WorkerSpec) -> Result<Vec<u32>, String> {
    let options = &spec.options;
    let there = std::env::var(GPUS).map_or(0, |number| number.parse().unwrap());
    if options.device == Device::Cpu || (options.device == Device::Auto && there == 0) {
        return Ok(Vec::new());
    }
    if !options.gpus.is_empty() {
        return Ok(options.gpus.clone());
    }
    let free: Vec<u32> = (0..there).filter(|gpu| !options.gpus_taken.contains(gpu)).collect();
    let chosen = free.get(..options.tp as usize).map(<[u32]>::to_vec);
    chosen.ok_or_else(|| format!("{} of {there} GPUs are free", free.len()))
}

fn serve(spec: &WorkerSpec, inbox: &mpsc::Receiver<ToWorker>, socket: &mut UnixStream) {
    let mut running: BTreeMap<RequestId, (Vec<u32>, u32)> = BTreeMap::new();
    let mut stats = StepStats { pages_total: 10, pages_free: 10, ..StepStats::default() };
    let mut draining = false;
    loop {
        let mut events = Vec::new();
        match inbox.recv_timeout(Duration::from_millis(3)) {
            Ok(ToWorker::Submit(submit)) => {
                stats.prompt_tokens += submit.prompt.len() as u64;
                let made = submit.generated.len() as u32;
                // As the real one, it goes on after what it is given.
                assert!(submit.generated.iter().copied().eq(0..made), "{submit:?}");
                running.insert(submit.id, (submit.prompt, made));
            }
            Ok(ToWorker::Abort(id)) => {
                if running.remove(&id).is_some() {
                    events.push(event(id, None, Some(Finish::Aborted)));
                }
            }
            Ok(ToWorker::Flush) => send(socket, &FromWorker::Flushed { pages: 5 }),
            Ok(ToWorker::Ping(number)) => send(socket, &FromWorker::Pong(number)),
            Ok(ToWorker::Drain) => draining = true,
            Ok(ToWorker::Load(_)) => panic!("Load came twice"),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) if spec.name == STUBBORN => {
                std::thread::sleep(Duration::from_secs(60));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
        running.retain(|&id, (prompt, made)| {
            let amount = prompt.get(1).copied().unwrap_or(0);
            let is_there = |file: &str| spec.dir.join(file).exists();
            let is_last = match prompt[0] {
                COUNT => *made + 1 == amount,
                HELD if *made == 1 && !is_there("more") => return true,
                HELD => *made + 1 == amount,
                ENOUGH => is_there("enough"),
                _ => false,
            };
            let finish = is_last.then_some(Finish::Length);
            match prompt[0] {
                CRASH if *made == 3 => std::process::exit(7),
                GARBAGE => socket.write_all(&[3, 0, 0, 0, 250, 250, 250]).unwrap(),
                FLOOD => {
                    for token in std::mem::replace(made, amount)..amount {
                        let events = vec![event(id, Some(token), None)];
                        send(socket, &FromWorker::Step { events, stats });
                    }
                }
                _ => events.push(event(id, Some(*made), finish)),
            }
            *made += u32::from(prompt[0] != FLOOD);
            !is_last
        });
        if !events.is_empty() {
            stats.steps += 1;
            stats.step_s = 0.003;
            stats.rows = events.len() as u32;
            stats.generated_tokens += events.iter().filter(|e| e.sampled.is_some()).count() as u64;
            stats.running = running.len() as u32;
            send(socket, &FromWorker::Step { events, stats });
        }
        if draining && running.is_empty() && spec.name != STUBBORN {
            return;
        }
    }
}

fn event(id: RequestId, token: Option<u32>, finish: Option<Finish>) -> TokenEvent {
    let sampled = token.map(|token| Sampled { token, logprob: None, top: Vec::new() });
    TokenEvent {
        id,
        sampled,
        prompt_logprobs: Vec::new(),
        cached_tokens: None,
        queue_s: None,
        finish,
    }
}

fn send(socket: &mut UnixStream, frame: &FromWorker) {
    let mut bytes = Vec::new();
    frame::encode(frame, &mut bytes).unwrap();
    if socket.write_all(&bytes).is_err() {
        std::process::exit(0);
    }
}

fn receive(socket: &mut UnixStream) -> Option<ToWorker> {
    let mut header = [0; HEADER_BYTES];
    socket.read_exact(&mut header).ok()?;
    let mut payload = vec![0; frame::payload_bytes(header).ok()?];
    socket.read_exact(&mut payload).ok()?;
    frame::decode(&payload).ok()
}
