//! Threads for slow work of requests: bodies are parsed here, and prompts rendered and tokenized.
//!
//! ```text
//!   run -> queue (jobs and bytes are bounded: else 429) -> a thread of the pool -> the caller
//! ```
//!
//! Owns: its threads, apart from the runtime's, so that neither connections nor the admin socket wait
//! for a tokenizer. A job has its place until its work has really stopped, whether or not its client is
//! still there; a job whose client left before it began is dropped from the queue. Must never: block its
//! caller.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use tokio::sync::oneshot;

use crate::error::ApiError;

/// Jobs that wait or run, at most: more than there are connections by default, so that a burst of small requests waits.
const JOBS_MAX: usize = 16 << 10;
/// Bytes of what they work on, at most. A single job may have more: it then waits to be alone.
const BYTES_MAX: usize = 256 << 20;
/// How much the threads give way to the runtime's, in steps of `nice`.
const NICE: i32 = 5;
/// Seconds after which a refused client is told to come back, at most.
const RETRY_AFTER_S_MAX: u64 = 30;

/// Work, and what it holds while it waits and runs.
struct Job {
    number: u64,
    bytes: usize,
    work: Box<dyn FnOnce() + Send>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    next_number: u64,
    /// Jobs and bytes that wait or run.
    jobs: usize,
    bytes: usize,
    threads: usize,
    idle: usize,
    /// Work done so far, for the time that the queue will take.
    done: u64,
    worked: Duration,
    closed: bool,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    threads_max: usize,
    jobs_max: usize,
    bytes_max: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A bounded pool of threads, which start when they are needed and end with it.
pub struct Pool(Arc<Shared>);

/// A caller's claim on its job: a job that has not begun leaves the queue with it.
struct Claim<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let Some(at) = state.queue.iter().position(|job| job.number == self.number) else { return };
        let job = state.queue.remove(at);
        state.jobs -= 1;
        state.bytes -= job.as_ref().map_or(0, |job| job.bytes);
        drop(state);
        // What the work holds may be large, or give something back in turn: outside of the lock.
        drop(job);
    }
}

impl Pool {
    /// A pool of this many threads; 0 means one a core.
    pub fn new(threads: usize) -> Pool {
        Pool::with(threads, JOBS_MAX, BYTES_MAX)
    }

    fn with(threads: usize, jobs_max: usize, bytes_max: usize) -> Pool {
        let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let threads_max = if threads == 0 { cores() } else { threads };
        let (state, work) = (Mutex::default(), Condvar::new());
        Pool(Arc::new(Shared { state, work, threads_max, jobs_max, bytes_max }))
    }

    /// Runs slow work on so many bytes.
    ///
    /// # Errors
    /// 429: as much waits as may. 500: it panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let (sender, answer) = oneshot::channel();
        let work = move || {
            let done = catch_unwind(AssertUnwindSafe(work));
            if let Ok(done) = done {
                // Nobody listens when the client has gone meanwhile.
                let _ = sender.send(done);
            }
        };
        let _claim = self.enter(bytes, Box::new(work))?;
        answer.await.map_err(|_| ApiError::internal("the work on this request panicked"))
    }

    fn enter(&self, bytes: usize, work: Box<dyn FnOnce() + Send>) -> Result<Claim<'_>, ApiError> {
        let shared = &*self.0;
        let mut state = shared.lock();
        let too_many = state.jobs >= shared.jobs_max;
        let too_large = state.jobs > 0 && state.bytes + bytes > shared.bytes_max;
        if too_many || too_large {
            return Err(busy(&state, shared.threads_max));
        }
        let number = state.next_number;
        state.next_number += 1;
        state.jobs += 1;
        state.bytes += bytes;
        state.queue.push_back(Job { number, bytes, work });
        if state.idle < state.queue.len() && state.threads < shared.threads_max {
            let own = Arc::clone(&self.0);
            let started =
                std::thread::Builder::new().name("parse".into()).spawn(move || serve(&own));
            match started {
                Ok(_) => state.threads += 1,
                // The others take it; only without any of them it would wait for ever.
                Err(why) if state.threads == 0 => {
                    let job = state.queue.pop_back();
                    state.jobs -= 1;
                    state.bytes -= bytes;
                    drop(state);
                    drop(job);
                    return Err(ApiError::unavailable(format!(
                        "no thread can be started for the request: {why}; retry later"
                    )));
                }
                Err(why) => tracing::warn!(%why, "a thread for requests cannot be started"),
            }
        }
        drop(state);
        shared.work.notify_one();
        Ok(Claim { shared, number })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let waiting = {
            let mut state = self.0.lock();
            state.closed = true;
            std::mem::take(&mut state.queue)
        };
        self.0.work.notify_all();
        drop(waiting);
    }
}

/// What a thread of the pool does.
fn serve(shared: &Shared) {
    // Of this thread alone (Linux): long bodies give way to streams. Where it is not allowed, they share.
    let _ = rustix::process::nice(NICE);
    let mut state = shared.lock();
    while !state.closed {
        let Some(Job { bytes, work, .. }) = state.queue.pop_front() else {
            state.idle += 1;
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
            continue;
        };
        drop(state);
        let started = Instant::now();
        work();
        let worked = started.elapsed();
        state = shared.lock();
        state.jobs -= 1;
        state.bytes -= bytes;
        state.done += 1;
        state.worked += worked;
    }
    state.threads -= 1;
}

/// 429, with the time that what waits will take by the mean of what was done.
fn busy(state: &State, threads: usize) -> ApiError {
    let mean_s = state.worked.as_secs_f64() / state.done.max(1) as f64;
    let queue_s = mean_s * state.jobs as f64 / threads.max(1) as f64;
    let retry_after_s = (queue_s.ceil() as u64).clamp(1, RETRY_AFTER_S_MAX) as u32;
    ApiError::new(
        StatusCode::TOO_MANY_REQUESTS,
        "too many prompts are waiting to be read and tokenized; retry later",
    )
    .with_code("queue_full")
    .with_retry_after(retry_after_s)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use futures_util::FutureExt;

    use super::*;

    /// A job that runs until it is told to end.
    struct Gate {
        begun: mpsc::Receiver<()>,
        end: mpsc::Sender<()>,
    }

    fn gate() -> (Gate, impl FnOnce() + Send + 'static) {
        let (said, begun) = mpsc::channel();
        let (end, told) = mpsc::channel::<()>();
        let work = move || {
            let _ = said.send(());
            let _ = told.recv();
        };
        (Gate { begun, end }, work)
    }

    /// Jobs and bytes in the pool.
    fn held(pool: &Pool) -> (usize, usize) {
        let state = pool.0.lock();
        (state.jobs, state.bytes)
    }

    /// Waits until the pool's number is this one.
    fn settled(shared: &Shared, number: fn(&State) -> usize, wanted: usize) {
        let began = std::time::Instant::now();
        loop {
            let now = number(&shared.lock());
            if now == wanted {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(120), "{now}, not {wanted}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[tokio::test]
    async fn results_come_back_and_a_panic_is_an_error() {
        let pool = Pool::new(2);
        assert_eq!(pool.run(0, || 7).await, Ok(7));
        let panicked = pool.run(0, || panic!("on purpose")).await.unwrap_err();
        assert_eq!(panicked.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(pool.run(0, || 8).await, Ok(8), "the thread lives on");
    }

    #[tokio::test]
    async fn a_full_queue_is_429() {
        let pool = Pool::with(1, 2, 100);
        let (first, work) = gate();
        let mut running = Box::pin(pool.run(10, work));
        assert!((&mut running).now_or_never().is_none());
        first.begun.recv().unwrap();
        let large = pool.run(91, || ()).now_or_never().unwrap().unwrap_err();
        assert_eq!((large.status.as_u16(), large.retry_after_s), (429, Some(1)));
        let mut waiting = Box::pin(pool.run(90, || ()));
        assert!((&mut waiting).now_or_never().is_none());
        let third = pool.run(0, || ()).now_or_never().unwrap().unwrap_err();
        assert_eq!((third.status.as_u16(), third.code), (429, Some("queue_full")));
        first.end.send(()).unwrap();
        running.await.unwrap();
        waiting.await.unwrap();
        settled(&pool.0, |state| state.jobs, 0);
        assert_eq!(held(&pool), (0, 0));
        pool.run(1000, || ()).await.expect("alone, a job may be of any size");
    }

    #[tokio::test]
    async fn a_client_that_leaves_frees_its_place_when_the_work_has_stopped() {
        let pool = Pool::with(1, 8, 100);
        let (first, work) = gate();
        let mut running = Box::pin(pool.run(60, work));
        assert!((&mut running).now_or_never().is_none());
        first.begun.recv().unwrap();
        drop(running);
        assert_eq!(held(&pool), (1, 60), "it still runs");
        first.end.send(()).unwrap();
        settled(&pool.0, |state| state.jobs, 0);
        assert_eq!(held(&pool), (0, 0));
    }

    #[tokio::test]
    async fn a_job_whose_client_left_before_it_began_is_skipped() {
        let pool = Pool::with(1, 8, 100);
        let (first, work) = gate();
        let mut running = Box::pin(pool.run(0, work));
        assert!((&mut running).now_or_never().is_none());
        first.begun.recv().unwrap();
        let ran = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&ran);
        let mut waiting = Box::pin(pool.run(40, move || counted.fetch_add(1, Ordering::SeqCst)));
        assert!((&mut waiting).now_or_never().is_none());
        assert_eq!((held(&pool).0, Arc::strong_count(&ran)), (2, 2));
        drop(waiting);
        assert_eq!(held(&pool), (1, 0));
        assert_eq!(Arc::strong_count(&ran), 1, "what it held is gone");
        first.end.send(()).unwrap();
        running.await.unwrap();
        assert_eq!(ran.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn threads_are_bounded_and_end_with_the_pool() {
        let pool = Pool::new(3);
        let jobs: Vec<_> =
            (0..20).map(|_| pool.run(0, || std::thread::sleep(Duration::from_millis(2)))).collect();
        futures_util::future::join_all(jobs).await;
        let shared = Arc::clone(&pool.0);
        let threads = shared.lock().threads;
        assert!((1..=3).contains(&threads), "{threads}");
        drop(pool);
        settled(&shared, |state| state.threads, 0);
    }
}
