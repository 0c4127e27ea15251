//! Weights of experts as the kernels read them; the kernel is `cu/experts/experts_pack.cu`.

use half::bf16;

use crate::abi::PackArgs;
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::grid::Grid;
use crate::kernel::Kernel;
use crate::{Array, ArrayMut};

/// Columns of a step, and rows of a slab.
pub(super) const STEP: usize = 64;
pub(super) const SLAB: usize = 16;
/// Bytes of a slab over one step.
pub(super) const SLAB_STEP_BYTES: usize = SLAB * STEP * 2;

/// Elements that a matrix of `rows` (a multiple of 16) and `columns` takes in slabs: those of each expert lie one after
/// the other. More than `rows * columns` only if 64 does not divide `columns`.
pub fn expert_slabs_len(rows: usize, columns: usize) -> usize {
    rows * columns.next_multiple_of(STEP)
}

/// What the rows of a matrix are among an expert's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertRows {
    /// All rows, as they come: `down`, `[hidden, width]`.
    Whole,
    /// Those of the gate, `[width, hidden]`: every other eight rows of gate and up.
    Gate,
    /// Those of `up`, `[width, hidden]`.
    Up,
    /// Both by turns, gate first, `[2 * width, hidden]`: gpt-oss.
    GateUpByTurns,
}

/// Puts a matrix of one expert into slabs: 16 rows side by side over 64 columns, swizzled as the tensor cores take them.
///
/// bf16, moved as it is. Runs while a model is loaded. A matrix may be transposed (`[columns, rows]` in memory, gpt-oss in
/// bf16): then `column_stride` is its row.
pub struct PackExpert<'a> {
    /// The matrix: element `[row, column]` at `row * row_stride + column * column_stride`.
    pub from: Array<'a, bf16>,
    /// The expert's slabs of this matrix, [`expert_slabs_len`] elements; of gate and up together.
    pub to: ArrayMut<'a, bf16>,
    /// Which of the expert's rows these are.
    pub rows_are: ExpertRows,
    /// Rows of the matrix: a multiple of 16 if they are all of the expert's, else of 8.
    pub rows: usize,
    /// Columns of the matrix.
    pub columns: usize,
    /// Elements between rows.
    pub row_stride: usize,
    /// Elements between columns.
    pub column_stride: usize,
}

impl PackExpert<'_> {
    /// Puts the op onto the device's stream.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(self, device: &Device) -> Result<(), LaunchError> {
        let check = Check::new("pack_expert", device);
        let (rows, columns) = (self.rows, self.columns);
        let (rows_are, unit, expert_rows) = match self.rows_are {
            ExpertRows::Whole => (0, SLAB, rows),
            ExpertRows::Gate => (1, 8, 2 * rows),
            ExpertRows::Up => (2, 8, 2 * rows),
            ExpertRows::GateUpByTurns => (3, SLAB, rows),
        };
        let last = rows.saturating_sub(1) * self.row_stride
            + columns.saturating_sub(1) * self.column_stride;
        let len = crate::array::DeviceArray::len(&self.from);
        check.that(rows * columns == 0 || last < len, || {
            format!("from has {len} elements, its last row and column are at {last}")
        })?;
        let units = columns.div_ceil(STEP) * 8;
        check.count("rows * columns", rows * columns.next_multiple_of(STEP))?;
        let args = PackArgs {
            from: check.scalars("from", &self.from, &[len])?,
            to: check.array("to", &self.to, &[expert_slabs_len(expert_rows, columns)])?,
            row_stride: self.row_stride as u64,
            column_stride: self.column_stride as u64,
            rows: check.multiple("rows", rows, unit)?,
            columns: check.multiple("columns", columns, 1)?,
            rows_are,
            reserved: 0,
        };
        let grid = Grid::of_threads(rows * units);
        // SAFETY: the struct is the kernel's, its arrays were checked above, and every thread that has a row
        // writes within the expert's slabs.
        unsafe { check.launch(Kernel::ExpertsPack, grid, &args) }
    }
}
