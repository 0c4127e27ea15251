//! Products with weights, and what is fused with them.
//!
//! Owns: for how many rows a product is run, and by what. Must never: choose an algorithm after loading.

use std::collections::BTreeSet;

use minisgl_kernels::Array;
use minisgl_kernels::gemm::{GemmArgs, GemmOut};

use super::sample::LOGIT_ROWS;
use super::{Buffer, CudaOps, failed};
use crate::ops::{Linear, OpResult};

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
    let rows_max = rows_max.min(LOGIT_ROWS);
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
}

impl CudaOps {
    /// `out = x weight^T (+ bias)`, or `out += x weight^T`, of `rows` rows.
    pub(super) fn product(
        &mut self,
        rows: usize,
        linear: &Linear<CudaOps>,
        x: &Buffer,
        out: &mut Buffer,
        into: Into,
    ) -> OpResult {
        let m = gemm_rows(rows, x.rows.min(out.rows));
        let (x, mut out) = (x.rows(m), out.rows_mut(m));
        let weight = &linear.weight;
        let product = GemmArgs {
            x: (&x).into(),
            weight: (&weight.data).into(),
            bias: linear.bias.as_ref().map(Array::from),
            out: match into {
                Into::Output => GemmOut::Bf16((&mut out).into()),
                Into::Sum => GemmOut::AddTo((&mut out).into()),
            },
            m,
            n: weight.padded_rows(),
            k: weight.inputs,
        };
        self.gemm.launch(&self.device, product).map_err(failed("linear"))
    }
}
