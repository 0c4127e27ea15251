//! Dummy weights: the engine's own bits.

use half::bf16;
use minisgl_kernels::ops::DummyFill;

use crate::support::{Gpu, Random, assert_same};

/// One element, written down anew from SplitMix64: state `key + index * golden`, one output.
fn element(key: u64, index: usize, scale: f32, mean: f32) -> bf16 {
    let golden = 0x9e37_79b9_7f4a_7c15_u64;
    // `Random` adds golden before it mixes.
    let state = key.wrapping_add((index as u64).wrapping_mul(golden)).wrapping_sub(golden);
    let bits = Random(state).bits();
    let sum: i64 = (0..4).map(|part| (bits >> (16 * part) & 0xffff) as i64).sum();
    let value = (sum - 131_070) as f32 * scale + mean;
    bf16::from_bits((value.to_bits() >> 16) as u16)
}

pub fn dummy(gpu: &mut Gpu) {
    let big = if gpu.small { (300, 170) } else { (70_001, 33) };
    let windows = [(1, 1), (1, 5), (3, 7), (257, 1), (17, 4_096), big];
    for (rows, cols) in windows {
        for spare in [0, 1, 513] {
            let (key, width) = (gpu.random.bits(), cols + spare);
            // Beyond 32 bits too.
            let first = gpu.random.of(&[0, 3, (1 << 33) + 1]);
            let (scale, mean) = gpu.random.of(&[(5.3e-7, 0.0), (1e-5, -0.25), (0.0, 1.0)]);
            let mut out = gpu.poisoned(rows * cols);
            let to = (&mut out).into();
            DummyFill { out: to, key, first, rows, cols, width, scale, mean }
                .launch(&gpu.device)
                .unwrap();
            let expected: Vec<bf16> = (0..rows * cols)
                .map(|at| element(key, first + at / cols * width + at % cols, scale, mean))
                .collect();
            assert_same(&format!("{rows} x {cols} of {width}"), &gpu.download(&out), &expected);
        }
    }
}
