//! What the tests share: seeded inputs, poisoned outputs, comparisons.

use cudarc::driver::{CudaSlice, DeviceRepr};
use half::bf16;
use minisgl_kernels::Device;

/// The GPU under test and a source of inputs.
pub struct Gpu {
    pub device: Device,
    pub random: Random,
    /// Keep shapes small: a sanitizer is watching.
    pub small: bool,
}

/// A bf16 that no op writes: NaN with a payload of its own.
pub const POISON: u16 = 0x7fd5;

impl Gpu {
    pub fn new(device: Device, seed: u64, small: bool) -> Gpu {
        Gpu { device, random: Random(seed), small }
    }

    /// Makes each test independent of those before it.
    pub fn restart(&mut self, seed: u64) {
        self.random = Random(seed);
    }

    pub fn upload<T: DeviceRepr>(&self, values: &[T]) -> CudaSlice<T> {
        self.device.stream().clone_htod(values).unwrap()
    }

    pub fn download<T: DeviceRepr>(&self, slice: &CudaSlice<T>) -> Vec<T> {
        self.device.stream().clone_dtoh(slice).unwrap()
    }

    pub fn poisoned(&self, len: usize) -> CudaSlice<bf16> {
        self.upload(&vec![bf16::from_bits(POISON); len])
    }

    /// Normal values, on the CPU and on the GPU.
    pub fn normal(&mut self, len: usize, scale: f32) -> (Vec<bf16>, CudaSlice<bf16>) {
        let values: Vec<bf16> =
            (0..len).map(|_| bf16::from_f32(self.random.normal() * scale)).collect();
        let slice = self.upload(&values);
        (values, slice)
    }

    /// Numbers of tokens worth testing.
    pub fn row_counts(&self) -> &'static [usize] {
        if self.small { &[1, 3, 17] } else { &[1, 2, 33, 256, 4097] }
    }
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `0..below`.
    pub fn below(&mut self, below: usize) -> usize {
        (self.bits() % below as u64) as usize
    }

    /// Close to a standard normal: the sum of twelve uniforms.
    pub fn normal(&mut self) -> f32 {
        (0..3).map(|_| self.bits()).fold(-6.0, |sum, bits| {
            sum + (0..4).map(|i| (bits >> (16 * i) & 0xffff) as f32 / 65_536.0).sum::<f32>()
        })
    }

    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    pub fn shuffle<T>(&mut self, values: &mut [T]) {
        for i in (1..values.len()).rev() {
            values.swap(i, self.below(i + 1));
        }
    }
}

/// Every element written, and within a bf16 rounding or two of the reference.
pub fn assert_close(what: &str, out: &[bf16], expected: &[f64], absolute: f64) {
    assert_near(what, out, expected, absolute, 0.0);
}

/// The same where `ties` factors of each element were rounded to bf16 before, maybe to the other side of a tie.
pub fn assert_near(what: &str, out: &[bf16], expected: &[f64], absolute: f64, ties: f64) {
    assert_eq!(out.len(), expected.len(), "{what}");
    for (i, (out, expected)) in out.iter().zip(expected).enumerate() {
        assert_ne!(out.to_bits(), POISON, "{what}: element {i} was not written");
        let (value, difference) = (out.to_f64(), (out.to_f64() - expected).abs());
        // Half a unit in the last place is 2^-8 at most; f32 may round to the other side of a tie.
        let limit = expected.abs() * (0.0046 + ties / 128.0) + absolute;
        assert!(difference <= limit, "{what}: element {i} is {value}, expected {expected}");
    }
    assert_together(what, out, expected, ROUNDING_SHARE, absolute);
}

/// What errors of bf16 roundings are of the norm, together: over many elements they are smaller on average.
pub const ROUNDING_SHARE: f64 = 3e-3;

/// All were written, and the errors together are such a share of the norm, of few elements a third more.
pub fn assert_together(what: &str, out: &[bf16], expected: &[f64], share: f64, absolute: f64) {
    assert_eq!(out.len(), expected.len(), "{what}");
    let (mut error, mut norm) = (0.0, 0.0);
    for (i, (out, expected)) in out.iter().zip(expected).enumerate() {
        assert_ne!(out.to_bits(), POISON, "{what}: element {i} was not written");
        error += (out.to_f64() - expected).powi(2);
        norm += expected * expected;
    }
    let share = if out.len() < 1024 { share * 4.0 / 3.0 } else { share };
    assert!(error.sqrt() <= share * norm.sqrt() + absolute, "{what}: {error} of {norm}");
}

/// The same bits.
pub fn assert_same(what: &str, out: &[bf16], expected: &[bf16]) {
    assert_eq!(out.len(), expected.len(), "{what}");
    for (i, (out, expected)) in out.iter().zip(expected).enumerate() {
        assert_eq!(out.to_bits(), expected.to_bits(), "{what}: element {i}");
    }
}
