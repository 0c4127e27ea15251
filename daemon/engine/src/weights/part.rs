//! Which part of a tensor a rank wants.

use std::fmt::{self, Display};
use std::ops::Range;

/// Part of a `[rows, cols]` matrix, or of a vector, which has rows only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The whole tensor.
    All,
    /// These rows: a column-parallel projection's share, or a vocabulary-parallel one's.
    Rows(Range<usize>),
    /// These columns of every row: a row-parallel projection's share.
    Cols(Range<usize>),
    /// A matrix that is scattered over the tensor: element `[row, col]` of it is element
    /// `first + row * row_stride + col * col_stride`.
    Strided {
        /// Index of the first element.
        first: usize,
        /// Rows.
        rows: usize,
        /// From a row to the next.
        row_stride: usize,
        /// Columns.
        cols: usize,
        /// From a column to the next.
        col_stride: usize,
    },
}

impl Part {
    /// Elements of this part of a tensor of `shape`.
    pub fn elements(&self, shape: &[usize]) -> u64 {
        let all: u64 = shape.iter().map(|&size| size as u64).product();
        let rows = shape.first().copied().unwrap_or(1).max(1) as u64;
        match self {
            Part::All => all,
            Part::Rows(range) => all / rows * range.len() as u64,
            Part::Cols(range) => rows * range.len() as u64,
            Part::Strided { rows, cols, .. } => *rows as u64 * *cols as u64,
        }
    }
}

impl Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::All => write!(f, "such whole"),
            Part::Rows(range) => write!(f, "rows {}..{}", range.start, range.end),
            Part::Cols(range) => write!(f, "columns {}..{}", range.start, range.end),
            Part::Strided { first, rows, row_stride, cols, col_stride } => write!(
                f,
                "elements {first} + {row_stride} row + {col_stride} column of {rows} rows and {cols} columns"
            ),
        }
    }
}
