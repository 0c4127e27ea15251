//! What is decided and made once, before the first step.
//!
//! Owns: which models there are kernels for, the table of rotations, and products prepared for every number
//! of rows. Must never: be needed again later.

use std::collections::BTreeSet;
use std::time::Duration;

use cudarc::driver::{CudaSlice, CudaView, DriverError};
use half::bf16;
use minisgl_kernels::Array;
use minisgl_kernels::attention::{ATTENTION_HEAD_DIMS, Heads};
use minisgl_kernels::fp8::{BLOCK, Fp8Rows, Fp8Scales, Fp8Weight, ScaleForm, scale_stride};
use minisgl_kernels::gemm::{
    Fp8GemmArgs, GemmArgs, GemmElement, GemmError, GemmKind, GemmOut, GemmShape,
};
use minisgl_kernels::ops::{HIDDEN_MAX, MediumGemm, VOCAB_MAX};
use rayon::prelude::*;

use super::experts::ExpertRoom;
use super::fp8::CODED_ROWS_MIN;
use super::linear::gemm_rows;
use super::memory::{ROW_UNIT, padded_tokens};
use super::quantised::Quantised;
use super::{CudaOps, experts, failed};
use crate::config::{ModelConfig, RopeConfig};
use crate::error::OpError;
use crate::ops::OpResult;
use crate::rope;
use crate::shard::Shard;

/// What there are kernels for.
///
/// # Errors
/// There are none for this model or shard: what there are none for, and the remedy.
pub fn check(config: &ModelConfig, shard: &Shard) -> OpResult {
    let refuse = |what: String| {
        let reason = format!("{what}; load with --device cpu");
        Err(OpError { operation: "choose kernels", reason })
    };
    if let Some(what) = experts::refusal(config, shard) {
        return refuse(what);
    }
    if !ATTENTION_HEAD_DIMS.contains(&config.head_dim) {
        return refuse(format!(
            "head_dim is {}, the GPU has kernels for {ATTENTION_HEAD_DIMS:?}",
            config.head_dim
        ));
    }
    for (name, width) in
        [("hidden_size", config.hidden_size), ("intermediate_size", shard.dense_width(config))]
    {
        if !width.is_multiple_of(ROW_UNIT) {
            return refuse(format!("{name} is {width}, the GPU wants a multiple of {ROW_UNIT}"));
        }
    }
    for (name, value, limit) in [
        ("hidden_size", config.hidden_size, HIDDEN_MAX),
        ("vocab_size", config.vocab_size, VOCAB_MAX),
    ] {
        if value > limit {
            return refuse(format!("{name} is {value}, the GPU's kernels end at {limit}"));
        }
    }
    Ok(())
}

/// Cosines and sines of every position, rounded as on the CPU.
pub(super) fn cos_sin(rope: &RopeConfig, head_dim: usize, positions: usize) -> Vec<f32> {
    let pairs = rope::pairs(rope, head_dim);
    let mut table = vec![0.0; positions * head_dim];
    table.par_chunks_mut(head_dim).enumerate().for_each(|(position, row)| {
        let (cos, sin) = row.split_at_mut(pairs.len());
        for ((cos, sin), pair) in cos.iter_mut().zip(sin).zip(&pairs) {
            (*cos, *sin) = pair.at(position);
        }
    });
    table
}

/// How long one shape is tuned.
const TUNING_TIME: Duration = Duration::from_millis(40);

/// Bytes of weights that are read in turn, so that none of them is still in the cache.
const COLD_BYTES: usize = 128 << 20;

/// Whether products of `m` rows are timed; those between take cuBLASLt's guess, which is seldom far off.
fn is_timed(m: usize, rows_max: usize) -> bool {
    (m <= 256 && m.is_multiple_of(32)) || m.is_power_of_two() || m == rows_max
}

/// What products are tried on: zeros, as large as the largest.
struct Trial {
    x: CudaSlice<bf16>,
    weight: CudaSlice<bf16>,
    bias: CudaSlice<bf16>,
    out: CudaSlice<bf16>,
}

/// The same for weights of e4m3; `wide` is x as our own kernels take it.
struct CodedTrial {
    wide: CudaSlice<bf16>,
    codes: CudaSlice<u8>,
    scales: CudaSlice<f32>,
    bias: CudaSlice<bf16>,
    out: CudaSlice<bf16>,
}

impl CudaOps {
    /// Settles how every product that steps will need is run, so that none of them has to choose an
    /// algorithm or load code: times the algorithms, unless that was done on this machine before.
    pub(super) fn prepare_products(&mut self) -> OpResult {
        let (plain, coded): (Vec<_>, Vec<_>) =
            self.shapes.take().into_iter().partition(|shape| shape.2.is_none());
        self.prepare_coded(&coded)?;
        let shapes: Vec<(usize, usize)> = plain.iter().map(|&(n, k, _)| (n, k)).collect();
        let stream = self.stream().clone();
        let zeros = |len: usize| {
            stream
                .alloc_zeros::<bf16>(len.max(1))
                .map_err(|error| failed("prepare products")(error))
        };
        let largest = |of: fn(&(usize, usize)) -> usize| shapes.iter().map(of).max().unwrap_or(0);
        let (n_max, k_max) = (largest(|shape| shape.0), largest(|shape| shape.1));
        let widths = shapes.iter().map(|shape| shape.0).filter(|&n| n != self.head_rows());
        let mut trial = Trial {
            x: zeros(self.chunk_tokens * k_max)?,
            weight: zeros(largest(|shape| shape.0 * shape.1))?,
            bias: zeros(n_max)?,
            out: zeros(self.chunk_tokens * widths.max().unwrap_or(0))?,
        };
        for &(n, k) in &shapes {
            let rows_max = match n == self.head_rows() && n != self.router_rows() {
                true => self.logit_rows,
                false => self.chunk_tokens,
            };
            let rows: BTreeSet<usize> =
                (1..=rows_max).map(|rows| gemm_rows(rows, rows_max)).collect();
            for m in rows {
                if self.few(m) {
                    continue; // There is one way to run those.
                }
                for kind in self.kinds(n) {
                    for &biased in self.biases((n, k), kind) {
                        let timed = is_timed(m, rows_max) && !self.must_agree(n, kind);
                        self.prepare_product((m, n, k), (kind, biased), timed, &mut trial)?;
                    }
                }
            }
        }
        self.device.synchronize().map_err(failed("prepare products"))
    }

    /// The same for weights of e4m3; makes room for activations of it.
    fn prepare_coded(&mut self, shapes: &[(usize, usize, Option<ScaleForm>)]) -> OpResult {
        // A coded head has one way to be multiplied.
        let shapes: Vec<(usize, usize, ScaleForm)> = shapes
            .iter()
            .filter(|(n, ..)| *n != self.head_rows())
            .filter_map(|&(n, k, form)| Some((n, k, form?)))
            .collect();
        if shapes.is_empty() {
            return Ok(());
        }
        let stream = self.stream().clone();
        let memory = |error: DriverError| failed("prepare products")(error);
        let tokens = padded_tokens(self.chunk_tokens);
        let k_max = shapes.iter().map(|shape| shape.1).max().unwrap_or(0);
        let n_max = shapes.iter().map(|shape| shape.0).max().unwrap_or(0);
        self.quantised = Some(Quantised::new(&stream, tokens, k_max).map_err(memory)?);
        let scales =
            |&(n, k, _): &(usize, usize, ScaleForm)| n.max(n.div_ceil(BLOCK) * scale_stride(k));
        let mut trial = CodedTrial {
            wide: stream.alloc_zeros(MediumGemm::ROWS_MAX * k_max).map_err(memory)?,
            codes: stream
                .alloc_zeros(shapes.iter().map(|shape| shape.0 * shape.1).max().unwrap_or(0))
                .map_err(memory)?,
            scales: stream
                .alloc_zeros(shapes.iter().map(scales).max().unwrap_or(0))
                .map_err(memory)?,
            bias: stream.alloc_zeros(n_max).map_err(memory)?,
            out: stream.alloc_zeros(tokens * n_max).map_err(memory)?,
        };
        let rows: BTreeSet<usize> = (1..=self.chunk_tokens)
            .map(|rows| gemm_rows(rows, self.chunk_tokens))
            .map(|rows| if rows < CODED_ROWS_MIN { rows } else { padded_tokens(rows) })
            .collect();
        let mut products = Vec::new();
        for (n, k, form) in shapes {
            for kind in self.kinds(n) {
                for &bias in self.biases((n, k), kind) {
                    for &m in &rows {
                        self.prepare_coded_product(m, (n, k, form), (kind, bias), &mut trial)?;
                    }
                    let element = GemmElement::Fp8(form);
                    let kind = if kind == GemmKind::F32 { GemmKind::Bf16 } else { kind };
                    products.push(GemmShape { m: 0, n, k, bias, kind, element });
                }
            }
        }
        self.settle_coded_rows(&rows, &products);
        Ok(())
    }

    fn prepare_coded_product(
        &mut self,
        m: usize,
        (n, k, form): (usize, usize, ScaleForm),
        (kind, biased): (GemmKind, bool),
        trial: &mut CodedTrial,
    ) -> OpResult {
        let fault = |error: GemmError| failed("prepare products")(error);
        let scales_len = match form {
            ScaleForm::Block => n.div_ceil(BLOCK) * scale_stride(k),
            ScaleForm::Row => n,
        };
        let scales = trial.scales.slice(..scales_len);
        let cold = COLD_BYTES.div_ceil(n * k).clamp(1, trial.codes.len() / (n * k));
        let codes: Vec<CudaView<'_, u8>> =
            (0..cold).map(|at| trial.codes.slice(at * n * k..(at + 1) * n * k)).collect();
        let weights: Vec<Fp8Weight<'_>> = codes
            .iter()
            .map(|codes| Fp8Weight {
                data: codes.into(),
                scales: match form {
                    ScaleForm::Block => Fp8Scales::Block((&scales).into()),
                    ScaleForm::Row => Fp8Scales::Row((&scales).into()),
                },
            })
            .collect();
        let Some(quantised) = &mut self.quantised else { return Ok(()) };
        let (data, x_scales) = quantised.all.rows(m, k, form);
        let bias = trial.bias.slice(..n);
        let mut out = trial.out.slice_mut(..m * n);
        let args = Fp8GemmArgs {
            x: Fp8Rows { data: (&data).into(), scales: (&x_scales).into() },
            weight: weights[0],
            bias: biased.then(|| (&bias).into()),
            out: match kind {
                GemmKind::AddTo => GemmOut::AddTo((&mut out).into()),
                GemmKind::Bf16 | GemmKind::F32 => GemmOut::Bf16((&mut out).into()),
            },
            m,
            n,
            k,
        };
        // Where our own kernels are there too, all are timed: they must be chosen from.
        let few = m <= MediumGemm::ROWS_MAX;
        let by_library = m >= CODED_ROWS_MIN;
        let is_known = (!few || self.gemm.own_fp8(args.shape()).is_some())
            && (!by_library || self.gemm.is_tuned(args.shape()));
        if (few || is_timed(m, padded_tokens(self.chunk_tokens))) && !is_known {
            let wide = trial.wide.slice(..if few { m * k } else { 0 });
            let wide = few.then(|| (&wide).into());
            self.gemm
                .tune_fp8(&self.device, args, wide, &weights[1..], TUNING_TIME)
                .map_err(fault)?;
            return Ok(());
        }
        match by_library {
            true => self.gemm.launch_fp8(&self.device, args).map_err(fault),
            false => Ok(()),
        }
    }

    /// Rows of the head, padded.
    fn head_rows(&self) -> usize {
        self.vocab_part.len().next_multiple_of(ROW_UNIT)
    }

    /// Whether all ranks compute the same product, and must get the same bits of it: to time algorithms might give each
    /// rank another, and by a router's logits they choose experts. Untimed, it is cuBLASLt's word, or that of the one file that all
    /// ranks read.
    fn must_agree(&self, n: usize, kind: GemmKind) -> bool {
        self.team.is_some() && kind == GemmKind::F32 && n == self.router_rows()
    }

    /// Rows of the experts' routers, padded; 0 without experts.
    fn router_rows(&self) -> usize {
        self.experts.as_ref().map_or(0, |experts| experts.router_rows)
    }

    /// What becomes of products with weights of `n` rows: a block ends in a sum as wide as the residual
    /// stream, and anything else is an output of its own.
    fn kinds(&self, n: usize) -> Vec<GemmKind> {
        let qkv = (self.heads.q_heads + 2 * self.heads.kv_heads) * self.heads.head_dim;
        if n == self.head_rows() && n != self.router_rows() {
            return vec![GemmKind::F32];
        }
        // What is summed over ranks is added there, and what is normalised before it is added, after its norm; what a shared
        // expert gives goes through its gate first.
        let sums = n == self.hidden && self.team.is_none() && self.block.is_none();
        let gated = self.experts.as_ref().is_some_and(ExpertRoom::has_shared);
        let outputs = n != self.hidden || n == qkv || !sums || gated;
        let logits = n == self.router_rows();
        let kinds = [(GemmKind::AddTo, sums), (GemmKind::Bf16, outputs), (GemmKind::F32, logits)];
        kinds.into_iter().filter(|&(_, is)| is).map(|(kind, _)| kind).collect()
    }

    /// Whether products with weights of this shape have a bias; of the attention's output that of one rank alone has, and
    /// a block's last product may have the same shape and none.
    fn biases(&self, (n, k): (usize, usize), kind: GemmKind) -> &'static [bool] {
        let Heads { q_heads, kv_heads, head_dim, .. } = self.heads;
        let is_qkv = n == (q_heads + 2 * kv_heads) * head_dim && kind == GemmKind::Bf16;
        let is_o = n == self.hidden && k == q_heads * head_dim && kind != GemmKind::F32;
        match (self.bias.qkv && is_qkv, self.bias.output && is_o) {
            (_, true) => &[false, true],
            (true, false) => &[true],
            (false, false) => &[false],
        }
    }

    fn prepare_product(
        &mut self,
        (m, n, k): (usize, usize, usize),
        (kind, biased): (GemmKind, bool),
        timed: bool,
        trial: &mut Trial,
    ) -> OpResult {
        let fault = |error: GemmError| failed("prepare products")(error);
        let x = trial.x.slice(..m * k);
        let bias = trial.bias.slice(..n);
        let cold = COLD_BYTES.div_ceil(2 * n * k).clamp(1, trial.weight.len() / (n * k));
        let weights: Vec<CudaView<'_, bf16>> =
            (0..cold).map(|at| trial.weight.slice(at * n * k..(at + 1) * n * k)).collect();
        let weights: Vec<Array<'_, bf16>> = weights.iter().map(Array::from).collect();
        let head = kind == GemmKind::F32;
        let mut out = trial.out.slice_mut(..if head { 0 } else { m * n });
        let logits = match (&mut self.experts, &mut self.team) {
            (Some(experts), _) if n == experts.router_rows => experts.logits(),
            (_, Some(team)) => team.peers().logits(),
            (_, None) => &mut self.logits,
        };
        let mut logits = logits.slice_mut(..if head { m * n } else { 0 });
        let args = GemmArgs {
            x: (&x).into(),
            weight: weights[0],
            bias: biased.then(|| (&bias).into()),
            out: match kind {
                GemmKind::F32 => GemmOut::F32((&mut logits).into()),
                GemmKind::Bf16 => GemmOut::Bf16((&mut out).into()),
                GemmKind::AddTo => GemmOut::AddTo((&mut out).into()),
            },
            m,
            n,
            k,
        };
        if timed && !self.gemm.is_tuned(args.shape()) {
            self.gemm.tune(&self.device, args, &weights[1..], TUNING_TIME).map_err(fault)?;
            return Ok(());
        }
        self.gemm.launch(&self.device, args).map_err(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_numbers_of_rows_are_timed() {
        let all: BTreeSet<usize> = (1..=8000).map(|rows| gemm_rows(rows, 8000)).collect();
        let timed: Vec<usize> = all.into_iter().filter(|&m| m > 16 && is_timed(m, 8000)).collect();
        let few = [32, 64, 96, 128, 160, 192, 224, 256, 512, 1024, 2048, 4096, 8000];
        assert_eq!(timed, few);
    }
}
