//! Matrices that are stored as codes and scales, on their way to a device: any window of one, in a stated form.
//!
//! Owns: which bytes of which tensors a window of a coded matrix is. Must never: multiply a code by its scale; a device
//! does that where it computes.

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
        let (row, col, step) = (first / inputs, first % inputs, row_stride / inputs);
        let [block_rows, block_cols] = scheme.block([*out, *inputs]);
        let (from, to) = (col * code.bits() / 8, code.bytes(col + cols));
        let row_bytes = code.bytes(*inputs);
        let codes_part = Part::Strided {
            first: row * row_bytes + from,
            rows,
            row_stride: step * row_bytes,
            cols: to - from,
            col_stride: 1,
        };
        Ok(MatrixPart::Coded(CodedPart {
            code,
            rows: Lines { first: row, count: rows, step, block: block_rows },
            cols: Lines { first: col, count: cols, step: 1, block: block_cols },
            codes: source.part(&codes.name, &codes.shape, &codes_part)?,
            scales: source.part(&scales.name, &scales.shape, &Part::All)?,
            grid_cols: inputs.div_ceil(block_cols),
        }))
    }
}

/// Rows or columns of a matrix, and how many of its own lie in a block.
#[derive(Clone, Copy)]
struct Lines {
    first: usize,
    count: usize,
    step: usize,
    block: usize,
}

impl Lines {
    /// Indices of the blocks that they lie in, from the first to the last.
    fn blocks(&self) -> std::ops::Range<usize> {
        if self.count == 0 {
            return 0..0;
        }
        let last = self.first + (self.count - 1) * self.step;
        self.first / self.block..last / self.block + 1
    }
}

/// A part of a coded matrix, where it is. Nothing is read before it is asked for.
pub struct CodedPart<'a> {
    code: Code,
    rows: Lines,
    cols: Lines,
    /// The bytes of the window's rows, from the first that has a code of it to the last.
    codes: TensorPart<'a>,
    /// All scales of the tensor.
    scales: TensorPart<'a>,
    grid_cols: usize,
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
        let CodedPart { code, rows, cols, grid_cols, .. } = *self;
        let mut codes = self.codes.load_bytes();
        if code.bits() == 4 {
            codes = aligned(codes, rows.count, cols);
        }
        let all = self.scales.load().into_f32();
        let across = cols.blocks();
        let row = |block: usize| &all[block * grid_cols..][..grid_cols][across.clone()];
        // Rows at a distance from each other have a scale row each.
        let (block_rows, row_offset, scales) = match rows.step {
            1 => (
                rows.block,
                rows.first % rows.block,
                rows.blocks().flat_map(row).copied().collect(),
            ),
            step => {
                let blocks = (0..rows.count).map(|r| (rows.first + r * step) / rows.block);
                (1, 0, blocks.flat_map(row).copied().collect::<Vec<f32>>())
            }
        };
        CodedMatrix {
            code,
            rows: rows.count,
            cols: cols.count,
            codes,
            scales,
            scale_cols: across.len(),
            block_rows,
            block_cols: cols.block,
            row_offset,
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
