//! How a batch of decode tokens is cut into nearly equal shares, one for each block of the kernel.
//!
//! The KV tokens of every (request, key head) are laid end to end, in units of [`UNIT`] tokens, and the
//! line is cut into pieces of equal length: block `b` works on units `b * share .. (b + 1) * share`. A pair
//! that is cut has one chunk in each of several consecutive blocks; the last of them to finish merges the
//! chunks. After the units of a pair come some that nobody works on: either what it costs to
//! begin a pair, or as many as let every pair start at a cut. FlashInfer (Ye et al., MLSys 2025, section 3.3)
//! balances by the same idea with explicit lists of tiles.
//!
//! Owns: the work list's layout. Must never: touch a GPU, or allocate.
//!
//! The work list, i32:
//! - for each block 8: first unit, end of its units, request it starts in, share; and that request's row
//! - for each request 4, its row: first unit, units from one of its pairs to the next, tokens, first page

use crate::LaunchError;

/// KV tokens that are never cut apart.
pub const UNIT: usize = 16;

const BLOCK_WORDS: usize = 8;
const ROW_WORDS: usize = 4;

/// How the kernel is shaped and what is assumed of its costs. Changes results by rounding only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeTuning {
    /// Blocks of a multiprocessor, 1 or 2; none: as many as fit.
    pub blocks: Option<u32>,
    /// Tiles of K and V in each block's shared memory, 2 to 4; none: as many as fit.
    pub stages: Option<u32>,
    /// What beginning and ending a (request, key head) pair costs, in units.
    pub begin: u32,
    /// The least share of a block, in units.
    pub share_min: u32,
}

impl Default for DecodeTuning {
    fn default() -> Self {
        DecodeTuning { blocks: None, stages: None, begin: 2, share_min: 4 }
    }
}

/// Plans for one grid of blocks; see [`super::DecodeAttention::planner`].
#[derive(Clone, Copy, Debug)]
pub struct DecodePlanner {
    kv_heads: u32,
    blocks: u32,
    tuning: DecodeTuning,
}

impl DecodePlanner {
    pub(crate) fn new(kv_heads: u32, blocks: u32, tuning: DecodeTuning) -> DecodePlanner {
        DecodePlanner { kv_heads, blocks, tuning }
    }

    /// Length of the work list for batches of up to `rows` requests.
    pub fn words(&self, rows: usize) -> usize {
        BLOCK_WORDS * self.blocks as usize + ROW_WORDS * rows
    }

    /// Writes the work list of one step.
    ///
    /// `lens` are the KV tokens of each request, the one of this step included; 0 is a request that is not
    /// there, of which nothing is read or written. `page_starts` say where each request's pages begin in the
    /// list of pages (more than `lens.len()` entries are fine). `work` has [`DecodePlanner::words`] of the
    /// rows that the launch has; rows beyond `lens` are padding.
    ///
    /// # Errors
    /// The lengths do not fit together, or the batch has 2^31 units.
    pub fn plan(
        &self,
        lens: &[u32],
        page_starts: &[i32],
        work: &mut [i32],
    ) -> Result<(), LaunchError> {
        let refuse = |what| Err(LaunchError::Argument { op: "decode", what });
        let blocks = self.blocks as usize;
        if work.len() < self.words(lens.len()) || page_starts.len() < lens.len() {
            return refuse(format!(
                "{} requests, {} starts of pages and a work list of {} words for {blocks} blocks",
                lens.len(),
                page_starts.len(),
                work.len(),
            ));
        }
        let heads = u64::from(self.kv_heads);
        let units: u64 = lens.iter().map(|&len| u64::from(units_of(len))).sum();
        let live = lens.iter().filter(|&&len| len > 0).count() as u64;
        let begin = u64::from(self.tuning.begin);
        let even = (heads * (units + live * begin)).div_ceil(u64::from(self.blocks));
        // What nobody works on included, the line is no longer than this.
        let share_max = even.max(u64::from(self.tuning.share_min)) + begin;
        if u64::from(self.blocks) * (share_max + 1) > i32::MAX as u64 {
            return refuse(format!("{units} units of {UNIT} tokens are too many"));
        }
        let even = (even as u32).max(self.tuning.share_min);
        let aligned = self.aligned_share(lens, live, units);
        let (share, aligned) = match aligned {
            Some(share) if share <= even + self.tuning.begin => (share, true),
            _ => (even, false),
        };

        // The rows, then each block's first.
        let (of_blocks, of_rows) = work.split_at_mut(BLOCK_WORDS * blocks);
        of_rows.fill(0);
        let mut at = 0_u32;
        let mut block = 0;
        for (row, (&len, out)) in lens.iter().zip(of_rows.chunks_exact_mut(ROW_WORDS)).enumerate() {
            if len == 0 {
                continue;
            }
            let stride = match aligned {
                true => units_of(len).next_multiple_of(share),
                false => units_of(len) + self.tuning.begin,
            };
            out.copy_from_slice(&[at as i32, stride as i32, len as i32, page_starts[row]]);
            let end = at + stride * self.kv_heads;
            while block * share < end && block < self.blocks {
                let words = &mut of_blocks[BLOCK_WORDS * block as usize..][..BLOCK_WORDS];
                words[..4].copy_from_slice(&[
                    (block * share) as i32,
                    ((block + 1) * share) as i32, // Cut down below.
                    row as i32,
                    share as i32,
                ]);
                words[4..].copy_from_slice(out);
                block += 1;
            }
            at = end;
        }
        if let Some(last) = block.checked_sub(1) {
            of_blocks[BLOCK_WORDS * last as usize + 1] = at as i32;
        }
        of_blocks[BLOCK_WORDS * block as usize..].fill(0);
        Ok(())
    }

    /// The least share with which every pair can start at a cut; none if there are more pairs than blocks.
    fn aligned_share(&self, lens: &[u32], live: u64, units: u64) -> Option<u32> {
        let (heads, blocks) = (u64::from(self.kv_heads), u64::from(self.blocks));
        if live == 0 || live * heads > blocks {
            return None;
        }
        let fits = |share: u32| {
            let chunks: u64 =
                lens.iter().map(|&len| u64::from(units_of(len).div_ceil(share))).sum();
            chunks * heads <= blocks
        };
        // Shares in low.. may fit, high does.
        let mut low = ((heads * units).div_ceil(blocks) as u32).max(self.tuning.share_min);
        let mut high = lens.iter().map(|&len| units_of(len)).max().unwrap_or(1).max(low);
        while low < high {
            let middle = low + (high - low) / 2;
            match fits(middle) {
                true => high = middle,
                false => low = middle + 1,
            }
        }
        Some(high)
    }
}

fn units_of(len: u32) -> u32 {
    len.div_ceil(UNIT as u32)
}

#[cfg(test)]
#[path = "decode_plan_tests.rs"]
mod tests;
