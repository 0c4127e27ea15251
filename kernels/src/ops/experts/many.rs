//! The experts of a layer for many rows; the kernels are `cu/experts/experts_gather.cu`, `experts_many.cu` and
//! `experts_combine.cu`. Counts the same bytes of shared memory.

use half::bf16;

use super::weights::{SLAB_STEP_BYTES, STEP};
use super::{ExpertWeights, ExpertsShape, Gate, Routed, Written, batches_max, check_shape, room};
use crate::abi::{Address, CombineArgs, ExpertsManyArgs, GatherArgs};
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::grid::Grid;
use crate::kernel::Kernel;
use crate::{Array, ArrayMut};

/// Threads of a block: eight warps that multiply, four of which one copies.
pub(super) const THREADS: u32 = 384;
/// Threads of a block that gathers, a warp for each pair.
pub(super) const GATHER_THREADS: u32 = 256;
/// Slabs of an item.
pub(super) const SLABS: usize = 8;
pub(super) const STAGES_MAX: usize = 12;
/// Pairs of a batch that there can be.
const BATCHES: [usize; 4] = [32, 64, 128, 256];
/// Results are turned around in room for so many rows at least.
pub(super) const TURNED_MIN: usize = 64;
/// Static shared memory of the kernels at most.
pub(super) const SHARED_STATIC: usize = 512;
/// What of the dynamic part is lost to alignment.
const ALIGNMENT: usize = 1024;

/// `out (+)= sum of weight * down(gate(x))` over the experts of each row, for many rows: rows are brought together by
/// expert, then two grouped products and a sum.
///
/// bf16 with f32 sums; what an expert gives is rounded before the sum, which is taken in the order of choices. FLOPs
/// `6 * rows * top * hidden * width`; bound by the tensor cores, or with fewer rows by reading the weights. Hopper alone.
pub struct ExpertsMany<'a> {
    /// `[rows, hidden]`.
    pub x: Array<'a, bf16>,
    /// The layer's weights.
    pub weights: ExpertWeights<'a>,
    /// What a [`Router`](super::Router) with the batch of [`ExpertsMany::batch`] has left.
    pub routed: Routed<'a>,
    /// Between the products.
    pub gate: Gate,
    /// At least [`ExpertsMany::act_len`].
    pub act: ArrayMut<'a, bf16>,
    /// At least [`ExpertsMany::y_len`].
    pub y: ArrayMut<'a, bf16>,
    /// The residual stream, or what is added to it, `[rows, hidden]`.
    pub out: ArrayMut<'a, bf16>,
    /// Whether to add to what is in `out`; else it is written anew, padding rows as zeros.
    pub adds: bool,
    /// The layer.
    pub shape: ExpertsShape,
    /// Tokens.
    pub rows: usize,
}

/// How shared memory is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    stages: usize,
    shared_bytes: usize,
}

impl Cut {
    fn new(batch: usize, shared_max: usize) -> Cut {
        let row_bytes = STEP * 2;
        let stage_bytes = SLABS * SLAB_STEP_BYTES + batch * row_bytes;
        let fixed = batch.max(TURNED_MIN) * row_bytes + ALIGNMENT;
        let stages = (shared_max.saturating_sub(fixed) / stage_bytes).min(STAGES_MAX);
        Cut { stages, shared_bytes: fixed + stages * stage_bytes }
    }
}

impl ExpertsMany<'_> {
    /// Pairs of a row and an expert that are computed together, for so many rows: large enough that an expert's
    /// weights are read once or twice.
    pub fn batch(shape: ExpertsShape, rows: usize) -> usize {
        let each = rows * shape.top / shape.experts.max(1);
        match each {
            ..=20 => 32,
            21..=48 => 64,
            49..=96 => 128,
            _ => 256,
        }
    }

    /// Elements between the products of `rows` rows: whole steps of columns.
    pub fn act_len(shape: ExpertsShape, rows: usize) -> usize {
        rows * shape.top * shape.width.next_multiple_of(STEP)
    }

    /// Elements of what experts give, and before that of the rows that they get.
    pub fn y_len(shape: ExpertsShape, rows: usize) -> usize {
        rows * shape.top * shape.hidden.next_multiple_of(STEP)
    }

    /// Whether it can be had on this GPU.
    pub fn takes(device: &Device) -> bool {
        device.capability().0 == 9 && device.has_clusters()
    }

    /// Puts the ops onto the device's stream.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(self, device: &Device) -> Result<(), LaunchError> {
        let check = Check::new("experts_many", device);
        let (shape, rows, batch) = (self.shape, self.rows, self.routed.batch);
        let ExpertsShape { top, hidden, width, .. } = shape;
        check_shape(&check, shape, rows)?;
        check.that(Self::takes(device), || "it needs compute capability 9.0".into())?;
        check.that(BATCHES.contains(&batch), || {
            format!("batch is {batch}, it must be one of {BATCHES:?}")
        })?;
        let weights = self.weights.check(&check, shape)?;
        let (_, routed, plan) = self.routed.check(&check, shape, rows)?;
        let written = Written::check(&check, shape, rows, &self.act, &self.out)?;
        let y = room(&check, "y", &self.y, Self::y_len(shape, rows))?;
        room(&check, "act", &self.act, Self::act_len(shape, rows))?;
        let x = check.array("x", &self.x, &[rows, hidden])?;
        let batches_max = batches_max(shape, rows, batch);
        let cut = Cut::new(batch, device.shared_bytes_block() as usize - SHARED_STATIC);
        let grid = Grid {
            blocks: (if rows == 0 { 0 } else { device.multiprocessors() }, 1),
            threads: THREADS,
            shared_bytes: cut.shared_bytes as u32,
            cluster: 1,
        };
        let args = |x, weight, bias, out, n: usize, columns: usize| ExpertsManyArgs {
            x,
            weight,
            bias,
            plan,
            out,
            rows: rows as u32,
            top: top as u32,
            n: n as u32,
            columns: columns as u32,
            batches_max: batches_max as u32,
            batch: batch as u32,
            stages: cut.stages as u32,
            gate: self.gate.number(),
        };
        // The rows that experts get are no longer needed when what they give is written there.
        let gather = GatherArgs {
            x,
            plan,
            to: y,
            rows: rows as u32,
            top: top as u32,
            columns: hidden as u32,
            batches_max: batches_max as u32,
        };
        let pairs_block = GATHER_THREADS as usize / 32;
        let gather_grid = Grid {
            blocks: ((rows * top).div_ceil(pairs_block) as u32, 1),
            threads: GATHER_THREADS,
            shared_bytes: 0,
            cluster: 1,
        };
        let up = args(y, weights.gate_up, weights.gate_up_bias, written.act, 2 * width, hidden);
        let down = args(written.act, weights.down, weights.down_bias, y, hidden, width);
        let combine = CombineArgs {
            y,
            weights: routed,
            place: plan + (4 * (4 + 4 * batches_max + rows * top)) as Address,
            out: written.out,
            rows: rows as u32,
            top: top as u32,
            hidden: hidden as u32,
            adds: u32::from(self.adds),
        };
        // SAFETY: the structs are the kernels', their arrays were checked above, and shared memory is as they count it.
        unsafe {
            check.launch(Kernel::ExpertsGather, gather_grid, &gather)?;
            check.launch(Kernel::ExpertsManyUp, grid, &up)?;
            check.launch(Kernel::ExpertsManyDown, grid, &down)?;
            check.launch(Kernel::ExpertsCombine, Grid::of_threads(rows * hidden / 8), &combine)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_batch_leaves_a_ring_of_four_stages() {
        let shared_max = 232_448 - SHARED_STATIC;
        for batch in BATCHES {
            let cut = Cut::new(batch, shared_max);
            assert!(cut.shared_bytes <= shared_max, "{batch} {cut:?}");
            assert!((4..=STAGES_MAX).contains(&cut.stages), "{batch} {cut:?}");
        }
    }

    #[test]
    fn a_batch_takes_most_experts_at_once() {
        let shape = ExpertsShape { experts: 128, top: 8, hidden: 2048, width: 768 };
        for rows in [1, 100, 256, 512, 1000, 2048, 8192, 100_000] {
            let batch = ExpertsMany::batch(shape, rows);
            assert!(BATCHES.contains(&batch));
            assert!(batch == 256 || 4 * batch >= 5 * (rows * 8 / 128), "{rows} {batch}");
        }
    }
}
