//! An executor that takes the time of another one.
//!
//! Owns: one record a step. Must never: change what runs, or when.

use std::collections::{HashSet, VecDeque};
use std::time::Instant;

use minisgl_engine::config::ModelConfig;
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
    /// Tokens whose keys and values are read, those before each row that it sees: the mean over layers.
    pub kv_read_tokens: f64,
    /// Pairs of a prompt's token and one that it attends to, itself included: the mean over layers.
    pub prefill_pairs: f64,
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

/// What the layers of a model see of the tokens before.
#[derive(Clone, Debug, PartialEq)]
pub struct Views(Vec<View>);

#[derive(Clone, Debug, PartialEq)]
struct View {
    /// Tokens that a token sees, itself included.
    window: u64,
    /// Part of the layers.
    share: f64,
}

impl Views {
    /// Of a model's layers.
    pub fn of(config: &ModelConfig) -> Views {
        let share = 1.0 / config.layers.len() as f64;
        let mut views: Vec<View> = Vec::new();
        for layer in &config.layers {
            let window = layer.attention.window.map_or(u64::MAX, |window| window as u64);
            match views.iter_mut().find(|view| view.window == window) {
                Some(view) => view.share += share,
                None => views.push(View { window, share }),
            }
        }
        Views(views)
    }

    fn mean(&self, of: impl Fn(u64) -> u64) -> f64 {
        self.0.iter().map(|view| view.share * of(view.window) as f64).sum()
    }

    /// Tokens before position `start` that are read there.
    fn read(&self, start: u64) -> f64 {
        self.mean(|window| start.min(window - 1))
    }

    /// Pairs of a token in `start .. start + len` and one that it sees.
    fn pairs(&self, start: u64, len: u64) -> f64 {
        self.mean(|window| {
            // Of the tokens, the first ones see all before them.
            let all = window.saturating_sub(start).min(len);
            all * start + all * (all + 1) / 2 + (len - all) * window.min(start + len)
        })
    }
}

impl StepRecord {
    /// `decoding` are the slots whose prompts are computed; it is brought up to date.
    fn of(plan: &Plan, views: &Views, decoding: &mut HashSet<SlotId>) -> StepRecord {
        let mut record = StepRecord::default();
        for install in &plan.installs {
            decoding.remove(&install.slot);
        }
        for row in &plan.rows {
            let (start, len) = (u64::from(row.start), u64::from(row.len));
            record.kv_read_tokens += views.read(start);
            if decoding.contains(&row.slot) {
                record.decode_rows += 1;
            } else {
                record.prefill_rows += 1;
                record.prefill_tokens += row.len;
                record.prefill_sampled += u32::from(row.is_sampled());
                record.prefill_pairs += views.pairs(start, len);
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
    views: Views,
}

impl<E> Timed<E> {
    /// No step has run.
    pub fn new(inner: E, views: Views) -> Timed<E> {
        Timed {
            inner,
            views,
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
        let mut record = StepRecord::of(&plan, &self.views, &mut self.decoding);
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
    fn windows_are_seen_and_no_more() {
        let view = |window, share| View { window, share };
        let views = Views(vec![view(u64::MAX, 0.25), view(5, 0.75)]);
        for (start, len) in [(0, 1), (0, 4), (0, 5), (0, 9), (3, 4), (4, 1), (7, 3), (100, 20)] {
            let pairs =
                |window: u64| (start..start + len).map(|at| window.min(at + 1)).sum::<u64>();
            let expected = 0.25 * pairs(u64::MAX) as f64 + 0.75 * pairs(5) as f64;
            assert_eq!(views.pairs(start, len), expected, "{len} tokens from {start}");
            let read = 0.25 * start as f64 + 0.75 * start.min(4) as f64;
            assert_eq!(views.read(start), read, "from {start}");
        }
    }

    #[test]
    fn a_turn_that_launches_nothing_has_no_launch_to_leave_out() {
        let mut timed = Timed::new(Slow, Views(Vec::new()));
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
