//! Matrices on their way to the GPU.
//!
//! Owns: which parts are numbers and which are codes, and what codes there are kernels for. Must never: read a part that
//! is refused.

use std::sync::atomic::Ordering;

use minisgl_kernels::ops::{MediumGemm, Quantise};

use super::memory::{Data, ROW_UNIT};
use super::scales::Scales;
use super::{CudaOps, Matrix, failed};
use crate::ops::OpResult;
use crate::scheme::Code;
use crate::weights::{CodedPart, MatrixPart, TensorPart};

/// Inputs of a matrix of e4m3 are a multiple of this: rows start at multiples of 16 bytes.
const INPUT_UNIT: usize = 16;

/// Parts of plain numbers.
pub(super) fn plain_parts<'a>(parts: &[MatrixPart<'a>]) -> OpResult<Vec<TensorPart<'a>>> {
    let plain = |part: &MatrixPart<'a>| match part {
        MatrixPart::Plain(part) => Ok(part.clone()),
        MatrixPart::Coded(part) => Err(failed("choose kernels")(format!(
            "there are none for {:?} weights here; load with --device cpu",
            part.code()
        ))),
    };
    parts.iter().map(plain).collect()
}

/// Parts of E4M3 codes, if all are.
pub(super) fn coded_parts<'p, 'a>(parts: &'p [MatrixPart<'a>]) -> Option<Vec<&'p CodedPart<'a>>> {
    let coded = |part: &'p MatrixPart<'a>| match part {
        MatrixPart::Coded(part) if part.code() == Code::E4m3 => Some(part),
        _ => None,
    };
    parts.iter().map(coded).collect()
}

impl CudaOps {
    /// A matrix of E4M3 codes.
    pub(super) fn coded_matrix(&self, parts: &[&CodedPart<'_>], inputs: usize) -> OpResult<Matrix> {
        let refuse = |what: String| Err(failed("choose kernels")(what));
        if !MediumGemm::is_there(&self.device) {
            return refuse(format!(
                "there are none for e4m3 weights on {}, only on Hopper (H100, H200); load with --device cpu",
                self.device.name()
            ));
        }
        let rows: usize = parts.iter().map(|part| part.rows()).sum();
        if !inputs.is_multiple_of(INPUT_UNIT) || inputs > Quantise::HIDDEN_MAX {
            return refuse(format!(
                "a matrix of e4m3 has {inputs} inputs on a rank, it must be a multiple of {INPUT_UNIT} of at most {}; \
                 load with another --tp, or with --device cpu",
                Quantise::HIDDEN_MAX
            ));
        }
        let padded_rows = rows.next_multiple_of(ROW_UNIT);
        let scales: Vec<_> = parts.iter().map(|part| part.load_scales()).collect();
        let Scales { form, values } = match Scales::of(&scales, inputs, padded_rows) {
            Ok(scales) => scales,
            Err(why) => return refuse(format!("a matrix of e4m3, {rows} x {inputs}: {why}")),
        };
        let codes: Vec<TensorPart<'_>> = parts.iter().map(|part| part.codes().clone()).collect();
        let codes = self.upload(&codes, padded_rows * inputs)?;
        let scales = self.stream().clone_htod(&values).map_err(failed("upload scales"))?;
        self.weight_bytes.fetch_add(scales.num_bytes() as u64, Ordering::Relaxed);
        let data = Data::Fp8 { codes, scales, form };
        self.shapes.borrow_mut().insert((padded_rows, inputs, Some(form)));
        Ok(Matrix { data, rows, inputs })
    }
}
