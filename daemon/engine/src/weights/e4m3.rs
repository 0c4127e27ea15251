//! Numbers as E4M3 codes.
//!
//! Owns: which code a number becomes. Must never: choose a scale.

/// The largest E4M3.
pub(super) const LARGEST: f32 = 448.0;

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
