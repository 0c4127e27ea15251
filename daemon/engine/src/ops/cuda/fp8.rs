//! Products with weights of e4m3.
//!
//! Owns: by which kernels such a product is run; `quantised.rs` has activations as e4m3. Must never: allocate, or choose by
//! what was not there when the model was loaded.
//!
//! Few rows stay what they are, and the weight is widened where it is multiplied: `gemv` for one, `skinny` up to 8, `medium` up
//! to 64, whichever was faster while the model was loaded. More rows are quantised, each by itself, and multiplied by
//! cuBLASLt, `broad`, or up to 64 of them by `narrow`; so are fewer, from [`CODED_ROWS_MIN`] on, where that was faster.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use cudarc::driver::{CudaView, CudaViewMut};
use half::bf16;
use minisgl_kernels::fp8::{BLOCK, Fp8Rows, ScaleForm};
use minisgl_kernels::gemm::{Fp8GemmArgs, GemmElement, GemmKind, GemmOut, GemmShape, Times};
use minisgl_kernels::ops::{
    BroadCut, BroadGemm, Fp8Gemv, Fp8Product, MediumGemm, NarrowGemm, QuantiseInput, SkinnyGemm,
    SkinnyOut,
};
use minisgl_kernels::{Array, Device};

use super::linear::{Input, Into, Rows, Target, gemm_rows, skinny_out};
use super::memory::{CodesAt, padded_tokens};
use super::quantised::{Quantised, no_room};
use super::{Buffer, CudaOps, Matrix, failed};
use crate::error::OpError;
use crate::ops::{Linear, Norm, OpResult, Scratch, Stream};

/// What a product of e4m3 costs beside it: x made e4m3 by a launch of its own. One H200, up to 64 rows.
const QUANTISE_TIME: Duration = Duration::from_nanos(2_900);
/// What gate and up cost behind cuBLASLt: a launch that multiplies them, and leaves e4m3 where that is wanted.
const GATE_TIME: Duration = Duration::from_nanos(3_000);
/// The same behind `broad`, which gates, but leaves bf16: a launch that makes e4m3 of it. `narrow` leaves e4m3 itself.
const GATED_CODES_TIME: Duration = Duration::from_nanos(2_300);

/// What a row that nobody asked for costs a product beside itself, where it is made e4m3. One H200.
const PADDED_ROW_TIME: Duration = Duration::from_nanos(6);
/// Products are run for more rows than there are up to so many.
const CODED_ROWS_PADDED_MAX: usize = 512;

/// For fewer rows cuBLASLt is not asked: our own products are faster, and round no activation.
pub(super) const CODED_ROWS_MIN: usize = 9;

/// For which of `rows` it is faster to run `products` products for more; `timed` are their times together. What nobody timed runs by
/// cuBLASLt's guess, and is not known to be fast.
fn more_rows(
    rows: &BTreeSet<usize>,
    timed: &BTreeMap<usize, Duration>,
    products: usize,
) -> HashMap<usize, usize> {
    let faster = |&m: &usize| {
        let with_rows = |(&more, &time): (&usize, &Duration)| {
            (time + PADDED_ROW_TIME * ((more - m) * products) as u32, more)
        };
        let (_, more) = timed.range(m..).map(with_rows).min()?;
        (more != m).then_some((m, more))
    };
    rows.range(MediumGemm::ROWS_MAX + 1..).filter_map(faster).collect()
}

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
    /// The same by [`BroadGemm`], cut up so.
    Broad(BroadCut),
    /// The same by cuBLASLt.
    Library,
}

impl Way {
    /// The fastest and its time, with what each costs beside the product itself.
    pub(super) fn fastest(times: Times, gated: bool) -> (Duration, Way) {
        let beside = |gated_time| QUANTISE_TIME + if gated { gated_time } else { Duration::ZERO };
        let own = times.own.map(|(product, time)| (time, Way::Own(product)));
        let narrow = times.narrow.map(|time| (time + beside(Duration::ZERO), Way::Narrow));
        let broad = |(cut, time)| (time + beside(GATED_CODES_TIME), Way::Broad(cut));
        let library = (times.library + beside(GATE_TIME), Way::Library);
        // Of equals the one that does more in a launch.
        let ways = [own, narrow, times.broad.map(broad), Some(library)];
        ways.into_iter().flatten().min_by_key(|(time, _)| *time).unwrap_or(library)
    }
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
        let way = match (self.way(rows, input.room().min(out.rows), linear, into), &input) {
            // Left as e4m3 for a product that would take it so, and has another end here: a shared expert's.
            (Way::Own(_), Input::Plain(Buffer { codes: Some(_), .. })) => Way::Library,
            (way, _) => way,
        };
        self.run_fp8(way, rows, linear, input, out, into)
    }

    /// `out = silu(gate) * up` of a product whose weight is of e4m3. Where `down`, the product that takes `out` and what
    /// becomes of that, wants e4m3, `out` is left as such.
    pub(super) fn gated_fp8(
        &mut self,
        rows: usize,
        (linear, down): (&Linear<CudaOps>, Option<(&Linear<CudaOps>, Into)>),
        (stream, norm): (&mut Stream<CudaOps>, &Norm<CudaOps>),
        scratch: &mut Scratch<CudaOps>,
        out: &mut Buffer,
    ) -> OpResult {
        let room = stream.residual.rows.min(scratch.gate_up.rows);
        let way = self.way(rows, room, linear, Into::Gated);
        let coded = down.is_some_and(|(down, into)| {
            let down_room = out.rows.min(stream.residual.rows);
            linear.weight.scale_form() == Some(ScaleForm::Block)
                && down.weight.inputs == out.width
                && self.coded_tokens(rows, down_room) == self.coded_tokens(rows, room)
                && self.wants_codes(rows, down_room, down, into)
        });
        self.run_gated(way, coded, (rows, linear), (stream, norm), scratch, out)
    }

    /// [`CudaOps::gated_fp8`] by a given way; `coded` says whether `out` is wanted as e4m3, where the way leaves a choice.
    pub(super) fn run_gated(
        &mut self,
        way: Way,
        coded: bool,
        (rows, linear): (usize, &Linear<CudaOps>),
        (stream, norm): (&mut Stream<CudaOps>, &Norm<CudaOps>),
        scratch: &mut Scratch<CudaOps>,
        out: &mut Buffer,
    ) -> OpResult {
        let form = linear.weight.scale_form();
        // Kernels take gate and up so many rows at a time.
        let unit = match (way, form) {
            (Way::Own(Fp8Product::Skinny(_)), _) => Some(16),
            (Way::Own(Fp8Product::Gemv), _) if !Fp8Gemv::gates(linear.weight.inputs) => None,
            (Way::Library, _) => None,
            (_, Some(ScaleForm::Block)) => Some(2 * BLOCK),
            _ => Some(16),
        };
        out.codes = None;
        let coded = coded && !matches!(way, Way::Own(_));
        let room = stream.residual.rows.min(scratch.gate_up.rows);
        let input = Input::Normed(stream, norm);
        if unit.is_some_and(|unit| linear.weight.rows.is_multiple_of(unit)) {
            if !coded || matches!(way, Way::Broad(_)) {
                return self.run_fp8(way, rows, linear, input, out.into(), Into::Gated);
            }
            let m = self.coded_tokens(rows, room);
            out.codes = Some(CodesAt::Few);
            return self.gate_to_codes(m, linear, input);
        }
        let target = (&mut scratch.gate_up).into();
        self.run_fp8(way, rows, linear, input, target, Into::Output)?;
        if !coded {
            return self.gate_mul(rows, &scratch.gate_up, out);
        }
        let m = self.coded_tokens(rows, room);
        let gate_up = scratch.gate_up.rows(m);
        let input = QuantiseInput::Gated((&gate_up).into(), self.gate);
        out.codes = Some(CodesAt::All);
        self.quantise(input, (m, out.width), ScaleForm::Block)
    }

    /// Whether a product of `rows` rows, where there is room for `room`, takes e4m3 with scales for blocks.
    pub(super) fn wants_codes(
        &self,
        rows: usize,
        room: usize,
        linear: &Linear<CudaOps>,
        into: Into,
    ) -> bool {
        linear.weight.scale_form() == Some(ScaleForm::Block)
            && !matches!(self.way(rows, room, linear, into), Way::Own(_))
    }

    /// Gate and up of `m` rows, to [`CodesAt::Few`].
    fn gate_to_codes(&mut self, m: usize, linear: &Linear<CudaOps>, input: Input<'_>) -> OpResult {
        let (n, k) = (linear.weight.padded_rows(), linear.weight.inputs);
        self.quantise_input(&input, (m, k), ScaleForm::Block)?;
        let CudaOps { device, quantised: Some(Quantised { all, few }), gate, .. } = self else {
            return Err(no_room());
        };
        let Some(weight) = linear.weight.coded() else { return Err(too_many(m)) };
        let (data, scales) = all.rows(m, k, ScaleForm::Block);
        let (mut to, mut to_scales) = few.rows(m, n / 2, ScaleForm::Block);
        let x = Fp8Rows { data: (&data).into(), scales: (&scales).into() };
        let (out, scales) = ((&mut to).into(), (&mut to_scales).into());
        let out = SkinnyOut::GatedCodes { out, scales, gate: *gate };
        let product = NarrowGemm { x, weight, out, m, n, k };
        product.launch(device).map_err(failed("linear"))
    }

    /// Whether a product of `rows` rows can write to other GPUs itself. On all ranks the same: what a rank has of a coded
    /// matrix is a multiple of 16 columns, and ranks' shares differ by no more than one.
    pub(super) fn can_send_fp8(&self, rows: usize, linear: &Linear<CudaOps>) -> bool {
        rows <= SkinnyGemm::fp8_rows_worth(&self.device, linear.weight.inputs)
    }

    /// Tokens that products of e4m3 are run for: as many as all products are, or more where that was faster while the model
    /// was loaded. What is beyond `rows` is anything.
    pub(super) fn coded_tokens(&self, rows: usize, room: usize) -> usize {
        let m = padded_tokens(gemm_rows(rows, room));
        let more = self.coded_rows.get(&m).copied().unwrap_or(m);
        if more <= padded_tokens(room) { more } else { m }
    }

    /// Settles [`CudaOps::coded_tokens`] for each of `rows`, where all of `products`, of any number of rows, have been timed.
    pub(super) fn settle_coded_rows(&mut self, rows: &BTreeSet<usize>, products: &[GemmShape]) {
        let time_of = |m: usize| {
            let times = products.iter().map(|shape| self.gemm.times(GemmShape { m, ..*shape }));
            times.map(|times| Some(Way::fastest(times?, false).0)).sum::<Option<Duration>>()
        };
        let timed: BTreeMap<usize, Duration> = rows
            .range(MediumGemm::ROWS_MAX + 1..=CODED_ROWS_PADDED_MAX)
            .filter_map(|&m| Some((m, time_of(m)?)))
            .collect();
        self.coded_rows = more_rows(rows, &timed, products.len());
    }

    /// By what was measured while the model was loaded.
    fn way(&self, rows: usize, room: usize, linear: &Linear<CudaOps>, into: Into) -> Way {
        let k = linear.weight.inputs;
        let usual = match rows {
            0..=MediumGemm::ROWS_MAX => Fp8Product::of(&self.device, rows.max(1), k),
            _ => None,
        };
        let Some(form) = linear.weight.scale_form() else { return Way::Library };
        let few = rows < CODED_ROWS_MIN;
        let m = if few { gemm_rows(rows, room) } else { self.coded_tokens(rows, room) };
        let shape = fp8_shape(linear, m, into, form);
        let times = self.gemm.times(shape).filter(|_| !few);
        match (usual, times) {
            (Some(usual), _) if matches!(into, Into::Sent(_)) => Way::Own(usual), // The one that sends.
            (_, Some(times)) => Way::fastest(times, into == Into::Gated).1,
            (Some(usual), None) => Way::Own(self.gemm.own_fp8(shape).unwrap_or(usual)),
            (None, None) => Way::Library,
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
            Way::Narrow | Way::Broad(_) | Way::Library => {
                return self.quantised_fp8(way, rows, linear, input, out, into);
            }
        };
        let x = match (input, product) {
            (Input::Plain(x), _) if x.codes.is_some() => {
                return Err(failed("linear")("x is there as e4m3 alone"));
            }
            (Input::Plain(x), _) => x,
            (Input::Normed(stream, norm), Fp8Product::Skinny(_) | Fp8Product::Gemv) => {
                return self.norm_skinny(rows, linear, (stream, norm), (out, into), product);
            }
            (Input::Normed(stream, norm), Fp8Product::Medium) => {
                self.normalise(rows, stream, norm)?;
                &stream.normed
            }
        };
        if product != Fp8Product::Medium {
            return self.skinny(rows, linear, (x, &Rows::Plain), out, into, product);
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
        let m = self.coded_tokens(rows, input.room().min(out.rows));
        let (Some(coded), Some(form)) = (weight.coded(), weight.scale_form()) else {
            return Err(no_room());
        };
        let at = match &input {
            Input::Plain(Buffer { codes: Some(at), .. }) => *at,
            _ => {
                self.quantise_input(&input, (m, k), form)?;
                CodesAt::All
            }
        };
        let CudaOps { device, gemm, quantised, gate, .. } = self;
        let (data, scales) = quantised.as_mut().ok_or_else(no_room)?.at(at).rows(m, k, form);
        let mut out = out.rows_mut(m);
        let x = Fp8Rows { data: (&data).into(), scales: (&scales).into() };
        if way != Way::Library {
            let weight = coded;
            let out = skinny_out(into, &mut out, linear.bias.as_ref(), *gate)?;
            let launched = match way {
                Way::Broad(cut) => BroadGemm { x, weight, out, m, n, k }.launch(device, cut),
                _ => NarrowGemm { x, weight, out, m, n, k }.launch(device),
            };
            return launched.map_err(failed("linear"));
        }
        let product = Fp8GemmArgs {
            x,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn us(of: f64) -> Duration {
        Duration::from_nanos((of * 1e3) as u64)
    }

    #[test]
    fn more_rows_are_run_where_that_is_faster_and_where_nothing_was_timed() {
        let rows = BTreeSet::from([16, 64, 80, 96, 128, 144, 160, 192, 256, 320, 1024]);
        // Of one H200: 160 and 192 are slower than 256.
        let times = [(96, 89.0), (128, 92.0), (160, 119.0), (192, 118.0), (256, 106.0)];
        let timed = times.into_iter().map(|(m, time)| (m, us(time))).collect();
        let more = more_rows(&rows, &timed, 4);
        assert_eq!(more, HashMap::from([(80, 96), (144, 256), (160, 256), (192, 256)]));
        // What rows cost beside the product is reckoned with.
        let timed =
            [(160, 106.5), (256, 106.0)].into_iter().map(|(m, time)| (m, us(time))).collect();
        assert_eq!(more_rows(&BTreeSet::from([160, 256]), &timed, 4), HashMap::new());
        assert_eq!(more_rows(&rows, &BTreeMap::new(), 4), HashMap::new());
    }

    #[test]
    fn the_fastest_way_counts_what_comes_beside_it() {
        let own = Some((Fp8Product::Medium, us(36.0)));
        let times = Times { library: us(34.0), own, narrow: Some(us(35.0)), broad: None };
        assert_eq!(Way::fastest(times, false), (us(36.0), Way::Own(Fp8Product::Medium)));
        let times = Times { own: None, ..times };
        assert_eq!(Way::fastest(times, false), (us(36.9), Way::Library));
        // The gate is one more launch behind cuBLASLt.
        assert_eq!(Way::fastest(times, true), (us(37.9), Way::Narrow));
    }
}
