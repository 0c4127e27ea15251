//! The end of a block with a norm of its own; the kernel is `cu/rmsnorm/add_norm.cu`.

use half::bf16;

use super::HIDDEN_MAX;
use crate::abi::AddNormArgs;
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::grid::Grid;
use crate::kernel::Kernel;
use crate::{Array, ArrayMut};

/// `residual[r] += rms_norm(x[r]) * after`, and, where it is wanted, `normed[r] = rms_norm(residual[r]) * next`.
///
/// bf16, f32 inside. Moves `8 * rows * hidden` bytes; bound by copy bandwidth.
pub struct AddNorm<'a> {
    /// What a block gives, `[rows, hidden]`.
    pub x: Array<'a, bf16>,
    /// Weights of its norm, `[hidden]`.
    pub after: Array<'a, bf16>,
    /// `[rows, hidden]`.
    pub residual: ArrayMut<'a, bf16>,
    /// Weights of the norm of the sum, `[hidden]`, and where that goes, `[rows, hidden]`.
    pub next: Option<(Array<'a, bf16>, ArrayMut<'a, bf16>)>,
    /// Rows.
    pub rows: usize,
    /// Width of the model, a multiple of 8, at most [`HIDDEN_MAX`].
    pub hidden: usize,
    /// Added to mean squares.
    pub eps: f32,
    /// Weights are stored less 1.
    pub plus_one: bool,
}

impl AddNorm<'_> {
    /// Puts the op onto the device's stream.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(self, device: &Device) -> Result<(), LaunchError> {
        let check = Check::new("add_norm", device);
        let (rows, hidden) = (self.rows, self.hidden);
        check.that(hidden <= HIDDEN_MAX, || {
            format!("hidden is {hidden}, the limit is {HIDDEN_MAX}")
        })?;
        let (next, normed) = match &self.next {
            Some((weight, normed)) => (
                check.array("next", weight, &[hidden])?,
                check.array("normed", normed, &[rows, hidden])?,
            ),
            None => (0, 0),
        };
        let args = AddNormArgs {
            x: check.array("x", &self.x, &[rows, hidden])?,
            after: check.array("after", &self.after, &[hidden])?,
            residual: check.array("residual", &self.residual, &[rows, hidden])?,
            next,
            normed,
            rows: check.count("rows", rows)?,
            hidden: check.multiple("hidden", hidden, 8)?,
            eps: self.eps,
            plus_one: u32::from(self.plus_one),
        };
        let vectors = args.hidden / 8;
        let (kernel, per_thread) =
            if vectors <= 1024 { (Kernel::AddNorm1, 1) } else { (Kernel::AddNorm2, 2) };
        let threads = vectors.div_ceil(per_thread).next_multiple_of(32);
        let grid = Grid { blocks: (args.rows, 1), threads, shared_bytes: 0, cluster: 1 };
        // SAFETY: the struct is the kernel's, its arrays were checked above, and the threads of a
        // block hold a whole row.
        unsafe { check.launch(kernel, grid, &args) }
    }
}
