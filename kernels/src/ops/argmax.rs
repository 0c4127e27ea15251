//! Greedy sampling; the kernel is `cu/argmax/argmax.cu`.

use super::check::Check;
use crate::abi::ArgmaxArgs;
use crate::array::DeviceArray;
use crate::device::{Device, Grid};
use crate::error::LaunchError;
use crate::kernel::Kernel;
use crate::{Array, ArrayMut};

/// Threads of a block.
const THREADS: u32 = 256;

/// Logits a block reads at least: four loads of four for each thread.
const PART: usize = 4 * 4 * THREADS as usize;

/// Zeros before the first launch; every launch leaves zeros behind.
pub struct ArgmaxScratch<'a> {
    /// At least `[rows]`.
    pub best: ArrayMut<'a, u64>,
    /// At least `[rows]`.
    pub done: ArrayMut<'a, u32>,
}

/// `tokens[out_index[r]] = argmax(logits[r])`, exactly, ties to the lowest id. NaN counts as -inf, +inf as
/// the largest finite float. A row with an index that is negative or not in `tokens` is padding.
///
/// f32. Moves `4 * rows * vocab` bytes; bound by read bandwidth.
pub struct Argmax<'a> {
    /// `[rows, stride]`, of which the first `vocab` of each row count.
    pub logits: Array<'a, f32>,
    /// `[rows]`.
    pub out_index: Array<'a, i32>,
    /// What is sampled.
    pub tokens: ArrayMut<'a, i32>,
    /// See there.
    pub scratch: ArgmaxScratch<'a>,
    /// Rows of logits.
    pub rows: usize,
    /// Size of the vocabulary.
    pub vocab: usize,
    /// From one row to the next, a multiple of 4.
    pub stride: usize,
}

impl Argmax<'_> {
    /// Puts the op onto the device's stream.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(self, device: &Device) -> Result<(), LaunchError> {
        let check = Check::new("argmax", device);
        let (rows, vocab, stride) = (self.rows, self.vocab, self.stride);
        check.that((1..=stride).contains(&vocab), || {
            format!("vocab is {vocab}, it must be positive and at most the stride, {stride}")
        })?;
        let scratch = &self.scratch;
        check.that(scratch.best.len().min(scratch.done.len()) >= rows, || {
            format!("the scratch is for fewer than {rows} rows")
        })?;
        let args = ArgmaxArgs {
            logits: check.array("logits", &self.logits, &[rows, stride])?,
            out_index: check.scalars("out_index", &self.out_index, &[rows])?,
            tokens: check.scalars("tokens", &self.tokens, &[self.tokens.len()])?,
            best: check.scalars("best", &scratch.best, &[scratch.best.len()])?,
            done: check.scalars("done", &scratch.done, &[scratch.done.len()])?,
            rows: check.count("rows", rows)?,
            vocab: check.count("vocab", vocab)?,
            stride: check.multiple("stride", stride, 4)?,
            tokens_len: check.count("the length of tokens", self.tokens.len())?,
        };
        // Eight blocks a multiprocessor fill the GPU; more would only cost atomics.
        let room = (8 * device.multiprocessors() as usize).div_ceil(rows.max(1));
        let parts = vocab.div_ceil(PART).min(room) as u32;
        let grid =
            Grid { blocks: (args.rows, parts), threads: THREADS, shared_bytes: 0, cluster: 1 };
        // SAFETY: the struct is the kernel's, and its arrays were checked above.
        unsafe { check.launch(Kernel::Argmax, grid, &args) }
    }
}
