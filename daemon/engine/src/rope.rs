//! Rotation frequencies (RoPE: Su et al., 2021).

use crate::config::{RopeConfig, RopeScaling};

/// Angle per position of each pair of a head's dimensions: `[head_dim / 2]`, rounded to f32 where
/// the checkpoints' own training code rounds.
pub fn frequencies(rope: &RopeConfig, head_dim: usize) -> Vec<f32> {
    let dim = head_dim as f64;
    let base = |pair: usize| rope.theta.powf(-2.0 * pair as f64 / dim);
    let ramp = ramp(rope, dim);
    let one = |pair: usize| scale(base(pair), pair, ramp, &rope.scaling) as f32;
    (0..head_dim / 2).map(one).collect()
}

/// What cosines and sines are multiplied by.
pub fn magnitude(rope: &RopeConfig) -> f32 {
    match rope.scaling {
        RopeScaling::Yarn { magnitude, .. } => magnitude as f32,
        _ => 1.0,
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
    }
}

#[cfg(test)]
mod tests {
    use super::scale;
    use crate::config::RopeScaling;

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
