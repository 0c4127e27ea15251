//! The sampler; the kernels are in `cu/sampler/`.

use crate::abi::{Address, HistoryResetArgs, SampleArgs, SampleParams, SampleRow};
use crate::array::DeviceArray;
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::grid::Grid;
use crate::kernel::Kernel;
use crate::{Array, ArrayMut};

/// The kernel ranks a token by 19 bits of its id, and adds up weights of at most 2^40 in 59 bits.
pub const VOCAB_MAX: usize = (1 << 19) - 1;

/// Logits for which another block is worth its cost.
const PART_WORTH: usize = 4096;

/// Threads of a block. With fewer, more blocks fit beside each other and more rows overlap; few rows leave
/// multiprocessors over, and then more are quicker.
const THREADS: usize = 256;
const THREADS_FOR_FEW: usize = 512;
pub(crate) const FEW_ROWS: usize = 8;

/// Bytes of logits a GPU reads in a clock, roughly: the first copies of many rows follow each other so.
const BYTES_PER_CLOCK: usize = 2048;

/// What a GPU offers to the sampler; of several that draw together, what all of them offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CutLimits {
    /// Blocks of the largest cluster; 1 where there are none.
    pub(crate) cluster_max: u32,
    /// Dynamic shared memory of a block.
    pub(crate) shared_bytes_max: u32,
}

impl CutLimits {
    pub(crate) fn of(device: &Device) -> CutLimits {
        let (cluster_max, shared_bytes_max) = (device.cluster_max(), device.shared_bytes_max());
        CutLimits { cluster_max, shared_bytes_max }
    }

    /// What each of `all` offers: a GPU with multiprocessors switched off may have smaller clusters than its like.
    pub(crate) fn least(all: impl IntoIterator<Item = CutLimits>) -> Option<CutLimits> {
        all.into_iter().reduce(|a, b| CutLimits {
            cluster_max: a.cluster_max.min(b.cluster_max),
            shared_bytes_max: a.shared_bytes_max.min(b.shared_bytes_max),
        })
    }
}

/// How a row is cut up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Blocks of a row.
    pub(crate) cluster: u32,
    /// Threads of a block.
    threads: u32,
    /// Logits of a block.
    part: u32,
    /// Clocks between the first copies of neighbouring clusters.
    stagger: u32,
    /// Whether they fit into its memory: that does not depend on the number of rows.
    pub(crate) in_shared: bool,
}

impl Cut {
    /// Of `rows` rows of which a GPU has `columns`, beside those that the other `ranks` have.
    pub(crate) fn new(limits: CutLimits, rows: usize, columns: usize, ranks: usize) -> Cut {
        let most = limits.cluster_max as usize;
        let cluster_of = |rows: usize| {
            // What waits for other GPUs is quicker with more rows at once.
            let fewer = (most / ranks.next_power_of_two()).max(1);
            let most = if rows <= FEW_ROWS { most } else { fewer };
            columns.div_ceil(PART_WORTH).max(1).next_power_of_two().min(most)
        };
        // An odd number of logits a thread: the threads of a warp then hit different banks.
        let part_of = |rows: usize| {
            let threads = if rows <= FEW_ROWS { THREADS_FOR_FEW } else { THREADS };
            (columns.div_ceil(cluster_of(rows)).div_ceil(threads) | 1) * threads
        };
        let longest = part_of(1).max(part_of(FEW_ROWS + 1));
        let threads = if rows <= FEW_ROWS { THREADS_FOR_FEW } else { THREADS };
        let cluster = cluster_of(rows);
        // Blocks alone do not go from row to row.
        let staggered = rows > FEW_ROWS && cluster > 1;
        let stagger = if staggered { (4 * columns / BYTES_PER_CLOCK) as u32 } else { 0 };
        Cut {
            cluster: cluster as u32,
            threads: threads as u32,
            part: part_of(rows) as u32,
            stagger,
            in_shared: longest * size_of::<f32>() <= limits.shared_bytes_max as usize,
        }
    }

    /// For so many clusters.
    pub(crate) fn grid(&self, clusters: u32) -> Grid {
        Grid {
            blocks: (clusters * self.cluster, 1),
            threads: self.threads,
            shared_bytes: if self.in_shared { self.part * size_of::<f32>() as u32 } else { 0 },
            cluster: self.cluster,
        }
    }
}

/// Length of [`Sample::scratch`] for `rows` rows: 0 where a row fits in shared memory.
pub fn sample_scratch_len(device: &Device, rows: usize, vocab: usize, stride: usize) -> usize {
    if Cut::new(CutLimits::of(device), rows, vocab, 1).in_shared { 0 } else { rows * stride }
}

/// Draws one token a row as [`SampleRow`] and its slot's [`SampleParams`] say, writes it to `tokens[row.out]`, and counts it in the row's
/// table of `marks`; a row whose token is given gets its log-probability alone. Given the same logits, the same token as
/// the CPU sampler, to the bit: whole numbers and unfused f32 operations in a fixed order.
///
/// Of a row with a NaN, or without a logit above -inf, the token is -1 and the log-probability, where asked for, NaN;
/// nothing else is written or counted.
///
/// Moves `4 * rows * vocab` bytes; bound by read bandwidth and the arithmetic of the exponentials.
pub struct Sample<'a> {
    /// `[rows]`.
    pub draws: Array<'a, SampleRow>,
    /// `[slots]`, of which there is one at least. A row of a slot past the end has the last one's.
    pub params: Array<'a, SampleParams>,
    /// `[.., vocab / 32]`: words of a bit for each token, the lowest for the first, set where it may be drawn. Where none
    /// that may has a logit above -inf, the token is 0.
    pub masks: Array<'a, u32>,
    /// Entries of all slots, concatenated.
    pub bias_tokens: Array<'a, u32>,
    /// Parallel to `bias_tokens`.
    pub bias_values: Array<'a, f32>,
    /// Tokens that must not be sampled yet, of all slots, concatenated.
    pub banned: Array<'a, u32>,
    /// Token counts, `[tables, vocab]`; see [`HistoryReset`]. Two rows never share a table.
    pub marks: ArrayMut<'a, u32>,
    /// See [`sample_scratch_len`].
    pub scratch: ArrayMut<'a, f32>,
    /// What is sampled; -1 where there is nothing to sample from.
    pub tokens: ArrayMut<'a, i32>,
    /// Log-probability of the sampled or given token under the raw logits, where asked for, `[rows]`.
    pub logprob: ArrayMut<'a, f32>,
    /// Most likely tokens under the raw logits, where asked for, most likely first, `[rows, top_max]`; -1
    /// past the end of the vocabulary. Not written where there is nothing to sample from.
    pub top_tokens: ArrayMut<'a, i32>,
    /// Parallel to `top_tokens`.
    pub top_logprobs: ArrayMut<'a, f32>,
    /// Rows of logits.
    pub rows: usize,
    /// Size of the vocabulary, at most [`VOCAB_MAX`].
    pub vocab: usize,
    /// Most likely tokens that a row can ask for.
    pub top_max: usize,
}

impl Sample<'_> {
    /// Puts the op onto the device's stream. `logits` is `[rows, stride]`, of which the first `vocab` of each row
    /// count; `stride` is a multiple of 4.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(
        self,
        device: &Device,
        logits: Array<'_, f32>,
        stride: usize,
    ) -> Result<(), LaunchError> {
        let check = Check::new("sample", device);
        let (rows, vocab) = (self.rows, self.vocab);
        check
            .that(vocab <= stride, || format!("vocab is {vocab}, at most the stride, {stride}"))?;
        let cut = Cut::new(CutLimits::of(device), rows, vocab, 1);
        let logits = check.array("logits", &logits, &[rows, stride])?;
        let args = self.args(&check, logits, stride, &cut)?;
        let kernel = if cut.in_shared { Kernel::SampleShared } else { Kernel::SampleScratch };
        let mut grid = cut.grid(args.rows);
        // As many clusters as there is room for; they share the rows.
        if cut.cluster > 1 && grid.blocks.0 > device.multiprocessors() {
            let clusters = device.clusters_at_once(kernel, grid).map_err(|source| {
                LaunchError::Driver { op: "sample", shape: format!("{grid:?}"), source }
            })?;
            grid = cut.grid(args.rows.min(clusters.max(1)));
        }
        // SAFETY: the struct is the kernel's, its arrays were checked above, and what a row refers to
        // is checked by the kernel.
        unsafe { check.launch(kernel, grid, &args) }
    }

    /// What the kernels take, of logits `[rows, stride]` that were checked.
    pub(crate) fn args(
        &self,
        check: &Check<'_>,
        logits: Address,
        stride: usize,
        cut: &Cut,
    ) -> Result<SampleArgs, LaunchError> {
        let (rows, vocab) = (self.rows, self.vocab);
        check.that((1..=VOCAB_MAX).contains(&vocab), || {
            format!("vocab is {vocab}, it must be in 1..={VOCAB_MAX}")
        })?;
        let scratch_len = if cut.in_shared { 0 } else { rows * stride };
        let tables = self.marks.len() / vocab;
        let (top, biases) = ([rows, self.top_max], [self.bias_values.len()]);
        let slots = self.params.len();
        check.that(slots > 0, || "there are no slots".to_owned())?;
        let mask_words = vocab.div_ceil(u32::BITS as usize);
        let masks = self.masks.len() / mask_words;
        Ok(SampleArgs {
            logits,
            draws: check.scalars("draws", &self.draws, &[rows])?,
            params: check.scalars("params", &self.params, &[slots])?,
            masks: check.scalars("masks", &self.masks, &[masks, mask_words])?,
            bias_tokens: check.scalars("bias_tokens", &self.bias_tokens, &biases)?,
            bias_values: check.scalars("bias_values", &self.bias_values, &biases)?,
            banned: check.scalars("banned", &self.banned, &[self.banned.len()])?,
            marks: check.scalars("marks", &self.marks, &[tables, vocab])?,
            scratch: check.array("scratch", &self.scratch, &[scratch_len])?,
            tokens: check.scalars("tokens", &self.tokens, &[self.tokens.len()])?,
            logprob: check.scalars("logprob", &self.logprob, &[rows])?,
            top_tokens: check.scalars("top_tokens", &self.top_tokens, &top)?,
            top_logprobs: check.scalars("top_logprobs", &self.top_logprobs, &top)?,
            rows: check.count("rows", rows)?,
            slots: check.count("the number of slots", slots)?,
            vocab: check.count("vocab", vocab)?,
            stride: check.multiple("stride", stride, 4)?,
            tables: check.count("the number of tables", tables)?,
            masks_len: check.count("the number of masks", masks)?,
            tokens_len: check.count("the length of tokens", self.tokens.len())?,
            bias_len: check.count("the length of bias_tokens", self.bias_tokens.len())?,
            banned_len: check.count("the length of banned", self.banned.len())?,
            top_max: check.count("top_max", self.top_max)?,
            part: cut.part,
            stagger: cut.stagger,
        })
    }
}

/// Starts a table of token counts: `tokens` is a request's prompt, then its output so far. Sampling counts
/// on from there.
pub struct HistoryReset<'a> {
    /// Prompt, then output; ids outside the vocabulary are ignored.
    pub tokens: Array<'a, u32>,
    /// One table, `[vocab]`; zeros.
    pub marks: ArrayMut<'a, u32>,
    /// How many of `tokens` are prompt.
    pub prompt_len: usize,
}

impl HistoryReset<'_> {
    /// Puts the op onto the device's stream.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(self, device: &Device) -> Result<(), LaunchError> {
        let check = Check::new("history_reset", device);
        let args = HistoryResetArgs {
            tokens: check.scalars("tokens", &self.tokens, &[self.tokens.len()])?,
            marks: check.scalars("marks", &self.marks, &[self.marks.len()])?,
            len: check.count("the length of tokens", self.tokens.len())?,
            prompt_len: check.count("prompt_len", self.prompt_len)?,
            vocab: check.count("the length of marks", self.marks.len())?,
            reserved: 0,
        };
        let grid = Grid::of_threads(self.tokens.len());
        // SAFETY: the struct is the kernel's, and its arrays were checked above.
        unsafe { check.launch(Kernel::HistoryReset, grid, &args) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_whose_gpus_differ_cut_rows_alike() {
        let whole = CutLimits { cluster_max: 16, shared_bytes_max: 227 << 10 };
        let less = CutLimits { cluster_max: 8, shared_bytes_max: 200 << 10 };
        let agreed = CutLimits::least([whole, less, whole]).unwrap();
        assert_eq!(agreed, less);
        for rows in [1, FEW_ROWS + 1] {
            let alone = [whole, less].map(|limits| Cut::new(limits, rows, 70_000, 2));
            let together = Cut::new(agreed, rows, 70_000, 2);
            assert!(together.cluster <= alone[0].cluster.min(alone[1].cluster));
            assert!(together.cluster <= 8 && together.part * together.cluster >= 70_000);
        }
        // Blocks of a rank that cut its rows by itself would wait for ones that its peer does not have.
        assert_ne!(Cut::new(whole, 1, 70_000, 2), Cut::new(less, 1, 70_000, 2));
        assert_eq!(CutLimits::least([]), None);
    }

    #[test]
    fn the_largest_vocabulary_is_cut_up_on_every_gpu() {
        // Weights add up to less than 2^59, and a token has 19 bits, as in cu/sampler/arithmetic.cuh.
        assert!((VOCAB_MAX as u64) < 1 << 59 >> 40);
        for cluster_max in [1, 8, 16] {
            let limits = CutLimits { cluster_max, shared_bytes_max: 227 << 10 };
            for rows in [1, 9, 300] {
                let cut = Cut::new(limits, rows, VOCAB_MAX, 1);
                assert!(cut.part as usize * cut.cluster as usize >= VOCAB_MAX);
                // A thread adds up no more weights than a 32-bit sum of 20 bits holds.
                assert!(!cut.in_shared || cut.part / cut.threads <= 4095);
            }
        }
    }
}
