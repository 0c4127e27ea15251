//! Weights of experts in e4m3 as the kernels read them; the form is in `cu/experts/fp8.cuh`.

use half::bf16;

use super::weights::{SLAB, STEP};
use super::{ExpertRows, ExpertsShape};
use crate::abi::{Address, PackArgs};
use crate::array::DeviceArray;
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::fp8::{BLOCK, ScaleForm};
use crate::grid::Grid;
use crate::kernel::Kernel;
use crate::{Array, ArrayMut};

/// Bytes that a matrix of `rows` (a multiple of 16) and `columns` takes in slabs: those of each expert lie one after the
/// other. More than `rows * columns` only if 128 does not divide `columns`.
pub fn expert_slabs_fp8_len(rows: usize, columns: usize) -> usize {
    rows * columns.next_multiple_of(BLOCK)
}

/// Floats that scale such a matrix of one expert.
///
/// [`ScaleForm::Block`]: `[rows / 16, ceil(columns / 128) up to a multiple of 2, 2]`: of 128 columns of a slab's first eight
/// rows, and of its other eight. [`ScaleForm::Row`]: `[rows]`, in the order of slabs: of gate and up every other eight.
pub fn expert_scales_len(form: ScaleForm, rows: usize, columns: usize) -> usize {
    match form {
        ScaleForm::Block => rows / SLAB * columns.div_ceil(BLOCK).next_multiple_of(2) * 2,
        ScaleForm::Row => rows,
    }
}

/// One matrix of all of a layer's experts.
#[derive(Clone, Copy)]
pub struct ExpertMatrixFp8<'a> {
    /// `[experts]` of [`expert_slabs_fp8_len`].
    pub codes: Array<'a, u8>,
    /// `[experts]` of [`expert_scales_len`].
    pub scales: Array<'a, f32>,
    /// How they are laid out.
    pub form: ScaleForm,
}

/// The weights of a layer's experts in e4m3, in slabs; biases as they are.
#[derive(Clone, Copy)]
pub struct ExpertWeightsFp8<'a> {
    /// Gate and up, `2 * width` rows of `hidden` columns.
    pub gate_up: ExpertMatrixFp8<'a>,
    /// `hidden` rows of `width` columns.
    pub down: ExpertMatrixFp8<'a>,
    /// `[experts, 2, width]`, gate first.
    pub gate_up_bias: Option<Array<'a, bf16>>,
    /// `[experts, hidden]`.
    pub down_bias: Option<Array<'a, bf16>>,
}

/// A matrix, as the kernels take it.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    pub(super) codes: Address,
    pub(super) scales: Address,
    pub(super) form: ScaleForm,
    pub(super) bias: Address,
}

impl ExpertWeightsFp8<'_> {
    /// Gate and up, and down.
    pub(super) fn check(
        &self,
        check: &Check<'_>,
        shape: ExpertsShape,
    ) -> Result<[Matrix; 2], LaunchError> {
        let ExpertsShape { experts, hidden, width, .. } = shape;
        let matrix =
            |name, of: &ExpertMatrixFp8<'_>, bias: &Option<Array<'_, bf16>>, rows, columns| {
                let codes = [experts, expert_slabs_fp8_len(rows, columns)];
                let scales = [experts, expert_scales_len(of.form, rows, columns)];
                Ok(Matrix {
                    codes: check.array(name, &of.codes, &codes)?,
                    scales: check.array("scales of experts", &of.scales, &scales)?,
                    form: of.form,
                    bias: match bias {
                        Some(bias) => check.array("bias of experts", bias, &[experts, rows])?,
                        None => 0,
                    },
                })
            };
        Ok([
            matrix("gate_up", &self.gate_up, &self.gate_up_bias, 2 * width, hidden)?,
            matrix("down", &self.down, &self.down_bias, hidden, width)?,
        ])
    }
}

/// Puts the codes of a matrix of one expert into slabs, as they are. Runs while a model is loaded.
pub struct PackExpertFp8<'a> {
    /// `[rows, columns]`.
    pub from: Array<'a, u8>,
    /// The expert's slabs of this matrix, [`expert_slabs_fp8_len`] bytes; of gate and up together.
    pub to: ArrayMut<'a, u8>,
    /// Which of the expert's rows these are.
    pub rows_are: ExpertRows,
    /// Rows of the matrix: a multiple of 16 if they are all of the expert's, else of 8.
    pub rows: usize,
    /// Columns of the matrix, a multiple of 2.
    pub columns: usize,
}

impl PackExpertFp8<'_> {
    /// Puts the op onto the device's stream.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(self, device: &Device) -> Result<(), LaunchError> {
        let check = Check::new("pack_expert_fp8", device);
        let (rows, columns) = (self.rows, self.columns);
        let (rows_are, unit, expert_rows) = match self.rows_are {
            ExpertRows::Whole => (0, SLAB, rows),
            ExpertRows::Gate => (1, 8, 2 * rows),
            ExpertRows::Up => (2, 8, 2 * rows),
            ExpertRows::GateUpByTurns => (3, SLAB, rows),
        };
        check.multiple("columns", columns, 2)?;
        let len = self.from.len();
        check.that(len == rows * columns, || {
            format!("from has {len} codes, it must have {rows} x {columns}")
        })?;
        // Two codes are moved as one value of 16 bits is.
        let pairs = columns / 2;
        let units = pairs.div_ceil(STEP) * 8;
        check.count("rows * columns", rows * columns.next_multiple_of(BLOCK))?;
        let args = PackArgs {
            from: check.array("from", &self.from, &[len])?,
            to: check.array("to", &self.to, &[expert_slabs_fp8_len(expert_rows, columns)])?,
            row_stride: pairs as u64,
            column_stride: 1,
            rows: check.multiple("rows", rows, unit)?,
            columns: check.multiple("columns", pairs, 1)?,
            rows_are,
            reserved: 0,
        };
        let grid = Grid::of_threads(rows * units);
        // SAFETY: the struct is the kernel's, its arrays were checked above, and every thread that has a row
        // writes within the expert's slabs.
        unsafe { check.launch(Kernel::ExpertsPack, grid, &args) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_take_a_byte_each_and_scales_little() {
        assert_eq!(expert_slabs_fp8_len(1536, 2048), 1536 * 2048);
        assert_eq!(expert_slabs_fp8_len(16, 130), 16 * 256);
        assert_eq!(expert_scales_len(ScaleForm::Block, 1536, 2048), 96 * 16 * 2);
        // Steps in twos: copies of scales begin at multiples of 16 bytes.
        assert_eq!(expert_scales_len(ScaleForm::Block, 32, 300), 2 * 4 * 2);
        assert_eq!(expert_scales_len(ScaleForm::Row, 1536, 2048), 1536);
    }
}
