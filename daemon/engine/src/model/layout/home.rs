//! Projections of the same input, which a checkpoint has in tensors of their own, or in one.
//!
//! Owns: which rows of which tensor a projection is. Must never: stack them; a device has them stacked either way.

use std::ops::Range;

use super::Layout;
use crate::config::Architecture;
use crate::model::reader::{Piece, Reader};
use crate::scheme::Scheme;

/// Where a projection is in a checkpoint: rows of a module, which other projections may share.
pub(super) struct Home {
    module: String,
    /// Rows of the module.
    height: usize,
    /// The projection's first.
    first: usize,
}

impl<R: Reader> Layout<'_, R> {
    /// Where projections of the same input are, of which each has so many outputs.
    pub(super) fn homes<const N: usize>(
        &self,
        at: &str,
        alone: [&str; N],
        together: &str,
        heights: [usize; N],
    ) -> [Home; N] {
        let are_together = self.config.architecture == Architecture::Phi3;
        let mut above = 0;
        std::array::from_fn(|which| match are_together {
            true => {
                let module = format!("{at}.{together}_proj");
                let first = above;
                above += heights[which];
                Home { module, height: heights.iter().sum(), first }
            }
            false => {
                let module = format!("{at}.{}_proj", alone[which]);
                Home { module, height: heights[which], first: 0 }
            }
        })
    }

    /// Rows of a projection's `weight` or `bias`.
    pub(super) fn rows_of(
        &self,
        home: &Home,
        what: &str,
        tail: &[usize],
        rows: &Range<usize>,
    ) -> Piece {
        let Home { module, height, first } = home;
        let scheme = match what {
            "weight" => self.config.quantization.scheme_of(module),
            _ => Scheme::Plain,
        };
        let shape = [&[*height], tail].concat();
        let rows = first + rows.start..first + rows.end;
        Piece::rows(format!("{module}.{what}"), &shape, rows).stored_by(scheme)
    }
}
