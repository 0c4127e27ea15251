//! Tensor-parallel ranks: one thread each, with its own shard, KV pages and sampler.
//!
//! Owns: the threads, and that a rank's failure becomes everyone's, in words, and never a hang.
//! Must never: know a model or a device; a rank runs whatever [`Runner`] it was given.
//!
//! ```text
//!   engine                       rank r (one thread each)
//!     | <---------- Read, Loaded - |
//!     | -- Prepare --------------> |
//!     | <-------------- Prepared - |
//!     | -- ReserveKv(pages) -----> |
//!     | <--------------- KvReady - |
//!     | -- Run(Arc<Plan>) -------> |  first steps; every rank gets every plan, in the same order
//!     | -- CommitKv(pages) ------> |
//!     | <--------------- KvReady - |
//!     | -- Run(Arc<Plan>) -------> |
//!     | -- Complete(Arc<Late>) --> |  if the plan waits for masks
//!     | <- Step, of the only rank; |
//!     |      Done, from rank 0's   |  of several, each has a thread that waits for its steps: none fails
//!     |                    watcher |  unseen
//!     | <------ Failed, from any r |  then the group is poisoned, and all ranks end
//! ```

mod begun;
mod inject;
mod redeem;
mod watch;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{
    Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError, channel, sync_channel,
};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use minisgl_sched::{Late, Plan};

use crate::batch::IN_FLIGHT_MAX;
use crate::collective::Group;
use crate::error::{EngineError, OpError};
use crate::ops::{OpResult, Pending};
use begun::Begun;
use inject::Fault;
use watch::Watcher;

pub use redeem::Outcome;
pub(crate) use redeem::redeem;
pub(crate) use watch::Hashes;

/// How long the end of the engine waits for ranks that hang.
const GOODBYE: Duration = Duration::from_secs(3);

/// What a rank does.
pub trait Runner {
    /// Prepares what depends on the shapes of weights and activations, once they are there.
    ///
    /// # Errors
    /// The device failed.
    fn prepare(&mut self) -> OpResult;

    /// Makes room for so many KV pages at most; the first can be used.
    ///
    /// # Errors
    /// No memory.
    fn reserve_kv(&mut self, pages: usize) -> OpResult;

    /// So many KV pages can be used, of those that were reserved.
    ///
    /// # Errors
    /// No memory.
    fn commit_kv(&mut self, pages: usize) -> OpResult;

    /// Runs a plan, or on a GPU enqueues it; one that waits for masks up to where it samples.
    ///
    /// # Errors
    /// An op failed; the rank cannot go on.
    fn run(&mut self, plan: Arc<Plan>) -> OpResult<Option<Box<dyn Pending>>>;

    /// The rest of the plan that waits for masks.
    ///
    /// # Errors
    /// As [`Runner::run`].
    fn complete(&mut self, late: &Late) -> OpResult<Box<dyn Pending>>;
}

/// What a rank has loaded.
#[derive(Clone, Copy, Debug)]
pub struct Loaded {
    /// Bytes of its weights.
    pub weight_bytes: u64,
    /// Seconds until the last of them was on the device.
    pub read_s: f64,
}

/// What a rank reports.
pub enum Event {
    /// Bytes of a tensor were read.
    Read {
        /// How many.
        bytes: u64,
        /// Of which tensor.
        tensor: String,
    },
    /// The rank holds its weights.
    Loaded(Loaded),
    /// The weights cannot be loaded.
    LoadFailed(EngineError),
    /// What depends on shapes is there.
    Prepared,
    /// KV pages are there.
    KvReady,
    /// The only rank has run a plan.
    Step {
        /// [`Plan::step`].
        step: u64,
        /// When the rank took it up.
        started: Instant,
        /// Seconds that it took to enqueue all of it; on the CPU, to run it.
        enqueue_s: f32,
        /// How long to wait for it at most.
        patience: Duration,
        /// Its tokens.
        pending: Box<dyn Pending>,
    },
    /// What became of a step of several ranks, from rank 0.
    Done {
        /// [`Plan::step`].
        step: u64,
        /// As of [`Event::Step`].
        started: Instant,
        /// As of [`Event::Step`].
        enqueue_s: f32,
        /// Its tokens, and when they were there.
        outcome: Outcome,
    },
    /// What a rank ran and drew, as one number, with `MINISGL_CHECK_RANKS` set: the same on all ranks.
    Ran {
        /// Which.
        rank: usize,
        /// [`Plan::step`].
        step: u64,
        /// Of its plan and its tokens.
        hash: u64,
    },
    /// The rank is gone.
    Failed {
        /// Which.
        rank: usize,
        /// What it was doing.
        operation: String,
        /// What happened.
        reason: String,
    },
}

enum Command {
    Prepare,
    ReserveKv(usize),
    CommitKv(usize),
    Run(Arc<Plan>, Duration),
    Complete(Arc<Late>),
}

/// Commands that a rank has not taken, at most: plans in flight, and what one of them waits for.
const COMMANDS_MAX: usize = IN_FLIGHT_MAX + 1;

/// All ranks of one worker.
pub struct Ranks {
    commands: Vec<SyncSender<Command>>,
    events: Receiver<Event>,
    threads: Vec<JoinHandle<()>>,
    group: Arc<Group>,
}

/// How a rank reports while it loads.
pub struct Reporter {
    events: Sender<Event>,
}

impl Reporter {
    /// Bytes of a tensor were read.
    pub fn read(&self, bytes: u64, tensor: &str) {
        // Nobody listens any more when loading has failed on another rank.
        let _ = self.events.send(Event::Read { bytes, tensor: tensor.to_owned() });
    }
}

impl Ranks {
    /// Starts `count` threads; each makes its runner with `load`, which returns it with what it
    /// has loaded.
    ///
    /// # Errors
    /// The system gives no threads.
    pub fn spawn<R: Runner>(
        count: usize,
        group: Arc<Group>,
        load: impl Fn(usize, &Reporter) -> Result<(R, Loaded), EngineError> + Send + Sync + 'static,
    ) -> Result<Ranks, EngineError> {
        let (events_in, events) = channel();
        let load = Arc::new(load);
        let mut ranks = Ranks { commands: Vec::new(), events, threads: Vec::new(), group };
        for rank in 0..count {
            let (commands_in, commands) = sync_channel(COMMANDS_MAX);
            let (events, load, group) = (events_in.clone(), load.clone(), ranks.group.clone());
            let thread = std::thread::Builder::new()
                .name(format!("rank{rank}"))
                .spawn(move || run((rank, count), &group, &events, &commands, load))
                .map_err(|source| EngineError::System {
                    what: format!("start the thread of rank {rank}"),
                    source,
                })?;
            ranks.commands.push(commands_in);
            ranks.threads.push(thread);
        }
        Ok(ranks)
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.commands.len()
    }

    /// Has every rank prepare what depends on shapes.
    pub fn prepare(&self) {
        self.send(|| Command::Prepare);
    }

    /// Has every rank make room for `pages` KV pages at most.
    pub fn reserve_kv(&self, pages: usize) {
        self.send(|| Command::ReserveKv(pages));
    }

    /// Has every rank make `pages` KV pages usable.
    pub fn commit_kv(&self, pages: usize) {
        self.send(|| Command::CommitKv(pages));
    }

    /// Queues a plan on every rank; from the end of the plan before, none waits longer than `patience` for it.
    pub fn run(&self, plan: &Arc<Plan>, patience: Duration) {
        self.send(|| Command::Run(plan.clone(), patience));
    }

    /// Hands every rank what the plan that was queued last waits for.
    pub fn complete(&self, late: &Arc<Late>) {
        self.send(|| Command::Complete(late.clone()));
    }

    /// The queue never fills: no more than [`COMMANDS_MAX`] commands are unanswered. A rank that is gone
    /// has left its reason among the events.
    fn send(&self, command: impl Fn() -> Command) {
        for commands in &self.commands {
            if let Err(TrySendError::Full(_)) = commands.try_send(command()) {
                self.group.poison("a rank fell behind: more than two plans in flight");
            }
        }
    }

    /// The next event, from any rank. `None` when all ranks are gone.
    pub fn next(&self) -> Option<Event> {
        self.events.recv().ok()
    }

    /// The next event, if one comes within `patience`.
    ///
    /// # Errors
    /// None came, or all ranks are gone.
    pub fn next_within(&self, patience: Duration) -> Result<Event, RecvTimeoutError> {
        self.events.recv_timeout(patience)
    }
}

impl Drop for Ranks {
    /// Ends all ranks: a collective in progress fails, queued plans are not run.
    fn drop(&mut self) {
        self.group.poison("the engine is shutting down");
        self.commands.clear();
        let deadline = Instant::now() + GOODBYE;
        for thread in self.threads.drain(..) {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            // One that hangs is left behind: it ends with the process. A panic of a rank was caught in the
            // rank.
            if thread.is_finished() {
                let _ = thread.join();
            }
        }
    }
}

/// A rank's thread. What it loads from is let go once it has loaded.
fn run<R: Runner>(
    (rank, ranks): (usize, usize),
    group: &Group,
    events: &Sender<Event>,
    commands: &Receiver<Command>,
    load: Arc<impl Fn(usize, &Reporter) -> Result<(R, Loaded), EngineError>>,
) {
    let mut doing = "load weights".to_owned();
    // Outlives the report of its failure: what a device holds may not be given up while peers wait for it.
    let mut held = None;
    let result = catch_unwind(AssertUnwindSafe(|| -> OpResult {
        let (runner, loaded) = match load(rank, &Reporter { events: events.clone() }) {
            Ok(loaded) => loaded,
            Err(error) => {
                let _ = events.send(Event::LoadFailed(error));
                return Ok(());
            }
        };
        drop(load);
        // Sending fails when the engine is gone; then commands end, too.
        let _ = events.send(Event::Loaded(loaded));
        let fault = Fault::asked_for()?;
        let watcher = if ranks > 1 { Some(Watcher::start(rank, events)?) } else { None };
        // Dropped in this order.
        let (watcher, runner) = held.insert((watcher, runner));
        let mut waiting: Option<Begun> = None;
        for command in commands {
            match command {
                Command::Prepare => {
                    doing = "prepare the first step".to_owned();
                    runner.prepare()?;
                    let _ = events.send(Event::Prepared);
                }
                Command::ReserveKv(pages) => {
                    doing = format!("reserve {pages} KV pages");
                    runner.reserve_kv(pages)?;
                    let _ = events.send(Event::KvReady);
                }
                Command::CommitKv(pages) => {
                    doing = format!("allocate {pages} KV pages");
                    runner.commit_kv(pages)?;
                    let _ = events.send(Event::KvReady);
                }
                Command::Run(plan, patience) => {
                    let (step, tokens) = (plan.step, plan.tokens.len());
                    doing = format!("step {step} ({} rows, {tokens} tokens)", plan.rows.len());
                    let started = Instant::now();
                    let hash = watcher.as_ref().and_then(|watcher| watcher.hash(&plan));
                    if let Some(fault) = fault {
                        fault.strike(rank, step)?;
                    }
                    let pending = runner.run(plan)?;
                    let enqueue_s = started.elapsed().as_secs_f32();
                    let begun = Begun { step, started, enqueue_s, patience, hash };
                    match pending {
                        Some(pending) => begun.hand_over(pending, watcher.as_ref(), events),
                        None => waiting = Some(begun),
                    }
                }
                Command::Complete(late) => {
                    let Some(mut begun) = waiting.take() else {
                        let reason = "no step waits for masks".to_owned();
                        return Err(OpError { operation: "complete a step", reason });
                    };
                    let taken_up = Instant::now();
                    let pending = runner.complete(&late)?;
                    begun.enqueue_s += taken_up.elapsed().as_secs_f32();
                    begun.hand_over(pending, watcher.as_ref(), events);
                }
            }
        }
        Ok(())
    }));
    let reason = match result {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(panic) => format!("panicked: {}", panic_message(&*panic)),
    };
    // The cause goes out before the peers learn of it and report that they cannot go on either.
    let message = format!("rank {rank} failed in {doing}: {reason}");
    let _ = events.send(Event::Failed { rank, operation: doing, reason });
    group.poison(&message);
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::Member;

    const LOADED: Loaded = Loaded { weight_bytes: 10, read_s: 0.0 };
    const LONG: Duration = Duration::from_secs(60);

    /// Sums a number over ranks each step; one rank misbehaves in step 1.
    struct Fragile {
        rank: usize,
        member: Member,
        fate: Fate,
    }

    #[derive(Clone, Copy, PartialEq)]
    enum Fate {
        Fine,
        Errs,
        Panics,
        NeverEnds,
    }

    struct Nothing;

    /// A kernel that runs for good.
    struct Endless;

    impl Pending for Endless {
        fn is_over(&self) -> bool {
            false
        }

        fn wait(self: Box<Self>) -> OpResult<Vec<minisgl_proto::Sampled>> {
            panic!("waits for good")
        }
    }

    impl Pending for Nothing {
        fn wait(self: Box<Self>) -> OpResult<Vec<minisgl_proto::Sampled>> {
            Ok(Vec::new())
        }
    }

    impl Runner for Fragile {
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
            if plan.step == 1 && self.rank == 1 {
                match self.fate {
                    Fate::Fine => {}
                    Fate::Errs => {
                        let reason = "no more numbers".to_owned();
                        return Err(OpError { operation: "add", reason });
                    }
                    Fate::Panics => panic!("index out of bounds"),
                    Fate::NeverEnds => return Ok(Some(Box::new(Endless))),
                }
            }
            self.member.all_reduce(&mut [1.0; 8])?;
            let pending: Box<dyn Pending> = Box::new(Nothing);
            Ok(plan.masked.is_empty().then_some(pending))
        }

        fn complete(&mut self, _late: &Late) -> OpResult<Box<dyn Pending>> {
            self.member.all_reduce(&mut [1.0; 8])?;
            Ok(Box::new(Nothing))
        }
    }

    fn ranks(fate: Fate) -> Ranks {
        let group = Group::new(3);
        let seats = group.clone();
        Ranks::spawn(3, group, move |rank, _| {
            Ok((Fragile { rank, member: seats.member(rank), fate }, LOADED))
        })
        .unwrap()
    }

    /// Runs steps 0 and 1; returns the last event's words.
    fn second_step(ranks: &Ranks) -> String {
        for step in 0..2 {
            ranks.run(&Arc::new(Plan { step, ..Plan::default() }), LONG);
        }
        let mut steps = 0;
        loop {
            match ranks.next().unwrap() {
                Event::Done { step: 1, .. } => return "done".to_owned(),
                Event::Done { .. } => steps += 1,
                Event::Failed { rank, operation, reason } => {
                    assert!(steps <= 1);
                    return format!("rank {rank}, {operation}: {reason}");
                }
                _ => {}
            }
        }
    }

    #[test]
    fn the_failure_that_is_told_is_the_cause() {
        for (fate, expected) in [
            (Fate::Fine, "done"),
            (Fate::Errs, "rank 1, step 1 (0 rows, 0 tokens): add: no more numbers"),
            (Fate::Panics, "rank 1, step 1 (0 rows, 0 tokens): panicked: index out of bounds"),
        ] {
            let ranks = ranks(fate);
            assert_eq!(second_step(&ranks), expected);
            // All threads end: dropping would hang otherwise.
            drop(ranks);
        }
    }

    #[test]
    fn a_rank_whose_step_does_not_end_is_told_of_by_its_watcher() {
        let ranks = ranks(Fate::NeverEnds);
        for (step, patience) in [(0, LONG), (1, Duration::from_millis(100))] {
            ranks.run(&Arc::new(Plan { step, ..Plan::default() }), patience);
        }
        // The others wait for rank 1 in a sum, and learn of it when the group is given up.
        let told =
            std::iter::from_fn(|| ranks.next_within(LONG).ok()).find_map(|event| match event {
                Event::Failed { rank, operation, reason } => Some((rank, operation, reason)),
                _ => None,
            });
        let (rank, operation, reason) = told.expect("the step is given up");
        assert_eq!((rank, operation.as_str()), (1, "step 1"));
        assert!(reason.contains("not end within 0.1 s"), "{reason}");
    }

    #[test]
    fn a_rank_that_cannot_load_does_not_hang_the_others() {
        let group = Group::new(2);
        let seats = group.clone();
        let ranks = Ranks::spawn(2, group, move |rank, _| {
            if rank == 1 {
                return Err(EngineError::WarmUp { reason: "bad weights".to_owned() });
            }
            Ok((Fragile { rank, member: seats.member(rank), fate: Fate::Fine }, LOADED))
        })
        .unwrap();
        let told = std::iter::from_fn(|| ranks.next()).any(
            |event| matches!(event, Event::LoadFailed(error) if error.to_string().contains("bad")),
        );
        assert!(told);
    }

    #[test]
    fn dropping_ends_a_rank_that_waits_for_its_peers() {
        let group = Group::with_patience(2, Duration::from_secs(600));
        let (seats, held) = (group.clone(), group.clone());
        let ranks = Ranks::spawn(2, group, move |rank, _| {
            if rank == 1 {
                // Never comes to the collective, and never fails.
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok((Fragile { rank, member: seats.member(rank), fate: Fate::Fine }, LOADED))
        })
        .unwrap();
        ranks.commands[0].try_send(Command::Run(Arc::default(), LONG)).unwrap();
        let start = Instant::now();
        drop(ranks);
        // Every rank holds its group for as long as it is there, and would wait for its peer for ten minutes.
        while Arc::strong_count(&held) > 1 {
            assert!(start.elapsed() < Duration::from_secs(120), "a rank is left");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
