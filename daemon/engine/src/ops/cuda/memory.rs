//! Arrays on the GPU: weights and activations.
//!
//! Owns: their shapes. Must never: allocate; whoever does counts it.

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut, DevicePtr};
use half::bf16;

/// Rows whose logits are held at once: whole vocabularies are long.
pub(super) const LOGIT_ROWS: usize = 256;

/// cuBLASLt wants rows that start at multiples of 16 bytes.
pub(super) const ROW_UNIT: usize = 8;

/// A weight matrix `[rows, inputs]`, its rows padded with zeros to a multiple of [`ROW_UNIT`].
pub struct Matrix {
    pub(super) data: CudaSlice<bf16>,
    pub(super) rows: usize,
    pub(super) inputs: usize,
}

impl Matrix {
    pub(super) fn padded_rows(&self) -> usize {
        self.rows.next_multiple_of(ROW_UNIT)
    }
}

/// Activations `[rows, width]`.
pub struct Buffer {
    pub(super) data: CudaSlice<bf16>,
    pub(super) rows: usize,
    pub(super) width: usize,
}

impl Buffer {
    pub(super) fn rows(&self, rows: usize) -> CudaView<'_, bf16> {
        self.data.slice(..rows * self.width)
    }

    pub(super) fn rows_mut(&mut self, rows: usize) -> CudaViewMut<'_, bf16> {
        self.data.slice_mut(..rows * self.width)
    }
}

/// Where an array is.
pub(super) fn address<T>(array: &CudaSlice<T>) -> u64 {
    array.device_ptr(array.stream()).0
}
