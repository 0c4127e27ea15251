//! Experts' matrices on their way into the form that the kernels read.
//!
//! Owns: that form, and how a stack gets there. Must never: have a second copy of a stack on the GPU: a few experts at a
//! time arrive as they are stored, and are packed.

use cudarc::driver::{CudaSlice, DriverError};
use half::bf16;
use minisgl_kernels::ops::{ExpertRows, PackExpert, expert_slabs_len};

use super::super::{CudaOps, failed, plain_part};
use crate::ops::{OpResult, StackOf, StackShape};
use crate::weights::{MatrixPart, TensorPart};

/// Elements that are under way at a time, unless one expert has more: 128 MiB.
const ARRIVING_LEN: usize = 64 << 20;

/// One matrix of every expert of a layer, as it is kept.
pub enum Stack {
    /// bf16, in slabs of 16 rows: [`expert_slabs_len`] for each expert.
    Plain(CudaSlice<bf16>),
}

impl CudaOps {
    /// Uploads a stack and packs it.
    pub(in super::super) fn upload_stack(
        &self,
        parts: &[MatrixPart<'_>],
        shape: StackShape,
    ) -> OpResult<Stack> {
        let parts: Vec<TensorPart<'_>> = parts.iter().map(plain_part).collect::<OpResult<_>>()?;
        let StackShape { of, count, rows, inputs } = shape;
        let parts_are: &[ExpertRows] = match of {
            StackOf::GateUp => &[ExpertRows::Gate, ExpertRows::Up],
            StackOf::Down => &[ExpertRows::Whole],
        };
        let (each, part_rows) = (parts_are.len(), rows / parts_are.len());
        let part_len = part_rows * inputs;
        let fits = parts.len() == count * each && parts.iter().all(|part| part.len() == part_len);
        if !fits {
            return Err(failed("upload experts")(format!("{} parts for {shape:?}", parts.len())));
        }
        let slabs_len = expert_slabs_len(rows, inputs);
        let fault = |error: DriverError| failed("upload experts")(format!("{shape:?}: {error}"));
        // SAFETY: packing writes every element of every expert's slabs, those past the last column as zeros.
        let mut stack = unsafe { self.stream().alloc::<bf16>(count * slabs_len) }.map_err(fault)?;
        let at_once = (ARRIVING_LEN / (rows * inputs).max(1)).clamp(1, count.max(1));
        for (group, parts) in parts.chunks(at_once * each).enumerate() {
            let arrived = self.arrive(parts, parts.len() * part_len)?;
            for (index, &rows_are) in (0..parts.len()).zip(parts_are.iter().cycle()) {
                let expert = group * at_once + index / each;
                let from = arrived.slice(index * part_len..(index + 1) * part_len);
                let mut to = stack.slice_mut(expert * slabs_len..(expert + 1) * slabs_len);
                PackExpert {
                    from: (&from).into(),
                    to: (&mut to).into(),
                    rows_are,
                    rows: part_rows,
                    columns: inputs,
                    row_stride: inputs,
                    column_stride: 1,
                }
                .launch(&self.device)
                .map_err(failed("pack experts"))?;
            }
        }
        self.count_weights(stack.num_bytes());
        Ok(Stack::Plain(stack))
    }
}
