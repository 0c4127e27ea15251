//! Experts' matrices on their way into the form that the kernels read.
//!
//! Owns: that form, and how a stack gets there. Must never: have a second copy of a stack on the GPU: a few experts at a
//! time arrive as they are stored, and are packed.

use cudarc::driver::{CudaSlice, DriverError};
use half::bf16;
use minisgl_kernels::fp8::ScaleForm;
use minisgl_kernels::ops::{
    ExpertRows, PackExpert, PackExpertFp8, PackExpertMxfp4, expert_down_mxfp4_len,
    expert_gate_up_mxfp4_len, expert_slabs_fp8_len, expert_slabs_len,
};

use super::super::{CudaOps, failed};
use super::scales::ExpertScales;
use crate::ops::{OpResult, StackOf, StackShape};
use crate::scheme::Code;
use crate::weights::{CodedPart, MatrixPart, TensorPart};

/// Elements that are under way at a time, unless one expert has more: 128 MiB.
const ARRIVING_LEN: usize = 64 << 20;

/// One matrix of every expert of a layer, as it is kept.
pub enum Stack {
    /// bf16, in slabs of 16 rows: [`expert_slabs_len`] for each expert.
    Plain(CudaSlice<bf16>),
    /// E4M3, in slabs of 16 rows: [`expert_slabs_fp8_len`] bytes for each expert, and their scales.
    Fp8 {
        /// The slabs.
        codes: CudaSlice<u8>,
        /// What codes are multiplied by, of all experts.
        scales: CudaSlice<f32>,
        /// How those are laid out.
        form: ScaleForm,
    },
    /// MXFP4, in slabs of 16 rows: [`expert_gate_up_mxfp4_len`] or [`expert_down_mxfp4_len`] bytes for each expert.
    Mxfp4(CudaSlice<u8>),
}

/// The parts of a stack, all of them numbers, or all codes.
enum Parts<'a, 'b> {
    Plain(Vec<TensorPart<'a>>),
    Fp8(Vec<&'b CodedPart<'a>>),
    Mxfp4(Vec<&'b CodedPart<'a>>),
}

impl<'a, 'b> Parts<'a, 'b> {
    fn of(parts: &'b [MatrixPart<'a>]) -> OpResult<Parts<'a, 'b>> {
        let numbers = |part: &MatrixPart<'a>| match part {
            MatrixPart::Plain(part) => Some(part.clone()),
            MatrixPart::Coded(_) => None,
        };
        let codes = |code: Code| {
            let coded = |part: &'b MatrixPart<'a>| match part {
                MatrixPart::Coded(part) if part.code() == code => Some(part),
                _ => None,
            };
            parts.iter().map(coded).collect::<Option<Vec<_>>>()
        };
        let plain: Option<Vec<TensorPart<'a>>> = parts.iter().map(numbers).collect();
        plain
            .map(Parts::Plain)
            .or_else(|| codes(Code::E4m3).map(Parts::Fp8))
            .or_else(|| codes(Code::E2m1).map(Parts::Mxfp4))
            .ok_or_else(|| {
                failed("choose kernels")(
                    "the GPU has no kernels for a layer whose experts are stored in several ways; load with --device cpu",
                )
            })
    }
}

impl CudaOps {
    /// Uploads a stack and packs it.
    pub(in super::super) fn upload_stack(
        &self,
        parts: &[MatrixPart<'_>],
        shape: StackShape,
    ) -> OpResult<Stack> {
        let StackShape { of, count, rows, .. } = shape;
        let parts_are: &[ExpertRows] = match of {
            StackOf::GateUp => &[ExpertRows::Gate, ExpertRows::Up],
            StackOf::Down => &[ExpertRows::Whole],
        };
        if parts.len() != count * parts_are.len() {
            return Err(failed("upload experts")(format!("{} parts for {shape:?}", parts.len())));
        }
        let part_rows = rows / parts_are.len();
        let stack = match Parts::of(parts)? {
            Parts::Plain(parts) => {
                Stack::Plain(self.pack_plain(&parts, parts_are, shape, part_rows)?)
            }
            Parts::Fp8(parts) => self.pack_fp8(&parts, parts_are, shape, part_rows)?,
            Parts::Mxfp4(parts) => {
                Stack::Mxfp4(self.pack_mxfp4(&parts, parts_are, shape, part_rows)?)
            }
        };
        self.count_weights(match &stack {
            Stack::Plain(stack) => stack.num_bytes(),
            Stack::Fp8 { codes, scales, .. } => codes.num_bytes() + scales.num_bytes(),
            Stack::Mxfp4(stack) => stack.num_bytes(),
        });
        Ok(stack)
    }

    fn pack_plain(
        &self,
        parts: &[TensorPart<'_>],
        parts_are: &[ExpertRows],
        shape: StackShape,
        part_rows: usize,
    ) -> OpResult<CudaSlice<bf16>> {
        let StackShape { count, rows, inputs, .. } = shape;
        let each = parts_are.len();
        let part_len = part_rows * inputs;
        if parts.iter().any(|part| part.len() != part_len) {
            return Err(failed("upload experts")(format!("parts of other sizes for {shape:?}")));
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
        Ok(stack)
    }

    fn pack_fp8(
        &self,
        parts: &[&CodedPart<'_>],
        parts_are: &[ExpertRows],
        shape: StackShape,
        part_rows: usize,
    ) -> OpResult<Stack> {
        let StackShape { count, rows, inputs, .. } = shape;
        let each = parts_are.len();
        if parts.iter().any(|part| (part.rows(), part.cols()) != (part_rows, inputs)) {
            return Err(failed("upload experts")(format!("parts of other sizes for {shape:?}")));
        }
        let scales: Vec<_> = parts.iter().map(|part| part.load_scales()).collect();
        let ExpertScales { form, values } = ExpertScales::of(&scales, each).map_err(|why| {
            failed("choose kernels")(format!("experts of e4m3, {part_rows} x {inputs}: {why}"))
        })?;
        let scales = self.stream().clone_htod(&values).map_err(failed("upload scales"))?;
        let (part_len, slabs_len) = (part_rows * inputs, expert_slabs_fp8_len(rows, inputs));
        let fault = |error: DriverError| failed("upload experts")(format!("{shape:?}: {error}"));
        // SAFETY: packing writes every byte of every expert's slabs, those past the last column as zeros.
        let mut stack = unsafe { self.stream().alloc::<u8>(count * slabs_len) }.map_err(fault)?;
        let at_once = (2 * ARRIVING_LEN / (rows * inputs).max(1)).clamp(1, count.max(1));
        for (group, parts) in parts.chunks(at_once * each).enumerate() {
            let codes: Vec<_> = parts.iter().map(|part| part.codes().clone()).collect();
            let arrived: CudaSlice<u8> = self.arrive(&codes, parts.len() * part_len)?;
            for (index, &rows_are) in (0..parts.len()).zip(parts_are.iter().cycle()) {
                let expert = group * at_once + index / each;
                let from = arrived.slice(index * part_len..(index + 1) * part_len);
                let mut to = stack.slice_mut(expert * slabs_len..(expert + 1) * slabs_len);
                PackExpertFp8 {
                    from: (&from).into(),
                    to: (&mut to).into(),
                    rows_are,
                    rows: part_rows,
                    columns: inputs,
                }
                .launch(&self.device)
                .map_err(failed("pack experts"))?;
            }
        }
        Ok(Stack::Fp8 { codes: stack, scales, form })
    }

    fn pack_mxfp4(
        &self,
        parts: &[&CodedPart<'_>],
        parts_are: &[ExpertRows],
        shape: StackShape,
        part_rows: usize,
    ) -> OpResult<CudaSlice<u8>> {
        let StackShape { of, count, rows, inputs } = shape;
        let each = parts_are.len();
        let bad = |what: &str| failed("upload experts")(format!("{what} for {shape:?}"));
        let Some(first) = parts.first() else { return Err(bad("no parts")) };
        let (codes_len, scales_len) = (first.codes().stored_bytes(), first.scales().stored_bytes());
        let alike = |part: &&&CodedPart<'_>| {
            let lens = (part.codes().stored_bytes(), part.scales().stored_bytes());
            (part.rows(), part.cols()) == (part_rows, inputs)
                && lens == (codes_len, scales_len)
                && part.begins_with_a_block()
        };
        if parts.iter().filter(alike).count() != parts.len() {
            return Err(bad(
                "a rank's part that begins in the middle of 32 numbers that share a scale; another tp may give none",
            ));
        }
        let slabs_len = match of {
            StackOf::GateUp => expert_gate_up_mxfp4_len(rows / 2, inputs),
            StackOf::Down => expert_down_mxfp4_len(rows, inputs),
        };
        let fault = |error: DriverError| bad(&error.to_string());
        // SAFETY: packing writes every byte of every expert's slabs, those past the last column as zeros.
        let mut stack = unsafe { self.stream().alloc::<u8>(count * slabs_len) }.map_err(fault)?;
        let at_once = (ARRIVING_LEN / (codes_len * each).max(1)).clamp(1, count.max(1));
        for (group, parts) in parts.chunks(at_once * each).enumerate() {
            let codes: Vec<_> = parts.iter().map(|part| part.codes().clone()).collect();
            let codes: CudaSlice<u8> = self.arrive(&codes, parts.len() * codes_len)?;
            let scales: Vec<_> = parts.iter().map(|part| part.scales().clone()).collect();
            let scales: CudaSlice<u8> = self.arrive(&scales, parts.len() * scales_len)?;
            for (index, &rows_are) in (0..parts.len()).zip(parts_are.iter().cycle()) {
                let expert = group * at_once + index / each;
                let codes = codes.slice(index * codes_len..(index + 1) * codes_len);
                let scales = scales.slice(index * scales_len..(index + 1) * scales_len);
                let mut to = stack.slice_mut(expert * slabs_len..(expert + 1) * slabs_len);
                PackExpertMxfp4 {
                    codes: (&codes).into(),
                    scales: (&scales).into(),
                    to: (&mut to).into(),
                    rows_are,
                    rows: part_rows,
                    columns: inputs,
                    row_bytes: codes_len / part_rows.max(1),
                    scales_stride: scales_len / part_rows.max(1),
                    above: 0,
                    left: 0,
                    to_rows: part_rows,
                    to_columns: inputs,
                }
                .launch(&self.device)
                .map_err(failed("pack experts"))?;
            }
        }
        Ok(stack)
    }
}
