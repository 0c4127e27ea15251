//! What stands between the projections of a feed-forward block; the kernels are `cu/gate_mul`.

use half::bf16;

use super::Gate;
use crate::abi::GateMulArgs;
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::grid::Grid;
use crate::kernel::Kernel;
use crate::{Array, ArrayMut};

/// `out` of the gate and of `up`, as [`Gate`] says.
///
/// bf16, f32 inside. Moves `6 * rows * width` bytes; bound by copy bandwidth.
pub struct GateMul<'a> {
    /// Gate, then up, `[rows, 2, width]`.
    pub gate_up: Array<'a, bf16>,
    /// `[rows, width]`.
    pub out: ArrayMut<'a, bf16>,
    /// Tokens.
    pub rows: usize,
    /// Width of the layer on this rank, a multiple of 8.
    pub width: usize,
    /// Which gate.
    pub gate: Gate,
}

impl GateMul<'_> {
    /// Puts the op onto the device's stream.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(self, device: &Device) -> Result<(), LaunchError> {
        let check = Check::new("gate_mul", device);
        check.count("rows * width / 8", self.rows * self.width / 8)?;
        let args = GateMulArgs {
            gate_up: check.array("gate_up", &self.gate_up, &[self.rows, 2, self.width])?,
            out: check.array("out", &self.out, &[self.rows, self.width])?,
            rows: check.count("rows", self.rows)?,
            width: check.multiple("width", self.width, 8)?,
            gate: self.gate.number(),
            reserved: 0,
        };
        let grid = Grid::of_threads(self.rows * self.width / 8);
        let kernel = if self.gate == Gate::Silu { Kernel::SiluMul } else { Kernel::GateMul };
        // SAFETY: the struct is the kernels', and its arrays were checked above.
        unsafe { check.launch(kernel, grid, &args) }
    }
}
