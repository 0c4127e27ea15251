//! A forward pass in straight lines: whole sequences, no cache, f64 sums.

use std::collections::HashMap;

use minisgl_engine::config::{ModelConfig, RopeScaling};

/// Log-probabilities of the next token after every position: `[tokens][vocab]`.
pub fn log_probabilities(
    config: &ModelConfig,
    weights: &HashMap<String, Vec<f32>>,
    tokens: &[u32],
) -> Vec<Vec<f64>> {
    let weight =
        |name: &str| -> Vec<f64> { weights[name].iter().map(|&value| f64::from(value)).collect() };
    let (hidden, dim) = (config.hidden_size, config.head_dim);
    let embedding = weight("model.embed_tokens.weight");
    let mut x: Vec<Vec<f64>> =
        tokens.iter().map(|&t| embedding[t as usize * hidden..][..hidden].to_vec()).collect();
    for layer in 0..config.layers {
        let get = |name: &str| weight(&format!("model.layers.{layer}.{name}"));
        let normed = norm_all(config, &x, &get("input_layernorm.weight"));
        let project = |which: &str| -> Vec<Vec<f64>> {
            let mut out = matmul(&normed, &get(&format!("self_attn.{which}_proj.weight")));
            if config.qkv_bias {
                let bias = get(&format!("self_attn.{which}_proj.bias"));
                out.iter_mut().for_each(|row| add(row, &bias));
            }
            out
        };
        let (mut q, mut k, v) = (project("q"), project("k"), project("v"));
        for (which, rows) in [("q", &mut q), ("k", &mut k)] {
            for (position, row) in rows.iter_mut().enumerate() {
                for head in row.chunks_mut(dim) {
                    if config.qk_norm {
                        let weight = get(&format!("self_attn.{which}_norm.weight"));
                        head.copy_from_slice(&norm(config, head, &weight));
                    }
                    rotate(config, head, position);
                }
            }
        }
        let mut attended = Vec::new();
        for (t, q) in q.iter().enumerate() {
            let mut out = Vec::new();
            for head in 0..config.heads {
                let kv = head / (config.heads / config.kv_heads);
                let q = &q[head * dim..][..dim];
                let scores: Vec<f64> = (0..=t)
                    .map(|p| dot(q, &k[p][kv * dim..][..dim]) / (dim as f64).sqrt())
                    .collect();
                let total = log_sum_exp(&scores);
                for i in 0..dim {
                    let sum =
                        |(p, score): (usize, &f64)| (score - total).exp() * v[p][kv * dim + i];
                    out.push(scores.iter().enumerate().map(sum).sum());
                }
            }
            attended.push(out);
        }
        let delta = matmul(&attended, &get("self_attn.o_proj.weight"));
        x.iter_mut().zip(&delta).for_each(|(x, delta)| add(x, delta));

        let normed = norm_all(config, &x, &get("post_attention_layernorm.weight"));
        let mut gate = matmul(&normed, &get("mlp.gate_proj.weight"));
        let up = matmul(&normed, &get("mlp.up_proj.weight"));
        for (gate, up) in gate.iter_mut().flatten().zip(up.iter().flatten()) {
            *gate = *gate / (1.0 + (-*gate).exp()) * up;
        }
        let delta = matmul(&gate, &get("mlp.down_proj.weight"));
        x.iter_mut().zip(&delta).for_each(|(x, delta)| add(x, delta));
    }
    let normed = norm_all(config, &x, &weight("model.norm.weight"));
    let head = if config.tie_word_embeddings { embedding } else { weight("lm_head.weight") };
    let mut logits = matmul(&normed, &head);
    for row in &mut logits {
        let total = log_sum_exp(row);
        row.iter_mut().for_each(|logit| *logit -= total);
    }
    logits
}

fn matmul(x: &[Vec<f64>], weight: &[f64]) -> Vec<Vec<f64>> {
    x.iter().map(|x| weight.chunks_exact(x.len()).map(|row| dot(x, row)).collect()).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn norm_all(config: &ModelConfig, x: &[Vec<f64>], weight: &[f64]) -> Vec<Vec<f64>> {
    x.iter().map(|x| norm(config, x, weight)).collect()
}

fn norm(config: &ModelConfig, x: &[f64], weight: &[f64]) -> Vec<f64> {
    let scale = (dot(x, x) / x.len() as f64 + f64::from(config.rms_norm_eps)).sqrt();
    x.iter().zip(weight).map(|(x, weight)| x / scale * weight).collect()
}

fn log_sum_exp(x: &[f64]) -> f64 {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + x.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
}

fn rotate(config: &ModelConfig, head: &mut [f64], position: usize) {
    let half = head.len() / 2;
    for i in 0..half {
        let frequency = config.rope.theta.powf(-(i as f64) / half as f64);
        let angle = position as f64 * stretched(frequency, &config.rope.scaling);
        let (sin, cos) = angle.sin_cos();
        let (a, b) = (head[i], head[i + half]);
        head[i] = a * cos - b * sin;
        head[i + half] = b * cos + a * sin;
    }
}

/// By wavelength, as the Llama 3.1 reference states it.
fn stretched(frequency: f64, scaling: &RopeScaling) -> f64 {
    match *scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position,
        } => {
            let original = original_max_position as f64;
            let wavelength = 2.0 * std::f64::consts::PI / frequency;
            if wavelength < original / high_freq_factor {
                frequency
            } else if wavelength > original / low_freq_factor {
                frequency / factor
            } else {
                let smooth = (original / wavelength - low_freq_factor)
                    / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}
