//! Matrices that are stored as codes and scales, on their way to a device: any window of one, in a stated form.
//!
//! Owns: which bytes of which tensors a window of a coded matrix is. Must never: multiply a code by its scale; a device
//! does that where it computes.

use std::ops::Range;

use super::tensor::TensorPart;
use super::window::Window;
use super::{Part, WeightError, WeightSource};
use crate::scheme::{Code, Scheme};

/// One part of one matrix, as it is stored.
pub enum MatrixPart<'a> {
    /// Numbers.
    Plain(TensorPart<'a>),
    /// Codes and scales.
    Coded(CodedPart<'a>),
}

impl<'a> MatrixPart<'a> {
    /// Bytes it takes as stored.
    pub fn stored_bytes(&self) -> usize {
        match self {
            MatrixPart::Plain(part) => part.stored_bytes(),
            MatrixPart::Coded(part) => part.codes.stored_bytes() + part.scales.stored_bytes(),
        }
    }

    /// The part of the matrix `name`, `[.., out, in]`, that `part` is of its elements, whether they are numbers or
    /// codes. Of coded matrices `part` has whole rows or a range of columns of them, at any distance from row to row.
    ///
    /// # Errors
    /// Those of [`WeightSource::part`].
    pub fn of(
        source: &'a (impl WeightSource + ?Sized),
        name: &str,
        shape: &[usize],
        scheme: Scheme,
        part: &Part,
    ) -> Result<MatrixPart<'a>, WeightError> {
        let bad = || WeightError::BadPart {
            name: name.to_owned(),
            shape: shape.to_vec(),
            part: part.clone(),
        };
        let (Some(code), [.., out, inputs]) = (scheme.code(), shape) else {
            return Ok(MatrixPart::Plain(source.part(name, shape, part)?));
        };
        let [codes, scales] = &scheme.tensors(name, shape)[..] else { return Err(bad()) };
        let window = Window::new(name, shape, part)?;
        let Window { first, rows, row_stride, cols, .. } = window;
        if !window.has_runs() || !row_stride.is_multiple_of(*inputs) {
            return Err(bad());
        }
        // Rows of all matrices that `shape` stacks are counted on. No block reaches over two of them: either a
        // stack has one matrix, or a block one row.
        let [block_rows, block_cols] = scheme.block([*out, *inputs]);
        let (row, col, step) = (first / inputs, first % inputs, row_stride / inputs);
        if step != 1 && block_rows != 1 {
            return Err(bad());
        }
        let rows = Lines { first: row, count: rows, block: block_rows };
        let cols = Lines { first: col, count: cols, block: block_cols };
        let (from, to) = (code.bits() * col / 8, code.bytes(col + cols.count));
        let row_bytes = code.bytes(*inputs);
        let codes_part = Part::Strided {
            first: row * row_bytes + from,
            rows: rows.count,
            row_stride: step * row_bytes,
            cols: to - from,
            col_stride: 1,
        };
        let (down, across) = (rows.blocks(), cols.blocks());
        let grid_cols = inputs.div_ceil(block_cols);
        let scales_part = Part::Strided {
            first: down.start * grid_cols + across.start,
            rows: down.len(),
            row_stride: step * grid_cols,
            cols: across.len(),
            col_stride: 1,
        };
        let codes = source.part(&codes.name, &codes.shape, &codes_part)?;
        let scales = source.part(&scales.name, &scales.shape, &scales_part)?;
        Ok(MatrixPart::Coded(CodedPart { code, rows, cols, codes, scales }))
    }
}

/// Rows or columns of a matrix, and how many of its own lie in a block.
#[derive(Clone, Copy)]
struct Lines {
    first: usize,
    count: usize,
    block: usize,
}

impl Lines {
    /// Indices of the blocks that they lie in. Rows at a distance from each other have a block each.
    fn blocks(&self) -> Range<usize> {
        let end = self.first + self.count;
        let first = self.first / self.block;
        if self.count == 0 { first..first } else { first..end.div_ceil(self.block) }
    }
}

/// A part of a coded matrix, where it is. Nothing is read before it is asked for.
pub struct CodedPart<'a> {
    code: Code,
    rows: Lines,
    cols: Lines,
    /// The bytes of the window's rows, from the first that has a code of it to the last.
    codes: TensorPart<'a>,
    /// Of the blocks that the window reaches into.
    scales: TensorPart<'a>,
}

/// A part of a coded matrix in host memory: element `[row, col]` is code `[row, col]` times scale
/// `[(row_offset + row) / block_rows, (col_offset + col) / block_cols]`.
#[derive(Clone, Debug, PartialEq)]
pub struct CodedMatrix {
    /// What the codes are.
    pub code: Code,
    /// Rows of the part.
    pub rows: usize,
    /// Columns of the part.
    pub cols: usize,
    /// `[rows, code.bytes(cols)]`; of codes of four bits, the first is in the low bits of a byte.
    pub codes: Vec<u8>,
    /// `[scale rows, scale_cols]`
    pub scales: Vec<f32>,
    /// Scales in a row of them.
    pub scale_cols: usize,
    /// Rows of a scale's block.
    pub block_rows: usize,
    /// Columns of a scale's block.
    pub block_cols: usize,
    /// Rows of its first block that are above the part.
    pub row_offset: usize,
    /// Columns of its first block that are left of the part.
    pub col_offset: usize,
}

impl CodedPart<'_> {
    /// What its codes are.
    pub fn code(&self) -> Code {
        self.code
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows.count
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols.count
    }

    /// Reads it, on all cores.
    pub fn load(&self) -> CodedMatrix {
        let mut codes = self.codes.load_bytes();
        if self.code.bits() == 4 {
            codes = aligned(codes, self.rows.count, self.cols);
        }
        CodedMatrix { codes, ..self.load_scales() }
    }

    /// The bytes of its rows, from the first that has a code of it to the last: of codes of eight bits,
    /// `[rows, cols]`.
    pub fn codes(&self) -> &TensorPart<'_> {
        &self.codes
    }

    /// The bytes of its scales, as they are stored: `[blocks of rows, blocks of columns]`.
    pub fn scales(&self) -> &TensorPart<'_> {
        &self.scales
    }

    /// Whether its first row and column are the first of a block.
    pub fn begins_with_a_block(&self) -> bool {
        [self.rows, self.cols].iter().all(|lines| lines.first.is_multiple_of(lines.block))
    }

    /// Reads it without its codes.
    pub fn load_scales(&self) -> CodedMatrix {
        let CodedPart { code, rows, cols, .. } = *self;
        CodedMatrix {
            code,
            rows: rows.count,
            cols: cols.count,
            codes: Vec::new(),
            scales: self.scales.load().into_f32(),
            scale_cols: cols.blocks().len(),
            block_rows: rows.block,
            block_cols: cols.block,
            row_offset: rows.first % rows.block,
            col_offset: cols.first % cols.block,
        }
    }
}

/// Rows of codes of four bits that begin in the middle of a byte, moved to begin with one.
fn aligned(codes: Vec<u8>, rows: usize, cols: Lines) -> Vec<u8> {
    if cols.first.is_multiple_of(2) || rows == 0 {
        return codes;
    }
    let (from, to) = (codes.len() / rows, cols.count.div_ceil(2));
    let shift = |row: &[u8]| -> Vec<u8> {
        let high = |at: usize| row.get(at + 1).map_or(0, |next| next << 4);
        (0..to).map(|at| row[at] >> 4 | high(at)).collect()
    };
    codes.chunks_exact(from.max(1)).flat_map(shift).collect()
}
