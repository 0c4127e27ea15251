//! Seeded weights for a model of which only `config.json` is there: the same shapes and speed as the
//! real one, and a fixed function of seed, tensor name and element index, so that every way of
//! sharding sees the same model.

use std::collections::HashMap;

use half::bf16;
use half::vec::HalfBitsVecExt;
use rayon::prelude::*;

use super::part::Window;
use super::{HostTensor, Part, WeightError, WeightSource};
use crate::config::ModelConfig;

/// Standard deviation of everything but norms, the usual initialisation.
const STANDARD_DEVIATION: f32 = 0.02;

/// Elements that one task fills, at least.
const CHUNK: usize = 1 << 16;

/// Weights drawn from a seed, in bf16: norms are 1, all else is about N(0, 0.02).
pub struct DummyWeights {
    seed: u64,
    shapes: HashMap<String, Vec<usize>>,
}

impl DummyWeights {
    /// The dummy weights of a model; another seed gives other weights.
    pub fn new(config: &ModelConfig, seed: u64) -> DummyWeights {
        DummyWeights { seed, shapes: config.tensors().into_iter().collect() }
    }
}

impl WeightSource for DummyWeights {
    fn load(&self, name: &str, shape: &[usize], part: &Part) -> Result<HostTensor, WeightError> {
        let known = self
            .shapes
            .get(name)
            .ok_or_else(|| WeightError::UnknownTensor { name: name.to_owned() })?;
        if known != shape {
            return Err(WeightError::WrongShape {
                name: name.to_owned(),
                found: known.clone(),
                asked: shape.to_vec(),
            });
        }
        let window = Window::new(name, shape, part)?;
        if name.ends_with("norm.weight") {
            return Ok(HostTensor::Bf16(vec![bf16::ONE; window.len()]));
        }
        let key = mix(self.seed ^ fnv1a(name.as_bytes()));
        let columns = window.cols.len();
        // Zeroed by the system, page by page, as the tasks below first touch them.
        let mut out = vec![0_u16; window.len()];
        out.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, out)| {
            // Walks the window row by row; within a row, elements are consecutive.
            let mut at = chunk * CHUNK;
            let mut rest = out;
            while !rest.is_empty() {
                let (row, col) = (at / columns, at % columns);
                let (run, tail) = rest.split_at_mut((columns - col).min(rest.len()));
                let first = (window.rows.start + row) * window.width + window.cols.start + col;
                for (i, value) in run.iter_mut().enumerate() {
                    *value = element(key, (first + i) as u64);
                }
                at += run.len();
                rest = tail;
            }
        });
        Ok(HostTensor::Bf16(out.reinterpret_into()))
    }

    fn bytes_total(&self) -> u64 {
        self.shapes.values().map(|shape| 2 * shape.iter().product::<usize>() as u64).sum()
    }

    fn dtype(&self) -> &'static str {
        "bf16"
    }
}

/// One weight, as the bits of a bf16: the sum of four 16-bit uniforms (Irwin-Hall), shifted and
/// scaled to mean 0 and the standard deviation wanted. Its tails end at 3.5 standard deviations.
fn element(key: u64, index: u64) -> u16 {
    let bits = mix(key.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let sum = (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48);
    // Mean and variance of a 16-bit uniform: 65535 / 2 and (65536^2 - 1) / 12.
    let scale = STANDARD_DEVIATION * 1.732_050_8 / 65536.0;
    let value = (sum as i32 - 2 * 65535) as f32 * scale;
    // The upper half of an f32 is a bf16, rounded towards zero: good enough here, and cheap.
    (value.to_bits() >> 16) as u16
}

/// The output function of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
/// generators", 2014, figure 16, with the constants of the reference implementation).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// FNV-1a, 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
