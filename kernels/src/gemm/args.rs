//! What a product takes, and what it is prepared for.

use half::bf16;

use crate::{Array, ArrayMut};

/// What a product is prepared for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GemmShape {
    /// Rows of x: tokens.
    pub m: usize,
    /// Rows of the weight: outputs.
    pub n: usize,
    /// Columns of both: inputs.
    pub k: usize,
    /// Whether a bias is added.
    pub bias: bool,
    /// What becomes of the result.
    pub kind: GemmKind,
}

/// What becomes of a product's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GemmKind {
    /// bf16, as activations are.
    Bf16,
    /// f32, as logits are.
    F32,
    /// Added to what is there, bf16.
    AddTo,
}

impl GemmKind {
    pub(super) const ALL: [GemmKind; 3] = [GemmKind::Bf16, GemmKind::F32, GemmKind::AddTo];

    /// Its name on disk.
    pub(super) fn name(self) -> &'static str {
        match self {
            GemmKind::Bf16 => "bf16",
            GemmKind::F32 => "f32",
            GemmKind::AddTo => "add",
        }
    }
}

/// Where the result goes.
pub enum GemmOut<'a> {
    /// Activations, `[m, n]`.
    Bf16(ArrayMut<'a, bf16>),
    /// Logits, `[m, n]`.
    F32(ArrayMut<'a, f32>),
    /// The residual stream, `[m, n]`: what is there is added to.
    AddTo(ArrayMut<'a, bf16>),
}

/// Arguments of a product.
pub struct GemmArgs<'a> {
    /// `[m, k]`.
    pub x: Array<'a, bf16>,
    /// `[n, k]`.
    pub weight: Array<'a, bf16>,
    /// `[n]`.
    pub bias: Option<Array<'a, bf16>>,
    /// `[m, n]`.
    pub out: GemmOut<'a>,
    /// Rows of x.
    pub m: usize,
    /// Rows of the weight.
    pub n: usize,
    /// Columns of both.
    pub k: usize,
}

impl GemmArgs<'_> {
    /// What it is tuned for.
    pub fn shape(&self) -> GemmShape {
        let kind = match &self.out {
            GemmOut::Bf16(_) => GemmKind::Bf16,
            GemmOut::F32(_) => GemmKind::F32,
            GemmOut::AddTo(_) => GemmKind::AddTo,
        };
        GemmShape { m: self.m, n: self.n, k: self.k, bias: self.bias.is_some(), kind }
    }
}
