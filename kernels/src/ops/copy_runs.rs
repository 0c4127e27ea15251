//! Runs of integers copied to other places; the kernel is `cu/runs/copy_runs.cu`.

use crate::abi::CopyRunsArgs;
use crate::array::DeviceArray;
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::grid::Grid;
use crate::kernel::Kernel;
use crate::{Array, ArrayMut};

/// `to[r.to + i] = from[r.from + i]` for `i < r.len`, for every run `r`. Of a run that leaves an array nothing is copied.
///
/// Moves 8 bytes a word; bound by latency: a run has one block.
pub struct CopyRuns<'a> {
    /// `[count, 4]`: where a run begins in `from`, where in `to`, its length, and a word that is not read. No two write to the
    /// same place.
    pub runs: Array<'a, i32>,
    /// What is copied.
    pub from: Array<'a, i32>,
    /// Where it goes.
    pub to: ArrayMut<'a, i32>,
    /// Runs.
    pub count: usize,
}

impl CopyRuns<'_> {
    /// Words of a run in `runs`.
    pub const RUN_WORDS: usize = 4;

    /// Puts the op onto the device's stream.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(self, device: &Device) -> Result<(), LaunchError> {
        let check = Check::new("copy_runs", device);
        let count = check.count("count", self.count)?;
        let args = CopyRunsArgs {
            runs: check.array("runs", &self.runs, &[self.count, CopyRuns::RUN_WORDS])?,
            from: check.scalars("from", &self.from, &[self.from.len()])?,
            to: check.scalars("to", &self.to, &[self.to.len()])?,
            from_len: check.count("the length of from", self.from.len())?,
            to_len: check.count("the length of to", self.to.len())?,
        };
        let grid = Grid { blocks: (count, 1), threads: 256, shared_bytes: 0, cluster: 1 };
        // SAFETY: the struct is the kernel's, and its arrays were checked above.
        unsafe { check.launch(Kernel::CopyRuns, grid, &args) }
    }
}
