//! Scales of coded matrices, as kernels take them.
//!
//! Owns: whether, and how, the scales of a stack of parts can be said by the forms that there are kernels for. Must
//! never: change a scale; what no form can say is refused.
//!
//! Kernels take a scale for each row, or one for 128 rows and 128 columns counted from the matrix' own edges. A
//! checkpoint's blocks are counted from the edges of its tensors, of which a rank has a part and a stack several.

use minisgl_kernels::fp8::{BLOCK, ScaleForm, pad_scales};

use crate::weights::CodedMatrix;

/// The scales of a stack.
#[derive(Debug, PartialEq)]
pub(super) struct Scales {
    pub(super) form: ScaleForm,
    /// As [`minisgl_kernels::fp8::Fp8Scales`] wants them.
    pub(super) values: Vec<f32>,
}

impl Scales {
    /// Of `parts`, stacked, each of `inputs` columns; for `rows` rows at least theirs. Where both forms say the same, the
    /// one that they are stored in.
    ///
    /// # Errors
    /// No form can say them: in words.
    pub(super) fn of(parts: &[CodedMatrix], inputs: usize, rows: usize) -> Result<Scales, String> {
        let are_rows = parts.iter().all(|part| part.scale_cols == 1);
        let laid = match are_rows {
            true => by_row(parts, rows),
            false => by_block(parts, inputs, rows).or_else(|| by_row(parts, rows)),
        };
        laid.ok_or_else(|| {
            let sides = parts.first().map_or((0, 0), |part| (part.block_rows, part.block_cols));
            format!(
                "its scales are for {} x {} weights and lie across the blocks of {BLOCK} x {BLOCK} that kernels take: \
                 a rank's part, or what is stacked before it, does not end where a block ends; load with another --tp, \
                 or with --device cpu",
                sides.0, sides.1
            )
        })
    }
}

/// A scale for each row, if no row has two.
fn by_row(parts: &[CodedMatrix], rows: usize) -> Option<Scales> {
    let mut values = Vec::with_capacity(rows);
    for part in parts {
        for row in 0..part.rows {
            let at = (part.row_offset + row) / part.block_rows * part.scale_cols;
            values.push(same(part.scales[at..at + part.scale_cols].iter().copied())?);
        }
    }
    values.resize(rows, 0.0);
    Some(Scales { form: ScaleForm::Row, values })
}

/// A scale for each 128 x 128, if none of them has two.
fn by_block(parts: &[CodedMatrix], inputs: usize, rows: usize) -> Option<Scales> {
    let filled: usize = parts.iter().map(|part| part.rows).sum();
    let mut dense = Vec::new();
    for top in (0..rows).step_by(BLOCK) {
        let bottom = (top + BLOCK).min(filled);
        for left in (0..inputs).step_by(BLOCK) {
            let right = (left + BLOCK).min(inputs);
            let mut first = 0;
            let mut within = Vec::new();
            for part in parts {
                let (from, to) = (top.max(first), bottom.min(first + part.rows));
                if from < to {
                    let down = |row: usize| (part.row_offset + row - first) / part.block_rows;
                    let across = |col: usize| (part.col_offset + col) / part.block_cols;
                    for row in down(from)..=down(to - 1) {
                        let scales = &part.scales[row * part.scale_cols..][..part.scale_cols];
                        within.extend(&scales[across(left)..=across(right - 1)]);
                    }
                }
                first += part.rows;
            }
            dense.push(if within.is_empty() { 0.0 } else { same(within.into_iter())? });
        }
    }
    Some(Scales { form: ScaleForm::Block, values: pad_scales(&dense, inputs) })
}

/// What all of them are, to the bit.
pub(super) fn same(mut scales: impl Iterator<Item = f32>) -> Option<f32> {
    let first = scales.next()?;
    scales.all(|scale| scale.to_bits() == first.to_bits()).then_some(first)
}

/// A part whose scale of block `(r, c)` is `base + 100 r + c`.
#[cfg(test)]
pub(super) fn part(
    [rows, cols]: [usize; 2],
    [block_rows, block_cols]: [usize; 2],
    [row_offset, col_offset]: [usize; 2],
    base: f32,
) -> CodedMatrix {
    let scale_rows = (row_offset + rows).div_ceil(block_rows);
    let scale_cols = (col_offset + cols).div_ceil(block_cols);
    let scale = |at: usize| base + (at / scale_cols * 100 + at % scale_cols) as f32;
    CodedMatrix {
        code: crate::scheme::Code::E4m3,
        rows,
        cols,
        codes: Vec::new(),
        scales: (0..scale_rows * scale_cols).map(scale).collect(),
        scale_cols,
        block_rows,
        block_cols,
        row_offset,
        col_offset,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(values: &[f32]) -> Scales {
        Scales { form: ScaleForm::Block, values: values.to_vec() }
    }

    #[test]
    fn scales_of_tensors_and_channels_are_spread_over_rows() {
        let stack = [
            part([3, 200], [3, 200], [0, 0], 7.0),
            part([2, 200], [1, 200], [0, 0], 1.0),
            // Rows 5 and 6 of a tensor that others have the beginning of.
            part([2, 200], [9, 200], [5, 0], 4.0),
        ];
        let scales = Scales::of(&stack, 200, 8).unwrap();
        let values = vec![7.0, 7.0, 7.0, 1.0, 101.0, 4.0, 4.0, 0.0];
        assert_eq!(scales, Scales { form: ScaleForm::Row, values });
    }

    #[test]
    fn blocks_that_begin_where_kernels_begin_them_are_kept() {
        let stack = [
            part([256, 300], [128, 128], [0, 0], 1.0),
            // Whole blocks of a larger tensor, then some rows of one.
            part([140, 300], [128, 128], [0, 0], 1000.0),
        ];
        let scales = Scales::of(&stack, 300, 400).unwrap();
        let rows = [[1.0, 2.0, 3.0], [101.0, 102.0, 103.0], [1000.0, 1001.0, 1002.0]];
        let last = [[1100.0, 1101.0, 1102.0]];
        let padded: Vec<f32> =
            rows.iter().chain(&last).flat_map(|row| [row[0], row[1], row[2], 0.0]).collect();
        assert_eq!(scales, blocks(&padded));
    }

    /// Dummies have one scale all over; what is timed with them must be what their model is stored as.
    #[test]
    fn blocks_stay_blocks_though_all_are_the_same() {
        let mut even = part([128, 300], [128, 128], [0, 0], 0.0);
        even.scales.fill(2.0);
        let scales = Scales::of(&[even.clone()], 300, 128).unwrap();
        assert_eq!(scales, blocks(&[2.0, 2.0, 2.0, 0.0]));
        // Where blocks lie across, rows say the same.
        even.row_offset = 64;
        even.scales = vec![2.0, 2.0, 2.0, 3.0, 3.0, 3.0];
        let scales = Scales::of(&[even], 300, 128).unwrap();
        assert_eq!((scales.form, scales.values[63], scales.values[64]), (ScaleForm::Row, 2.0, 3.0));
    }

    #[test]
    fn larger_blocks_are_spread() {
        let stack = [part([256, 512], [256, 256], [0, 0], 5.0)];
        let row = [5.0, 5.0, 6.0, 6.0];
        assert_eq!(Scales::of(&stack, 512, 256).unwrap(), blocks(&[row, row].concat()));
    }

    #[test]
    fn blocks_that_lie_across_are_refused_unless_they_are_the_same() {
        let refused = |stack: &[CodedMatrix], inputs: usize| {
            let rows = stack.iter().map(|part| part.rows).sum();
            Scales::of(stack, inputs, rows).err().unwrap_or_default()
        };
        let whole = |base| part([128, 256], [128, 128], [0, 0], base);
        let shifted = [part([128, 256], [128, 128], [64, 0], 1.0)];
        assert!(refused(&shifted, 256).contains("another --tp"), "{}", refused(&shifted, 256));
        let stacked = [part([64, 256], [128, 128], [0, 0], 1.0), whole(9.0)];
        assert!(refused(&stacked, 256).contains("128 x 128"));
        let narrow = [part([128, 256], [128, 128], [0, 64], 1.0)];
        assert_ne!(refused(&narrow, 256), "");
        assert_ne!(refused(&[part([128, 256], [64, 64], [0, 0], 1.0)], 256), "");
        // The same two numbers all over.
        let even = |mut part: CodedMatrix| {
            let cols = part.scale_cols;
            let scales = part.scales.iter_mut().enumerate();
            scales.for_each(|(at, scale)| *scale = [2.0, 3.0][at % cols]);
            part
        };
        let stacked = stacked.map(even);
        let scales = Scales::of(&stacked, 256, 192).unwrap();
        assert_eq!(scales, blocks(&[2.0, 3.0, 0.0, 0.0, 2.0, 3.0, 0.0, 0.0]));
    }
}
