//! Gathering rows; the kernel is `cu/gather/gather.cu`.

use half::bf16;

use super::check::Check;
use crate::abi::GatherArgs;
use crate::device::{Device, Grid};
use crate::error::LaunchError;
use crate::kernel::Kernel;
use crate::{Array, ArrayMut};

/// `out[r] = x[index[r]]`: the last token of each request, whose logits are wanted. A row with an index
/// that is negative or not in `x` is padding and keeps its output.
///
/// bf16. Moves `4 * rows * hidden` bytes; bound by copy bandwidth.
pub struct Gather<'a> {
    /// `[x_rows, hidden]`.
    pub x: Array<'a, bf16>,
    /// Rows of `x`, `[rows]`.
    pub index: Array<'a, i32>,
    /// `[rows, hidden]`.
    pub out: ArrayMut<'a, bf16>,
    /// Rows gathered.
    pub rows: usize,
    /// Rows there are.
    pub x_rows: usize,
    /// Width of the model, a multiple of 8.
    pub hidden: usize,
}

impl Gather<'_> {
    /// Puts the op onto the device's stream.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(self, device: &Device) -> Result<(), LaunchError> {
        let check = Check::new("gather", device);
        check.count("rows * hidden / 8", self.rows * self.hidden / 8)?;
        let args = GatherArgs {
            x: check.array("x", &self.x, &[self.x_rows, self.hidden])?,
            index: check.scalars("index", &self.index, &[self.rows])?,
            out: check.array("out", &self.out, &[self.rows, self.hidden])?,
            rows: check.count("rows", self.rows)?,
            hidden: check.multiple("hidden", self.hidden, 8)?,
            x_rows: check.count("x_rows", self.x_rows)?,
            reserved: 0,
        };
        let grid = Grid::of_threads(self.rows * self.hidden / 8);
        // SAFETY: the struct is the kernel's, and its arrays were checked above.
        unsafe { check.launch(Kernel::Gather, grid, &args) }
    }
}
