//! RMSNorm; the kernel is `cu/rmsnorm/rmsnorm.cu`.

use half::bf16;

use crate::abi::RmsNormArgs;
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::grid::Grid;
use crate::kernel::Kernel;
use crate::{Array, ArrayMut};

/// A row is held in the registers of one block: two vectors of 8 for each of 1,024 threads.
pub const HIDDEN_MAX: usize = 16_384;

/// `out[r] = s * rsqrt(mean(s^2) + eps) * weight`, where `s` is `x[r]`, or `x[index[r]]`: the last token of each
/// request, whose logits are wanted. A row with an index that is negative or not in `x` is padding and keeps
/// its output.
///
/// bf16, f32 inside. Moves `4 * rows * hidden` bytes; bound by copy bandwidth.
pub struct RmsNorm<'a> {
    /// `[x_rows, hidden]`.
    pub x: Array<'a, bf16>,
    /// Rows of `x`, `[rows]`; without it the first rows.
    pub index: Option<Array<'a, i32>>,
    /// `[hidden]`.
    pub weight: Array<'a, bf16>,
    /// `[rows, hidden]`.
    pub out: ArrayMut<'a, bf16>,
    /// Rows normalised.
    pub rows: usize,
    /// Rows there are, at least `rows` without an index.
    pub x_rows: usize,
    /// Width of the model, a multiple of 8, at most [`HIDDEN_MAX`].
    pub hidden: usize,
    /// Added to the mean square.
    pub eps: f32,
    /// The weight is stored less 1.
    pub plus_one: bool,
}

impl RmsNorm<'_> {
    /// Puts the op onto the device's stream.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(self, device: &Device) -> Result<(), LaunchError> {
        let check = Check::new("rmsnorm", device);
        let (rows, hidden) = (self.rows, self.hidden);
        check.that(hidden <= HIDDEN_MAX, || {
            format!("hidden is {hidden}, the limit is {HIDDEN_MAX}")
        })?;
        let index = match &self.index {
            Some(index) => check.scalars("index", index, &[rows])?,
            None => {
                check.that(rows <= self.x_rows, || {
                    format!("{rows} rows of {} are wanted", self.x_rows)
                })?;
                0
            }
        };
        let args = RmsNormArgs {
            x: check.array("x", &self.x, &[self.x_rows, hidden])?,
            index,
            weight: check.array("weight", &self.weight, &[hidden])?,
            out: check.array("out", &self.out, &[rows, hidden])?,
            rows: check.count("rows", rows)?,
            x_rows: check.count("x_rows", self.x_rows)?,
            hidden: check.multiple("hidden", hidden, 8)?,
            eps: self.eps,
        };
        let vectors = args.hidden / 8;
        let (kernel, per_thread) = match (vectors <= 1024, self.plus_one) {
            (true, false) => (Kernel::RmsNorm1, 1),
            (false, false) => (Kernel::RmsNorm2, 2),
            (true, true) => (Kernel::RmsNorm1PlusOne, 1),
            (false, true) => (Kernel::RmsNorm2PlusOne, 2),
        };
        let threads = vectors.div_ceil(per_thread).next_multiple_of(32);
        let grid = Grid { blocks: (args.rows, 1), threads, shared_bytes: 0, cluster: 1 };
        // SAFETY: the struct is the kernel's, its arrays were checked above, and the threads of a
        // block hold a whole row.
        unsafe { check.launch(kernel, grid, &args) }
    }
}
