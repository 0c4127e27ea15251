//! Element formats of GGUF tensors, decoded to f32. Formulas are those of ggml's `ggml-quants.c`;
//! the order of operations is kept, so results are equal bit for bit to its reference.
//!
//! | format | block of 32 elements | element |
//! |---|---|---|
//! | F32 | (one element) | `x` |
//! | Q4_1 | `d:f16 m:f16 q:u4 x 32` | `d * q + m`; byte `i` holds element `i` low, `i + 16` high |
//! | Q8_0 | `d:f16 q:i8 x 32` | `d * q` |

use anyhow::{Context, Result, bail, ensure};
use half::f16;

const BLOCK: usize = 32;
const Q4_1_BYTES: usize = 2 + 2 + BLOCK / 2;
const Q8_0_BYTES: usize = 2 + BLOCK;

/// How a tensor's elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// IEEE single precision.
    F32,
    /// 4 bits with scale and minimum.
    Q4_1,
    /// 8 bits with scale.
    Q8_0,
}

impl Format {
    /// The format behind ggml's type number.
    pub fn from_ggml_type(number: u32) -> Result<Self> {
        match number {
            0 => Ok(Format::F32),
            3 => Ok(Format::Q4_1),
            8 => Ok(Format::Q8_0),
            other => bail!("ggml type {other} is not known here: F32 (0), Q4_1 (3), Q8_0 (8) are"),
        }
    }

    /// Elements and bytes of a block.
    fn block(self) -> (usize, usize) {
        match self {
            Format::F32 => (1, 4),
            Format::Q4_1 => (BLOCK, Q4_1_BYTES),
            Format::Q8_0 => (BLOCK, Q8_0_BYTES),
        }
    }

    /// Bytes of a tensor of `shape`.
    ///
    /// # Errors
    /// Rows are not whole blocks, or the size overflows.
    pub fn bytes(self, shape: &[usize]) -> Result<usize> {
        let (elements, bytes) = self.block();
        let columns = shape.last().copied().unwrap_or(0);
        ensure!(columns % elements == 0, "rows of {columns} are not whole blocks of {elements}");
        let count = shape.iter().try_fold(1usize, |all, &dim| all.checked_mul(dim));
        let size = count.and_then(|n| (n / elements).checked_mul(bytes));
        size.with_context(|| format!("shape {shape:?} overflows"))
    }

    /// Decodes whole blocks.
    pub fn decode(self, data: &[u8]) -> Result<Vec<f32>> {
        let (elements, bytes) = self.block();
        ensure!(data.len() % bytes == 0, "{} bytes are not whole blocks of {bytes}", data.len());
        let mut out = Vec::with_capacity(data.len() / bytes * elements);
        for block in data.chunks_exact(bytes) {
            match self {
                Format::F32 => {
                    out.push(f32::from_le_bytes([block[0], block[1], block[2], block[3]]))
                }
                Format::Q4_1 => {
                    let (d, m, quants) = (half(block, 0), half(block, 2), &block[4..]);
                    out.extend(quants.iter().map(|q| d * f32::from(q & 15) + m));
                    out.extend(quants.iter().map(|q| d * f32::from(q >> 4) + m));
                }
                Format::Q8_0 => {
                    let d = half(block, 0);
                    out.extend(block[2..].iter().map(|&q| d * f32::from(q as i8)));
                }
            }
        }
        Ok(out)
    }
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q4_1_by_hand() {
        let mut block = Vec::new();
        block.extend(f16::from_f32(0.5).to_le_bytes());
        block.extend(f16::from_f32(-1.0).to_le_bytes());
        block.extend((0..16u8).map(|i| i | (15 - i) << 4));
        let values = Format::Q4_1.decode(&block).unwrap();
        for i in 0..16 {
            assert_eq!(values[i], 0.5 * i as f32 - 1.0);
            assert_eq!(values[i + 16], 0.5 * (15 - i) as f32 - 1.0);
        }
    }

    #[test]
    fn q8_0_by_hand() {
        let mut block = f16::from_f32(0.25).to_le_bytes().to_vec();
        block.extend((0..32).map(|i| (i * 8 - 128) as i8 as u8));
        let values = Format::Q8_0.decode(&block).unwrap();
        for (i, value) in values.iter().enumerate() {
            assert_eq!(*value, 0.25 * (i as f32 * 8.0 - 128.0));
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(Format::F32.bytes(&[3]).unwrap(), 12);
        assert_eq!(Format::Q4_1.bytes(&[2, 64]).unwrap(), 4 * 20);
        assert_eq!(Format::Q8_0.bytes(&[2, 64]).unwrap(), 4 * 34);
        assert!(Format::Q8_0.bytes(&[64, 2]).is_err());
        assert!(Format::F32.bytes(&[usize::MAX, 2]).is_err());
        assert!(Format::Q4_1.decode(&[0; 19]).is_err());
        assert!(Format::from_ggml_type(2).is_err());
    }
}
