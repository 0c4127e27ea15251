//! The experts of a layer in MXFP4 for many rows; the kernels are `cu/experts/experts_gather.cu`, `mxfp4_many.cu` and
//! `experts_combine.cu`. Counts the same bytes of shared memory.

use half::bf16;

use super::mxfp4::QUAD_BYTES;
use super::weights::STEP;
use super::{
    ExpertWeightsMxfp4, ExpertsShape, Gate, Routed, Written, batches_max, check_shape, room,
};
use crate::abi::{Address, CombineArgs, ExpertsManyArgs, GatherArgs};
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::grid::Grid;
use crate::kernel::Kernel;
use crate::{Array, ArrayMut};

/// Threads of a team of eight warps that multiply, and of the four warps of which two copy.
const TEAM: u32 = 256;
const COPIERS: u32 = 128;
/// Threads of a block that gathers, a warp for each pair.
const GATHER_THREADS: u32 = 256;
/// Slabs of an item.
const SLABS: usize = 16;
/// Kernels for batches of so many pairs.
struct Batch {
    pairs: usize,
    up: Kernel,
    down: Kernel,
    /// Of four steps of codes, and of one of x.
    codes_stages: usize,
    x_stages: usize,
}
const BATCHES: [Batch; 3] = [
    Batch {
        pairs: 32,
        up: Kernel::Mxfp4ManyUp32,
        down: Kernel::Mxfp4ManyDown32,
        codes_stages: 5,
        x_stages: 8,
    },
    Batch {
        pairs: 64,
        up: Kernel::Mxfp4ManyUp64,
        down: Kernel::Mxfp4ManyDown64,
        codes_stages: 4,
        x_stages: 8,
    },
    Batch {
        pairs: 128,
        up: Kernel::Mxfp4ManyUp128,
        down: Kernel::Mxfp4ManyDown128,
        codes_stages: 3,
        x_stages: 6,
    },
];
/// Results are turned around in room for so many rows at least.
const TURNED_MIN: usize = 64;
/// Static shared memory of the kernels at most.
#[cfg(test)]
const SHARED_STATIC: usize = 512;
/// What of the dynamic part is lost to alignment.
const ALIGNMENT: usize = 1024;

/// [`ExpertsMany`](super::ExpertsMany) with weights in MXFP4.
///
/// Weights are widened to bf16 on their way into the tensor cores, which loses nothing; sums are f32; what an expert gives
/// is rounded before the sum, which is taken in the order of choices. FLOPs `6 * rows * top * hidden * width`; bound by
/// the tensor cores, or with fewer rows by reading the weights. Hopper alone.
pub struct ExpertsManyMxfp4<'a> {
    /// `[rows, hidden]`.
    pub x: Array<'a, bf16>,
    /// The layer's weights.
    pub weights: ExpertWeightsMxfp4<'a>,
    /// What a [`Router`](super::Router) with the batch of [`ExpertsManyMxfp4::batch`] has left.
    pub routed: Routed<'a>,
    /// Between the products.
    pub gate: Gate,
    /// At least [`ExpertsManyMxfp4::act_len`].
    pub act: ArrayMut<'a, bf16>,
    /// At least [`ExpertsManyMxfp4::y_len`].
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

impl Batch {
    fn of(pairs: usize) -> Option<&'static Batch> {
        BATCHES.iter().find(|batch| batch.pairs == pairs)
    }

    /// With few pairs, two.
    fn teams(&self) -> u32 {
        if self.pairs > TURNED_MIN { 1 } else { 2 }
    }

    fn shared_bytes(&self) -> usize {
        let row_bytes = STEP * 2;
        let turned = self.teams() as usize * self.pairs.max(TURNED_MIN);
        let rows = self.x_stages * self.pairs + turned;
        ALIGNMENT + self.codes_stages * SLABS * QUAD_BYTES + rows * row_bytes
    }
}

impl ExpertsManyMxfp4<'_> {
    /// Pairs of a row and an expert that are computed together, for so many rows: large enough that an expert's
    /// weights are read once or twice.
    pub fn batch(shape: ExpertsShape, rows: usize) -> usize {
        let each = rows * shape.top / shape.experts.max(1);
        match each {
            ..=20 => 32,
            21..=48 => 64,
            _ => 128,
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
        let check = Check::new("experts_many_mxfp4", device);
        let (shape, rows, batch) = (self.shape, self.rows, self.routed.batch);
        let ExpertsShape { top, hidden, width, .. } = shape;
        check_shape(&check, shape, rows)?;
        check.that(Self::takes(device), || "it needs compute capability 9.0".into())?;
        let kernels = Batch::of(batch);
        check.that(kernels.is_some(), || {
            format!("batch is {batch}, it must be one of {:?}", BATCHES.map(|batch| batch.pairs))
        })?;
        let Some(kernels) = kernels else { return Ok(()) };
        let weights = self.weights.check(&check, shape)?;
        let (_, routed, plan) = self.routed.check(&check, shape, rows)?;
        let written = Written::check(&check, shape, rows, &self.act, &self.out)?;
        let y = room(&check, "y", &self.y, Self::y_len(shape, rows))?;
        room(&check, "act", &self.act, Self::act_len(shape, rows))?;
        let x = check.array("x", &self.x, &[rows, hidden])?;
        let batches_max = batches_max(shape, rows, batch);
        let grid = Grid {
            blocks: (if rows == 0 { 0 } else { device.multiprocessors() }, 1),
            threads: kernels.teams() * TEAM + COPIERS,
            shared_bytes: kernels.shared_bytes() as u32,
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
            // The kernels know it themselves.
            stages: 0,
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
            check.launch(kernels.up, grid, &up)?;
            check.launch(kernels.down, grid, &down)?;
            check.launch(Kernel::ExpertsCombine, Grid::of_threads(rows * hidden / 8), &combine)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_batch_fits_into_the_shared_memory_of_hopper() {
        for batch in &BATCHES {
            let bytes = batch.shared_bytes();
            assert!(bytes + SHARED_STATIC <= 232_448, "{} pairs: {bytes}", batch.pairs);
        }
    }

    #[test]
    fn a_batch_takes_most_experts_at_once() {
        let shape = ExpertsShape { experts: 32, top: 4, hidden: 2880, width: 2880 };
        for rows in [1, 100, 256, 512, 1000, 2048, 8192, 100_000] {
            let batch = ExpertsManyMxfp4::batch(shape, rows);
            assert!(Batch::of(batch).is_some());
            assert!(batch == 128 || 4 * batch >= 5 * (rows * 4 / 32), "{rows} {batch}");
        }
    }
}
