//! The experts of a layer in e4m3 for many rows; the kernels are `cu/experts/fp8_gather.cu`, `fp8_many.cu` and
//! `experts_combine.cu`. Counts the same bytes of shared memory.

use half::bf16;

use super::fp8::Matrix;
use super::many::{GATHER_THREADS, SHARED_STATIC, SLABS, STAGES_MAX, THREADS, TURNED_MIN};
use super::weights::SLAB_STEP_BYTES;
use super::{
    ExpertWeightsFp8, ExpertsMany, ExpertsShape, Gate, Routed, Written, batches_max, check_shape,
    room,
};
use crate::abi::{Address, CombineArgs, Fp8GatherArgs, Fp8ManyArgs};
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::fp8::{BLOCK, ScaleForm};
use crate::grid::Grid;
use crate::kernel::Kernel;
use crate::{Array, ArrayMut};

/// Pairs of a batch that there can be.
const BATCHES: [usize; 3] = [32, 64, 128];
/// What a stage holds of the scales of a batch's rows.
const STAGE_SCALES_BYTES: usize = 1024;
/// What of the dynamic part is lost to alignment.
const ALIGNMENT: usize = 1024;

/// [`ExpertsMany`] with weights of e4m3: rows are brought together by expert as e4m3 with a scale for 128 columns, and so
/// are those between the products, after they were rounded to bf16.
///
/// What an expert gives is rounded to bf16 before the sum, which is taken in the order of choices. FLOPs
/// `6 * rows * top * hidden * width`; bound by the tensor cores, or with fewer rows by reading the weights. Hopper alone.
pub struct ExpertsManyFp8<'a> {
    /// `[rows, hidden]`.
    pub x: Array<'a, bf16>,
    /// The layer's weights.
    pub weights: ExpertWeightsFp8<'a>,
    /// What a [`Router`](super::Router) with the batch of [`ExpertsManyFp8::batch`] has left.
    pub routed: Routed<'a>,
    /// Between the products.
    pub gate: Gate,
    /// At least [`ExpertsManyFp8::act_len`].
    pub act: ArrayMut<'a, bf16>,
    /// At least [`ExpertsManyFp8::y_len`].
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
        let stage_bytes = SLABS * SLAB_STEP_BYTES + batch * BLOCK + STAGE_SCALES_BYTES;
        let fixed = batch.max(TURNED_MIN) * BLOCK + ALIGNMENT;
        let stages = (shared_max.saturating_sub(fixed) / stage_bytes).min(STAGES_MAX);
        Cut { stages, shared_bytes: fixed + stages * stage_bytes }
    }
}

/// Where rows of e4m3 are, in bytes behind the begin of an array.
#[derive(Clone, Copy, Debug)]
struct Coded {
    codes: usize,
    scales: usize,
    end: usize,
}

impl Coded {
    /// Of `pairs` rows of `columns`, from `begin` on.
    fn after(begin: usize, pairs: usize, columns: usize) -> Coded {
        let steps = columns.div_ceil(BLOCK);
        let codes = begin.next_multiple_of(16);
        let scales = codes + steps * pairs * BLOCK;
        Coded { codes, scales, end: scales + 2 * steps * scale_stride(pairs) * size_of::<f32>() }
    }
}

/// From a step's scales to the next one's.
fn scale_stride(pairs: usize) -> usize {
    (pairs + 1).next_multiple_of(4)
}

impl ExpertsManyFp8<'_> {
    /// Pairs of a row and an expert that are computed together, for so many rows.
    pub fn batch(shape: ExpertsShape, rows: usize) -> usize {
        ExpertsMany::batch(shape, rows).min(BATCHES[BATCHES.len() - 1])
    }

    /// Elements between the products of `rows` rows: as they are, and as e4m3.
    pub fn act_len(shape: ExpertsShape, rows: usize) -> usize {
        let pairs = rows * shape.top;
        Coded::after(pairs * shape.width * 2, pairs, shape.width).end.div_ceil(2)
    }

    /// Elements of what experts give, and before that of the rows that they get.
    pub fn y_len(shape: ExpertsShape, rows: usize) -> usize {
        let pairs = rows * shape.top;
        (pairs * shape.hidden).max(Coded::after(0, pairs, shape.hidden).end.div_ceil(2))
    }

    /// Whether it can be had on this GPU.
    pub fn takes(device: &Device) -> bool {
        ExpertsMany::takes(device)
    }

    /// Puts the ops onto the device's stream.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(self, device: &Device) -> Result<(), LaunchError> {
        let check = Check::new("experts_many_fp8", device);
        let (shape, rows, batch) = (self.shape, self.rows, self.routed.batch);
        let ExpertsShape { top, hidden, width, .. } = shape;
        check_shape(&check, shape, rows)?;
        check.that(Self::takes(device), || "it needs compute capability 9.0".into())?;
        check.that(BATCHES.contains(&batch), || {
            format!("batch is {batch}, it must be one of {BATCHES:?}")
        })?;
        let [gate_up, down] = self.weights.check(&check, shape)?;
        let (_, routed, plan) = self.routed.check(&check, shape, rows)?;
        let written = Written::check(&check, shape, rows, &self.act, &self.out)?;
        let y = room(&check, "y", &self.y, Self::y_len(shape, rows))?;
        room(&check, "act", &self.act, Self::act_len(shape, rows))?;
        let x = check.array("x", &self.x, &[rows, hidden])?;
        let (batches_max, pairs) = (batches_max(shape, rows, batch), rows * top);
        let scale_stride = check.count("rows * top", scale_stride(pairs))?;
        let cut = Cut::new(batch, device.shared_bytes_block() as usize - SHARED_STATIC);
        let grid = Grid {
            blocks: (if rows == 0 { 0 } else { device.multiprocessors() }, 1),
            threads: THREADS,
            shared_bytes: cut.shared_bytes as u32,
            cluster: 1,
        };
        let pairs_block = GATHER_THREADS as usize / 32;
        let gather_grid = Grid {
            blocks: (pairs.div_ceil(pairs_block) as u32, 1),
            threads: GATHER_THREADS,
            shared_bytes: 0,
            cluster: 1,
        };
        let at = |array: Address, bytes: usize| array + bytes as Address;
        let gather = |x, by_places, (to, coded): (Address, Coded), columns: usize| Fp8GatherArgs {
            x,
            plan,
            to: at(to, coded.codes),
            scales: at(to, coded.scales),
            rows: rows as u32,
            top: top as u32,
            columns: columns as u32,
            batches_max: batches_max as u32,
            scale_stride,
            by_places,
        };
        let args = |(x, coded): (Address, Coded), matrix: Matrix, out, n: usize, columns: usize| {
            Fp8ManyArgs {
                x: at(x, coded.codes),
                x_scales: at(x, coded.scales),
                weight: matrix.codes,
                scales: matrix.scales,
                bias: matrix.bias,
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
                scale_stride,
                reserved: 0,
            }
        };
        // The rows that experts get are no longer needed when what they give is written there.
        let in_y = (y, Coded::after(0, pairs, hidden));
        let in_act = (written.act, Coded::after(pairs * width * 2, pairs, width));
        let by_form = |matrix: Matrix, block, row| match matrix.form {
            ScaleForm::Block => block,
            ScaleForm::Row => row,
        };
        let up_kernel = by_form(gate_up, Kernel::Fp8ManyUpBlock, Kernel::Fp8ManyUpRow);
        let down_kernel = by_form(down, Kernel::Fp8ManyDownBlock, Kernel::Fp8ManyDownRow);
        let combine = CombineArgs {
            y,
            weights: routed,
            place: plan + (4 * (4 + 4 * batches_max + pairs)) as Address,
            out: written.out,
            rows: rows as u32,
            top: top as u32,
            hidden: hidden as u32,
            adds: u32::from(self.adds),
        };
        // SAFETY: the structs are the kernels', their arrays were checked above, and shared memory is as they count it.
        unsafe {
            check.launch(Kernel::Fp8Gather, gather_grid, &gather(x, 0, in_y, hidden))?;
            check.launch(up_kernel, grid, &args(in_y, gate_up, written.act, 2 * width, hidden))?;
            check.launch(Kernel::Fp8Gather, gather_grid, &gather(written.act, 1, in_act, width))?;
            check.launch(down_kernel, grid, &args(in_act, down, y, hidden, width))?;
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
            // Scales from a multiple of four on, and as many.
            assert!((batch + 2 + 3) * 4 <= STAGE_SCALES_BYTES);
        }
    }

    #[test]
    fn rows_of_e4m3_fit_beside_what_they_are_made_of() {
        for (hidden, width) in [(2048, 768), (16, 8), (2880, 1096), (4096, 14_336)] {
            let shape = ExpertsShape { experts: 32, top: 3, hidden, width };
            for rows in [0, 1, 7, 333] {
                let (pairs, act) = (rows * 3, 2 * ExpertsManyFp8::act_len(shape, rows));
                let coded = Coded::after(pairs * width * 2, pairs, width);
                assert!(coded.codes.is_multiple_of(16) && coded.scales.is_multiple_of(16));
                assert!(coded.codes >= pairs * width * 2 && coded.end <= act + 1);
                let y = 2 * ExpertsManyFp8::y_len(shape, rows);
                assert!(y >= pairs * hidden * 2 && y + 1 >= Coded::after(0, pairs, hidden).end);
            }
        }
    }
}
