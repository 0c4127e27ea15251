//! `exp` as a whole number, the same on every device.

/// The weight of the most likely token: 1 in fixed point.
pub(super) const ONE: u64 = 1 << 40;

/// Weights below this exponent are 0: under 1.2 parts in 10^12 of the most likely token's.
const LEAST: f32 = -27.5;

/// Adding it to a float of magnitude below 2^22 rounds that to an integer, which is then found in the
/// low bits: 1.5 * 2^23.
const ROUNDING: f32 = 12_582_912.0;

/// `floor(2^40 * exp(x))` for `x <= 0`, with a relative error of about 1e-7; 0 below -27.5 and for
/// NaN.
#[inline]
pub(super) fn weight(x: f32) -> u64 {
    whole(scaled_exp(x))
}

/// The floor that makes a weight of a [`scaled_exp`].
#[inline]
pub(super) fn whole(scaled: f32) -> u64 {
    // Through i64, for which there is an instruction.
    scaled as i64 as u64
}

/// `2^40 * exp(x)`, a weight before its floor. The scheme and its coefficients are those of `expf` in
/// Moshier's Cephes library: `x` is split into `n ln 2 + r`, and `exp(r)` is a polynomial. Free of
/// branches, so that a loop over it is vectorised.
#[inline]
pub(super) fn scaled_exp(x: f32) -> f32 {
    let within = x >= LEAST;
    let x = if within { x } else { LEAST };
    let rounded = x * std::f32::consts::LOG2_E + ROUNDING;
    let n = rounded - ROUNDING;
    // ln 2 in two parts, the first short enough that its product with n is exact.
    let r = (x - n * (355.0 / 512.0)) - n * -2.121_944_4e-4;
    let mut p = 1.987_569_2e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + coefficient;
    }
    let exp_r = (p * (r * r) + r) + 1.0;
    let exponent = rounded.to_bits().wrapping_sub(ROUNDING.to_bits()).wrapping_add(127 + 40);
    // The second factor is a power of two, and the product is exact.
    let scaled = exp_r * f32::from_bits(exponent << 23);
    if within { scaled } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_exp() {
        assert_eq!(weight(0.0), ONE);
        let mut x = 0.0_f32;
        while x >= LEAST {
            let exact = f64::from(x).exp() * ONE as f64;
            let error = (weight(x) as f64 - exact).abs();
            assert!(error <= 1.0 + exact * 1.5e-7, "x = {x}: {} for {exact}", weight(x));
            assert!(weight(x) > 0 && weight(x) <= ONE, "x = {x}");
            x -= 0.000_37;
        }
    }

    #[test]
    fn vanishes_below_its_range() {
        for x in [-27.6, -1e30, f32::MIN, f32::NEG_INFINITY, f32::NAN] {
            assert_eq!(weight(x), 0, "x = {x}");
        }
    }
}
