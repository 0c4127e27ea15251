//! Rotation frequencies (RoPE: Su et al., 2021).

use crate::config::{ModelConfig, RopeScaling};

/// Angle per position of each pair of a head's dimensions: `[head_dim / 2]`, rounded to f32 where
/// the checkpoints' own training code rounds.
pub fn frequencies(config: &ModelConfig) -> Vec<f32> {
    let dim = config.head_dim as f64;
    let base = |pair: usize| config.rope.theta.powf(-2.0 * pair as f64 / dim);
    (0..config.head_dim / 2).map(|pair| scale(base(pair), &config.rope.scaling) as f32).collect()
}

fn scale(frequency: f64, scaling: &RopeScaling) -> f64 {
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
            let ratio = scale(frequency, &scaling) / frequency;
            assert!((ratio - factor).abs() < 1e-12, "{turns} turns: {ratio}, not {factor}");
        }
    }
}
