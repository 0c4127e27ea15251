//! What is decided and made once, before the first step.
//!
//! Owns: which models there are kernels for, the table of rotations, and products prepared for every number
//! of rows. Must never: be needed again later.

use std::collections::BTreeSet;
use std::time::Duration;

use cudarc::driver::{CudaSlice, CudaView};
use half::bf16;
use minisgl_kernels::Array;
use minisgl_kernels::attention::ATTENTION_HEAD_DIMS;
use minisgl_kernels::gemm::{GemmArgs, GemmError, GemmKind, GemmOut};
use minisgl_kernels::ops::{HIDDEN_MAX, VOCAB_MAX};
use rayon::prelude::*;

use super::experts::ExpertRoom;
use super::linear::gemm_rows;
use super::memory::ROW_UNIT;
use super::{CudaOps, experts, failed};
use crate::config::{Activation, Ffn, LayerSpec, ModelConfig, NormSpec};
use crate::error::OpError;
use crate::ops::OpResult;
use crate::rope;
use crate::shard::Shard;

/// What there are kernels for.
pub(super) fn check(config: &ModelConfig, shard: &Shard) -> OpResult {
    let refuse = |what: String| {
        let reason = format!("{what}; load with --device cpu");
        Err(OpError { operation: "choose kernels", reason })
    };
    for (is_there, what) in [
        (config.layers.iter().all(|layer| layer.attention.window.is_none()), "windows"),
        (config.ropes.len() == 1, "rotations that differ between layers"),
        (!config.sinks, "attention with sinks"),
        (!config.attention_bias.output, "a bias on the attention's output"),
        (config.norms == NormSpec::default(), "norms after blocks, or with weights less 1"),
        (config.embedding_scale == 1.0, "embeddings that are scaled"),
        (has_activation(config), "this activation"),
    ] {
        if !is_there {
            return refuse(format!("the GPU has no kernels for {what} yet"));
        }
    }
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

/// Whether every block has kernels for the model's activation: gpt-oss's own goes with experts alone.
fn has_activation(config: &ModelConfig) -> bool {
    let experts_alone = |layer: &LayerSpec| match &layer.ffn {
        Ffn::Experts(experts) => experts.shared.is_none(),
        Ffn::Dense { .. } => false,
    };
    match config.activation {
        Activation::Silu => true,
        Activation::ClampedSwish => config.layers.iter().all(experts_alone),
        Activation::GeluTanh => false,
    }
}

/// Cosines and sines of every position, rounded as on the CPU.
pub(super) fn cos_sin(config: &ModelConfig, positions: usize) -> Vec<f32> {
    let rope = &config.ropes[0];
    let (frequencies, magnitude) =
        (rope::frequencies(rope, config.head_dim), rope::magnitude(rope));
    let mut table = vec![0.0; positions * config.head_dim];
    table.par_chunks_mut(config.head_dim).enumerate().for_each(|(position, row)| {
        let (cos, sin) = row.split_at_mut(frequencies.len());
        for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(&frequencies) {
            let angle = f64::from(position as f32 * frequency).sin_cos();
            (*sin, *cos) = (angle.0 as f32 * magnitude, angle.1 as f32 * magnitude);
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

impl CudaOps {
    /// Settles how every product that steps will need is run, so that none of them has to choose an
    /// algorithm or load code: times the algorithms, unless that was done on this machine before.
    pub(super) fn prepare_products(&mut self) -> OpResult {
        let shapes = self.shapes.take();
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
                    let timed = is_timed(m, rows_max) && !self.must_agree(n, kind);
                    self.prepare_product((m, n, k), kind, timed, &mut trial)?;
                }
            }
        }
        self.device.synchronize().map_err(failed("prepare products"))
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
        // What is summed over ranks is added there; what a shared expert gives goes through its gate first.
        let sums = n == self.hidden && self.team.is_none();
        let gated = self.experts.as_ref().is_some_and(ExpertRoom::has_shared);
        let outputs = n != self.hidden || n == qkv || !sums || gated;
        let logits = n == self.router_rows();
        let kinds = [(GemmKind::AddTo, sums), (GemmKind::Bf16, outputs), (GemmKind::F32, logits)];
        kinds.into_iter().filter(|&(_, is)| is).map(|(kind, _)| kind).collect()
    }

    fn prepare_product(
        &mut self,
        (m, n, k): (usize, usize, usize),
        kind: GemmKind,
        timed: bool,
        trial: &mut Trial,
    ) -> OpResult {
        let fault = |error: GemmError| failed("prepare products")(error);
        let qkv = (self.heads.q_heads + 2 * self.heads.kv_heads) * self.heads.head_dim;
        let biased = self.qkv_bias && n == qkv && kind == GemmKind::Bf16;
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
