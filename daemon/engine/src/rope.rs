//! Rotary position embeddings (RoPE: Su et al., 2021).
//!
//! Owns: how fast each pair of a head's dimensions turns, and in which order devices have a head's dimensions. Must
//! never: know a device. On all of them pair `i` of a head is its dimensions `i` and `i + head_dim / 2`.

use std::ops::Range;

use crate::config::{RopeConfig, RopeScaling};

/// How two dimensions of a head turn with the position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// Angle per position, rounded to f32 where the checkpoints' own training code rounds.
    frequency: f32,
    /// What cosine and sine are multiplied by.
    magnitude: f32,
}

impl Pair {
    /// Dimensions that no position turns.
    const STILL: Pair = Pair { frequency: 0.0, magnitude: 1.0 };

    /// Cosine and sine at `position`, times the magnitude.
    pub fn at(self, position: usize) -> (f32, f32) {
        // The product is rounded to f32, as in the code the checkpoints were trained with.
        let (sin, cos) = f64::from(position as f32 * self.frequency).sin_cos();
        (cos as f32 * self.magnitude, sin as f32 * self.magnitude)
    }
}

/// The pairs of a head, `[head_dim / 2]`: those that are rotated, then those that are not.
pub fn pairs(rope: &RopeConfig, head_dim: usize) -> Vec<Pair> {
    let rotated = head_dim - rope.still;
    let dim = rotated as f64;
    let base = |pair: usize| rope.theta.powf(-2.0 * pair as f64 / dim);
    let (ramp, magnitude) = (ramp(rope, dim), magnitude(rope));
    let one = |pair: usize| match pair < rotated / 2 {
        true => Pair { frequency: scale(base(pair), pair, ramp, &rope.scaling) as f32, magnitude },
        false => Pair::STILL,
    };
    (0..head_dim / 2).map(one).collect()
}

/// The rows of a checkpoint's query or key heads, in the order that devices have them in. A checkpoint rotates the first
/// half of a head's rotated dimensions against the second, and has the others after both.
pub fn rows(rope: &RopeConfig, head_dim: usize, heads: Range<usize>) -> Vec<Range<usize>> {
    let all = heads.start * head_dim..heads.end * head_dim;
    if rope.still == 0 {
        return std::iter::once(all).collect();
    }
    let rotated = head_dim - rope.still;
    let middle = rotated + rope.still / 2;
    let order = [0..rotated / 2, rotated..middle, rotated / 2..rotated, middle..head_dim];
    let of = |first: usize| order.clone().map(|rows| first + rows.start..first + rows.end);
    all.step_by(head_dim).flat_map(of).collect()
}

fn magnitude(rope: &RopeConfig) -> f32 {
    match rope.scaling {
        RopeScaling::Yarn { magnitude, .. } | RopeScaling::LongRope { magnitude, .. } => {
            magnitude as f32
        }
        RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } => 1.0,
    }
}

/// The pairs between which YaRN blends: those before are kept, those after are divided.
fn ramp(rope: &RopeConfig, dim: f64) -> (f64, f64) {
    let RopeScaling::Yarn { beta_fast, beta_slow, original_max_position, truncated, .. } =
        rope.scaling
    else {
        return (0.0, 0.0);
    };
    let pair = |turns: f64| {
        let waves = original_max_position as f64 / (turns * 2.0 * std::f64::consts::PI);
        dim * waves.ln() / (2.0 * rope.theta.ln())
    };
    let (low, high) = (pair(beta_fast), pair(beta_slow));
    let (low, high) = if truncated { (low.floor(), high.ceil()) } else { (low, high) };
    let (low, high) = (low.max(0.0), high.min(dim - 1.0));
    // Where both ends meet, the ramp is a step.
    (low, if low == high { high + 0.001 } else { high })
}

fn scale(frequency: f64, pair: usize, (low, high): (f64, f64), scaling: &RopeScaling) -> f64 {
    match *scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position,
        } => {
            let turns = original_max_position as f64 * frequency / (2.0 * std::f64::consts::PI);
            // 0 for wavelengths that are stretched whole, 1 for those that are kept.
            let keep = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
            let keep = keep.clamp(0.0, 1.0);
            frequency * (keep + (1.0 - keep) / factor)
        }
        RopeScaling::Yarn { factor, .. } => {
            let divide = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
            frequency * (1.0 - divide + divide / factor)
        }
        RopeScaling::LongRope { ref divisors, .. } => frequency / divisors[pair],
    }
}

#[cfg(test)]
mod tests {
    use super::{Pair, pairs, rows, scale};
    use crate::config::{RopeConfig, RopeScaling};

    /// What stands still is neither turned nor stretched, and every dimension is somewhere once.
    #[test]
    fn dimensions_that_stand_still_come_after_those_that_turn() {
        let scaling = RopeScaling::LongRope {
            divisors: vec![1.0, 2.0, 4.0],
            original_max_position: 64,
            magnitude: 1.5,
        };
        let rope = RopeConfig { still: 4, theta: 1e6, scaling };
        let turning = |frequency| Pair { frequency, magnitude: 1.5 };
        let turns = [turning(1.0), turning(0.01 / 2.0), turning(0.0001 / 4.0)];
        assert_eq!(pairs(&rope, 10), [&turns[..], &[Pair::STILL; 2]].concat());
        assert_eq!(Pair::STILL.at(77), (1.0, 0.0));
        let expected = [20..23, 26..28, 23..26, 28..30, 30..33, 36..38, 33..36, 38..40];
        assert_eq!(rows(&rope, 10, 2..4), expected);
    }

    #[test]
    fn llama_3_keeps_short_waves_and_stretches_long_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position: 8192,
        };
        let per_turns = |turns: f64| turns * 2.0 * std::f64::consts::PI / 8192.0;
        for (turns, factor) in [(100.0, 1.0), (4.0, 1.0), (1.0, 0.125), (0.1, 0.125), (2.5, 0.5625)]
        {
            let frequency = per_turns(turns);
            let ratio = scale(frequency, 0, (0.0, 0.0), &scaling) / frequency;
            assert!((ratio - factor).abs() < 1e-12, "{turns} turns: {ratio}, not {factor}");
        }
    }
}
