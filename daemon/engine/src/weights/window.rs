//! Where the elements of a part are in row-major storage.

use std::ops::Range;

use super::{Part, WeightError};

/// A part with its bounds checked: element `[row, col]` is element `first + row * row_stride + col * col_stride` of
/// the tensor. A vector is a matrix of one column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) first: usize,
    pub(super) rows: usize,
    pub(super) row_stride: usize,
    pub(super) cols: usize,
    pub(super) col_stride: usize,
}

impl Window {
    /// A vector of `len`.
    pub(super) fn vector(len: usize) -> Window {
        Window { first: 0, rows: len, row_stride: 1, cols: 1, col_stride: 1 }
    }

    /// # Errors
    /// `BadPart`: out of bounds, reversed, columns of a vector, or rows or columns of more than two dimensions.
    pub(super) fn new(name: &str, shape: &[usize], part: &Part) -> Result<Window, WeightError> {
        let bad = || WeightError::BadPart {
            name: name.to_owned(),
            shape: shape.to_vec(),
            part: part.clone(),
        };
        let (height, width) = match *shape {
            [height] => (height, 1),
            [height, ref rest @ ..] => (height, rest.iter().product()),
            [] => return Err(bad()),
        };
        let is_flat = shape.len() <= 2;
        let within = |range: &Range<usize>, size| range.start <= range.end && range.end <= size;
        let of = |rows: Range<usize>, cols: Range<usize>| Window {
            first: rows.start * width + cols.start,
            rows: rows.len(),
            row_stride: width,
            cols: cols.len(),
            col_stride: 1,
        };
        match part.clone() {
            Part::All => Ok(of(0..height, 0..width)),
            Part::Rows(rows) if is_flat && within(&rows, height) => Ok(of(rows, 0..width)),
            Part::Cols(cols) if shape.len() == 2 && within(&cols, width) => Ok(of(0..height, cols)),
            Part::Strided { first, rows, row_stride, cols, col_stride } => {
                let window = Window { first, rows, row_stride, cols, col_stride };
                let last =
                    |count: usize, stride: usize| count.saturating_sub(1).checked_mul(stride);
                let end = last(rows, row_stride)
                    .zip(last(cols, col_stride))
                    .and_then(|(rows, cols)| first.checked_add(rows)?.checked_add(cols));
                let fits = end.is_some_and(|end| end < height * width);
                if fits || window.len() == 0 { Ok(window) } else { Err(bad()) }
            }
            _ => Err(bad()),
        }
    }

    /// Elements in it.
    pub(super) fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether a row's elements are neighbours.
    pub(super) fn has_runs(&self) -> bool {
        self.col_stride == 1
    }

    /// Stretches of consecutive elements of the full tensor that make up elements `range` of the window,
    /// in order.
    pub(super) fn stretches(
        &self,
        range: Range<usize>,
    ) -> impl Iterator<Item = Range<usize>> + use<> {
        let Window { first, row_stride, cols, col_stride, .. } = *self;
        // Where rows follow each other without a gap, they are one stretch.
        let run = match self.has_runs() {
            true if cols == row_stride => self.len(),
            true => cols,
            false => 1,
        };
        let mut at = range.start;
        std::iter::from_fn(move || {
            if at >= range.end {
                return None;
            }
            let (row, col) = (at / cols, at % cols);
            let start = first + row * row_stride + col * col_stride;
            let len = (run - at % run).min(range.end - at);
            at += len;
            Some(start..start + len)
        })
    }
}
