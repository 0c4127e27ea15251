//! Which part of a tensor a rank wants, and copying it out of row-major storage.

use std::fmt::{self, Display};
use std::ops::Range;

use super::WeightError;

/// Part of a `[rows, cols]` matrix, or of a vector, which has rows only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The whole tensor.
    All,
    /// These rows: a column-parallel projection's share, or a vocabulary-parallel one's.
    Rows(Range<usize>),
    /// These columns of every row: a row-parallel projection's share.
    Cols(Range<usize>),
}

impl Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::All => write!(f, "such whole"),
            Part::Rows(range) => write!(f, "rows {}..{}", range.start, range.end),
            Part::Cols(range) => write!(f, "columns {}..{}", range.start, range.end),
        }
    }
}

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

    /// Stretches of consecutive elements of the full tensor, in order.
    fn stretches(&self) -> impl Iterator<Item = Range<usize>> {
        let (start, end) = (self.rows.start * self.width, self.rows.end * self.width);
        let whole = self.cols.len() == self.width;
        let by_row = if whole { 0..0 } else { self.rows.clone() };
        let (width, cols) = (self.width, self.cols.clone());
        whole
            .then_some(start..end)
            .into_iter()
            .chain(by_row.map(move |row| row * width + cols.start..row * width + cols.end))
    }

    /// Copies the window out of a tensor's little-endian bytes, `SIZE` an element.
    pub(super) fn copy<const SIZE: usize, T>(
        &self,
        bytes: &[u8],
        decode: impl Fn([u8; SIZE]) -> T,
    ) -> Vec<T> {
        let (elements, _) = bytes.as_chunks::<SIZE>();
        let mut out = Vec::with_capacity(self.len());
        for stretch in self.stretches() {
            out.extend(elements[stretch].iter().map(|&element| decode(element)));
        }
        out
    }
}
