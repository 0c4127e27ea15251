//! Products with weights of e4m3.
//!
//! Owns: by which kernels such a product is run, and activations as e4m3 on their way into one. Must never: allocate, or
//! choose by what was not there when the model was loaded.
//!
//! Few rows stay what they are, and the weight is widened where it is multiplied: `skinny` up to 8 rows, `medium` up to
//! 64, whichever was faster while the model was loaded. More rows are quantised, each by itself, and multiplied by
//! cuBLASLt, or up to 64 of them by `narrow`; so are fewer, from [`CODED_ROWS_MIN`] on, where that was faster.

use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::{CudaSlice, CudaStream, CudaView, CudaViewMut, DriverError};
use half::bf16;
use minisgl_kernels::fp8::{BLOCK, Fp8Rows, ScaleForm};
use minisgl_kernels::gemm::{Fp8GemmArgs, GemmElement, GemmKind, GemmOut, GemmShape};
use minisgl_kernels::ops::{
    Fp8Product, MediumGemm, NarrowGemm, Quantise, QuantiseInput, SkinnyGemm, SkinnyOut,
};
use minisgl_kernels::{Array, Device};

use super::linear::{Input, Into, Rows, Target, gemm_rows, skinny_out};
use super::memory::padded_tokens;
use super::{Buffer, CudaOps, Matrix, failed};
use crate::error::OpError;
use crate::ops::{Linear, Norm, OpResult, Scratch, Stream};

/// What a product by cuBLASLt costs beside it: x made e4m3 by a launch of its own. One H200, up to 64 rows.
const QUANTISE_TIME: Duration = Duration::from_nanos(2_900);
/// The same for gate and up, which others multiply by each other on their way out.
const GATE_TIME: Duration = Duration::from_nanos(3_000);

/// Room for activations of e4m3.
pub(super) struct Quantised {
    /// `[tokens, widest inputs]`
    data: CudaSlice<u8>,
    /// For 128 columns of each token.
    scales: CudaSlice<f32>,
}

impl Quantised {
    /// For `tokens` rows of up to `inputs` columns.
    ///
    /// # Errors
    /// No memory on the device.
    pub(super) fn new(
        stream: &Arc<CudaStream>,
        tokens: usize,
        inputs: usize,
    ) -> Result<Quantised, DriverError> {
        let tokens = padded_tokens(tokens);
        Ok(Quantised {
            data: stream.alloc_zeros(tokens * inputs)?,
            scales: stream.alloc_zeros(tokens * inputs.div_ceil(BLOCK))?,
        })
    }

    /// Views of `rows` rows of `inputs` columns, and of their scales.
    pub(super) fn rows(
        &mut self,
        rows: usize,
        inputs: usize,
        form: ScaleForm,
    ) -> (CudaViewMut<'_, u8>, CudaViewMut<'_, f32>) {
        let scales_len = match form {
            ScaleForm::Block => inputs.div_ceil(BLOCK) * rows,
            ScaleForm::Row => rows,
        };
        (self.data.slice_mut(..rows * inputs), self.scales.slice_mut(..scales_len))
    }
}

/// For fewer rows cuBLASLt is not asked: our own products are faster, and round no activation.
pub(super) const CODED_ROWS_MIN: usize = 9;

/// There is no product of ours for so many rows.
fn too_many(rows: usize) -> OpError {
    failed("linear")(format!("{rows} rows are too many for a product of ours with e4m3"))
}

/// `out = x head^T` of `rows` rows, where the head is of e4m3: x stays what it is for any number of them.
pub(super) fn logits_fp8(
    device: &Device,
    (rows, x): (usize, &CudaView<'_, bf16>),
    head: &Matrix,
    out: &mut CudaViewMut<'_, f32>,
) -> OpResult {
    let (n, k) = (head.padded_rows(), head.inputs);
    for start in (0..rows).step_by(MediumGemm::ROWS_MAX) {
        let end = (start + MediumGemm::ROWS_MAX).min(rows);
        let x = x.slice(start * k..end * k);
        let mut out = out.slice_mut(start * n..end * n);
        let out = SkinnyOut::F32((&mut out).into());
        let rows = end - start;
        let (Some(product), Some(weight)) = (Fp8Product::of(device, rows, k), head.coded()) else {
            return Err(too_many(rows));
        };
        let shape = [rows, n, k];
        product.launch(device, (&x).into(), weight, out, shape).map_err(failed("logits"))?;
    }
    Ok(())
}

/// What a product was timed as.
fn fp8_shape(linear: &Linear<CudaOps>, m: usize, into: Into, form: ScaleForm) -> GemmShape {
    GemmShape {
        m,
        n: linear.weight.padded_rows(),
        k: linear.weight.inputs,
        bias: linear.bias.is_some(),
        kind: if into == Into::Sum { GemmKind::AddTo } else { GemmKind::Bf16 },
        element: GemmElement::Fp8(form),
    }
}

/// How a product is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// From activations as they are.
    Own(Fp8Product),
    /// From activations of e4m3, by [`NarrowGemm`].
    Narrow,
    /// The same by cuBLASLt.
    Library,
}

impl CudaOps {
    /// `out = x weight^T (+ bias)`, or `out += x weight^T`, of `rows` rows, where the weight is of e4m3.
    pub(super) fn product_fp8(
        &mut self,
        rows: usize,
        linear: &Linear<CudaOps>,
        input: Input<'_>,
        out: Target<'_>,
        into: Into,
    ) -> OpResult {
        let way = self.way(rows, input.room().min(out.rows), linear, into);
        self.run_fp8(way, rows, linear, input, out, into)
    }

    /// `out = silu(gate) * up` of a product whose weight is of e4m3.
    pub(super) fn gated_fp8(
        &mut self,
        rows: usize,
        linear: &Linear<CudaOps>,
        (stream, norm): (&mut Stream<CudaOps>, &Norm<CudaOps>),
        scratch: &mut Scratch<CudaOps>,
        out: &mut Buffer,
    ) -> OpResult {
        let input = Input::Normed(stream, norm);
        let way = self.way(rows, input.room().min(scratch.gate_up.rows), linear, Into::Gated);
        // Kernels take gate and up so many rows at a time.
        let unit = match (way, linear.weight.scale_form()) {
            (Way::Own(Fp8Product::Skinny(_)), _) => Some(16),
            (Way::Own(Fp8Product::Medium) | Way::Narrow, Some(ScaleForm::Block)) => Some(2 * BLOCK),
            (Way::Own(Fp8Product::Medium) | Way::Narrow, _) => Some(16),
            (Way::Library, _) => None,
        };
        if unit.is_some_and(|unit| linear.weight.rows.is_multiple_of(unit)) {
            return self.run_fp8(way, rows, linear, input, out.into(), Into::Gated);
        }
        let target = (&mut scratch.gate_up).into();
        self.run_fp8(way, rows, linear, input, target, Into::Output)?;
        self.gate_mul(rows, &scratch.gate_up, out)
    }

    /// Whether a product of `rows` rows can write to other GPUs itself. On all ranks the same: what a rank has of a coded
    /// matrix is a multiple of 16 columns, and ranks' shares differ by no more than one.
    pub(super) fn can_send_fp8(&self, rows: usize, linear: &Linear<CudaOps>) -> bool {
        rows <= SkinnyGemm::fp8_rows_worth(&self.device, linear.weight.inputs)
    }

    /// By what was measured while the model was loaded.
    fn way(&self, rows: usize, room: usize, linear: &Linear<CudaOps>, into: Into) -> Way {
        let k = linear.weight.inputs;
        let usual = match rows {
            0..=MediumGemm::ROWS_MAX => Fp8Product::of(&self.device, rows.max(1), k),
            _ => None,
        };
        let (Some(usual), Some(form)) = (usual, linear.weight.scale_form()) else {
            return Way::Library;
        };
        let shape = fp8_shape(linear, gemm_rows(rows, room), into, form);
        let narrow = self.gemm.prefers_narrow(shape);
        let saved = match into {
            Into::Gated if !narrow => QUANTISE_TIME + GATE_TIME,
            _ => QUANTISE_TIME,
        };
        if matches!(into, Into::Sent(_)) {
            return Way::Own(usual); // The one that sends.
        }
        let few = rows < CODED_ROWS_MIN || !self.gemm.is_tuned(shape);
        match few || self.gemm.prefers_skinny(shape, saved) {
            true => Way::Own(self.gemm.own_fp8(shape).unwrap_or(usual)),
            false if narrow => Way::Narrow,
            false => Way::Library,
        }
    }

    /// [`CudaOps::product_fp8`] by a given way.
    pub(super) fn run_fp8(
        &mut self,
        way: Way,
        rows: usize,
        linear: &Linear<CudaOps>,
        input: Input<'_>,
        mut out: Target<'_>,
        into: Into,
    ) -> OpResult {
        let product = match way {
            Way::Own(product) => product,
            Way::Narrow | Way::Library => {
                return self.quantised_fp8(way, rows, linear, input, out, into);
            }
        };
        let x = match (input, product) {
            (Input::Plain(x), _) => x,
            (Input::Normed(stream, norm), Fp8Product::Skinny(stage)) => {
                return self.norm_skinny(rows, linear, (stream, norm), (out, into), stage);
            }
            (Input::Normed(stream, norm), Fp8Product::Medium) => {
                self.normalise(rows, stream, norm)?;
                &stream.normed
            }
        };
        if let Fp8Product::Skinny(stage) = product {
            return self.skinny(rows, linear, (x, &Rows::Plain), out, into, stage);
        }
        let shape = [rows, linear.weight.padded_rows(), linear.weight.inputs];
        let (x, mut out) = (x.rows(rows), out.rows_mut(rows));
        let out = skinny_out(into, &mut out, linear.bias.as_ref(), self.gate)?;
        let Some(weight) = linear.weight.coded() else { return Err(too_many(rows)) };
        product.launch(&self.device, (&x).into(), weight, out, shape).map_err(failed("linear"))
    }

    /// Of activations that are made e4m3 before.
    fn quantised_fp8(
        &mut self,
        way: Way,
        rows: usize,
        linear: &Linear<CudaOps>,
        input: Input<'_>,
        mut out: Target<'_>,
        into: Into,
    ) -> OpResult {
        let weight = &linear.weight;
        let (n, k) = (weight.padded_rows(), weight.inputs);
        let m = padded_tokens(gemm_rows(rows, input.room().min(out.rows)));
        let CudaOps { device, gemm, quantised, eps, plus_one, gate, .. } = self;
        let (Some(coded), Some(form), Some(quantised)) =
            (weight.coded(), weight.scale_form(), quantised)
        else {
            return Err(failed("linear")("there is no room for activations of e4m3"));
        };
        let x = match &input {
            Input::Plain(x) => x.rows(m),
            Input::Normed(stream, norm) if stream.has(norm) => stream.normed.rows(m),
            Input::Normed(stream, _) => stream.residual.rows(m),
        };
        let (mut data, mut scales) = quantised.rows(m, k, form);
        Quantise {
            input: match &input {
                Input::Normed(stream, norm) if !stream.has(norm) => QuantiseInput::Normed {
                    x: (&x).into(),
                    weight: (&norm.weight).into(),
                    eps: *eps,
                    plus_one: *plus_one,
                },
                _ => QuantiseInput::Plain((&x).into()),
            },
            out: (&mut data).into(),
            scales: (&mut scales).into(),
            form,
            rows: m,
            hidden: k,
        }
        .launch(device)
        .map_err(failed("quantise"))?;
        let mut out = out.rows_mut(m);
        if way == Way::Narrow {
            let x = Fp8Rows { data: (&data).into(), scales: (&scales).into() };
            let out = skinny_out(into, &mut out, linear.bias.as_ref(), *gate)?;
            let product = NarrowGemm { x, weight: coded, out, m, n, k };
            return product.launch(device).map_err(failed("linear"));
        }
        let product = Fp8GemmArgs {
            x: Fp8Rows { data: (&data).into(), scales: (&scales).into() },
            weight: coded,
            bias: linear.bias.as_ref().map(Array::from),
            out: match into {
                Into::Output => GemmOut::Bf16((&mut out).into()),
                Into::Sum => GemmOut::AddTo((&mut out).into()),
                Into::Gated | Into::Sent(_) => {
                    return Err(failed("linear")("too many rows to fuse that"));
                }
            },
            m,
            n,
            k,
        };
        let fault = |error| failed("linear")(format!("[{m}, {k}] by e4m3 [{n}, {k}]: {error}"));
        gemm.launch_fp8(device, product).map_err(fault)
    }
}
