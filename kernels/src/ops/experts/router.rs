//! Which experts a row goes to; the kernels are `cu/experts/experts_router.cu` and `experts_place.cu`.

use half::bf16;

use super::{ExpertsShape, ROUTE_ROWS, Routed, batches_max, check_shape, room};
use crate::abi::{Address, RouterArgs};
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::grid::Grid;
use crate::kernel::Kernel;
use crate::{Array, ArrayMut};

/// Threads of a block.
const THREADS: u32 = 512;
/// Experts of a block, and rows that it multiplies at a time.
const EXPERTS_BLOCK: u32 = 8;
const ROWS_BLOCK: u32 = 16;
/// Rows whose choices a block makes where logits are given, one for each warp, and rows up to which it does so; with more it
/// has [`ROUTE_ROWS`], lest the blocks after it add up too many counts.
const CHOOSE_ROWS: usize = 16;
const CHOOSE_ROWS_MAX: usize = 1024;

/// What experts are chosen by.
#[derive(Clone, Copy)]
pub enum Score<'a> {
    /// The largest logits; weights are their softmax. Over all experts (Mixtral, Qwen3-MoE, Qwen2-MoE), or with
    /// `renormalise` over the chosen, which is the same as choosing first and taking the softmax then (gpt-oss).
    Softmax,
    /// The largest of sigmoid and correction; weights are the sigmoids (DeepSeek-V3, GLM-4.5, with one group of experts).
    Sigmoid {
        /// Added for the choice alone, `[experts]`.
        correction: Option<Array<'a, f32>>,
    },
}

/// How a row's experts are chosen and weighed. Equal scores go to the lower index; a NaN comes last.
pub struct Choice<'a> {
    /// By what.
    pub score: Score<'a>,
    /// Weights of a row are divided by their sum.
    pub renormalise: bool,
    /// Weights are multiplied by this in the end.
    pub scale: f32,
    /// Negative for a padding row, which goes nowhere, `[rows]`; without it there is none. The slots of a batch will do.
    pub there: Option<Array<'a, i32>>,
}

/// Where logits come from.
pub enum RouterInput<'a> {
    /// The product is part of the op, for at most [`Router::ROWS_MAX`] rows.
    Rows {
        /// `[rows, hidden]`.
        x: Array<'a, bf16>,
        /// The norm of `x`, if it has none yet.
        norm: Option<RouterNorm<'a>>,
        /// `[experts, hidden]`.
        weight: Array<'a, bf16>,
    },
    /// A matrix product has left them in `logits`, without the bias.
    Logits {
        /// From a row to the next, at least as many as there are experts.
        stride: usize,
    },
}

/// A norm before the router, as [`RmsNorm`](crate::ops::RmsNorm) computes it.
pub struct RouterNorm<'a> {
    /// `[hidden]`.
    pub weight: Array<'a, bf16>,
    /// Added to the mean square.
    pub eps: f32,
    /// The normalised rows, for the experts, `[rows, hidden]`.
    pub normed: ArrayMut<'a, bf16>,
}

/// Logits of all experts, the choice of `top` of them, and the plan by which [`ExpertsFew`](super::ExpertsFew) or
/// [`ExpertsMany`](super::ExpertsMany) compute. The host learns nothing of it.
///
/// f32 from bf16. With few rows one launch, bound by latency; else two, which move `4 * rows * experts` bytes.
pub struct Router<'a> {
    /// Rows or logits.
    pub input: RouterInput<'a>,
    /// Added to the logits, `[experts]`.
    pub bias: Option<Array<'a, bf16>>,
    /// At least `rows` times the stride, which is `experts` where the product is part of the op.
    pub logits: ArrayMut<'a, f32>,
    /// How to choose.
    pub choice: Choice<'a>,
    /// `[rows, top]`, the best first; -1 in a padding row.
    pub ids: ArrayMut<'a, i32>,
    /// `[rows, top]`; 0 in a padding row.
    pub weights: ArrayMut<'a, f32>,
    /// At least [`Routed::plan_len`].
    pub plan: ArrayMut<'a, i32>,
    /// At least [`Router::workspace_len`], zeros before the first launch.
    pub workspace: ArrayMut<'a, u32>,
    /// Pairs of a row and an expert that are computed together at most: what the op after it says for so many rows.
    pub batch: usize,
    /// The layer.
    pub shape: ExpertsShape,
    /// Tokens.
    pub rows: usize,
}

impl Router<'_> {
    /// Rows at most where the product is part of the op.
    pub const ROWS_MAX: usize = ROUTE_ROWS;
    /// Width of the model at most where the product is part of the op.
    pub const HIDDEN_MAX: usize = 8192;

    /// Elements of the workspace for up to `rows` rows.
    pub fn workspace_len(shape: ExpertsShape, rows: usize) -> usize {
        let blocks = rows.min(CHOOSE_ROWS_MAX).div_ceil(CHOOSE_ROWS).max(rows.div_ceil(ROUTE_ROWS));
        4 + blocks * shape.experts
    }

    /// Puts the op onto the device's stream.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(self, device: &Device) -> Result<(), LaunchError> {
        let check = Check::new("router", device);
        let (shape, rows) = (self.shape, self.rows);
        let ExpertsShape { experts, top, hidden, .. } = shape;
        check_shape(&check, shape, rows)?;
        check.that(self.batch > 0, || "batch is 0".into())?;
        let floats = |name, array: &Option<Array<'_, f32>>| match array {
            Some(array) => check.scalars(name, array, &[experts]),
            None => Ok(0),
        };
        let (score, correction) = match &self.choice.score {
            Score::Softmax => (0, 0),
            Score::Sigmoid { correction } => (1, floats("correction", correction)?),
        };
        let there = match &self.choice.there {
            Some(there) => check.scalars("there", there, &[rows])?,
            None => 0,
        };
        let workspace = Router::workspace_len(shape, rows);
        let workspace = room(&check, "workspace", &self.workspace, workspace)?;
        let plan_len = Routed::plan_len(shape, rows, self.batch);
        let (x, norm_weight, weight, normed, eps) = self.input.check(&check, shape, rows)?;
        let stride = match self.input {
            RouterInput::Logits { stride } => stride,
            RouterInput::Rows { .. } => experts,
        };
        check.that(stride >= experts, || format!("the stride of logits is {stride}"))?;
        let bias = match &self.bias {
            Some(bias) => check.scalars("bias", bias, &[experts])?,
            None => 0,
        };
        let choose_rows = if rows <= CHOOSE_ROWS_MAX { CHOOSE_ROWS } else { ROUTE_ROWS };
        let args = RouterArgs {
            x,
            norm_weight,
            weight,
            bias,
            correction,
            there,
            normed,
            logits: room(&check, "logits", &self.logits, rows * stride)?,
            ids: check.scalars("ids", &self.ids, &[rows, top])?,
            weights: check.scalars("weights", &self.weights, &[rows, top])?,
            counts: workspace + 16,
            plan: room(&check, "plan", &self.plan, plan_len)?,
            arrived: workspace,
            rows: check.count("rows", rows)?,
            hidden: hidden as u32,
            experts: experts as u32,
            top: top as u32,
            eps,
            scale: self.choice.scale,
            score,
            renormalise: u32::from(self.choice.renormalise),
            batch: check.count("batch", self.batch)?,
            batches_max: check.count("batches", batches_max(shape, rows, self.batch))?,
            logits_stride: check.count("stride", stride)?,
            choose_rows: choose_rows as u32,
        };
        if rows == 0 {
            return Ok(());
        }
        let grid = |blocks| Grid { blocks, threads: THREADS, shared_bytes: 0, cluster: 1 };
        if x == 0 {
            let choose = grid((args.rows.div_ceil(args.choose_rows), 1));
            // SAFETY: the struct is the kernel's, its arrays were checked above, and a block has `choose_rows` rows.
            unsafe { check.launch(Kernel::ExpertsChoose, choose, &args) }?;
            let place = grid((args.rows.div_ceil(ROUTE_ROWS as u32), 1));
            // SAFETY: as above, and a block has 64 rows.
            return unsafe { check.launch(Kernel::ExpertsPlace, place, &args) };
        }
        let across = args.experts.div_ceil(EXPERTS_BLOCK);
        let down = args.rows.div_ceil(ROWS_BLOCK).min(device.multiprocessors() / across).max(1);
        // SAFETY: the struct is the kernel's, its arrays were checked above, and with one block for each multiprocessor, or at
        // most 64, all of them are on the GPU at once, as they wait for each other.
        unsafe { check.launch(Kernel::Router, grid((across, down)), &args) }
    }
}

impl RouterInput<'_> {
    /// Addresses of x, of the norm's weight, of the weight and of the normalised rows; and eps.
    fn check(
        &self,
        check: &Check<'_>,
        shape: ExpertsShape,
        rows: usize,
    ) -> Result<(Address, Address, Address, Address, f32), LaunchError> {
        let RouterInput::Rows { x, norm, weight } = self else { return Ok((0, 0, 0, 0, 0.0)) };
        let ExpertsShape { experts, hidden, .. } = shape;
        check.that(rows <= Router::ROWS_MAX, || {
            format!("rows is {rows}, the limit is {}", Router::ROWS_MAX)
        })?;
        check.that(hidden <= Router::HIDDEN_MAX, || {
            format!("hidden is {hidden}, the limit is {}", Router::HIDDEN_MAX)
        })?;
        let (norm_weight, normed, eps) = match norm {
            Some(RouterNorm { weight, eps, normed }) => {
                let weight = check.array("norm weight", weight, &[hidden])?;
                (weight, check.array("normed", normed, &[rows, hidden])?, *eps)
            }
            None => (0, 0, 0.0),
        };
        let x = check.array("x", x, &[rows, hidden])?;
        Ok((x, norm_weight, check.array("weight", weight, &[experts, hidden])?, normed, eps))
    }
}
