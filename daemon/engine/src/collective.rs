//! Collectives among the CPU ranks of one worker.
//!
//! Owns: the meeting of ranks, and the order of sums: rank 0 first, so that all ranks hold identical
//! bits. Must never: block for good. A rank that fails poisons the group, and a peer that does not
//! come within the time limit does the same.
//!
//! Each rank publishes its part in a mailbox, all meet, and each reads all mailboxes. There are two
//! sets of mailboxes, used in turn: a rank that writes the next set cannot disturb one that still reads
//! this set, and none comes back to this set before all have met once more. One meeting a collective.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::error::OpError;

/// How long a rank waits for its peers: far longer than a step differs between ranks, also on a machine that swaps. One
/// that fails is known of at once, so that only one that hangs is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
/// Turns of the busy wait before a rank sleeps.
const SPINS: u32 = 2_000;

/// The meeting point of all ranks.
pub struct Group {
    ranks: usize,
    patience: Duration,
    /// Meetings held so far.
    meetings: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
    mailboxes: [Vec<RwLock<Vec<f32>>>; 2],
}

#[derive(Default)]
struct State {
    arrived: usize,
    poison: Option<String>,
}

impl Group {
    /// A group of `ranks`.
    pub fn new(ranks: usize) -> Arc<Group> {
        Group::with_patience(ranks, PATIENCE)
    }

    /// The same that waits for a rank for so long.
    pub(crate) fn with_patience(ranks: usize, patience: Duration) -> Arc<Group> {
        let boxes = || (0..ranks).map(|_| RwLock::default()).collect();
        Arc::new(Group {
            ranks,
            patience,
            meetings: AtomicU64::new(0),
            state: Mutex::default(),
            changed: Condvar::new(),
            mailboxes: [boxes(), boxes()],
        })
    }

    /// A rank's seat in the group. Exactly one must be taken for each rank.
    pub fn member(self: &Arc<Group>, rank: usize) -> Member {
        Member { group: self.clone(), rank, turn: 0 }
    }

    /// Ends every collective, now and later, with `reason`.
    pub fn poison(&self, reason: &str) {
        self.lock().poison.get_or_insert_with(|| reason.to_owned());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // State is two plain fields, whole after every statement: a panic elsewhere cannot break it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when all ranks have called it, or after `patience`.
    fn meet(&self, patience: Duration) -> Result<(), String> {
        let meeting = self.meetings.load(Ordering::Acquire);
        {
            let mut state = self.lock();
            if let Some(reason) = &state.poison {
                return Err(reason.clone());
            }
            state.arrived += 1;
            if state.arrived == self.ranks {
                state.arrived = 0;
                self.meetings.store(meeting + 1, Ordering::Release);
                self.changed.notify_all();
                return Ok(());
            }
        }
        for _ in 0..SPINS {
            if self.meetings.load(Ordering::Acquire) != meeting {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        loop {
            if self.meetings.load(Ordering::Acquire) != meeting {
                return Ok(());
            }
            if let Some(reason) = &state.poison {
                return Err(reason.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let missing = self.ranks - state.arrived;
                let reason =
                    format!("{missing} of {} ranks did not come in {patience:?}", self.ranks);
                state.poison = Some(reason.clone());
                self.changed.notify_all();
                return Err(reason);
            }
            state = match self.changed.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

/// One rank's seat in a [`Group`].
pub struct Member {
    group: Arc<Group>,
    rank: usize,
    turn: usize,
}

impl Member {
    /// Ranks in the group.
    pub fn ranks(&self) -> usize {
        self.group.ranks
    }

    /// `x = sum over ranks of their x`, in the order of ranks.
    ///
    /// # Errors
    /// A peer has failed, did not come, or brought another shape.
    pub fn all_reduce(&mut self, x: &mut [f32]) -> Result<(), OpError> {
        const OPERATION: &str = "all-reduce";
        self.publish(OPERATION, x)?;
        for rank in 0..self.group.ranks {
            let len = x.len();
            self.read(OPERATION, rank, len, |part| {
                if rank == 0 {
                    x.copy_from_slice(part);
                } else {
                    x.iter_mut().zip(part).for_each(|(x, part)| *x += part);
                }
            })?;
        }
        self.turn ^= 1;
        Ok(())
    }

    /// Joins columns: each rank brings `[rows, its share]`, and all get `[rows, width]`.
    /// `share` says which columns a rank has.
    ///
    /// # Errors
    /// A peer has failed, did not come, or brought another shape.
    pub fn all_gather(
        &mut self,
        part: &[f32],
        width: usize,
        share: impl Fn(usize) -> Range<usize>,
        out: &mut [f32],
    ) -> Result<(), OpError> {
        const OPERATION: &str = "all-gather";
        let rows = out.len() / width;
        self.publish(OPERATION, part)?;
        for rank in 0..self.group.ranks {
            let columns = share(rank);
            self.read(OPERATION, rank, rows * columns.len(), |part| {
                let parts = part.chunks_exact(columns.len());
                for (out, part) in out.chunks_exact_mut(width).zip(parts) {
                    out[columns.clone()].copy_from_slice(part);
                }
            })?;
        }
        self.turn ^= 1;
        Ok(())
    }

    /// Waits for up to `patience` until all ranks have come here, after work that takes each another time.
    ///
    /// # Errors
    /// A peer has failed or did not come.
    pub fn meet(&mut self, patience: Duration) -> Result<(), OpError> {
        let on_error = |reason| OpError { operation: "meet", reason };
        self.group.meet(patience).map_err(on_error)
    }

    /// Makes room for parts of up to `len` numbers in this rank's mailboxes.
    pub fn reserve(&mut self, len: usize) {
        for mailboxes in &self.group.mailboxes {
            let mut mailbox = mailboxes[self.rank].write().unwrap_or_else(PoisonError::into_inner);
            let more = len.saturating_sub(mailbox.len());
            mailbox.reserve_exact(more);
        }
    }

    /// Numbers that this rank's mailboxes have room for.
    #[cfg(test)]
    pub(crate) fn rooms(&self) -> [usize; 2] {
        self.group.mailboxes.each_ref().map(|mailboxes| {
            mailboxes[self.rank].read().unwrap_or_else(PoisonError::into_inner).capacity()
        })
    }

    /// Leaves `part` in this rank's mailbox and waits until all have left theirs.
    fn publish(&self, operation: &'static str, part: &[f32]) -> Result<(), OpError> {
        {
            let mailbox = &self.group.mailboxes[self.turn][self.rank];
            let mut mailbox = mailbox.write().unwrap_or_else(PoisonError::into_inner);
            mailbox.clear();
            mailbox.extend_from_slice(part);
        }
        self.group.meet(self.group.patience).map_err(|reason| OpError { operation, reason })
    }

    fn read(
        &self,
        operation: &'static str,
        rank: usize,
        len: usize,
        take: impl FnOnce(&[f32]),
    ) -> Result<(), OpError> {
        let mailbox = &self.group.mailboxes[self.turn][rank];
        let mailbox = mailbox.read().unwrap_or_else(PoisonError::into_inner);
        if mailbox.len() != len {
            let reason = format!("rank {rank} brought {} values, not {len}", mailbox.len());
            return Err(OpError { operation, reason });
        }
        take(&mailbox);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_ranks<T: Send>(group: &Arc<Group>, run: impl Fn(Member) -> T + Sync) -> Vec<T> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..group.ranks)
                .map(|rank| {
                    let (member, run) = (group.member(rank), &run);
                    scope.spawn(move || run(member))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn sums_are_the_same_bits_on_all_ranks_and_in_rank_order() {
        let value = |rank: usize, turn: usize, i: usize| {
            (rank as f32 + 0.1) * 10f32.powi((i % 9) as i32 - 4) * (turn as f32 - 7.3)
        };
        let group = Group::new(5);
        let results = on_ranks(&group, |mut member| {
            (0..200)
                .map(|turn| {
                    let mut x: Vec<f32> = (0..33).map(|i| value(member.rank, turn, i)).collect();
                    member.all_reduce(&mut x).unwrap();
                    x
                })
                .collect::<Vec<_>>()
        });
        for result in &results {
            for (turn, x) in result.iter().enumerate() {
                for (i, x) in x.iter().enumerate() {
                    let sum = (1..5).fold(value(0, turn, i), |sum, r| sum + value(r, turn, i));
                    assert_eq!(x.to_bits(), sum.to_bits());
                }
            }
        }
    }

    #[test]
    fn uneven_columns_are_joined() {
        let group = Group::new(3);
        let share = |rank: usize| crate::shard::share(7, 3, rank);
        let results = on_ranks(&group, |mut member| {
            let part: Vec<f32> = (0..2)
                .flat_map(|row| share(member.rank).map(move |c| (row * 7 + c) as f32))
                .collect();
            let mut out = vec![f32::NAN; 14];
            member.all_gather(&part, 7, share, &mut out).unwrap();
            out
        });
        for out in results {
            assert_eq!(out, (0..14).map(|i| i as f32).collect::<Vec<_>>());
        }
    }

    #[test]
    fn nobody_waits_for_a_rank_that_is_gone() {
        let group = Group::new(3);
        let errors = on_ranks(&group, |mut member| match member.rank {
            1 => {
                std::thread::sleep(Duration::from_millis(20));
                member.group.poison("rank 1 burned down");
                None
            }
            _ => member.all_reduce(&mut [1.0]).err(),
        });
        for error in [&errors[0], &errors[2]] {
            let error = error.as_ref().expect("the collective fails");
            assert_eq!(error.to_string(), "all-reduce: rank 1 burned down");
        }
    }

    #[test]
    fn a_rank_that_never_comes_is_noticed() {
        let group = Group::with_patience(2, Duration::from_millis(30));
        let error = group.member(0).all_reduce(&mut [1.0]).unwrap_err();
        assert!(error.reason.starts_with("1 of 2 ranks did not come"), "{error}");
        assert!(group.member(1).all_reduce(&mut [1.0]).is_err(), "poisoned for good");
    }

    #[test]
    fn another_shape_is_an_error() {
        let group = Group::new(2);
        let errors = on_ranks(&group, |mut member| {
            let mut x = vec![0.0; 1 + member.rank];
            member.all_reduce(&mut x).is_err()
        });
        assert_eq!(errors, [true, true]);
    }

    #[test]
    fn ranks_meet_after_work_of_any_length() {
        // A collective gives up after 30 ms, a meeting when it is told to.
        let group = Group::with_patience(2, Duration::from_millis(30));
        let sums = on_ranks(&group, |mut member| {
            if member.rank == 1 {
                std::thread::sleep(Duration::from_millis(120));
            }
            member.meet(Duration::from_secs(60))?;
            let mut x = [1.0];
            member.meet(Duration::from_secs(60))?;
            member.all_reduce(&mut x)?;
            Ok::<f32, OpError>(x[0])
        });
        assert_eq!(sums, [Ok(2.0), Ok(2.0)]);
        let group = Group::new(2);
        let error = group.member(0).meet(Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.reason, "1 of 2 ranks did not come in 20ms");
    }
}
