//! A forward pass in straight lines: whole sequences, no cache, f64 sums.

use std::collections::HashMap;

use minisgl_engine::config::{
    Activation, Architecture, ExpertsSpec, Ffn, ModelConfig, RopeConfig, RopeScaling, Router,
};

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
    let scale = f64::from(config.embedding_scale);
    let embed = |&t: &u32| embedding[t as usize * hidden..][..hidden].iter().map(|x| x * scale);
    let mut x: Vec<Vec<f64>> = tokens.iter().map(|t| embed(t).collect()).collect();
    for (layer, spec) in config.layers.iter().enumerate() {
        let get = |name: &str| weight(&format!("model.layers.{layer}.{name}"));
        let normed = norm_all(config, &x, &get("input_layernorm.weight"));
        let is_phi = config.architecture == Architecture::Phi3;
        let project = |which: &str| -> Vec<Vec<f64>> {
            let weight = match is_phi {
                false => get(&format!("self_attn.{which}_proj.weight")),
                // Queries, then keys, then values.
                true => {
                    let all = get("self_attn.qkv_proj.weight");
                    let (q, kv) = (config.heads * dim * hidden, config.kv_heads * dim * hidden);
                    let (first, len) = match which {
                        "q" => (0, q),
                        "k" => (q, kv),
                        _ => (q + kv, kv),
                    };
                    all[first..first + len].to_vec()
                }
            };
            let mut out = matmul(&normed, &weight);
            if config.attention_bias.qkv {
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
                    rotate(&config.ropes[spec.attention.rope], head, position);
                }
            }
        }
        let sinks = config.sinks.then(|| get("self_attn.sinks"));
        let mut attended = Vec::new();
        for (t, q) in q.iter().enumerate() {
            let mut out = Vec::new();
            let first = spec.attention.window.map_or(0, |window| (t + 1).saturating_sub(window));
            for head in 0..config.heads {
                let kv = head / (config.heads / config.kv_heads);
                let q = &q[head * dim..][..dim];
                let mut scores: Vec<f64> = (first..=t)
                    .map(|p| dot(q, &k[p][kv * dim..][..dim]) * f64::from(config.attention_scale))
                    .collect();
                scores.extend(sinks.as_ref().map(|sinks| sinks[head]));
                let total = log_sum_exp(&scores);
                scores.truncate(t + 1 - first);
                for i in 0..dim {
                    let sum = |(p, score): (usize, &f64)| {
                        (score - total).exp() * v[first + p][kv * dim + i]
                    };
                    out.push(scores.iter().enumerate().map(sum).sum());
                }
            }
            attended.push(out);
        }
        let mut delta = matmul(&attended, &get("self_attn.o_proj.weight"));
        if config.attention_bias.output {
            let bias = get("self_attn.o_proj.bias");
            delta.iter_mut().for_each(|row| add(row, &bias));
        }
        let is_gemma = config.norms.after_blocks;
        if is_gemma {
            delta = norm_all(config, &delta, &get("post_attention_layernorm.weight"));
        }
        x.iter_mut().zip(&delta).for_each(|(x, delta)| add(x, delta));

        let before =
            if is_gemma { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
        let normed = norm_all(config, &x, &get(&format!("{before}.weight")));
        let mut delta = match &spec.ffn {
            Ffn::Dense { .. } => block(config, &normed, |which| match (is_phi, which) {
                (true, "gate" | "up") => {
                    let mut gate = get("mlp.gate_up_proj.weight");
                    let up = gate.split_off(gate.len() / 2);
                    if which == "up" { up } else { gate }
                }
                _ => get(&format!("mlp.{which}_proj.weight")),
            }),
            Ffn::Experts(experts) => {
                normed.iter().map(|x| mixture(config, experts, x, &get)).collect()
            }
        };
        if is_gemma {
            delta = norm_all(config, &delta, &get("post_feedforward_layernorm.weight"));
        }
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

/// A gated block whose weights `get` gives by "gate", "up" and "down".
fn block(config: &ModelConfig, x: &[Vec<f64>], get: impl Fn(&str) -> Vec<f64>) -> Vec<Vec<f64>> {
    let (mut gate, up) = (matmul(x, &get("gate")), matmul(x, &get("up")));
    for (gate, up) in gate.iter_mut().flatten().zip(up.iter().flatten()) {
        *gate = activated(config.activation, *gate, *up);
    }
    matmul(&gate, &get("down"))
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn activated(activation: Activation, gate: f64, up: f64) -> f64 {
    match activation {
        Activation::Silu => gate * sigmoid(gate) * up,
        Activation::GeluTanh => {
            let root = (2.0 / std::f64::consts::PI).sqrt();
            0.5 * gate * (1.0 + (root * (gate + 0.044715 * gate.powi(3))).tanh()) * up
        }
        Activation::ClampedSwish => {
            let (gate, up) = (gate.min(7.0), up.clamp(-7.0, 7.0));
            gate * sigmoid(1.702 * gate) * (up + 1.0)
        }
    }
}

/// What a token's experts make of it.
fn mixture(
    config: &ModelConfig,
    experts: &ExpertsSpec,
    x: &[f64],
    get: &impl Fn(&str) -> Vec<f64>,
) -> Vec<f64> {
    let one = |x: &[f64], weight: &[f64]| -> Vec<f64> {
        weight.chunks_exact(x.len()).map(|row| dot(row, x)).collect()
    };
    let (prefix, router) = match config.architecture {
        Architecture::Mixtral => ("block_sparse_moe", "block_sparse_moe.gate"),
        Architecture::GptOss => ("mlp", "mlp.router"),
        _ => ("mlp", "mlp.gate"),
    };
    let mut logits = one(x, &get(&format!("{router}.weight")));
    if experts.bias {
        add(&mut logits, &get(&format!("{router}.bias")));
    }
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    order.truncate(experts.chosen);
    let chosen: Vec<f64> = order.iter().map(|&e| logits[e]).collect();
    let total = match experts.router {
        Router::Softmax { renormalised: false } => log_sum_exp(&logits),
        _ => log_sum_exp(&chosen),
    };
    let mut out = vec![0.0; x.len()];
    for &expert in &order {
        let weight = (logits[expert] - total).exp();
        let result = match config.architecture {
            Architecture::GptOss => stacked_expert(config, experts, expert, x, get),
            Architecture::Mixtral => {
                let name = |which: &str| match which {
                    "gate" => "w1",
                    "up" => "w3",
                    _ => "w2",
                };
                let get =
                    |which: &str| get(&format!("{prefix}.experts.{expert}.{}.weight", name(which)));
                block(config, &[x.to_vec()], get).remove(0)
            }
            _ => {
                let get =
                    |which: &str| get(&format!("{prefix}.experts.{expert}.{which}_proj.weight"));
                block(config, &[x.to_vec()], get).remove(0)
            }
        };
        out.iter_mut().zip(result).for_each(|(out, x)| *out += weight * x);
    }
    if experts.shared.is_some() {
        let gate = dot(x, &get("mlp.shared_expert_gate.weight"));
        let get = |which: &str| get(&format!("mlp.shared_expert.{which}_proj.weight"));
        let result = block(config, &[x.to_vec()], get).remove(0);
        out.iter_mut().zip(result).for_each(|(out, x)| *out += sigmoid(gate) * x);
    }
    out
}

/// gpt-oss: `[experts, inputs, outputs]`, gate and up in turn.
fn stacked_expert(
    config: &ModelConfig,
    experts: &ExpertsSpec,
    expert: usize,
    x: &[f64],
    get: &impl Fn(&str) -> Vec<f64>,
) -> Vec<f64> {
    let (hidden, width) = (config.hidden_size, experts.width);
    let matrix = get("mlp.experts.gate_up_proj");
    let matrix = &matrix[expert * hidden * 2 * width..][..hidden * 2 * width];
    let mut both = get("mlp.experts.gate_up_proj_bias")[expert * 2 * width..][..2 * width].to_vec();
    for (x, row) in x.iter().zip(matrix.chunks_exact(2 * width)) {
        both.iter_mut().zip(row).for_each(|(both, weight)| *both += x * weight);
    }
    let middle: Vec<f64> =
        both.chunks_exact(2).map(|pair| activated(config.activation, pair[0], pair[1])).collect();
    let mut out = get("mlp.experts.down_proj_bias")[expert * hidden..][..hidden].to_vec();
    let matrix = get("mlp.experts.down_proj");
    let matrix = &matrix[expert * width * hidden..][..width * hidden];
    for (x, row) in middle.iter().zip(matrix.chunks_exact(hidden)) {
        out.iter_mut().zip(row).for_each(|(out, weight)| *out += x * weight);
    }
    out
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
    let more = if config.norms.plus_one { 1.0 } else { 0.0 };
    x.iter().zip(weight).map(|(x, weight)| x / scale * (weight + more)).collect()
}

fn log_sum_exp(x: &[f64]) -> f64 {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + x.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
}

fn rotate(rope: &RopeConfig, head: &mut [f64], position: usize) {
    let half = (head.len() - rope.still) / 2;
    let magnitude = match rope.scaling {
        RopeScaling::Yarn { magnitude, .. } | RopeScaling::LongRope { magnitude, .. } => magnitude,
        _ => 1.0,
    };
    for i in 0..half {
        let frequency = rope.theta.powf(-(i as f64) / half as f64);
        let angle = position as f64 * stretched(frequency, i, rope);
        let (sin, cos) = angle.sin_cos();
        let (a, b) = (head[i], head[i + half]);
        head[i] = (a * cos - b * sin) * magnitude;
        head[i + half] = (b * cos + a * sin) * magnitude;
    }
}

/// By wavelength, as the Llama 3.1 reference states it; YaRN by dimension, as its paper's code does.
fn stretched(frequency: f64, pair: usize, rope: &RopeConfig) -> f64 {
    match rope.scaling {
        RopeScaling::LongRope { ref divisors, .. } => frequency / divisors[pair],
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
        RopeScaling::Yarn { .. } => {
            unreachable!("stretched rotations by YaRN are held to transformers")
        }
    }
}
