//! SiLU-and-multiply; the kernel is `cu/silu_mul/silu_mul.cu`.

use half::bf16;

use crate::abi::SiluMulArgs;
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::grid::Grid;
use crate::kernel::Kernel;
use crate::{Array, ArrayMut};

/// `out = silu(gate) * up`, the gate of a SwiGLU layer.
///
/// bf16, f32 inside. Moves `6 * rows * width` bytes; bound by copy bandwidth.
pub struct SiluMul<'a> {
    /// Gate, then up, `[rows, 2, width]`.
    pub gate_up: Array<'a, bf16>,
    /// `[rows, width]`.
    pub out: ArrayMut<'a, bf16>,
    /// Tokens.
    pub rows: usize,
    /// Width of the layer on this rank, a multiple of 8.
    pub width: usize,
}

impl SiluMul<'_> {
    /// Puts the op onto the device's stream.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(self, device: &Device) -> Result<(), LaunchError> {
        let check = Check::new("silu_mul", device);
        check.count("rows * width / 8", self.rows * self.width / 8)?;
        let args = SiluMulArgs {
            gate_up: check.array("gate_up", &self.gate_up, &[self.rows, 2, self.width])?,
            out: check.array("out", &self.out, &[self.rows, self.width])?,
            rows: check.count("rows", self.rows)?,
            width: check.multiple("width", self.width, 8)?,
        };
        let grid = Grid::of_threads(self.rows * self.width / 8);
        // SAFETY: the struct is the kernel's, and its arrays were checked above.
        unsafe { check.launch(Kernel::SiluMul, grid, &args) }
    }
}
