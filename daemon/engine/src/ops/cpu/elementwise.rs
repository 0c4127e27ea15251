//! Norms, rotation and activation: everything that reads a row and writes a row.
//!
//! Owns: the f32 arithmetic between the products. Must never: look at more than one row at a time.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::simd::dots;
use crate::config::Activation;

/// Rows a task takes, so that decode steps stay on one thread and prefill chunks do not.
const ROWS_A_TASK: usize = 16;
/// Elements of a sum that one task adds.
const ADDED_A_TASK: usize = 1 << 14;

/// `out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight`, with `x` and `out` of `[rows, width]`
/// (Zhang and Sennrich, 2019).
pub fn rms_norm(arch: Arch, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    out.par_chunks_mut(ROWS_A_TASK * width).zip(x.par_chunks(ROWS_A_TASK * width)).for_each(
        |(out, x)| {
            for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                let scale = norm_scale(arch, x, eps);
                for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                    *out = x * scale * weight;
                }
            }
        },
    );
}

/// `residual += delta`.
pub fn add(delta: &[f32], residual: &mut [f32]) {
    let chunks = residual.par_chunks_mut(ADDED_A_TASK).zip(delta.par_chunks(ADDED_A_TASK));
    chunks.for_each(|(residual, delta)| {
        residual.iter_mut().zip(delta).for_each(|(residual, delta)| *residual += delta);
    });
}

/// Normalises heads in place: `count` heads of `weight.len()` from column `first` on in every row of
/// `x`, whose rows are `stride` wide.
pub fn head_norm(
    arch: Arch,
    x: &mut [f32],
    stride: usize,
    first: usize,
    count: usize,
    weight: &[f32],
    eps: f32,
) {
    let width = weight.len();
    x.par_chunks_mut(ROWS_A_TASK * stride).for_each(|rows| {
        for row in rows.chunks_exact_mut(stride) {
            for head in row[first..first + count * width].chunks_exact_mut(width) {
                let scale = norm_scale(arch, head, eps);
                for (x, weight) in head.iter_mut().zip(weight) {
                    *x = *x * scale * weight;
                }
            }
        }
    });
}

fn norm_scale(arch: Arch, x: &[f32], eps: f32) -> f32 {
    struct SumOfSquares<'a>(&'a [f32]);
    impl WithSimd for SumOfSquares<'_> {
        type Output = f32;
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> f32 {
            dots(simd, [self.0], [self.0])[0][0]
        }
    }
    let mean = arch.dispatch(SumOfSquares(x)) / x.len() as f32;
    1.0 / (mean + eps).sqrt()
}

/// Rotates `heads` heads at the start of every row of `x` (`[rows, stride]`) by the row's angles, the
/// first half of a head against the second (the layout of Hugging Face checkpoints).
/// `cos` and `sin` are `[rows, head_dim / 2]`.
pub fn rope(x: &mut [f32], stride: usize, heads: usize, head_dim: usize, cos: &[f32], sin: &[f32]) {
    let half = head_dim / 2;
    x.par_chunks_mut(ROWS_A_TASK * stride)
        .zip(cos.par_chunks(ROWS_A_TASK * half))
        .zip(sin.par_chunks(ROWS_A_TASK * half))
        .for_each(|((rows, cos), sin)| {
            let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half));
            for (row, (cos, sin)) in rows.chunks_exact_mut(stride).zip(angles) {
                for head in row[..heads * head_dim].chunks_exact_mut(head_dim) {
                    let (low, high) = head.split_at_mut(half);
                    let turns = cos.iter().zip(sin);
                    for ((low, high), (cos, sin)) in low.iter_mut().zip(high).zip(turns) {
                        (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
                    }
                }
            }
        });
}

/// The activation of a gated block, with `gate_up` of `[rows, 2 * width]` and `out` of `[rows, width]`.
pub fn activate(
    arch: Arch,
    activation: Activation,
    gate_up: &[f32],
    out: &mut [f32],
    width: usize,
) {
    out.par_chunks_mut(width).zip(gate_up.par_chunks(2 * width)).with_min_len(4).for_each(
        |(out, gate_up)| {
            let (gate, up) = gate_up.split_at(width);
            match activation {
                Activation::Silu => gated(arch, gate, up, out, |gate, up| silu(gate) * up),
                Activation::GeluTanh => {
                    gated(arch, gate, up, out, |gate, up| gelu_tanh(gate) * up);
                }
                Activation::ClampedSwish => gated(arch, gate, up, out, |gate, up| {
                    let (gate, up) = (gate.min(7.0), up.clamp(-7.0, 7.0));
                    gate / (1.0 + exp(-1.702 * gate)) * (up + 1.0)
                }),
            }
        },
    );
}

#[inline(always)]
fn gated(arch: Arch, gate: &[f32], up: &[f32], out: &mut [f32], of: impl Fn(f32, f32) -> f32) {
    arch.dispatch(|| {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = of(*gate, *up);
        }
    });
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`, with tanh by way of [`exp`].
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    let inner = 0.797_884_6 * (x + 0.044_715 * x * x * x);
    x / (1.0 + exp(-2.0 * inner))
}

/// 1 / (1 + e^-x).
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// e^x to within 2 units in the last place, without a branch, so that loops over it vectorise:
/// x = n ln 2 + r, and a polynomial in r (Cephes `expf`). 0 below -87.3, e^88.3 above 88.3.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let clamped = x.clamp(-87.336_54, 88.3);
    let n = (clamped * std::f32::consts::LOG2_E).round_ties_even();
    // ln 2 in two parts, the first exact in few bits.
    let r = clamped - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let power = f32::from_bits(((n as i32 + 127) << 23) as u32);
    let value = (p * r * r + r + 1.0) * power;
    if x < -87.336_54 { 0.0 } else { value }
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for i in -87_000..88_000 {
            let x = i as f32 * 1e-3 + 1e-4;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2.5 * f64::from(f32::EPSILON), "exp({x}): relative error {error}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }
}
