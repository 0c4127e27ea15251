//! What changes with a step, from the host in one launch; the kernel is `cu/runs/bring.cu`.

use crate::abi::BringArgs;
use crate::array::DeviceArray;
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::grid::Grid;
use crate::kernel::Kernel;
use crate::{Array, ArrayMut};

/// `to[i] = words[i]`, and `table[pairs[2 j]] = pairs[2 j + 1]` for every pair; one that is not in the table is left out.
///
/// `words` and `pairs` may be pinned memory of the host at the address that the GPU has for it. Moves 4 bytes a word and 8 a
/// pair; bound by the latency of reading them. Kernels that are launched behind it start when all is written.
pub struct Bring<'a> {
    /// A positive multiple of [`Bring::UNIT`] of them.
    pub words: Array<'a, i32>,
    /// As many.
    pub to: ArrayMut<'a, i32>,
    /// `[count, 2]`: an entry of `table`, and what it becomes. No two name the same entry.
    pub pairs: Array<'a, i32>,
    /// The table.
    pub table: ArrayMut<'a, i32>,
}

impl Bring<'_> {
    /// Words come in multiples of this.
    pub const UNIT: usize = 4;

    /// Puts the op onto the device's stream.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(self, device: &Device) -> Result<(), LaunchError> {
        let check = Check::new("bring", device);
        let (words, pairs) = (self.words.len(), self.pairs.len() / 2);
        let args = BringArgs {
            words: check.array("words", &self.words, &[words])?,
            to: check.array("to", &self.to, &[words])?,
            pairs: check.array("pairs", &self.pairs, &[pairs, 2])?,
            table: check.scalars("table", &self.table, &[self.table.len()])?,
            words_len: check.multiple("the number of words", words, Bring::UNIT)?,
            pairs_len: check.count("the number of pairs", pairs)?,
            table_len: check.count("the length of the table", self.table.len())?,
            reserved: 0,
        };
        let grid = Grid::of_threads(words / Bring::UNIT + pairs);
        // SAFETY: the struct is the kernel's, and its arrays were checked above.
        unsafe { check.launch(Kernel::Bring, grid, &args) }
    }
}
