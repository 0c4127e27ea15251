//! Dummy weights: the engine's own bits.

use half::bf16;
use minisgl_kernels::ops::{DummyCode, DummyCodes, DummyFill};

use crate::support::{Gpu, Random, assert_same};

/// One element, written down anew from SplitMix64: state `key + index * golden`, one output.
fn element(key: u64, index: usize, scale: f32, mean: f32) -> bf16 {
    let value = deviation(key, index) * scale + mean;
    bf16::from_bits((value.to_bits() >> 16) as u16)
}

/// The e4m3 next to an element, towards zero: found among all that are not negative.
fn code(key: u64, index: usize, scale: f32, all: &[f32]) -> u8 {
    let value = deviation(key, index) * scale;
    let below = all.partition_point(|&code| code <= value.abs()) as u8 - 1;
    if value < 0.0 { below | 0x80 } else { below }
}

/// The e2m1 next to an element, towards zero, once a value below a half has lost what a 149th bit after the point does
/// not hold of 2^-126 of it.
fn e2m1(key: u64, index: usize, scale: f32) -> u8 {
    let (value, small) = (deviation(key, index) * scale, f32::MIN_POSITIVE);
    let all = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0_f32];
    let below = all.partition_point(|code| code * small <= value.abs() * small) as u8 - 1;
    if value < 0.0 { below | 0x8 } else { below }
}

/// What an e4m3 without its sign is.
fn e4m3(code: u8) -> f32 {
    let (exponent, fraction) = (i32::from(code >> 3), f32::from(code & 7));
    if exponent == 0 { fraction / 512.0 } else { (8.0 + fraction) * 2_f32.powi(exponent - 10) }
}

fn deviation(key: u64, index: usize) -> f32 {
    let golden = 0x9e37_79b9_7f4a_7c15_u64;
    // `Random` adds golden before it mixes.
    let state = key.wrapping_add((index as u64).wrapping_mul(golden)).wrapping_sub(golden);
    let bits = Random(state).bits();
    let sum: i64 = (0..4).map(|part| (bits >> (16 * part) & 0xffff) as i64).sum();
    (sum - 131_070) as f32
}

pub fn dummy(gpu: &mut Gpu) {
    let all: Vec<f32> = (0..=0x7e).map(e4m3).collect();
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

            // As wide as e4m3 goes, and past its ends.
            let scale = gpu.random.of(&[2e-3, 1e-2, 1e-7]);
            let mut out = gpu.upload(&vec![0xff_u8; rows * cols]);
            let to = (&mut out).into();
            let e4m3 = DummyCode::E4m3;
            DummyCodes { code: e4m3, out: to, key, first, rows, cols, width, scale }
                .launch(&gpu.device)
                .unwrap();
            let expected: Vec<u8> = (0..rows * cols)
                .map(|at| code(key, first + at / cols * width + at % cols, scale, &all))
                .collect();
            let got = gpu.download(&out);
            assert!(got == expected, "e4m3, {rows} x {cols} of {width} by {scale}");

            let scale = gpu.random.of(&[3e-5, 6.8e-5, 1e-6]);
            let mut out = gpu.upload(&vec![0xff_u8; rows * cols]);
            let to = (&mut out).into();
            let pairs = DummyCode::E2m1Pair;
            DummyCodes { code: pairs, out: to, key, first, rows, cols, width, scale }
                .launch(&gpu.device)
                .unwrap();
            let expected: Vec<u8> = (0..rows * cols)
                .map(|at| first + at / cols * width + at % cols)
                .map(|at| {
                    let half = |odd| e2m1(key, 2 * at + odd, scale);
                    half(0) | half(1) << 4
                })
                .collect();
            let got = gpu.download(&out);
            assert!(got == expected, "e2m1, {rows} x {cols} of {width} by {scale}");
        }
    }
}
