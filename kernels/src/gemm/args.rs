//! What a product takes, and what it is prepared for.

use half::bf16;

use crate::fp8::{Fp8Rows, Fp8Weight, ScaleForm};
use crate::ops::{
    BroadCut, BroadGemm, Fp8Product, NarrowGemm, SkinnyGemm, SkinnyInput, SkinnyOut, SkinnyWeight,
};
use crate::{Array, ArrayMut, Device, LaunchError};

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
    /// What x and the weight are made of.
    pub element: GemmElement,
}

/// What both operands of a product are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GemmElement {
    /// bf16.
    Bf16,
    /// e4m3 with scales.
    Fp8(ScaleForm),
}

impl GemmElement {
    pub(super) const ALL: [GemmElement; 3] =
        [GemmElement::Bf16, GemmElement::Fp8(ScaleForm::Block), GemmElement::Fp8(ScaleForm::Row)];

    /// Its name on disk.
    pub(super) fn name(self) -> &'static str {
        match self {
            GemmElement::Bf16 => "bf16",
            GemmElement::Fp8(ScaleForm::Block) => "fp8-block",
            GemmElement::Fp8(ScaleForm::Row) => "fp8-row",
        }
    }
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

/// Arguments of a product of e4m3: a type of its own, so that neither can be taken for the other.
pub struct Fp8GemmArgs<'a> {
    /// What [`Quantise`](crate::ops::Quantise) made.
    pub x: Fp8Rows<'a>,
    /// `[n, k]`, with scales in the form of those of x.
    pub weight: Fp8Weight<'a>,
    /// `[n]`.
    pub bias: Option<Array<'a, bf16>>,
    /// `[m, n]`.
    pub out: GemmOut<'a>,
    /// Rows of x; with scales for blocks a multiple of 4.
    pub m: usize,
    /// Rows of the weight.
    pub n: usize,
    /// Columns of both, a multiple of 16.
    pub k: usize,
}

impl GemmOut<'_> {
    fn kind(&self) -> GemmKind {
        match self {
            GemmOut::Bf16(_) => GemmKind::Bf16,
            GemmOut::F32(_) => GemmKind::F32,
            GemmOut::AddTo(_) => GemmKind::AddTo,
        }
    }

    /// For few rows.
    fn skinny<'b>(&'b mut self, bias: Option<Array<'b, bf16>>) -> SkinnyOut<'b> {
        match self {
            GemmOut::Bf16(out) => SkinnyOut::Bf16 { out: out.reborrow(), bias },
            GemmOut::F32(out) => SkinnyOut::F32(out.reborrow()),
            GemmOut::AddTo(out) => SkinnyOut::AddTo { residual: out.reborrow(), bias },
        }
    }
}

impl Fp8GemmArgs<'_> {
    /// What it is tuned for.
    pub fn shape(&self) -> GemmShape {
        let element = GemmElement::Fp8(self.weight.form());
        let bias = self.bias.is_some();
        GemmShape { m: self.m, n: self.n, k: self.k, bias, kind: self.out.kind(), element }
    }

    /// Computes the same with another weight by [`NarrowGemm`].
    pub(super) fn narrow(
        &mut self,
        device: &Device,
        weight: Fp8Weight<'_>,
    ) -> Result<(), LaunchError> {
        let (x, m, n, k) = (self.x, self.m, self.n, self.k);
        NarrowGemm { x, weight, out: self.out.skinny(self.bias), m, n, k }.launch(device)
    }

    /// Computes the same with another weight by [`BroadGemm`].
    pub(super) fn broad(
        &mut self,
        device: &Device,
        cut: BroadCut,
        weight: Fp8Weight<'_>,
    ) -> Result<(), LaunchError> {
        let (x, m, n, k) = (self.x, self.m, self.n, self.k);
        BroadGemm { x, weight, out: self.out.skinny(self.bias), m, n, k }.launch(device, cut)
    }

    /// Computes the same from x as bf16 with another weight, by one of our own kernels.
    pub(super) fn own(
        &mut self,
        device: &Device,
        product: Fp8Product,
        x: Array<'_, bf16>,
        weight: Fp8Weight<'_>,
    ) -> Result<(), LaunchError> {
        let shape = [self.m, self.n, self.k];
        product.launch(device, x, weight, self.out.skinny(self.bias), shape)
    }
}

impl GemmArgs<'_> {
    /// What it is tuned for.
    pub fn shape(&self) -> GemmShape {
        let (bias, kind) = (self.bias.is_some(), self.out.kind());
        GemmShape { m: self.m, n: self.n, k: self.k, bias, kind, element: GemmElement::Bf16 }
    }

    /// The same product with another weight, for few rows.
    pub(super) fn skinny<'b>(&'b mut self, weight: Array<'b, bf16>) -> SkinnyGemm<'b> {
        let out = self.out.skinny(self.bias);
        let input = SkinnyInput::Plain(self.x);
        let weight = SkinnyWeight::Bf16(weight);
        SkinnyGemm { input, weight, out, m: self.m, n: self.n, k: self.k }
    }
}
