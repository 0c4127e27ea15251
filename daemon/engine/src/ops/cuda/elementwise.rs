//! Norms, gates and sums of rows, each a launch of its own.
//!
//! Owns: how the residual stream is normalised where no product does it. Must never: multiply by a matrix.

use cudarc::driver::{CudaSlice, CudaView};
use half::bf16;
use minisgl_kernels::Array;
use minisgl_kernels::ops::{AddNorm, GateMul, RmsNorm};

use super::{Buffer, CudaOps, failed};
use crate::ops::{Norm, OpResult, Stream};

impl CudaOps {
    /// Leaves the norm of the first `rows` rows in the stream, unless it is there.
    pub(super) fn normalise(
        &mut self,
        rows: usize,
        stream: &mut Stream<Self>,
        norm: &Norm<Self>,
    ) -> OpResult {
        if stream.has(norm) {
            return Ok(());
        }
        let Stream { residual, normed, .. } = stream;
        self.launch_norm((rows, rows), None, residual, &norm.weight, normed)?;
        stream.changed(Some(norm));
        Ok(())
    }

    /// `out` of the gate and of `up`.
    pub(super) fn gate_mul(&mut self, rows: usize, gate_up: &Buffer, out: &mut Buffer) -> OpResult {
        let width = out.width;
        GateMul {
            gate_up: (&gate_up.rows(rows)).into(),
            out: (&mut out.rows_mut(rows)).into(),
            rows,
            width,
            gate: self.gate,
        }
        .launch(&self.device)
        .map_err(failed("gate_mul"))
    }

    /// The end of a block with a norm of its own: `residual += after(x)`, and the norm of the next one.
    pub(super) fn add_norm(
        &self,
        rows: usize,
        x: &Buffer,
        (after, next): (&Norm<Self>, Option<&Norm<Self>>),
        stream: &mut Stream<Self>,
    ) -> OpResult {
        let Stream { residual, normed, .. } = stream;
        let hidden = residual.width;
        let mut normed = normed.rows_mut(rows);
        AddNorm {
            x: (&x.rows(rows)).into(),
            after: (&after.weight).into(),
            residual: (&mut residual.rows_mut(rows)).into(),
            next: next.map(|next| ((&next.weight).into(), (&mut normed).into())),
            rows,
            hidden,
            eps: self.eps,
            plus_one: self.plus_one,
        }
        .launch(&self.device)
        .map_err(failed("add_norm"))?;
        stream.changed(next);
        Ok(())
    }

    /// The norm of `rows` of `x_rows` rows: of those that `index` names, or of the first.
    pub(super) fn launch_norm(
        &self,
        (rows, x_rows): (usize, usize),
        index: Option<&CudaView<'_, i32>>,
        x: &Buffer,
        weight: &CudaSlice<bf16>,
        out: &mut Buffer,
    ) -> OpResult {
        let hidden = out.width;
        RmsNorm {
            x: (&x.rows(x_rows)).into(),
            index: index.map(Array::from),
            weight: weight.into(),
            out: (&mut out.rows_mut(rows)).into(),
            rows,
            x_rows,
            hidden,
            eps: self.eps,
            plus_one: self.plus_one,
        }
        .launch(&self.device)
        .map_err(failed("rms_norm"))
    }
}
