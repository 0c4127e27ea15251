//! Weights that stay the codes they are stored as, and are multiplied by their scales where they are used.
//!
//! Owns: a stack of coded matrices in memory. Must never: round: a code and its scale are both f32, and so is their
//! product.

use crate::scheme::Code;
use crate::weights::{CodedMatrix, MatrixPart};

/// A stack of coded matrices of the same code.
#[derive(Clone)]
pub struct Coded {
    code: Code,
    /// What each code is.
    values: Vec<f32>,
    inputs: usize,
    /// `[rows, code.bytes(inputs)]`
    codes: Vec<u8>,
    parts: Vec<Scaled>,
}

/// The scales of some consecutive rows.
#[derive(Clone)]
struct Scaled {
    /// Its first row in the stack.
    first: usize,
    /// Without its codes.
    matrix: CodedMatrix,
}

impl Coded {
    /// Reads `parts`, each of whole rows of `inputs`, if all of them have the same code.
    pub fn of<'a>(parts: &'a [MatrixPart<'a>], inputs: usize) -> Option<Coded> {
        let coded = |part: &'a MatrixPart<'a>| match part {
            MatrixPart::Coded(part) => Some(part),
            MatrixPart::Plain(_) => None,
        };
        let parts: Vec<_> = parts.iter().map(coded).collect::<Option<_>>()?;
        let code = parts.first()?.code();
        if parts.iter().any(|part| part.code() != code) {
            return None;
        }
        let rows: usize = parts.iter().map(|part| part.rows()).sum();
        let mut codes = Vec::with_capacity(rows * code.bytes(inputs));
        let mut first = 0;
        let mut scaled = Vec::with_capacity(parts.len());
        for part in parts {
            let mut matrix = part.load();
            assert_eq!(matrix.cols, inputs, "a part of a matrix has whole rows");
            codes.append(&mut matrix.codes);
            let rows = matrix.rows;
            scaled.push(Scaled { first, matrix });
            first += rows;
        }
        Some(Coded { code, values: code.values(), inputs, codes, parts: scaled })
    }

    /// Rows of the stack.
    pub fn rows(&self) -> usize {
        self.codes.len() / self.code.bytes(self.inputs)
    }

    /// Bytes it holds.
    pub fn bytes(&self) -> usize {
        let scales = self.parts.iter().map(|part| size_of_val(part.matrix.scales.as_slice()));
        self.codes.len() + scales.sum::<usize>()
    }

    /// Writes row `n` into `out` of `[inputs]`.
    pub fn widen(&self, n: usize, out: &mut [f32]) {
        let bytes = self.code.bytes(self.inputs);
        let codes = &self.codes[n * bytes..][..bytes];
        match self.code {
            Code::E4m3 => {
                for (out, &code) in out.iter_mut().zip(codes) {
                    *out = self.values[usize::from(code)];
                }
            }
            Code::E2m1 => {
                for (out, &pair) in out.chunks_mut(2).zip(codes) {
                    let pair = [pair & 0xf, pair >> 4];
                    for (out, code) in out.iter_mut().zip(pair) {
                        *out = self.values[usize::from(code)];
                    }
                }
            }
        }
        let after = self.parts.partition_point(|part| part.first <= n);
        let Scaled { first, matrix } = &self.parts[after - 1];
        let row = (matrix.row_offset + n - first) / matrix.block_rows;
        let scales = &matrix.scales[row * matrix.scale_cols..][..matrix.scale_cols];
        let mut rest = out;
        let mut offset = matrix.col_offset;
        for scale in scales {
            let (block, tail) = rest.split_at_mut((matrix.block_cols - offset).min(rest.len()));
            block.iter_mut().for_each(|value| *value *= scale);
            (rest, offset) = (tail, 0);
        }
    }

    /// All rows as numbers.
    pub fn into_f32(self) -> Vec<f32> {
        let mut all = vec![0.0; self.rows() * self.inputs];
        for (n, out) in all.chunks_exact_mut(self.inputs).enumerate() {
            self.widen(n, out);
        }
        all
    }
}
