//! An executor that takes the time of another one.
//!
//! Owns: one record a step. Must never: change what runs, or when.

use std::collections::{HashSet, VecDeque};
use std::time::Instant;

use minisgl_sched::{Executor, ExecutorError, Late, Plan, SlotId, StepOutput, StepProfile};

/// What a step held and how long the host spent on it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepRecord {
    /// Rows that feed one token to sample the next.
    pub decode_rows: u32,
    /// Rows of a prompt's chunks.
    pub prefill_rows: u32,
    /// Tokens of those.
    pub prefill_tokens: u32,
    /// Rows of those that are sampled: the last chunks.
    pub prefill_sampled: u32,
    /// Tokens whose keys and values are read: those before each row.
    pub kv_read_tokens: u64,
    /// Pairs of a prompt's token and one that it attends to, itself included.
    pub prefill_pairs: u64,
    /// Seconds in [`Executor::launch`].
    pub launch_s: f64,
    /// Seconds in [`Executor::wait`].
    pub wait_s: f64,
    /// When its output was there, in seconds since the executor was made.
    pub done_s: f64,
    /// What the executor says of itself.
    pub profile: StepProfile,
    /// From the output before, or the start of the run, to its own.
    pub wall_s: f64,
}

impl StepRecord {
    /// `decoding` are the slots whose prompts are computed; it is brought up to date.
    fn of(plan: &Plan, decoding: &mut HashSet<SlotId>) -> StepRecord {
        let mut record = StepRecord::default();
        for install in &plan.installs {
            decoding.remove(&install.slot);
        }
        for row in &plan.rows {
            let (start, len) = (u64::from(row.start), u64::from(row.len));
            record.kv_read_tokens += start;
            if decoding.contains(&row.slot) {
                record.decode_rows += 1;
            } else {
                record.prefill_rows += 1;
                record.prefill_tokens += row.len;
                record.prefill_sampled += u32::from(row.is_sampled());
                record.prefill_pairs += len * start + len * (len + 1) / 2;
                if row.is_sampled() {
                    decoding.insert(row.slot);
                }
            }
        }
        record
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Timed<E> {
    inner: E,
    began: Instant,
    in_flight: VecDeque<StepRecord>,
    done: Vec<StepRecord>,
    /// Seconds of all launches so far.
    launched_s: f64,
    decoding: HashSet<SlotId>,
}

impl<E> Timed<E> {
    /// No step has run.
    pub fn new(inner: E) -> Timed<E> {
        Timed {
            inner,
            began: Instant::now(),
            in_flight: VecDeque::new(),
            done: Vec::new(),
            launched_s: 0.0,
            decoding: HashSet::new(),
        }
    }

    /// Steps that have run, in order.
    pub fn steps(&self) -> &[StepRecord] {
        &self.done
    }

    /// Seconds spent launching so far.
    pub fn launched_s(&self) -> f64 {
        self.launched_s
    }

    /// Seconds since it was made: the clock of [`StepRecord::done_s`].
    pub fn now_s(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }
}

impl<E: Executor> Executor for Timed<E> {
    fn launch(&mut self, plan: Plan) -> Result<(), ExecutorError> {
        let mut record = StepRecord::of(&plan, &mut self.decoding);
        let start = Instant::now();
        self.inner.launch(plan)?;
        record.launch_s = start.elapsed().as_secs_f64();
        self.launched_s += record.launch_s;
        self.in_flight.push_back(record);
        Ok(())
    }

    /// Counts as launching.
    fn complete(&mut self, late: Late) -> Result<(), ExecutorError> {
        let start = Instant::now();
        self.inner.complete(late)?;
        let seconds = start.elapsed().as_secs_f64();
        self.launched_s += seconds;
        if let Some(record) = self.in_flight.back_mut() {
            record.launch_s += seconds;
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<StepOutput, ExecutorError> {
        let start = Instant::now();
        let output = self.inner.wait()?;
        if let Some(mut record) = self.in_flight.pop_front() {
            record.wait_s = start.elapsed().as_secs_f64();
            record.done_s = self.now_s();
            record.profile = self.inner.profile();
            self.done.push(record);
        }
        Ok(output)
    }

    fn reclaim(&mut self) -> Option<Plan> {
        self.inner.reclaim()
    }

    fn profile(&self) -> StepProfile {
        self.inner.profile()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes its time to launch.
    struct Slow;

    impl Executor for Slow {
        fn launch(&mut self, _plan: Plan) -> Result<(), ExecutorError> {
            std::thread::sleep(std::time::Duration::from_millis(20));
            Ok(())
        }

        fn complete(&mut self, _late: Late) -> Result<(), ExecutorError> {
            std::thread::sleep(std::time::Duration::from_millis(20));
            Ok(())
        }

        fn wait(&mut self) -> Result<StepOutput, ExecutorError> {
            Ok(StepOutput::default())
        }
    }

    #[test]
    fn a_turn_that_launches_nothing_has_no_launch_to_leave_out() {
        let mut timed = Timed::new(Slow);
        timed.launch(Plan::default()).unwrap();
        let once = timed.launched_s();
        assert!(once >= 0.02);
        // While the plan is in flight nothing more is launched.
        assert_eq!(timed.launched_s() - once, 0.0);
        timed.launch(Plan::default()).unwrap();
        assert!(timed.launched_s() - once >= 0.02);
        timed.complete(Late::default()).unwrap();
        assert!(timed.launched_s() - once >= 0.04, "masks are part of it");
        timed.wait().unwrap();
        assert!(timed.launched_s() >= 0.04);
    }
}
