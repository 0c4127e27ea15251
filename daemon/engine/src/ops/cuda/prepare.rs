//! What is decided and made once, before the first step.
//!
//! Owns: which models there are kernels for, the table of rotations, and products prepared for every number
//! of rows. Must never: be needed again later.

use std::collections::BTreeSet;

use half::bf16;
use minisgl_kernels::attention::ATTENTION_HEAD_DIMS;
use minisgl_kernels::gemm::{GemmArgs, GemmOut};
use minisgl_kernels::ops::{HIDDEN_MAX, VOCAB_MAX};

use super::linear::gemm_rows;
use super::memory::ROW_UNIT;
use super::{CudaOps, failed};
use crate::config::ModelConfig;
use crate::error::OpError;
use crate::model::rope;
use crate::ops::OpResult;
use crate::rank::shard::Shard;

/// What there are kernels for.
pub(super) fn check(config: &ModelConfig, shard: &Shard) -> OpResult {
    let refuse = |what: String| {
        let reason = format!("{what}; load with --device cpu");
        Err(OpError { operation: "choose kernels", reason })
    };
    if !ATTENTION_HEAD_DIMS.contains(&config.head_dim) {
        return refuse(format!(
            "head_dim is {}, the GPU has kernels for {ATTENTION_HEAD_DIMS:?}",
            config.head_dim
        ));
    }
    for (name, width) in
        [("hidden_size", config.hidden_size), ("intermediate_size", shard.intermediate.len())]
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
pub(super) fn cos_sin(config: &ModelConfig, positions: usize) -> Vec<f32> {
    let frequencies = rope::frequencies(config);
    let mut table = Vec::with_capacity(positions * config.head_dim);
    for position in 0..positions {
        let angle = |frequency: &f32| f64::from(position as f32 * frequency);
        table.extend(frequencies.iter().map(|frequency| angle(frequency).cos() as f32));
        table.extend(frequencies.iter().map(|frequency| angle(frequency).sin() as f32));
    }
    table
}

impl CudaOps {
    /// Runs a product of every shape that steps will need, so that none of them has to choose an algorithm
    /// or load code.
    pub(super) fn prepare_products(&mut self) -> OpResult {
        let fault = failed("prepare products");
        let shapes = self.shapes.take();
        let (stream, chunk) = (self.stream().clone(), self.chunk_tokens);
        let zeros = |len: usize| {
            stream.alloc_zeros::<bf16>(len).map_err(|error| failed("prepare products")(error))
        };
        let largest = |of: fn(&(usize, usize)) -> usize| shapes.iter().map(of).max().unwrap_or(0);
        let (n_max, k_max) = (largest(|shape| shape.0), largest(|shape| shape.1));
        let weight = zeros(largest(|shape| shape.0 * shape.1))?;
        let (x, bias) = (zeros(chunk * k_max)?, zeros(n_max)?);
        let widths = shapes.iter().map(|shape| shape.0).filter(|&n| n != self.logit_stride);
        let mut out = zeros(chunk * widths.max().unwrap_or(0).max(1))?;
        let qkv = (self.heads.q_heads + 2 * self.heads.kv_heads) * self.heads.head_dim;
        for &(n, k) in &shapes {
            let head = n == self.logit_stride;
            let rows_max = if head { self.logits.len() / n } else { chunk };
            let rows: BTreeSet<usize> =
                (1..=rows_max).map(|rows| gemm_rows(rows, rows_max)).collect();
            for m in rows {
                let (x, weight, bias) = (x.slice(..m * k), weight.slice(..n * k), bias.slice(..n));
                let mut run = |bias| {
                    let mut out = out.slice_mut(..if head { 0 } else { m * n });
                    let mut logits = self.logits.slice_mut(..if head { m * n } else { 0 });
                    let out = match head {
                        true => GemmOut::F32((&mut logits).into()),
                        false => GemmOut::Bf16((&mut out).into()),
                    };
                    let (x, weight) = ((&x).into(), (&weight).into());
                    let product = GemmArgs { x, weight, bias, out, m, n, k };
                    self.gemm.launch(&self.device, product).map_err(&fault)
                };
                run(None)?;
                if self.qkv_bias && n == qkv {
                    run(Some((&bias).into()))?;
                }
            }
        }
        self.device.synchronize().map_err(failed("prepare products"))
    }
}
