//! The experts of a layer for few rows; the kernels are `cu/experts/experts_few.cu` and `fp8_few.cu`. Counts the same bytes of
//! shared memory.

use half::bf16;

use super::weights::{SLAB, SLAB_STEP_BYTES, STEP};
use super::{ExpertWeights, ExpertsShape, Gate, Routed, Written, batches_max, check_shape, room};
use crate::abi::{Address, ExpertsFewArgs};
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::grid::Grid;
use crate::kernel::Kernel;
use crate::{Array, ArrayMut};

/// Warps that multiply, and threads of a block with the one that copies.
const WARPS: usize = 8;
const THREADS: u32 = 288;
const STAGES_MAX: usize = 16;
/// Static shared memory of the kernel at most.
const SHARED_STATIC: usize = 512;

/// `out (+)= sum of weight * down(gate(x))` over the experts of each row, for few rows.
///
/// bf16 with f32 sums, rounded in between and once in the end, in the order of choices: a row's result has the same bits
/// whatever else is in the batch. Moves the weights of every chosen expert once, `6 * hidden * width` bytes; bound by
/// reading them.
pub struct ExpertsFew<'a> {
    /// `[rows, hidden]`.
    pub x: Array<'a, bf16>,
    /// The layer's weights.
    pub weights: ExpertWeights<'a>,
    /// What a [`Router`](super::Router) with [`ExpertsFew::BATCH`] has left.
    pub routed: Routed<'a>,
    /// Between the products.
    pub gate: Gate,
    /// At least `rows * top * width`.
    pub act: ArrayMut<'a, bf16>,
    /// The residual stream, or what is added to it, `[rows, hidden]`.
    pub out: ArrayMut<'a, bf16>,
    /// Whether to add to what is in `out`; else it is written anew, padding rows as zeros.
    pub adds: bool,
    /// At least [`ExpertsFew::WORKSPACE_LEN`], zeros before the first launch.
    pub workspace: ArrayMut<'a, u32>,
    /// The layer.
    pub shape: ExpertsShape,
    /// Tokens, at most [`ExpertsFew::ROWS_MAX`].
    pub rows: usize,
}

/// How weights are cut into steps, and stages of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored {
    /// Columns of a step.
    pub(super) step: usize,
    /// Steps of a stage of gate and up, and at most of one of down: even.
    pub(super) up_steps: usize,
    pub(super) down_steps_max: usize,
    /// Bytes between rows of x, beyond their own.
    pub(super) pad: usize,
    /// Whether there are scales.
    pub(super) scaled: bool,
    /// Slabs of gate and up that are multiplied by the same x at once.
    pub(super) together: usize,
}

impl Stored {
    /// Bytes of a stage of so many steps of `slabs` slabs, and `rows` of x.
    fn stage_bytes(self, steps: usize, slabs: usize, rows: usize) -> usize {
        let scale_bytes = if self.scaled { steps.div_ceil(2) * 16 } else { 0 };
        slabs * (steps * SLAB_STEP_BYTES + scale_bytes) + rows * (steps * self.step * 2 + self.pad)
    }
}

const BF16: Stored =
    Stored { step: STEP, up_steps: 8, down_steps_max: 16, pad: 16, scaled: false, together: 1 };

/// How shared memory is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    up_steps: usize,
    down_steps: usize,
    stages: usize,
    stage_bytes: usize,
    shared_bytes: usize,
}

impl Cut {
    /// None if it does not fit.
    pub(super) fn new(
        stored: Stored,
        shape: ExpertsShape,
        rows: usize,
        shared_max: usize,
    ) -> Option<Cut> {
        let step = stored.step;
        let pairs = rows * shape.top;
        let up_steps = shape.hidden.div_ceil(step).min(stored.up_steps);
        let down = shape.width.div_ceil(step);
        let down_stages = down.div_ceil(stored.down_steps_max);
        let mut down_steps = down.div_ceil(down_stages);
        if stored.scaled && down_stages > 1 {
            // Scales of two steps are 16 bytes.
            down_steps = down_steps.next_multiple_of(2);
        }
        let batch_rows = ExpertsFew::BATCH.min(rows);
        let stage_bytes = stored
            .stage_bytes(up_steps, stored.together, batch_rows)
            .max(stored.stage_bytes(down_steps, 1, batch_rows))
            .next_multiple_of(128);
        let batch = ExpertsFew::BATCH;
        let partial = 2 * stored.together * WARPS * batch * (SLAB + 4) * 4;
        let fixed = partial + pairs * SLAB * 4 + batches_max(shape, rows, batch) * 16 + pairs * 12;
        let stages = (shared_max.saturating_sub(fixed) / stage_bytes).min(STAGES_MAX);
        let shared_bytes = fixed + stages * stage_bytes;
        // One stage is read while another is filled.
        (stages >= 2).then_some(Cut { up_steps, down_steps, stages, stage_bytes, shared_bytes })
    }
}

/// What the kernels are given, whatever the weights are.
pub(super) struct Few<'a> {
    pub(super) x: Array<'a, bf16>,
    pub(super) routed: Routed<'a>,
    pub(super) gate: Gate,
    pub(super) act: ArrayMut<'a, bf16>,
    pub(super) out: ArrayMut<'a, bf16>,
    pub(super) adds: bool,
    pub(super) workspace: ArrayMut<'a, u32>,
    pub(super) shape: ExpertsShape,
    pub(super) rows: usize,
}

/// Weights, biases and scales.
pub(super) struct FewWeights {
    pub(super) gate_up: Address,
    pub(super) down: Address,
    pub(super) gate_up_bias: Address,
    pub(super) down_bias: Address,
    /// Of gate and up, and of down: where, and in which form.
    pub(super) scales: [(Address, u32); 2],
}

impl Few<'_> {
    /// Whether it can be had on this GPU for so many rows.
    pub(super) fn takes(device: &Device, stored: Stored, shape: ExpertsShape, rows: usize) -> bool {
        device.has_clusters()
            && rows <= ExpertsFew::ROWS_MAX
            && Cut::new(stored, shape, rows, shared_max(device)).is_some()
    }

    pub(super) fn launch(
        self,
        (device, check): (&Device, &Check<'_>),
        (kernel, stored): (Kernel, Stored),
        weights: impl FnOnce() -> Result<FewWeights, LaunchError>,
    ) -> Result<(), LaunchError> {
        let (shape, rows, batch) = (self.shape, self.rows, self.routed.batch);
        check_shape(check, shape, rows)?;
        check.that(device.has_clusters(), || "it needs compute capability 9.0 or 10.0".into())?;
        check.that(rows <= ExpertsFew::ROWS_MAX, || {
            format!("rows is {rows}, the limit is {}", ExpertsFew::ROWS_MAX)
        })?;
        check.that(batch == ExpertsFew::BATCH, || {
            format!("batch is {batch}, it must be {}", ExpertsFew::BATCH)
        })?;
        let cut = Cut::new(stored, shape, rows, shared_max(device));
        check.that(cut.is_some() || rows == 0, || {
            format!("{rows} rows of {shape:?} do not fit into shared memory; use ExpertsMany")
        })?;
        let weights = weights()?;
        let (ids, routed, plan) = self.routed.check(check, shape, rows)?;
        let written = Written::check(check, shape, rows, &self.act, &self.out)?;
        let x = check.array("x", &self.x, &[rows, shape.hidden])?;
        let arrived = room(check, "workspace", &self.workspace, ExpertsFew::WORKSPACE_LEN)?;
        let Some(cut) = cut else { return Ok(()) };
        if rows == 0 {
            return Ok(());
        }
        let [(up_scales, up_form), (down_scales, down_form)] = weights.scales;
        let args = ExpertsFewArgs {
            x,
            gate_up: weights.gate_up,
            down: weights.down,
            up_bias: weights.gate_up_bias,
            down_bias: weights.down_bias,
            weights: routed,
            ids,
            plan,
            act: written.act,
            out: written.out,
            arrived,
            up_scales,
            down_scales,
            rows: rows as u32,
            top: shape.top as u32,
            hidden: shape.hidden as u32,
            width: shape.width as u32,
            batches_max: batches_max(shape, rows, batch) as u32,
            gate: self.gate.number(),
            up_steps: cut.up_steps as u32,
            down_steps: cut.down_steps as u32,
            stages: cut.stages as u32,
            stage_bytes: cut.stage_bytes as u32,
            adds: u32::from(self.adds),
            up_form,
            down_form,
            reserved: 0,
        };
        let grid = Grid {
            blocks: (device.multiprocessors(), 1),
            threads: THREADS,
            shared_bytes: cut.shared_bytes as u32,
            cluster: 1,
        };
        // SAFETY: the struct is the kernel's, its arrays were checked above, shared memory is as the kernel counts
        // it, and with one block for each multiprocessor all of them are on the GPU at once.
        unsafe { check.launch(kernel, grid, &args) }
    }
}

impl ExpertsFew<'_> {
    /// Rows at most.
    pub const ROWS_MAX: usize = 64;
    /// Elements of the workspace.
    pub const WORKSPACE_LEN: usize = 4;

    /// Pairs of a row and an expert that are computed together, for the router.
    pub const BATCH: usize = 8;

    /// Whether it can be had on this GPU for so many rows.
    pub fn takes(device: &Device, shape: ExpertsShape, rows: usize) -> bool {
        Few::takes(device, BF16, shape, rows)
    }

    /// Puts the op onto the device's stream.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(self, device: &Device) -> Result<(), LaunchError> {
        let check = Check::new("experts_few", device);
        let ExpertsFew { x, weights, routed, gate, act, out, adds, workspace, shape, rows } = self;
        let few = Few { x, routed, gate, act, out, adds, workspace, shape, rows };
        few.launch((device, &check), (Kernel::ExpertsFew, BF16), || {
            let weights = weights.check(&check, shape)?;
            Ok(FewWeights {
                gate_up: weights.gate_up,
                down: weights.down,
                gate_up_bias: weights.gate_up_bias,
                down_bias: weights.down_bias,
                scales: [(0, 0); 2],
            })
        })
    }
}

fn shared_max(device: &Device) -> usize {
    (device.shared_bytes_block() as usize).saturating_sub(SHARED_STATIC)
}

#[cfg(test)]
mod tests {
    use super::super::fp8_few::E4M3;
    use super::*;

    const SHARED_MAX: usize = 232_448 - SHARED_STATIC;

    #[test]
    fn few_rows_of_every_model_fit() {
        for (experts, top, hidden, width) in [
            (128, 8, 2048, 768),
            (128, 8, 4096, 1536),
            (60, 4, 2048, 1408),
            (8, 2, 4096, 14_336),
            (32, 4, 2880, 2880),
            (128, 4, 2880, 2880),
            (256, 8, 7168, 2048),
            (512, 10, 2048, 512),
            (16, 2, 16, 8),
        ] {
            let shape = ExpertsShape { experts, top, hidden, width };
            for (rows, stored) in (1..=ExpertsFew::ROWS_MAX)
                .flat_map(|rows| [BF16, E4M3].map(|stored| (rows, stored)))
            {
                let cut = Cut::new(stored, shape, rows, SHARED_MAX).expect("it fits");
                let what = format!("{shape:?} {rows} {stored:?} {cut:?}");
                assert!(cut.shared_bytes <= SHARED_MAX, "{what}");
                assert!((2..=STAGES_MAX).contains(&cut.stages), "{what}");
                assert!(cut.stage_bytes.is_multiple_of(128), "{what}");
                let steps = width.div_ceil(stored.step);
                let (most, even) =
                    (cut.down_steps <= stored.down_steps_max, 1 - cut.down_steps % 2);
                assert!(most && cut.down_steps <= steps.next_multiple_of(2), "{what}");
                // Scales begin at multiples of 16 bytes.
                assert!(!stored.scaled || cut.down_steps >= steps || even == 1, "{what}");
                // What a stage holds of down, and its rows.
                let row = SLAB_STEP_BYTES + 2 * stored.step;
                assert!(cut.stage_bytes >= cut.down_steps * row, "{what}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_said_to_be_so() {
        let shape = ExpertsShape { experts: 512, top: 16, hidden: 4096, width: 4096 };
        assert_eq!(Cut::new(BF16, shape, 64, 100 << 10), None);
    }
}
