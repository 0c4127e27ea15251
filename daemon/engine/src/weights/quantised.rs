//! Weights of a checkpoint of plain numbers, handed on as E4M3 codes with a scale for each output.
//!
//! Owns: the codes and the scales, which are the same for every device and every way of sharding. Must never: keep a
//! code; a part is coded while it is read.
//!
//! A scale for each row, and not for blocks of 128 x 128: rows can be divided among ranks, and stacked, anywhere.
//! E4M3 has an exponent of its own, so that a smaller block gains little: within a factor of 28,672 of its row's
//! largest, a number keeps its three bits of mantissa.

use std::collections::HashMap;
use std::sync::OnceLock;

use rayon::prelude::*;

use super::tensor::{CODED_AT_ONCE, Coding, TensorPart};
use super::window::Window;
use super::{Part, WeightError, WeightSource};
use crate::scheme::{Element, TensorSpec};

/// The largest E4M3.
const LARGEST: f32 = 448.0;

/// A source of numbers, of which some matrices are handed on as codes.
pub struct QuantisedWeights {
    plain: Box<dyn WeightSource>,
    matrices: HashMap<String, Matrix>,
    /// Names of scales, and of what they scale.
    scales: HashMap<String, String>,
}

/// A matrix of the source.
struct Matrix {
    rows: usize,
    cols: usize,
    /// Once some rank has asked.
    scales: OnceLock<Vec<f32>>,
}

impl QuantisedWeights {
    /// Of `plain`, what `tensors` says are codes, each a matrix whose scales come next, one for each row.
    pub fn new(plain: Box<dyn WeightSource>, tensors: &[TensorSpec]) -> QuantisedWeights {
        let (mut matrices, mut scales) = (HashMap::new(), HashMap::new());
        for pair in tensors.windows(2) {
            if let ([codes, scale], [rows, cols]) = (pair, &pair[0].shape[..])
                && codes.element == Element::E4m3
            {
                let matrix = Matrix { rows: *rows, cols: *cols, scales: OnceLock::new() };
                matrices.insert(codes.name.clone(), matrix);
                scales.insert(scale.name.clone(), codes.name.clone());
            }
        }
        QuantisedWeights { plain, matrices, scales }
    }

    /// The scales of a matrix.
    fn scales_of<'a>(&'a self, name: &str, matrix: &'a Matrix) -> Result<&'a [f32], WeightError> {
        if let Some(scales) = matrix.scales.get() {
            return Ok(scales);
        }
        let shape = [matrix.rows, matrix.cols];
        let part = self.plain.part(name, &shape, &Part::All)?;
        Ok(matrix.scales.get_or_init(|| {
            let largest =
                |row: &[f32]| row.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
            let at_once = (CODED_AT_ONCE / matrix.cols.max(1)).max(1);
            let mut scales = vec![0.0; matrix.rows];
            scales.par_chunks_mut(at_once).enumerate().for_each(|(chunk, scales)| {
                let mut values = vec![0.0; scales.len() * matrix.cols];
                part.read_f32(chunk * at_once * matrix.cols, &mut values);
                let rows = values.chunks_exact(matrix.cols.max(1));
                scales
                    .iter_mut()
                    .zip(rows)
                    .for_each(|(scale, row)| *scale = largest(row) / LARGEST);
            });
            scales
        }))
    }
}

impl WeightSource for QuantisedWeights {
    fn part(
        &self,
        name: &str,
        shape: &[usize],
        part: &Part,
    ) -> Result<TensorPart<'_>, WeightError> {
        if let Some(matrix) = self.matrices.get(name) {
            let scales = self.scales_of(name, matrix)?;
            let plain = self.plain.part(name, shape, part)?;
            return Ok(plain.coded_by(Coding { scales, cols: matrix.cols }));
        }
        let scaled = self.scales.get(name);
        match scaled.and_then(|of| Some((of, self.matrices.get(of)?))) {
            Some((of, matrix)) => {
                let window = Window::new(name, shape, part)?;
                if shape != [matrix.rows, 1] {
                    return Err(WeightError::WrongShape {
                        name: name.to_owned(),
                        found: vec![matrix.rows, 1],
                        asked: shape.to_vec(),
                    });
                }
                Ok(TensorPart::scales(window, self.scales_of(of, matrix)?))
            }
            None => self.plain.part(name, shape, part),
        }
    }

    fn bytes_total(&self) -> u64 {
        self.plain.bytes_total()
    }

    fn dtype(&self) -> &'static str {
        "fp8"
    }
}

/// The codes nearest to `values / scale`, ties to the even one; zeros where the scale is 0.
pub(super) fn encode(values: &[f32], scale: f32, codes: &mut [u8]) {
    for (code, value) in codes.iter_mut().zip(values) {
        *code = if scale == 0.0 { 0 } else { nearest(value / scale) };
    }
}

/// The E4M3 nearest to `value`, ties to the even one; what is past the largest becomes it. NaN stays NaN.
fn nearest(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = value.abs();
    if magnitude.is_nan() {
        return sign | 0x7f;
    }
    // Below 2^-6 steps are 2^-9: adding 2^14 rounds to them, ties to even, since an f32 there has steps of 2^-9.
    let bits = if magnitude < 0.015_625 {
        (magnitude + 16_384.0).to_bits() - 16_384_f32.to_bits()
    } else {
        let bits = magnitude.min(LARGEST).to_bits();
        let rounded = bits + 0x7_ffff + (bits >> 20 & 1);
        // The exponent is 120 less, and 3 bits of the mantissa stay.
        (rounded >> 20) - (120 << 3)
    };
    sign | bits as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheme::Code;

    /// Against all codes: none is nearer, and of two that are as near the even one is taken.
    #[test]
    fn a_code_is_the_nearest() {
        let all = Code::E4m3.values();
        let mut values: Vec<f32> = all.iter().copied().filter(|value| value.is_finite()).collect();
        let finite = values.clone();
        for pair in (0..=0x7d_usize).map(|code| (all[code], all[code + 1])) {
            let middle = (pair.0 + pair.1) / 2.0;
            values.extend([middle, middle.next_up(), middle.next_down()]);
            values.extend([-middle, -middle.next_up()]);
        }
        values.extend([449.0, 1e30, -1e30, f32::INFINITY, 1e-30, -1e-30, 0.0, -0.0]);
        for value in values {
            let code = nearest(value);
            let got = all[usize::from(code)];
            let clamped = value.clamp(-LARGEST, LARGEST);
            let distance = |of: f32| (f64::from(of) - f64::from(clamped)).abs();
            let least = finite.iter().copied().map(distance).fold(f64::INFINITY, f64::min);
            assert_eq!(distance(got), least, "{value}: {got}");
            let ties = finite.iter().filter(|&&of| distance(of) == least).count();
            // Both zeros are as near as each other.
            assert!(ties == 1 || code.is_multiple_of(2) || got == 0.0, "{value}: {code:#x}");
            assert_eq!(got.is_sign_negative(), value.is_sign_negative());
        }
        assert!(all[usize::from(nearest(f32::NAN))].is_nan());
    }

    #[test]
    fn rows_of_zeros_are_zeros() {
        let mut codes = [1; 3];
        encode(&[0.0, -0.0, 0.0], 0.0, &mut codes);
        assert_eq!(codes, [0; 3]);
        encode(&[448.0, -224.0, 1.0], 1.0, &mut codes);
        assert_eq!(codes, [0x7e, 0xf6, 0x38]);
    }
}
