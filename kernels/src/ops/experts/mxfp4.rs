//! Weights of experts in MXFP4 as the kernels read them; the kernel is `cu/experts/mxfp4_pack.cu`, the form in `mxfp4.cuh`.

use half::bf16;

use super::weights::{SLAB, STEP};
use super::{ExpertRows, ExpertsShape};
use crate::abi::{Address, Mxfp4PackArgs};
use crate::array::DeviceArray;
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::grid::Grid;
use crate::kernel::Kernel;
use crate::{Array, ArrayMut};

/// Columns that have one scale in a row.
pub(super) const BLOCK: usize = 32;
/// Bytes of the codes of a slab over one step, 16 rows of 64; and of two scales for each row.
const CODE_BYTES: usize = SLAB * STEP / 2;
const SCALE_BYTES: usize = SLAB * STEP / BLOCK;
/// Steps of a slab that lie together, and their bytes.
const QUAD: usize = 4;
pub(super) const QUAD_BYTES: usize = QUAD * (CODE_BYTES + SCALE_BYTES);
/// Steps of a part of `down` at most.
const PART_STEPS: usize = 9;

/// Bytes of so many steps of a slab.
pub(super) fn run_bytes(steps: usize) -> usize {
    steps * CODE_BYTES + steps.div_ceil(QUAD) * QUAD * SCALE_BYTES
}

/// Bytes that gate and up of an expert of `width` (a multiple of 8) take in slabs: those of each expert lie one after the
/// other. 17 bits for 4 numbers, and a little.
pub fn expert_gate_up_mxfp4_len(width: usize, hidden: usize) -> usize {
    2 * width / SLAB * run_bytes(hidden.div_ceil(STEP))
}

/// Bytes that `down` of an expert takes in slabs; `hidden` is a multiple of 16.
pub fn expert_down_mxfp4_len(hidden: usize, width: usize) -> usize {
    let (part, parts) = parts(width);
    let last = width.div_ceil(STEP).saturating_sub((parts - 1) * part);
    hidden / SLAB * ((parts - 1) * run_bytes(part) + run_bytes(last))
}

/// How the columns of `down` are shared out: steps of a part, and parts.
pub(super) fn parts(columns: usize) -> (usize, usize) {
    let steps = columns.div_ceil(STEP).max(1);
    let part = steps.div_ceil(steps.div_ceil(PART_STEPS));
    (part, steps.div_ceil(part))
}

/// The weights of a layer's experts in MXFP4, in slabs; biases as they are.
#[derive(Clone, Copy)]
pub struct ExpertWeightsMxfp4<'a> {
    /// Gate and up, `[experts]` of [`expert_gate_up_mxfp4_len`].
    pub gate_up: Array<'a, u8>,
    /// `[experts]` of [`expert_down_mxfp4_len`].
    pub down: Array<'a, u8>,
    /// `[experts, 2, width]`, gate first.
    pub gate_up_bias: Option<Array<'a, bf16>>,
    /// `[experts, hidden]`.
    pub down_bias: Option<Array<'a, bf16>>,
}

/// Addresses, as [`ExpertWeightsMxfp4`] has them.
pub(super) struct Weights {
    pub(super) gate_up: Address,
    pub(super) down: Address,
    pub(super) gate_up_bias: Address,
    pub(super) down_bias: Address,
}

impl ExpertWeightsMxfp4<'_> {
    pub(super) fn check(
        &self,
        check: &Check<'_>,
        shape: ExpertsShape,
    ) -> Result<Weights, LaunchError> {
        let ExpertsShape { experts, hidden, width, .. } = shape;
        let bias = |name, bias: &Option<Array<'_, bf16>>, len| match bias {
            Some(bias) => check.array(name, bias, &[experts, len]),
            None => Ok(0),
        };
        let gate_up_len = expert_gate_up_mxfp4_len(width, hidden);
        let down_len = expert_down_mxfp4_len(hidden, width);
        Ok(Weights {
            gate_up: check.array("gate_up", &self.gate_up, &[experts, gate_up_len])?,
            down: check.array("down", &self.down, &[experts, down_len])?,
            gate_up_bias: bias("gate_up_bias", &self.gate_up_bias, 2 * width)?,
            down_bias: bias("down_bias", &self.down_bias, hidden)?,
        })
    }
}

/// Puts a matrix of one expert, in codes and scales as gpt-oss stores them, into slabs.
///
/// Runs while a model is loaded. Nothing is lost, but scales of 2^62 and more become infinite.
///
/// A rank's part of an expert may begin in the middle of a block of 32 of its width, since scales are of blocks of the whole
/// matrix. Then `left` columns of zeros go before those of `down`, and as many rows of zeros before those of gate and
/// of up (`above`); the expert is wider by them, for the kernels and for its biases, which are zeros there.
pub struct PackExpertMxfp4<'a> {
    /// Code `[row, column]` is in byte `row * row_bytes + column / 2`, that of an even column in the low bits.
    pub codes: Array<'a, u8>,
    /// Exponents (E8M0): those of row `row` from `row * scales_stride` on, one for every 32 columns. The first is of the
    /// block that begins `left` columns before the first column.
    pub scales: Array<'a, u8>,
    /// The expert's slabs of this matrix, of gate and up together: [`expert_gate_up_mxfp4_len`] or
    /// [`expert_down_mxfp4_len`] bytes.
    pub to: ArrayMut<'a, u8>,
    /// Which of the expert's rows these are. [`ExpertRows::Whole`] is `down`.
    pub rows_are: ExpertRows,
    /// Rows of codes.
    pub rows: usize,
    /// Columns of codes.
    pub columns: usize,
    /// Bytes between rows of codes.
    pub row_bytes: usize,
    /// Exponents between rows of them.
    pub scales_stride: usize,
    /// Rows of zeros before the first.
    pub above: usize,
    /// Columns of zeros before the first, less than 32.
    pub left: usize,
    /// Rows with those of zeros before and after: a multiple of 16 if they are all of the expert's, else of 8.
    pub to_rows: usize,
    /// Columns with those of zeros before and after.
    pub to_columns: usize,
}

impl PackExpertMxfp4<'_> {
    /// Puts the op onto the device's stream.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(self, device: &Device) -> Result<(), LaunchError> {
        let check = Check::new("pack_expert_mxfp4", device);
        let (rows, columns, left) = (self.rows, self.columns, self.left);
        let (to_rows, to_columns) = (self.to_rows, self.to_columns);
        let (rows_are, unit, len) = match self.rows_are {
            ExpertRows::Whole => (0, SLAB, expert_down_mxfp4_len(to_rows, to_columns)),
            ExpertRows::Gate => (1, 8, expert_gate_up_mxfp4_len(to_rows, to_columns)),
            ExpertRows::Up => (2, 8, expert_gate_up_mxfp4_len(to_rows, to_columns)),
            ExpertRows::GateUpByTurns => {
                (3, SLAB, expert_gate_up_mxfp4_len(to_rows / 2, to_columns))
            }
        };
        check.that(left < BLOCK, || format!("left is {left}, it must be less than {BLOCK}"))?;
        check.that(self.above + rows <= self.to_rows, || {
            format!("{} and {rows} rows do not fit into {}", self.above, self.to_rows)
        })?;
        check.that(left + columns <= self.to_columns, || {
            format!("{left} and {columns} columns do not fit into {}", self.to_columns)
        })?;
        let holds = |name: &str, len: usize, stride: usize, each: usize| {
            let needed = rows.saturating_sub(1) * stride + each;
            check.that(rows == 0 || needed <= len, || {
                format!("{name} has {len} elements, {needed} are needed")
            })
        };
        let (codes_len, scales_len) = (self.codes.len(), self.scales.len());
        holds("codes", codes_len, self.row_bytes, columns.div_ceil(2))?;
        holds("scales", scales_len, self.scales_stride, (left + columns).div_ceil(BLOCK))?;
        let threads = self.to_rows * self.to_columns.div_ceil(STEP) * 8;
        check.count("rows * columns", 8 * threads)?;
        let args = Mxfp4PackArgs {
            codes: check.scalars("codes", &self.codes, &[codes_len])?,
            scales: check.scalars("scales", &self.scales, &[scales_len])?,
            to: check.array("to", &self.to, &[len])?,
            row_bytes: self.row_bytes as u64,
            scales_stride: self.scales_stride as u64,
            rows: check.count("rows", rows)?,
            columns: check.count("columns", columns)?,
            above: self.above as u32,
            left: left as u32,
            to_rows: check.multiple("to_rows", self.to_rows, unit)?,
            to_columns: check.multiple("to_columns", self.to_columns, 1)?,
            rows_are,
            in_parts: u32::from(self.rows_are == ExpertRows::Whole),
        };
        // SAFETY: the struct is the kernel's, its arrays were checked above, and every thread that has a row
        // writes within the expert's slabs.
        unsafe { check.launch(Kernel::Mxfp4Pack, Grid::of_threads(threads), &args) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_take_seventeen_bits_for_four_numbers_and_a_little() {
        assert_eq!(8 * QUAD_BYTES, SLAB * QUAD * STEP * 17 / 4);
        let (gate_up, down) = (5760 * 2880 * 17 / 32, 2880 * 2880 * 17 / 32);
        let of_gate_up = expert_gate_up_mxfp4_len(2880, 2880);
        let of_down = expert_down_mxfp4_len(2880, 2880);
        assert!((gate_up..gate_up * 101 / 100).contains(&of_gate_up), "{of_gate_up} {gate_up}");
        assert!((down..down * 103 / 100).contains(&of_down), "{of_down} {down}");
        for columns in 1..3000 {
            let (gate_up, down) =
                (expert_gate_up_mxfp4_len(8, columns), expert_down_mxfp4_len(16, columns));
            // Copies begin and end at multiples of 128.
            assert!(gate_up.is_multiple_of(128) && down.is_multiple_of(128), "{columns}");
        }
    }

    #[test]
    fn parts_are_of_nearly_equal_size() {
        assert_eq!([2880, 1440, 736, 64, 1].map(parts), [(9, 5), (8, 3), (6, 2), (1, 1), (1, 1)]);
        for columns in 1..20_000 {
            let (part, parts) = parts(columns);
            let steps = columns.div_ceil(STEP);
            assert!(part <= PART_STEPS && (parts - 1) * part < steps && steps <= parts * part);
        }
    }
}
