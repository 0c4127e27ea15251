//! Tensors as loading hands them on: a part that is not read yet, and one that is in host memory.
//!
//! Owns: reading any range of a part in any element type. Must never: copy a tensor that nobody asked to
//! have whole.

use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;

use super::e4m3;
use super::file::MappedFile;
use super::made::{DummyBytes, DummyTensor};
use super::window::Window;
use crate::scheme::Code;

/// Elements that one task reads of a whole part.
const CHUNK: usize = 1 << 18;

/// Numbers that are widened at a time on their way to codes.
pub(super) const CODED_AT_ONCE: usize = 1 << 16;

/// A contiguous, row-major tensor, or part of one, in the element type it is stored in.
#[derive(Clone, Debug, PartialEq)]
pub enum HostTensor {
    /// bfloat16.
    Bf16(Vec<bf16>),
    /// IEEE half precision.
    F16(Vec<f16>),
    /// 32-bit IEEE floats.
    F32(Vec<f32>),
}

impl HostTensor {
    /// Elements.
    pub fn len(&self) -> usize {
        match self {
            HostTensor::Bf16(values) => values.len(),
            HostTensor::F16(values) => values.len(),
            HostTensor::F32(values) => values.len(),
        }
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every element as f32, exactly.
    pub fn into_f32(self) -> Vec<f32> {
        match self {
            HostTensor::Bf16(values) => values.into_iter().map(bf16::to_f32).collect(),
            HostTensor::F16(values) => values.into_iter().map(f16::to_f32).collect(),
            HostTensor::F32(values) => values,
        }
    }
}

/// Element type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    Bf16,
    F16,
    F32,
    /// A power of two in a byte: its exponent and 127.
    E8m0,
    /// A byte, which is no number by itself.
    Byte,
}

/// How numbers become codes as they are read: each row of the whole tensor by a scale of its own.
#[derive(Clone, Copy)]
pub(super) struct Coding<'a> {
    /// `[rows]` of the whole tensor.
    pub(super) scales: &'a [f32],
    /// Columns of the whole tensor.
    pub(super) cols: usize,
}

/// One part of one tensor, where it is. Nothing is read before it is asked for, and any number of threads
/// may read at once.
#[derive(Clone)]
pub struct TensorPart<'a> {
    window: Window,
    elements: Elements<'a>,
    /// Of numbers that are read as codes.
    coding: Option<Coding<'a>>,
}

#[derive(Clone, Copy)]
enum Elements<'a> {
    /// Little-endian numbers in a mapped file.
    Mapped { file: &'a MappedFile, bytes: &'a [u8], stored: Stored },
    /// Values in memory.
    Memory(&'a [bf16]),
    /// Scales in memory.
    Floats(&'a [f32]),
    /// Not stored anywhere.
    Dummy(DummyTensor),
    /// Bytes that are not stored anywhere.
    DummyBytes(DummyBytes),
    /// One number over and over, each as if it took `bytes`.
    Constant { value: f32, bytes: usize },
}

/// How to make a part of a dummy tensor where it is needed: element `[row, col]` is element
/// `first + row * width + col` of `tensor`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DummyPart {
    /// The tensor.
    pub tensor: DummyTensor,
    /// Index of the first element.
    pub first: usize,
    /// Rows of the part.
    pub rows: usize,
    /// Columns of the part.
    pub cols: usize,
    /// Columns of the full tensor.
    pub width: usize,
}

/// How to make a part of a dummy tensor of codes where it is needed, as [`DummyPart`], counted in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DummyCodePart {
    /// What a byte is: one code, or two.
    pub code: Code,
    /// With a code's index, all that it depends on.
    pub key: u64,
    /// From the sum of four 16-bit uniforms, less its mean, to what is coded.
    pub scale: f32,
    /// Index of the first element.
    pub first: usize,
    /// Rows of the part.
    pub rows: usize,
    /// Columns of the part.
    pub cols: usize,
    /// Columns of the full tensor.
    pub width: usize,
}

impl<'a> TensorPart<'a> {
    fn new(window: Window, elements: Elements<'a>) -> TensorPart<'a> {
        TensorPart { window, elements, coding: None }
    }

    /// A vector in memory.
    pub fn of(values: &'a [bf16]) -> TensorPart<'a> {
        let window = Window::vector(values.len());
        TensorPart::new(window, Elements::Memory(values))
    }

    /// `window` of the tensor that `bytes` of `file` hold.
    pub(super) fn mapped(
        window: Window,
        file: &'a MappedFile,
        bytes: &'a [u8],
        stored: Stored,
    ) -> TensorPart<'a> {
        TensorPart::new(window, Elements::Mapped { file, bytes, stored })
    }

    /// `window` of a dummy tensor.
    pub(super) fn made(window: Window, tensor: DummyTensor) -> TensorPart<'static> {
        TensorPart::new(window, Elements::Dummy(tensor))
    }

    /// `window` of a dummy tensor of bytes.
    pub(super) fn made_bytes(window: Window, bytes: DummyBytes) -> TensorPart<'static> {
        TensorPart::new(window, Elements::DummyBytes(bytes))
    }

    /// `window` of a tensor that is `value` all over, in elements of `bytes`.
    pub(super) fn constant(window: Window, value: f32, bytes: usize) -> TensorPart<'static> {
        TensorPart::new(window, Elements::Constant { value, bytes })
    }

    /// `window` of scales that are in memory.
    pub(super) fn scales(window: Window, scales: &'a [f32]) -> TensorPart<'a> {
        TensorPart::new(window, Elements::Floats(scales))
    }

    /// The same part of numbers, to be read as E4M3 codes.
    pub(super) fn coded_by(self, coding: Coding<'a>) -> TensorPart<'a> {
        TensorPart { coding: Some(coding), ..self }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.window.len()
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes it takes as stored.
    pub fn stored_bytes(&self) -> usize {
        let element = match self.elements {
            Elements::Mapped { stored: Stored::F32, .. } => 4,
            Elements::Constant { bytes, .. } => bytes,
            // They were made here.
            Elements::Floats(_) => 0,
            Elements::Mapped { stored: Stored::E8m0 | Stored::Byte, .. }
            | Elements::DummyBytes(_) => 1,
            _ => 2,
        };
        self.len() * element
    }

    /// How to make it, if it is a part of a dummy tensor whose rows are neighbours.
    pub fn dummy(&self) -> Option<DummyPart> {
        let Elements::Dummy(tensor) = self.elements else { return None };
        let Window { first, rows, row_stride: width, cols, .. } = self.window;
        self.window.has_runs().then_some(DummyPart { tensor, first, rows, cols, width })
    }

    /// How to make it, if it is a part of a dummy tensor of codes whose rows are neighbours.
    pub fn dummy_codes(&self) -> Option<DummyCodePart> {
        let Elements::DummyBytes(bytes) = self.elements else { return None };
        let Window { first, rows, row_stride: width, cols, .. } = self.window;
        let (code, key, scale) = (bytes.code(), bytes.key(), bytes.scale());
        let part = DummyCodePart { code, key, scale, first, rows, cols, width };
        self.window.has_runs().then_some(part)
    }

    /// What every byte of it is, if it is a power of two all over in bytes of E8M0.
    pub fn constant_byte(&self) -> Option<u8> {
        match self.elements {
            Elements::Constant { value, bytes: 1 } => Some(exponent_of(value)),
            _ => None,
        }
    }

    /// Reads elements from `start` on as bfloat16, rounded to nearest, ties to even.
    ///
    /// # Panics
    /// The part ends before `out` is full.
    pub fn read_bf16(&self, start: usize, out: &mut [bf16]) {
        match &self.elements {
            Elements::Mapped { stored: Stored::Bf16, .. } => {
                self.decode(start, out, bf16::from_le_bytes);
            }
            Elements::Mapped { stored: Stored::F16, .. } => {
                let narrow = |bytes| bf16::from_f32(f16::from_le_bytes(bytes).to_f32());
                self.decode(start, out, narrow);
            }
            Elements::Mapped { stored: Stored::F32, .. } => {
                self.decode(start, out, |bytes| bf16::from_f32(f32::from_le_bytes(bytes)));
            }
            Elements::Mapped { stored: Stored::E8m0, .. } => {
                self.decode(start, out, |bytes| bf16::from_f32(power_of_two(bytes)));
            }
            Elements::Mapped { stored: Stored::Byte, .. } | Elements::DummyBytes(_) => {
                unreachable!("codes are read as bytes")
            }
            Elements::Constant { value, .. } => out.fill(bf16::from_f32(*value)),
            Elements::Floats(values) => {
                let indices = self.stretches(start, out.len()).flatten();
                out.iter_mut().zip(indices).for_each(|(out, at)| *out = bf16::from_f32(values[at]));
            }
            Elements::Memory(values) => out.copy_from_slice(&values[start..][..out.len()]),
            Elements::Dummy(tensor) => {
                let mut rest = out;
                for stretch in self.stretches(start, rest.len()) {
                    let (run, tail) = rest.split_at_mut(stretch.len());
                    for (value, index) in run.iter_mut().zip(stretch) {
                        *value = tensor.element(index);
                    }
                    rest = tail;
                }
            }
        }
    }

    /// Reads all of it, as it is stored, on all cores.
    pub fn load(&self) -> HostTensor {
        match self.elements {
            Elements::Mapped { stored: Stored::F16, .. } => {
                HostTensor::F16(self.all(f16::ZERO, |start, out| {
                    self.decode(start, out, f16::from_le_bytes);
                }))
            }
            Elements::Mapped { stored: Stored::F32, .. } => {
                HostTensor::F32(self.all(0.0, |start, out| {
                    self.decode(start, out, f32::from_le_bytes);
                }))
            }
            Elements::Mapped { stored: Stored::E8m0, .. } => {
                HostTensor::F32(self.all(0.0, |start, out| self.decode(start, out, power_of_two)))
            }
            Elements::Constant { value, .. } => HostTensor::F32(vec![value; self.len()]),
            Elements::Floats(values) => {
                let indices = self.stretches(0, self.len()).flatten();
                HostTensor::F32(indices.map(|at| values[at]).collect())
            }
            _ => HostTensor::Bf16(self.all(bf16::ZERO, |start, out| self.read_bf16(start, out))),
        }
    }

    /// Reads all of a part of codes, on all cores.
    ///
    /// # Panics
    /// It has numbers.
    pub(super) fn load_bytes(&self) -> Vec<u8> {
        self.all(0, |start, out| self.read_bytes(start, out))
    }

    /// Reads codes from `start` on, or powers of two as the E8M0 bytes that they are stored as.
    ///
    /// # Panics
    /// The part has other numbers, or ends before `out` is full.
    pub fn read_bytes(&self, start: usize, out: &mut [u8]) {
        if let Some(coding) = self.coding {
            return self.encode(coding, start, out);
        }
        match &self.elements {
            Elements::Mapped { stored: Stored::Byte | Stored::E8m0, .. } => {
                self.decode(start, out, |[byte]: [u8; 1]| byte);
            }
            Elements::Constant { value, bytes: 1 } => out.fill(exponent_of(*value)),
            Elements::DummyBytes(bytes) => {
                let len = out.len();
                let indices = self.stretches(start, len).flatten();
                out.iter_mut().zip(indices).for_each(|(out, index)| *out = bytes.byte(index));
            }
            _ => unreachable!("numbers are not read as codes"),
        }
    }

    /// Reads numbers from `start` on, and codes them.
    fn encode(&self, coding: Coding<'_>, start: usize, out: &mut [u8]) {
        let mut all = vec![0.0; out.len().min(CODED_AT_ONCE)];
        for (chunk, out) in out.chunks_mut(CODED_AT_ONCE).enumerate() {
            let start = start + chunk * CODED_AT_ONCE;
            let values = &mut all[..out.len()];
            self.read_f32(start, values);
            let mut rest = (out, &*values);
            for stretch in self.stretches(start, values.len()) {
                let mut at = stretch.start;
                while at < stretch.end {
                    let (row, end) = (at / coding.cols, stretch.end);
                    let len = ((row + 1) * coding.cols).min(end) - at;
                    let (codes, tail) = rest.0.split_at_mut(len);
                    let (numbers, numbers_tail) = rest.1.split_at(len);
                    e4m3::encode(numbers, coding.scales[row], codes);
                    rest = (tail, numbers_tail);
                    at += len;
                }
            }
        }
    }

    /// Reads numbers from `start` on as they are.
    ///
    /// # Panics
    /// The part has codes, or ends before `out` is full.
    pub(super) fn read_f32(&self, start: usize, out: &mut [f32]) {
        match &self.elements {
            Elements::Mapped { stored: Stored::F32, .. } => {
                self.decode(start, out, f32::from_le_bytes);
            }
            Elements::Mapped { stored: Stored::F16, .. } => {
                self.decode(start, out, |bytes| f16::from_le_bytes(bytes).to_f32());
            }
            Elements::Mapped { stored: Stored::Bf16, .. } => {
                self.decode(start, out, |bytes| bf16::from_le_bytes(bytes).to_f32());
            }
            _ => {
                let mut narrow = vec![bf16::ZERO; out.len()];
                self.read_bf16(start, &mut narrow);
                out.iter_mut().zip(narrow).for_each(|(out, value)| *out = value.to_f32());
            }
        }
    }

    fn all<T: Copy + Send>(&self, zero: T, read: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
        // Zeroed by the system, page by page, as the tasks first touch them.
        let mut out = vec![zero; self.len()];
        let chunks = out.par_chunks_mut(CHUNK).enumerate();
        chunks.for_each(|(chunk, out)| read(chunk * CHUNK, out));
        out
    }

    fn stretches(&self, start: usize, len: usize) -> impl Iterator<Item = Range<usize>> {
        assert!(start + len <= self.len(), "{start} + {len} is past the part's {}", self.len());
        self.window.stretches(start..start + len)
    }

    /// Reads elements from `start` on out of the map, and lets go of the pages they were in.
    fn decode<const SIZE: usize, T>(
        &self,
        start: usize,
        out: &mut [T],
        decode: impl Fn([u8; SIZE]) -> T,
    ) {
        let Elements::Mapped { file, bytes, .. } = self.elements else { return };
        let (elements, _) = bytes.as_chunks::<SIZE>();
        if !self.window.has_runs() {
            // Every page is needed again for the next row.
            let out_len = out.len();
            for (value, at) in out.iter_mut().zip(self.stretches(start, out_len)) {
                *value = decode(elements[at.start]);
            }
            return;
        }
        let ends = |stretch: Range<usize>| (stretch.start, stretch.end);
        let first = self.stretches(start, out.len()).next().map(ends);
        let last = self.stretches(start, out.len()).last().map(ends);
        let (Some((from, _)), Some((_, to))) = (first, last) else { return };
        let read = &bytes[from * SIZE..to * SIZE];
        file.will_read(read);
        let mut rest = out;
        for stretch in self.stretches(start, rest.len()) {
            let (run, tail) = rest.split_at_mut(stretch.len());
            for (value, &element) in run.iter_mut().zip(&elements[stretch]) {
                *value = decode(element);
            }
            rest = tail;
        }
        file.was_read(read);
    }
}

/// What an E8M0 byte stands for (OCP Microscaling Formats 1.0, section 5.4.1).
fn power_of_two([exponent]: [u8; 1]) -> f32 {
    match exponent {
        // A subnormal f32.
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        exponent => f32::from_bits(u32::from(exponent) << 23),
    }
}

/// The E8M0 byte of a power of two that is a normal f32.
fn exponent_of(value: f32) -> u8 {
    (value.to_bits() >> 23) as u8
}

#[cfg(test)]
mod tests {
    use super::{TensorPart, Window, exponent_of, power_of_two};

    #[test]
    fn powers_of_two_are_read_as_bytes() {
        for exponent in 1..=254 {
            assert_eq!(exponent_of(power_of_two([exponent])), exponent);
        }
        let part = TensorPart::constant(Window::vector(3), 1.0 / 128.0, 1);
        let mut bytes = [0; 3];
        part.read_bytes(0, &mut bytes);
        assert_eq!(bytes, [120; 3]);
        assert_eq!(part.constant_byte(), Some(120));
        assert_eq!(TensorPart::constant(Window::vector(3), 1.0, 4).constant_byte(), None);
    }

    #[test]
    fn a_byte_is_a_power_of_two() {
        for exponent in 0..=254u8 {
            let wanted = 2f64.powi(i32::from(exponent) - 127);
            assert_eq!(f64::from(power_of_two([exponent])), wanted);
        }
        assert!(power_of_two([255]).is_nan());
    }
}
