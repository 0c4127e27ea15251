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
