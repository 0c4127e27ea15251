//! The loop of the process.
//!
//! ```text
//!   stdin (a socket) -> Load, then confined
//!   stdin (a socket) -> this thread -> queue -> workers -> the same socket
//! ```
//!
//! Owns: the threads, and which jobs nobody waits for any more. Must never: end because of one job's panic.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use minisgl_proto::frame::{self, HEADER_BYTES};
use minisgl_proto::text::{FromText, TextFault, TextJob, TextSpec, ToText};

use crate::side::TextSide;

/// Jobs at once, at most: a long one must not hold up a short one.
const WORKERS_MAX: usize = 4;
/// Jobs that wait in this process; the daemon has a queue of its own.
const QUEUE_MAX: usize = 16;
/// Stack of a worker: templates nest expressions and macros, up to limits of their own.
const STACK_BYTES: usize = 16 << 20;

struct Job {
    id: u64,
    job: TextJob,
    abandoned: Arc<AtomicBool>,
}

type Flags = Mutex<HashMap<u64, Arc<AtomicBool>>>;

/// Serves the jobs of one model over `stream` until the daemon is gone.
///
/// `confine` gives up what reading the folder does not need; no other thread of ours is there yet.
///
/// # Errors
/// The folder's text side is broken (the daemon was told), or the stream is.
pub fn serve(mut stream: UnixStream, confine: impl FnOnce(&TextSpec)) -> io::Result<()> {
    let spec = match read_frame(&mut stream)? {
        Some(ToText::Load(spec)) => spec,
        Some(_) => return Err(io::Error::other("the first frame must be Load")),
        None => return Ok(()),
    };
    confine(&spec);
    let out = Arc::new(Mutex::new(stream.try_clone()?));
    let (side, info) = match load(&spec) {
        Ok(loaded) => loaded,
        Err(why) => {
            send(&out, &FromText::LoadFailed(why.clone()))?;
            return Err(io::Error::other(why));
        }
    };
    send(&out, &FromText::Loaded(info))?;
    work(Arc::new(side), stream, out)
}

fn load(spec: &TextSpec) -> Result<(TextSide, Box<minisgl_proto::text::TextInfo>), String> {
    let own = minisgl_proto::VERSION;
    if spec.version != own {
        let daemon = &spec.version;
        return Err(format!(
            "the daemon is version {daemon}, its text process {own}: restart the daemon"
        ));
    }
    let loaded =
        catch_unwind(|| TextSide::load(&spec.dir, spec.dialect.as_deref())).map_err(|_| {
            format!("{}: the tokenizer or template makes its reader panic", spec.dir.display())
        })?;
    loaded.map(|(side, info)| (side, Box::new(info))).map_err(|why| why.to_string())
}

/// Turns the loop until the stream ends. The workers end with the process: whoever reads their answers is gone.
fn work(
    side: Arc<TextSide>,
    mut stream: UnixStream,
    out: Arc<Mutex<UnixStream>>,
) -> io::Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let flags = Arc::new(Flags::default());
    let (queue, jobs) = sync_channel::<Job>(QUEUE_MAX);
    let jobs = Arc::new(Mutex::new(jobs));
    for at in 0..threads.min(WORKERS_MAX) {
        let (side, jobs) = (Arc::clone(&side), Arc::clone(&jobs));
        let (flags, out) = (Arc::clone(&flags), Arc::clone(&out));
        std::thread::Builder::new()
            .name(format!("text-{at}"))
            .stack_size(STACK_BYTES)
            .spawn(move || run_jobs(&side, &jobs, &flags, &out))?;
    }
    loop {
        match read_frame(&mut stream)? {
            Some(ToText::Job { id, job }) => {
                let abandoned = Arc::new(AtomicBool::new(false));
                lock(&flags).insert(id, Arc::clone(&abandoned));
                let job = Job { id, job, abandoned };
                queue.send(job).map_err(|_| io::Error::other("the workers are gone"))?;
            }
            Some(ToText::Abandon(id)) => {
                if let Some(flag) = lock(&flags).get(&id) {
                    flag.store(true, Ordering::Relaxed);
                }
            }
            Some(ToText::Load(_)) => return Err(io::Error::other("a second Load")),
            None => return Ok(()),
        }
    }
}

fn run_jobs(side: &TextSide, jobs: &Mutex<Receiver<Job>>, flags: &Flags, out: &Mutex<UnixStream>) {
    loop {
        let next = lock(jobs).recv();
        let Ok(Job { id, job, abandoned }) = next else { return };
        let run = AssertUnwindSafe(|| side.run(job, &abandoned));
        let answer = catch_unwind(run)
            .unwrap_or_else(|_| Err(TextFault::TokenizerFailed("it panicked".to_owned())));
        lock(flags).remove(&id);
        // A daemon that is gone is seen by the reader.
        let _ = send(out, &FromText::Done { id, answer });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn send(out: &Mutex<UnixStream>, frame: &FromText) -> io::Result<()> {
    let mut bytes = Vec::new();
    match frame::encode(frame, &mut bytes) {
        Ok(()) => {}
        Err(why) => {
            // Whoever waits must hear of its end.
            let FromText::Done { id, .. } = frame else { return Err(io::Error::other(why)) };
            let answer = Err(TextFault::TokenizerFailed(format!("the answer is too long: {why}")));
            frame::encode(&FromText::Done { id: *id, answer }, &mut bytes)
                .map_err(io::Error::other)?;
        }
    }
    lock(out).write_all(&bytes)
}

/// The next frame, or `None` at the end of the stream.
fn read_frame(stream: &mut UnixStream) -> io::Result<Option<ToText>> {
    let mut header = [0u8; HEADER_BYTES];
    match stream.read_exact(&mut header) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let mut payload = vec![0u8; frame::payload_bytes(header).map_err(io::Error::other)?];
    stream.read_exact(&mut payload)?;
    frame::decode(&payload).map(Some).map_err(io::Error::other)
}
