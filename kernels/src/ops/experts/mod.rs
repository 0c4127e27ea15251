//! A mixture of experts: which experts a row goes to, and the products with them; the kernels are `cu/experts/`.
//!
//! Owns: how weights of experts are laid out, how rows are shared out, and how the work is cut up. Must never: allocate, wait
//! for the GPU, or let a launch depend on what the router chose.
//!
//! A layer is [`Router`], then [`ExpertsFew`] or [`ExpertsMany`], with the same `batch`. Weights are [`PackExpert`]ed once.
//! In e4m3: [`ExpertsFewFp8`], [`ExpertsManyFp8`], [`PackExpertFp8`]. In MXFP4: [`ExpertsFewMxfp4`], [`ExpertsManyMxfp4`], [`PackExpertMxfp4`].

mod few;
mod fp8;
mod fp8_few;
mod fp8_many;
mod many;
mod mxfp4;
mod mxfp4_few;
mod mxfp4_many;
mod router;
mod shared;
mod weights;

use crate::abi::Address;
use crate::array::DeviceArray;
use crate::check::Check;
use crate::error::LaunchError;
use crate::{Array, ArrayMut};
use half::bf16;

pub use few::ExpertsFew;
pub use fp8::{
    ExpertMatrixFp8, ExpertWeightsFp8, PackExpertFp8, expert_scales_len, expert_slabs_fp8_len,
};
pub use fp8_few::ExpertsFewFp8;
pub use fp8_many::ExpertsManyFp8;
pub use many::ExpertsMany;
pub use mxfp4::{
    ExpertWeightsMxfp4, PackExpertMxfp4, expert_down_mxfp4_len, expert_gate_up_mxfp4_len,
};
pub use mxfp4_few::ExpertsFewMxfp4;
pub use mxfp4_many::ExpertsManyMxfp4;
pub use router::{Choice, Router, RouterInput, RouterNorm, Score};
pub use shared::AddShared;
pub use weights::{ExpertRows, PackExpert, expert_slabs_len};

/// Experts of a layer at most.
pub const EXPERTS_MAX: usize = 512;
/// Experts of a row at most.
pub const TOP_MAX: usize = 16;
/// Rows that the choices of one block of the kernels are for.
const ROUTE_ROWS: usize = 64;

/// What a layer's experts are like, on this rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertsShape {
    /// How many there are, at most [`EXPERTS_MAX`].
    pub experts: usize,
    /// How many each row goes to, at most [`TOP_MAX`].
    pub top: usize,
    /// Width of the model, a multiple of 16.
    pub hidden: usize,
    /// Width of an expert, a multiple of 8.
    pub width: usize,
}

/// What becomes of the gate and of `up`, both rounded to bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// `silu(gate) * up`.
    Silu,
    /// gpt-oss: the gate cut above 7, `up` at 7 and -7, then `gate * sigmoid(1.702 * gate) * (up + 1)`.
    Clamped,
    /// `gelu(gate) * up`, approximated by tanh.
    GeluTanh,
}

impl Gate {
    /// In the header, `MINISGL_GATE_`.
    pub(super) fn number(self) -> u32 {
        match self {
            Gate::Silu => 0,
            Gate::Clamped => 1,
            Gate::GeluTanh => 2,
        }
    }
}

/// What a [`Router`] has left for the products.
#[derive(Clone, Copy)]
pub struct Routed<'a> {
    /// `[rows, top]`.
    pub ids: Array<'a, i32>,
    /// `[rows, top]`.
    pub weights: Array<'a, f32>,
    /// At least [`Routed::plan_len`].
    pub plan: Array<'a, i32>,
    /// Pairs that are computed together at most: what the router was told.
    pub batch: usize,
}

impl Routed<'_> {
    /// Elements of a plan: which pairs of a row and an expert are computed together.
    pub fn plan_len(shape: ExpertsShape, rows: usize, batch: usize) -> usize {
        4 + 4 * batches_max(shape, rows, batch) + 2 * rows * shape.top
    }

    /// Addresses of ids, weights and plan.
    fn check(
        &self,
        check: &Check<'_>,
        shape: ExpertsShape,
        rows: usize,
    ) -> Result<(Address, Address, Address), LaunchError> {
        let ids = check.scalars("ids", &self.ids, &[rows, shape.top])?;
        let weights = check.scalars("weights", &self.weights, &[rows, shape.top])?;
        let plan_len = Routed::plan_len(shape, rows, self.batch);
        Ok((ids, weights, room(check, "plan", &self.plan, plan_len)?))
    }
}

/// The weights of a layer's experts, in slabs.
#[derive(Clone, Copy)]
pub struct ExpertWeights<'a> {
    /// Gate and up, `[experts]` of [`expert_slabs_len`]`(2 * width, hidden)`.
    pub gate_up: Array<'a, bf16>,
    /// `[experts]` of [`expert_slabs_len`]`(hidden, width)`.
    pub down: Array<'a, bf16>,
    /// `[experts, 2, width]`, gate first.
    pub gate_up_bias: Option<Array<'a, bf16>>,
    /// `[experts, hidden]`.
    pub down_bias: Option<Array<'a, bf16>>,
}

/// Addresses, as [`ExpertWeights`] has them.
struct Weights {
    gate_up: Address,
    down: Address,
    gate_up_bias: Address,
    down_bias: Address,
}

impl ExpertWeights<'_> {
    fn check(&self, check: &Check<'_>, shape: ExpertsShape) -> Result<Weights, LaunchError> {
        let ExpertsShape { experts, hidden, width, .. } = shape;
        let bias = |name, bias: &Option<Array<'_, bf16>>, len| match bias {
            Some(bias) => check.array(name, bias, &[experts, len]),
            None => Ok(0),
        };
        let gate_up_len = expert_slabs_len(2 * width, hidden);
        let down_len = expert_slabs_len(hidden, width);
        Ok(Weights {
            gate_up: check.array("gate_up", &self.gate_up, &[experts, gate_up_len])?,
            down: check.array("down", &self.down, &[experts, down_len])?,
            gate_up_bias: bias("gate_up_bias", &self.gate_up_bias, 2 * width)?,
            down_bias: bias("down_bias", &self.down_bias, hidden)?,
        })
    }
}

/// Batches there can be: every expert may leave one that is not full.
fn batches_max(shape: ExpertsShape, rows: usize, batch: usize) -> usize {
    let pairs = rows * shape.top;
    pairs.min(shape.experts) + pairs / batch.max(1)
}

/// Limits that all of these ops have.
fn check_shape(check: &Check<'_>, shape: ExpertsShape, rows: usize) -> Result<(), LaunchError> {
    let ExpertsShape { experts, top, hidden, width } = shape;
    check.that((1..=EXPERTS_MAX).contains(&experts), || {
        format!("there are {experts} experts, 1 to {EXPERTS_MAX} are possible")
    })?;
    check.that((1..=TOP_MAX.min(experts)).contains(&top), || {
        format!("a row goes to {top} of {experts} experts, the limit is {TOP_MAX}")
    })?;
    check.multiple("hidden", hidden, 16)?;
    check.multiple("width", width, 8)?;
    check.count("rows * top * hidden", rows * top * hidden.max(2 * width))?;
    Ok(())
}

/// A workspace of at least `len` elements, 16-byte aligned.
fn room(
    check: &Check<'_>,
    name: &str,
    array: &impl DeviceArray,
    len: usize,
) -> Result<Address, LaunchError> {
    let there = array.len();
    check.that(there >= len, || format!("{name} has {there} elements, {len} are needed"))?;
    check.array(name, array, &[there])
}

/// What both ways of multiplying write.
struct Written {
    act: Address,
    out: Address,
}

impl Written {
    fn check(
        check: &Check<'_>,
        shape: ExpertsShape,
        rows: usize,
        act: &ArrayMut<'_, bf16>,
        out: &ArrayMut<'_, bf16>,
    ) -> Result<Written, LaunchError> {
        Ok(Written {
            act: room(check, "act", act, rows * shape.top * shape.width)?,
            out: check.array("out", out, &[rows, shape.hidden])?,
        })
    }
}
