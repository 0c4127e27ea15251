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

use super::e4m3::LARGEST;
use super::tensor::{CODED_AT_ONCE, Coding, TensorPart};
use super::window::Window;
use super::{Part, WeightError, WeightSource};
use crate::scheme::{Element, TensorSpec};

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
