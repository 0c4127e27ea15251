//! The experts of a layer in MXFP4 for few rows; the kernel is `cu/experts/mxfp4_few.cu`. Counts the same bytes of shared
//! memory.

use half::bf16;

use super::mxfp4::{parts, run_bytes};
use super::weights::{SLAB, STEP};
use super::{
    ExpertWeightsMxfp4, ExpertsShape, Gate, Routed, Written, batches_max, check_shape, room,
};
use crate::abi::Mxfp4FewArgs;
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::grid::Grid;
use crate::kernel::Kernel;
use crate::{Array, ArrayMut};

/// Warps that multiply, in groups that share a slab; threads of a block with the warps that copy.
const WARPS: usize = 16;
const GROUPS: usize = 2;
const THREADS: u32 = 640;
const STAGES_MAX: usize = 16;
/// With fewer stages, room for the rows of a second batch is better spent on them.
const STAGES_WANTED: usize = 6;
/// Slabs of `down` that a block has at most.
const UNITS_MAX: usize = 64;
/// Static shared memory of the kernel at most.
const SHARED_STATIC: usize = 1024;

/// [`ExpertsFew`](super::ExpertsFew) with weights in MXFP4.
///
/// Codes and scales are multiplied exactly, x and what lies between the products is bf16, sums are f32. Experts of a row are
/// added in their order: its result has the same bits whatever else is in the batch. Moves the weights of every chosen
/// expert once, about `3 * hidden * width * 17 / 32` bytes; bound by reading them.
pub struct ExpertsFewMxfp4<'a> {
    /// `[rows, hidden]`; less than 2^67.
    pub x: Array<'a, bf16>,
    /// The layer's weights.
    pub weights: ExpertWeightsMxfp4<'a>,
    /// What a [`Router`](super::Router) with [`ExpertsFewMxfp4::BATCH`] has left.
    pub routed: Routed<'a>,
    /// Between the products.
    pub gate: Gate,
    /// At least `rows * top * width`.
    pub act: ArrayMut<'a, bf16>,
    /// The residual stream, or what is added to it, `[rows, hidden]`.
    pub out: ArrayMut<'a, bf16>,
    /// Whether to add to what is in `out`; else it is written anew, padding rows as zeros.
    pub adds: bool,
    /// At least [`ExpertsFewMxfp4::workspace_len`], zeros before the first launch.
    pub workspace: ArrayMut<'a, u32>,
    /// The layer.
    pub shape: ExpertsShape,
    /// Tokens, at most [`ExpertsFewMxfp4::ROWS_MAX`].
    pub rows: usize,
}

/// How shared memory is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    stages: usize,
    stage_bytes: usize,
    room_bytes: usize,
    x_buffers: usize,
    shared_bytes: usize,
}

impl Cut {
    /// None if it does not fit.
    fn new(shape: ExpertsShape, rows: usize, blocks: usize, shared_max: usize) -> Option<Cut> {
        let ExpertsShape { top, hidden, width, .. } = shape;
        let (part, parts) = parts(width);
        let (batch, pairs) = (ExpertsFewMxfp4::BATCH.min(rows), rows * top);
        let up_steps = hidden.div_ceil(STEP);
        // Of the blocks that share a part of the columns, one has so many slabs, which its groups share out.
        let units = (hidden / SLAB).div_ceil(blocks / parts.min(blocks));
        let down_bytes = units.div_ceil(GROUPS) * run_bytes(part) + batch * (part * STEP * 2 + 16);
        let stage_bytes = down_bytes.max(run_bytes(up_steps)).next_multiple_of(128);
        let partial = 2 * WARPS * batch * (SLAB + 4) * 4;
        let fixed = partial + batches_max(shape, rows, ExpertsFewMxfp4::BATCH) * 16 + pairs * 8;
        let sums_bytes = (WARPS + units) * rows * SLAB * 4;
        let cut = |x_buffers: usize| {
            let x_bytes = x_buffers * batch * (up_steps * STEP * 2 + 16);
            let room_bytes = x_bytes.max(sums_bytes).next_multiple_of(128);
            let left = shared_max.saturating_sub(fixed + room_bytes);
            // A slot of the ring is always the same group's.
            let stages = (left / stage_bytes).min(STAGES_MAX) / GROUPS * GROUPS;
            let shared_bytes = fixed + room_bytes + stages * stage_bytes;
            Cut { stages, stage_bytes, room_bytes, x_buffers, shared_bytes }
        };
        let two = cut(2);
        let cut = if two.stages >= STAGES_WANTED { two } else { cut(1) };
        let fits = cut.stages > 0 && parts <= blocks && units <= UNITS_MAX;
        fits.then_some(cut)
    }
}

impl ExpertsFewMxfp4<'_> {
    /// Rows at most.
    pub const ROWS_MAX: usize = 64;

    /// Pairs of a row and an expert that are computed together, for the router.
    pub const BATCH: usize = 8;

    /// Elements of the workspace for so many rows.
    pub fn workspace_len(shape: ExpertsShape, rows: usize) -> usize {
        (4 + shape.hidden / SLAB).next_multiple_of(4) + parts(shape.width).1 * rows * shape.hidden
    }

    /// Whether it can be had on this GPU for so many rows.
    pub fn takes(device: &Device, shape: ExpertsShape, rows: usize) -> bool {
        device.has_clusters() && rows <= Self::ROWS_MAX && cut(device, shape, rows).is_some()
    }

    /// Puts the op onto the device's stream.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(self, device: &Device) -> Result<(), LaunchError> {
        let check = Check::new("experts_few_mxfp4", device);
        let (shape, rows, batch) = (self.shape, self.rows, self.routed.batch);
        check_shape(&check, shape, rows)?;
        check.that(device.has_clusters(), || "it needs compute capability 9.0 or 10.0".into())?;
        check.that(rows <= Self::ROWS_MAX, || {
            format!("rows is {rows}, the limit is {}", Self::ROWS_MAX)
        })?;
        check.that(batch == Self::BATCH, || {
            format!("batch is {batch}, it must be {}", Self::BATCH)
        })?;
        let cut = cut(device, shape, rows);
        check.that(cut.is_some() || rows == 0, || {
            format!("{rows} rows of {shape:?} do not fit into shared memory; use ExpertsManyMxfp4")
        })?;
        let weights = self.weights.check(&check, shape)?;
        let (ids, routed, plan) = self.routed.check(&check, shape, rows)?;
        let written = Written::check(&check, shape, rows, &self.act, &self.out)?;
        let x = check.array("x", &self.x, &[rows, shape.hidden])?;
        let workspace_len = Self::workspace_len(shape, rows);
        let counts = room(&check, "workspace", &self.workspace, workspace_len)?;
        let Some(cut) = cut else { return Ok(()) };
        if rows == 0 {
            return Ok(());
        }
        let args = Mxfp4FewArgs {
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
            counts,
            rows: rows as u32,
            top: shape.top as u32,
            hidden: shape.hidden as u32,
            width: shape.width as u32,
            batches_max: batches_max(shape, rows, batch) as u32,
            gate: self.gate.number(),
            stages: cut.stages as u32,
            stage_bytes: cut.stage_bytes as u32,
            room_bytes: cut.room_bytes as u32,
            x_buffers: cut.x_buffers as u32,
            adds: u32::from(self.adds),
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
        unsafe { check.launch(Kernel::Mxfp4Few, grid, &args) }
    }
}

fn cut(device: &Device, shape: ExpertsShape, rows: usize) -> Option<Cut> {
    let shared_max = (device.shared_bytes_block() as usize).saturating_sub(SHARED_STATIC);
    Cut::new(shape, rows, device.multiprocessors() as usize, shared_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARED_MAX: usize = 232_448 - SHARED_STATIC;

    #[test]
    fn few_rows_of_gpt_oss_fit() {
        for (experts, top, hidden, width) in [
            (32, 4, 2880, 2880),
            (128, 4, 2880, 2880),
            (32, 4, 2880, 1440),
            (128, 4, 2880, 736),
            (8, 2, 64, 16),
            (16, 2, 16, 8),
        ] {
            let shape = ExpertsShape { experts, top, hidden, width };
            for rows in 1..=ExpertsFewMxfp4::ROWS_MAX {
                let cut = Cut::new(shape, rows, 132, SHARED_MAX).expect("it fits");
                let what = format!("{shape:?} {rows} {cut:?}");
                assert!(cut.shared_bytes <= SHARED_MAX, "{what}");
                assert!((GROUPS..=STAGES_MAX).contains(&cut.stages), "{what}");
                assert!(cut.stages.is_multiple_of(GROUPS), "{what}");
                assert!(cut.stage_bytes.is_multiple_of(128) && cut.room_bytes.is_multiple_of(128));
                assert!(cut.stage_bytes >= run_bytes(hidden.div_ceil(STEP)), "{what}");
                assert!([1, 2].contains(&cut.x_buffers), "{what}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_said_to_be_so() {
        let shape = ExpertsShape { experts: 512, top: 16, hidden: 8192, width: 4096 };
        assert_eq!(Cut::new(shape, 64, 132, 100 << 10), None);
        // A part of the columns needs a block at least.
        let wide = ExpertsShape { experts: 8, top: 1, hidden: 64, width: 64 * 9 * 5 };
        assert!(Cut::new(wide, 1, 5, SHARED_MAX).is_some());
        assert_eq!(Cut::new(wide, 1, 4, SHARED_MAX), None);
    }
}
