//! Products with weights, and what is fused with them.
//!
//! Owns: for how many rows a product is run, and by what; `fp8.rs` has those with weights of e4m3. Must never: choose an algorithm after loading.

use std::collections::BTreeSet;

use cudarc::driver::{CudaSlice, CudaViewMut};
use half::bf16;
use minisgl_kernels::Array;
use minisgl_kernels::gemm::{GemmArgs, GemmOut};
use minisgl_kernels::ops::{Fp8Gemv, Fp8Product, Gate, SkinnyGemm, SkinnyInput, SkinnyOut};
use minisgl_kernels::peers::Inboxes;

use super::memory::{Data, GRAPH_ROWS};
use super::{Buffer, CudaOps, failed};
use crate::ops::{Linear, Norm, OpResult, Stream};

/// As many rows as a product is run for: few enough different numbers that each is prepared at load.
/// Rows past the batch hold what earlier steps left there, and nothing reads what comes of them.
pub(super) fn gemm_rows(rows: usize, room: usize) -> usize {
    let rounded = match rows {
        0..=16 => rows.next_power_of_two(),
        17..=256 => rows.next_multiple_of(16),
        _ => rows.next_multiple_of(64),
    };
    rounded.min(room)
}

/// Decode steps after which every graph of up to `rows_max` rows is recorded, by their rows.
pub fn decode_rows(rows_max: usize) -> Vec<usize> {
    let rows_max = rows_max.min(GRAPH_ROWS);
    let all: BTreeSet<usize> = (1..=rows_max).map(|rows| gemm_rows(rows, rows_max)).collect();
    all.into_iter().flat_map(|rows| [rows, rows]).collect()
}

/// What becomes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Into {
    /// It is the output.
    Output,
    /// It is added to what is there.
    Sum,
    /// The model's activation of it, gate and up, with few rows only.
    Gated,
    /// It is the output, here and in the inboxes of other GPUs; with few rows only.
    Sent(Inboxes),
}

/// What the rows of a product of few rows are.
pub(super) enum Rows<'a> {
    /// As they are.
    Plain,
    /// To be normalised.
    Normed(&'a CudaSlice<bf16>),
}

/// What a product is of.
pub(super) enum Input<'a> {
    /// Rows as they are.
    Plain(&'a Buffer),
    /// The norm of the residual stream.
    Normed(&'a mut Stream<CudaOps>, &'a Norm<CudaOps>),
}

impl Input<'_> {
    pub(super) fn room(&self) -> usize {
        match self {
            Input::Plain(x) => x.rows,
            Input::Normed(stream, _) => stream.residual.rows,
        }
    }
}

/// Where a product goes: room for `rows` rows of `width`.
pub(super) struct Target<'a> {
    pub(super) data: &'a mut CudaSlice<bf16>,
    pub(super) rows: usize,
    pub(super) width: usize,
}

impl<'a> From<&'a mut Buffer> for Target<'a> {
    fn from(buffer: &'a mut Buffer) -> Target<'a> {
        Target { data: &mut buffer.data, rows: buffer.rows, width: buffer.width }
    }
}

impl Target<'_> {
    pub(super) fn rows_mut(&mut self, rows: usize) -> CudaViewMut<'_, bf16> {
        self.data.slice_mut(..rows * self.width)
    }
}

/// Where a product of few rows goes.
pub(super) fn skinny_out<'a>(
    into: Into,
    out: &'a mut CudaViewMut<'_, bf16>,
    bias: Option<&'a CudaSlice<bf16>>,
    gate: Gate,
) -> OpResult<SkinnyOut<'a>> {
    if bias.is_some() && into == Into::Gated {
        return Err(failed("linear")("there is no kernel for a gate with a bias"));
    }
    let (out, bias) = (out.into(), bias.map(Array::from));
    Ok(match into {
        Into::Output => SkinnyOut::Bf16 { out, bias },
        Into::Sum => SkinnyOut::AddTo { residual: out, bias },
        Into::Gated => SkinnyOut::Gated(out, gate),
        Into::Sent(inboxes) => SkinnyOut::Sent { out, bias, inboxes },
    })
}

impl CudaOps {
    /// Whether `rows` are so few that a product reads the weight and does little else.
    pub(super) fn few(&self, rows: usize) -> bool {
        rows <= SkinnyGemm::rows_worth(&self.device)
    }

    /// `out = x weight^T (+ bias)`, or `out += x weight^T`, of `rows` rows.
    pub(super) fn product(
        &mut self,
        rows: usize,
        linear: &Linear<CudaOps>,
        x: &Buffer,
        out: &mut Buffer,
        into: Into,
    ) -> OpResult {
        self.product_into(rows, linear, x, out.into(), into)
    }

    /// [`CudaOps::product`] to wherever it belongs.
    pub(super) fn product_into(
        &mut self,
        rows: usize,
        linear: &Linear<CudaOps>,
        x: &Buffer,
        mut out: Target<'_>,
        into: Into,
    ) -> OpResult {
        let weight = match &linear.weight.data {
            Data::Plain(weight) => weight,
            Data::Fp8 { .. } => {
                return self.product_fp8(rows, linear, Input::Plain(x), out, into);
            }
        };
        if self.few(rows) {
            let by = Fp8Product::default();
            return self.skinny(rows, linear, (x, &Rows::Plain), out, into, by);
        }
        let m = gemm_rows(rows, x.rows.min(out.rows));
        let (x, mut out) = (x.rows(m), out.rows_mut(m));
        let product = GemmArgs {
            x: (&x).into(),
            weight: weight.into(),
            bias: linear.bias.as_ref().map(Array::from),
            out: match into {
                Into::Output => GemmOut::Bf16((&mut out).into()),
                Into::Sum => GemmOut::AddTo((&mut out).into()),
                Into::Gated | Into::Sent(_) => {
                    return Err(failed("linear")("too many rows to fuse that"));
                }
            },
            m,
            n: linear.weight.padded_rows(),
            k: linear.weight.inputs,
        };
        let (n, k) = (product.n, product.k);
        let fault = |error| failed("linear")(format!("[{m}, {k}] by [{n}, {k}]: {error}"));
        self.gemm.launch(&self.device, product).map_err(fault)
    }

    /// [`CudaOps::product`] of few rows, with what is fused around it; `by` is for weights of e4m3, and one that takes such rows.
    pub(super) fn skinny(
        &mut self,
        rows: usize,
        linear: &Linear<CudaOps>,
        (x, of): (&Buffer, &Rows<'_>),
        mut out: Target<'_>,
        into: Into,
        by: Fp8Product,
    ) -> OpResult {
        let (x, mut out) = (x.rows(rows), out.rows_mut(rows));
        let weight = &linear.weight;
        let input = match of {
            Rows::Plain => SkinnyInput::Plain((&x).into()),
            Rows::Normed(weight) => SkinnyInput::Normed {
                residual: (&x).into(),
                weight: (*weight).into(),
                eps: self.eps,
            },
        };
        let out = skinny_out(into, &mut out, linear.bias.as_ref(), self.gate)?;
        let (m, n, k) = (rows, weight.padded_rows(), weight.inputs);
        match (by, weight.coded()) {
            (Fp8Product::Gemv, Some(weight)) if m == 1 => {
                Fp8Gemv { input, weight, out, n, k }.launch(&self.device)
            }
            (Fp8Product::Skinny(stage), _) => {
                SkinnyGemm { input, weight: weight.into(), out, m, n, k }
                    .launch_by(&self.device, stage)
            }
            _ => {
                return Err(failed("linear")(format!("{by:?} is not for {m} rows of this weight")));
            }
        }
        .map_err(failed("linear"))
    }

    /// A product of few normalised rows: the norm in the product where that is worth it, else before it.
    pub(super) fn norm_skinny(
        &mut self,
        rows: usize,
        linear: &Linear<CudaOps>,
        (stream, norm): (&mut Stream<CudaOps>, &Norm<CudaOps>),
        (out, into): (Target<'_>, Into),
        by: Fp8Product,
    ) -> OpResult {
        // The product's own norm takes weights as they are.
        let k = linear.weight.inputs;
        let fused = !self.plus_one
            && match by {
                Fp8Product::Gemv => Fp8Gemv::norms(k),
                _ => SkinnyGemm::norm_is_worth(rows, k),
            };
        if !stream.has(norm) && fused {
            let of = Rows::Normed(&norm.weight);
            return self.skinny(rows, linear, (&stream.residual, &of), out, into, by);
        }
        self.normalise(rows, stream, norm)?;
        self.skinny(rows, linear, (&stream.normed, &Rows::Plain), out, into, by)
    }
}
