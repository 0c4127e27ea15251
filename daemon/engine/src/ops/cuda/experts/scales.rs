//! Scales of experts of e4m3, as kernels take them.
//!
//! Owns: whether, and how, the scales of a layer's experts can be said by the forms that there are kernels for. Must never:
//! change a scale; what no form can say is refused.
//!
//! Kernels take a scale for each row, or one for eight rows and 128 columns that begin at a multiple of as many of the
//! rank's part, both in the order of slabs: eight rows of the gate, then the same eight of `up`.

use minisgl_kernels::fp8::{BLOCK, ScaleForm};

use super::super::scales::same;
use crate::weights::CodedMatrix;

/// Rows of a slab that have one scale.
const ROWS: usize = 8;

/// The scales of one matrix of all experts.
#[derive(Debug, PartialEq)]
pub(super) struct ExpertScales {
    pub(super) form: ScaleForm,
    /// For each expert as [`minisgl_kernels::ops::expert_scales_len`] says.
    pub(super) values: Vec<f32>,
}

impl ExpertScales {
    /// Of `parts`, `each` an expert: gate and `up`, or `down` alone. Where both forms say the same, the one that they are
    /// stored in.
    ///
    /// # Errors
    /// No form can say them: in words.
    pub(super) fn of(parts: &[CodedMatrix], each: usize) -> Result<ExpertScales, String> {
        let are_rows = parts.iter().all(|part| part.scale_cols == 1);
        let laid = match are_rows {
            true => by_row(parts, each),
            false => by_block(parts, each).or_else(|| by_row(parts, each)),
        };
        laid.ok_or_else(|| {
            let sides = parts.first().map_or((0, 0), |part| (part.block_rows, part.block_cols));
            format!(
                "the scales are for {} x {} weights and lie across the blocks of {ROWS} x {BLOCK} that kernels take: a \
                 rank's part does not end where a block ends, or blocks are too small; load with another --tp, or with \
                 --device cpu",
                sides.0, sides.1
            )
        })
    }
}

/// What `of` says of eight rows at a time of each part, in the order of slabs.
fn by_eight(
    parts: &[CodedMatrix],
    each: usize,
    mut of: impl FnMut(&CodedMatrix, usize) -> Option<()>,
) -> Option<()> {
    for expert in parts.chunks(each.max(1)) {
        for row in (0..expert.first().map_or(0, |part| part.rows)).step_by(ROWS) {
            expert.iter().try_for_each(|part| of(part, row))?;
        }
    }
    Some(())
}

/// A scale for each row, if no row has two.
fn by_row(parts: &[CodedMatrix], each: usize) -> Option<ExpertScales> {
    let mut values = Vec::new();
    by_eight(parts, each, |part, first| {
        for row in first..(first + ROWS).min(part.rows) {
            let at = (part.row_offset + row) / part.block_rows * part.scale_cols;
            values.push(same(part.scales[at..at + part.scale_cols].iter().copied())?);
        }
        Some(())
    })?;
    Some(ExpertScales { form: ScaleForm::Row, values })
}

/// A scale for eight rows and 128 columns, if none of them has two: of both halves of a slab, step by step.
fn by_block(parts: &[CodedMatrix], each: usize) -> Option<ExpertScales> {
    let steps = parts.first().map_or(0, |part| part.cols.div_ceil(BLOCK));
    let padded = steps.next_multiple_of(2);
    let mut halves: Vec<f32> = Vec::new();
    by_eight(parts, each, |part, first| {
        let down = |row: usize| (part.row_offset + row) / part.block_rows;
        let across = |col: usize| (part.col_offset + col) / part.block_cols;
        let last = (first + ROWS).min(part.rows) - 1;
        for left in (0..part.cols).step_by(BLOCK) {
            let right = (left + BLOCK).min(part.cols) - 1;
            let of_row = |row: usize| {
                part.scales[row * part.scale_cols..][across(left)..=across(right)].iter().copied()
            };
            halves.push(same((down(first)..=down(last)).flat_map(of_row))?);
        }
        halves.resize(halves.len() + padded - steps, 0.0);
        Some(())
    })?;
    // Two halves of a slab, each with all its steps, become steps of two halves.
    let of_slab = |slab: &[f32]| -> Vec<f32> {
        (0..2 * padded).map(|at| slab[at % 2 * padded + at / 2]).collect()
    };
    let values = halves.chunks_exact((2 * padded).max(1)).flat_map(of_slab).collect();
    Some(ExpertScales { form: ScaleForm::Block, values })
}

#[cfg(test)]
mod tests {
    use minisgl_kernels::ops::expert_scales_len;

    use super::super::super::scales::part;
    use super::*;

    #[test]
    fn blocks_of_gate_and_up_stand_side_by_side() {
        // Two experts, 136 rows each of gate and up: the last eight have a scale of their own.
        let side = [128, 128];
        let parts = [1.0, 1000.0, 2000.0, 3000.0].map(|base| part([136, 300], side, [0, 0], base));
        let ExpertScales { form, values } = ExpertScales::of(&parts, 2).unwrap();
        assert_eq!(form, ScaleForm::Block);
        assert_eq!(values.len(), 2 * expert_scales_len(form, 272, 300));
        // Three steps, and one that is not there.
        assert_eq!(values[..8], [1.0, 1000.0, 2.0, 1001.0, 3.0, 1002.0, 0.0, 0.0]);
        assert_eq!(values[8..10], [1.0, 1000.0]);
        assert_eq!(values[16 * 8..17 * 8], [101.0, 1100.0, 102.0, 1101.0, 103.0, 1102.0, 0.0, 0.0]);
        assert_eq!(values[17 * 8..][..4], [2000.0, 3000.0, 2001.0, 3001.0]);
    }

    #[test]
    fn blocks_of_down_are_those_of_a_ranks_columns() {
        // The second block of columns and half of the third.
        let parts = [part([32, 192], [128, 128], [0, 0], 5.0)];
        let ExpertScales { form, values } = ExpertScales::of(&parts, 1).unwrap();
        assert_eq!((form, &values[..]), (ScaleForm::Block, &[5.0, 5.0, 6.0, 6.0].repeat(2)[..]));
        // Within a block of the checkpoint no kernel's block may begin.
        let across = [part([32, 192], [128, 128], [0, 64], 5.0)];
        let refused = ExpertScales::of(&across, 1).unwrap_err();
        assert!(refused.contains("128 x 128") && refused.contains("another --tp"), "{refused}");
        let small = [part([32, 192], [64, 64], [0, 0], 5.0)];
        assert!(ExpertScales::of(&small, 1).unwrap_err().contains("64 x 64"));
        // Rows may be cut anywhere.
        let rows = [part([16, 256], [128, 128], [120, 0], 5.0)];
        let values = ExpertScales::of(&rows, 1).unwrap().values;
        assert_eq!(values, [5.0, 105.0, 6.0, 106.0]);
    }

    #[test]
    fn scales_of_channels_and_tensors_are_one_for_a_row() {
        let parts =
            [part([16, 200], [1, 400], [0, 0], 1.0), part([16, 200], [64, 200], [16, 0], 7.0)];
        let ExpertScales { form, values } = ExpertScales::of(&parts, 2).unwrap();
        assert_eq!((form, values.len()), (ScaleForm::Row, expert_scales_len(form, 32, 200)));
        let channel = |row: usize| 1.0 + 100.0 * row as f32;
        let eight = |first: usize| (first..first + 8).map(channel);
        let wanted: Vec<f32> = eight(0).chain([7.0; 8]).chain(eight(8)).chain([7.0; 8]).collect();
        assert_eq!(values, wanted);
    }
}
