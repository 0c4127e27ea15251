//! Values of a tensor that is in no file, a fixed function of seed, tensor name and element index.
//!
//! Owns: the function, on the host. Must never: keep a value.

use half::bf16;

use crate::scheme::Code;

/// Standard deviation of everything but norms, the usual initialisation.
const STANDARD_DEVIATION: f32 = 0.02;

/// One tensor's distribution. A GPU makes the same bits from the same numbers
/// (`kernels/cu/dummy/dummy.cu`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DummyTensor {
    /// With an element's index, all that it depends on.
    pub key: u64,
    /// Of all elements.
    pub mean: f32,
    /// From the sum of four 16-bit uniforms, less its mean, to a deviation from `mean`.
    pub scale: f32,
}

impl DummyTensor {
    pub(super) fn named(name: &str, seed: u64) -> DummyTensor {
        // The standard deviation of a 16-bit uniform is sqrt((65536^2 - 1) / 12), of four added twice that.
        let scale = STANDARD_DEVIATION * 1.732_050_8 / 65536.0;
        let (mean, scale) = if name.ends_with("norm.weight") { (1.0, 0.0) } else { (0.0, scale) };
        DummyTensor { key: mix(seed ^ fnv1a(name.as_bytes())), mean, scale }
    }

    /// Element `index`: the sum of four 16-bit uniforms (Irwin-Hall), scaled and shifted to the mean and
    /// deviation wanted. Its tails end at 3.5 standard deviations.
    pub fn element(&self, index: usize) -> bf16 {
        let value = drawn(self.key, index) as f32 * self.scale + self.mean;
        // The upper half of an f32 is a bf16, rounded towards zero: good enough here, and cheap.
        bf16::from_bits((value.to_bits() >> 16) as u16)
    }
}

/// The sum of four 16-bit uniforms, less its mean.
fn drawn(key: u64, index: usize) -> i32 {
    let bits = mix(key.wrapping_add((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let sum = (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48);
    sum as i32 - 2 * 65535
}

/// Codes of a tensor that is in no file: what they stand for, times [`DummyBytes::multiplier`], is distributed as a
/// [`DummyTensor`]'s elements are, but for the highest, which end where the code does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct DummyBytes {
    code: Code,
    key: u64,
}

impl DummyBytes {
    pub(super) fn named(name: &str, seed: u64, code: Code) -> DummyBytes {
        DummyBytes { code, key: mix(seed ^ fnv1a(name.as_bytes())) }
    }

    /// The scale that goes with every code: a power of two, so that all schemes can hold it.
    pub(super) fn multiplier(code: Code) -> f32 {
        match code {
            // The deviation of codes is 82, and 3.5 of those, the end of the tails, are 287 of 448.
            Code::E4m3 => 1.0 / 4096.0,
            // The deviation of codes is 2.6, and they end at 6.
            Code::E2m1 => 1.0 / 128.0,
        }
    }

    /// What a byte is.
    pub(super) fn code(&self) -> Code {
        self.code
    }

    /// With a code's index, all that it depends on. A GPU makes the same codes from it and the scale
    /// (`kernels/cu/dummy/dummy.cu`).
    pub(super) fn key(&self) -> u64 {
        self.key
    }

    /// From the sum of four 16-bit uniforms, less its mean, to what is coded.
    pub(super) fn scale(&self) -> f32 {
        STANDARD_DEVIATION * 1.732_050_8 / 65536.0 / Self::multiplier(self.code)
    }

    /// Byte `index` of the tensor: one code, or two.
    pub(super) fn byte(&self, index: usize) -> u8 {
        match self.code {
            Code::E4m3 => self.nearest(index),
            Code::E2m1 => self.nearest(2 * index) | self.nearest(2 * index + 1) << 4,
        }
    }

    /// The code nearest to what is drawn for element `index`, towards zero.
    fn nearest(&self, index: usize) -> u8 {
        let value = drawn(self.key, index) as f32 * self.scale();
        let (mantissa_bits, bias, highest) = match self.code {
            Code::E4m3 => (3, 7, 0x7e),
            Code::E2m1 => (1, 1, 0x7),
        };
        // An f32 has its exponent and 127: times 2^(bias - 127), its upper bits are the code.
        let moved = value.abs() * f32::from_bits(bias << 23);
        let magnitude = (moved.to_bits() >> (23 - mantissa_bits)).min(highest) as u8;
        let sign = u8::from(value < 0.0) << (self.code.bits() - 1);
        magnitude | sign
    }
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
