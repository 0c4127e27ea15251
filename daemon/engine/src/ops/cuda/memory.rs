//! Arrays on the GPU: weights and activations.
//!
//! Owns: their shapes. Must never: allocate; whoever does counts it.

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut, DevicePtr};
use half::bf16;
use minisgl_kernels::Array;
use minisgl_kernels::fp8::{Fp8Scales, Fp8Weight, ScaleForm};
use minisgl_kernels::ops::SkinnyWeight;

use super::failed;
use crate::ops::OpResult;

/// Rows whose logits are held at once: whole vocabularies are long.
pub(super) const LOGIT_ROWS: usize = 256;

/// Decode rows of a step that is recorded, at most: a step of more takes the GPU far longer than the host, and each graph takes
/// time to record.
pub(super) const GRAPH_ROWS: usize = 1024;

/// cuBLASLt wants rows that start at multiples of 16 bytes.
pub(super) const ROW_UNIT: usize = 8;

/// With scales for blocks cuBLASLt wants tokens in multiples of this.
const TOKEN_UNIT: usize = 4;

/// As many tokens as there is memory for, where there is room for `tokens`.
pub(super) fn padded_tokens(tokens: usize) -> usize {
    tokens.next_multiple_of(TOKEN_UNIT)
}

/// A weight matrix `[rows, inputs]`, its rows padded with zeros to a multiple of [`ROW_UNIT`].
pub struct Matrix {
    pub(super) data: Data,
    pub(super) rows: usize,
    pub(super) inputs: usize,
}

/// What a matrix is made of.
pub(super) enum Data {
    /// Numbers.
    Plain(CudaSlice<bf16>),
    /// E4M3 codes, one byte each, and what they are multiplied by.
    Fp8 { codes: CudaSlice<u8>, scales: CudaSlice<f32>, form: ScaleForm },
}

impl Matrix {
    pub(super) fn padded_rows(&self) -> usize {
        self.rows.next_multiple_of(ROW_UNIT)
    }

    /// How its scales are laid out, if it has some.
    pub(super) fn scale_form(&self) -> Option<ScaleForm> {
        match self.data {
            Data::Plain(_) => None,
            Data::Fp8 { form, .. } => Some(form),
        }
    }

    /// Its numbers.
    ///
    /// # Errors
    /// It has codes, for which there is no kernel here.
    pub(super) fn plain(&self) -> OpResult<&CudaSlice<bf16>> {
        match &self.data {
            Data::Plain(data) => Ok(data),
            Data::Fp8 { .. } => {
                Err(failed("choose kernels")("there is none for e4m3 weights here"))
            }
        }
    }

    /// Its codes, if it has some.
    pub(super) fn coded(&self) -> Option<Fp8Weight<'_>> {
        let Data::Fp8 { codes, scales, form } = &self.data else { return None };
        let scales = Array::from(scales);
        let scales = match form {
            ScaleForm::Block => Fp8Scales::Block(scales),
            ScaleForm::Row => Fp8Scales::Row(scales),
        };
        Some(Fp8Weight { data: codes.into(), scales })
    }
}

impl<'a> From<&'a Matrix> for SkinnyWeight<'a> {
    fn from(matrix: &'a Matrix) -> SkinnyWeight<'a> {
        match (&matrix.data, matrix.coded()) {
            (_, Some(coded)) => SkinnyWeight::Fp8(coded),
            (Data::Plain(data), _) => data.into(),
            (Data::Fp8 { codes, .. }, None) => {
                unreachable!("{} codes have scales", codes.len())
            }
        }
    }
}

/// Where the rows of a buffer are as e4m3, with scales for blocks, instead of in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CodesAt {
    /// Where every activation is made e4m3; until the next one is.
    All,
    /// Where [`NarrowGemm`](minisgl_kernels::ops::NarrowGemm) leaves what it gates.
    Few,
}

/// Activations `[rows, width]`, in memory for [`padded_tokens`].
pub struct Buffer {
    pub(super) data: CudaSlice<bf16>,
    pub(super) rows: usize,
    pub(super) width: usize,
    /// Where they are instead, as e4m3.
    pub(super) codes: Option<CodesAt>,
}

impl Buffer {
    pub(super) fn new(data: CudaSlice<bf16>, rows: usize, width: usize) -> Buffer {
        Buffer { data, rows, width, codes: None }
    }

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
