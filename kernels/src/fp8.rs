//! Weights and activations of 8 bits: e4m3 with scales they are multiplied by.
//!
//! Owns: how scales are laid out, once for our own kernels and cuBLASLt.

use crate::Array;
use crate::abi::Address;
use crate::check::Check;
use crate::error::LaunchError;

/// Rows and columns of a block that share a scale.
pub const BLOCK: usize = 128;

/// Scales of a row of blocks lie in whole units of this many: cuBLASLt wants it so.
const SCALE_UNIT: usize = 4;

/// A weight of e4m3, `[n, k]`.
#[derive(Clone, Copy)]
pub struct Fp8Weight<'a> {
    /// One byte an element, row-major.
    pub data: Array<'a, u8>,
    /// What the elements are multiplied by.
    pub scales: Fp8Scales<'a>,
}

/// Scales of a weight of e4m3; an element times its scale is the value.
#[derive(Clone, Copy)]
pub enum Fp8Scales<'a> {
    /// One for 128 rows and 128 columns, `[ceil(n / 128), scale_stride(k)]`.
    Block(Array<'a, f32>),
    /// One for a row, `[n]`. A scale of the whole tensor is the same for all rows.
    Row(Array<'a, f32>),
}

/// How scales are laid out, without them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ScaleForm {
    /// One for 128 rows and 128 columns of a weight, or for 128 columns of a token.
    Block,
    /// One for a row of a weight, or for a token.
    Row,
}

/// Floats from one row of block scales to the next, for a weight of `k` columns: as many as there are blocks, rounded
/// up to four. What the last of them are does not matter.
pub fn scale_stride(k: usize) -> usize {
    k.div_ceil(BLOCK).next_multiple_of(SCALE_UNIT)
}

/// Block scales as a checkpoint has them, dense `[ceil(n / 128), ceil(k / 128)]`, as [`Fp8Scales::Block`] wants them.
///
/// # Panics
/// If `dense` does not have whole rows.
pub fn pad_scales(dense: &[f32], k: usize) -> Vec<f32> {
    let (blocks, stride) = (k.div_ceil(BLOCK), scale_stride(k));
    assert!(blocks > 0 && dense.len().is_multiple_of(blocks), "rows of {blocks} scales");
    let mut padded = vec![0.0; dense.len() / blocks * stride];
    for (to, from) in padded.chunks_exact_mut(stride).zip(dense.chunks_exact(blocks)) {
        to[..blocks].copy_from_slice(from);
    }
    padded
}

impl ScaleForm {
    /// `MINISGL_SCALE_` of the header.
    pub(crate) fn code(self) -> u32 {
        match self {
            ScaleForm::Block => 0,
            ScaleForm::Row => 1,
        }
    }
}

impl Fp8Weight<'_> {
    /// How its scales are laid out.
    pub fn form(&self) -> ScaleForm {
        match self.scales {
            Fp8Scales::Block(_) => ScaleForm::Block,
            Fp8Scales::Row(_) => ScaleForm::Row,
        }
    }

    /// The addresses of the elements and of the scales.
    pub(crate) fn check(
        &self,
        check: &Check<'_>,
        n: usize,
        k: usize,
    ) -> Result<(Address, Address), LaunchError> {
        check.multiple("k of a weight of e4m3", k, 16)?;
        let data = check.array("weight", &self.data, &[n, k])?;
        let scales = match &self.scales {
            Fp8Scales::Block(scales) => {
                check.array("block scales", scales, &[n.div_ceil(BLOCK), scale_stride(k)])?
            }
            Fp8Scales::Row(scales) => check.array("row scales", scales, &[n])?,
        };
        Ok((data, scales))
    }
}

/// Activations of e4m3 with scales.
#[derive(Clone, Copy)]
pub struct Fp8Rows<'a> {
    /// `[m, k]`.
    pub data: Array<'a, u8>,
    /// [`ScaleForm::Block`]: `[ceil(k / 128), m]`; [`ScaleForm::Row`]: `[m]`.
    pub scales: Array<'a, f32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_scales_are_whole_units() {
        for (k, stride) in [(16, 4), (128, 4), (512, 4), (528, 8), (4096, 32), (12_288, 96)] {
            assert_eq!(scale_stride(k), stride, "{k}");
        }
        let dense = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0];
        let padded = pad_scales(&dense, 5 * BLOCK);
        assert_eq!(padded.len(), 16);
        assert_eq!((padded[4], padded[8], padded[12]), (5.0, 6.0, 10.0));
        assert_eq!(pad_scales(&dense[..8], 4 * BLOCK), dense[..8]);
    }
}
