//! The experts of a layer in e4m3 for few rows; the kernel is `cu/experts/fp8_few.cu`.

use half::bf16;

use super::few::{Few, FewWeights, Stored};
use super::{ExpertWeightsFp8, ExpertsFew, ExpertsShape, Gate, Routed};
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::fp8::BLOCK;
use crate::kernel::Kernel;
use crate::{Array, ArrayMut};

pub(super) const E4M3: Stored =
    Stored { step: BLOCK, up_steps: 4, down_steps_max: 8, pad: 64, scaled: true, together: 2 };

/// [`ExpertsFew`] with weights of e4m3: they are widened to bf16 where they are multiplied, x and what lies between the
/// products stay bf16.
///
/// A row's result has the same bits whatever else is in the batch. Moves the weights of every chosen expert once,
/// `3 * hidden * width` bytes; bound by reading them.
pub struct ExpertsFewFp8<'a> {
    /// `[rows, hidden]`.
    pub x: Array<'a, bf16>,
    /// The layer's weights.
    pub weights: ExpertWeightsFp8<'a>,
    /// What a [`Router`](super::Router) with [`ExpertsFewFp8::BATCH`] has left.
    pub routed: Routed<'a>,
    /// Between the products.
    pub gate: Gate,
    /// At least `rows * top * width`.
    pub act: ArrayMut<'a, bf16>,
    /// The residual stream, or what is added to it, `[rows, hidden]`.
    pub out: ArrayMut<'a, bf16>,
    /// Whether to add to what is in `out`; else it is written anew, padding rows as zeros.
    pub adds: bool,
    /// At least [`ExpertsFewFp8::WORKSPACE_LEN`], zeros before the first launch.
    pub workspace: ArrayMut<'a, u32>,
    /// The layer.
    pub shape: ExpertsShape,
    /// Tokens, at most [`ExpertsFewFp8::ROWS_MAX`].
    pub rows: usize,
}

impl ExpertsFewFp8<'_> {
    /// Rows at most.
    pub const ROWS_MAX: usize = ExpertsFew::ROWS_MAX;
    /// Elements of the workspace.
    pub const WORKSPACE_LEN: usize = ExpertsFew::WORKSPACE_LEN;
    /// Pairs of a row and an expert that are computed together, for the router.
    pub const BATCH: usize = ExpertsFew::BATCH;

    /// Whether it can be had on this GPU for so many rows.
    pub fn takes(device: &Device, shape: ExpertsShape, rows: usize) -> bool {
        Few::takes(device, E4M3, shape, rows)
    }

    /// Puts the op onto the device's stream.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(self, device: &Device) -> Result<(), LaunchError> {
        let check = Check::new("experts_few_fp8", device);
        let ExpertsFewFp8 { x, weights, routed, gate, act, out, adds, workspace, shape, rows } =
            self;
        let few = Few { x, routed, gate, act, out, adds, workspace, shape, rows };
        few.launch((device, &check), (Kernel::Fp8Few, E4M3), || {
            let [gate_up, down] = weights.check(&check, shape)?;
            Ok(FewWeights {
                gate_up: gate_up.codes,
                down: down.codes,
                gate_up_bias: gate_up.bias,
                down_bias: down.bias,
                scales: [gate_up, down].map(|of| (of.scales, of.form.code())),
            })
        })
    }
}
