//! Where the elements of a part are in row-major storage.

use std::ops::Range;

use super::{Part, WeightError};

/// A part with its bounds checked. A vector is a matrix of one column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// Columns of the full tensor: the row stride, in elements.
    pub(super) width: usize,
    pub(super) rows: Range<usize>,
    pub(super) cols: Range<usize>,
}

impl Window {
    /// # Errors
    /// `BadPart`: out of bounds, reversed, columns of a vector, or more than two dimensions.
    pub(super) fn new(name: &str, shape: &[usize], part: &Part) -> Result<Window, WeightError> {
        let bad = || WeightError::BadPart {
            name: name.to_owned(),
            shape: shape.to_vec(),
            part: part.clone(),
        };
        let (height, width) = match *shape {
            [height] => (height, 1),
            [height, width] => (height, width),
            _ => return Err(bad()),
        };
        let (rows, cols) = match part.clone() {
            Part::All => (0..height, 0..width),
            Part::Rows(rows) => (rows, 0..width),
            Part::Cols(cols) if shape.len() == 2 => (0..height, cols),
            Part::Cols(_) => return Err(bad()),
        };
        let within = |range: &Range<usize>, size| range.start <= range.end && range.end <= size;
        if !within(&rows, height) || !within(&cols, width) {
            return Err(bad());
        }
        Ok(Window { width, rows, cols })
    }

    /// Elements in it.
    pub(super) fn len(&self) -> usize {
        self.rows.len() * self.cols.len()
    }

    /// Stretches of consecutive elements of the full tensor that make up elements `range` of the window,
    /// in order.
    pub(super) fn stretches(&self, range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let (first_row, width, cols) = (self.rows.start, self.width, self.cols.clone());
        // Where the window is as wide as the tensor, its rows are one stretch.
        let whole = cols.len() == width;
        let run = if whole { self.len() } else { cols.len() };
        let mut at = range.start;
        std::iter::from_fn(move || {
            if at >= range.end {
                return None;
            }
            let (row, col) = (at / run, at % run);
            let start = (first_row + row) * width + cols.start + col;
            let len = (run - col).min(range.end - at);
            at += len;
            Some(start..start + len)
        })
    }
}
