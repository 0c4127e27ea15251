//! The end of the block that all rows share; the kernel is `cu/experts/experts_shared.cu`.

use half::bf16;

use crate::abi::AddSharedArgs;
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::grid::Grid;
use crate::kernel::Kernel;
use crate::{Array, ArrayMut};

/// Threads of a block, which has a row.
const THREADS: u32 = 256;

/// `out += sigmoid(x . gate) * y`, row by row.
///
/// bf16, f32 inside, rounded once. Moves `8 * rows * hidden` bytes; bound by copy bandwidth.
pub struct AddShared<'a> {
    /// What the gate looks at, `[rows, hidden]`.
    pub x: Array<'a, bf16>,
    /// `[hidden]`; without it `y` counts whole.
    pub gate: Option<Array<'a, bf16>>,
    /// What the shared block gives, `[rows, hidden]`.
    pub y: Array<'a, bf16>,
    /// `[rows, hidden]`.
    pub out: ArrayMut<'a, bf16>,
    /// Tokens.
    pub rows: usize,
    /// Width of the model, a multiple of 8.
    pub hidden: usize,
}

impl AddShared<'_> {
    /// Puts the op onto the device's stream.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(self, device: &Device) -> Result<(), LaunchError> {
        let check = Check::new("add_shared", device);
        let (rows, hidden) = (self.rows, self.hidden);
        let args = AddSharedArgs {
            x: check.array("x", &self.x, &[rows, hidden])?,
            gate: match &self.gate {
                Some(gate) => check.array("gate", gate, &[hidden])?,
                None => 0,
            },
            y: check.array("y", &self.y, &[rows, hidden])?,
            out: check.array("out", &self.out, &[rows, hidden])?,
            rows: check.count("rows", rows)?,
            hidden: check.multiple("hidden", hidden, 8)?,
        };
        let grid = Grid { blocks: (args.rows, 1), threads: THREADS, shared_bytes: 0, cluster: 1 };
        // SAFETY: the struct is the kernel's, its arrays were checked above, and a block has a row.
        unsafe { check.launch(Kernel::AddShared, grid, &args) }
    }
}
