//! Tiny random models on disk, a driver that plays the scheduler, and a naive forward pass.

#![allow(dead_code, reason = "each test binary uses a part")]

pub mod driver;
pub mod oracle;

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use half::{bf16, f16};
use minisgl_engine::config::ModelConfig;
use minisgl_engine::scheme::{Code, Element};
use minisgl_engine::weights::TensorSpec;
use minisgl_proto::{NO_TOKEN, Sampled};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// In [-1, 1).
    pub fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn tokens(&mut self, count: usize, vocab: usize) -> Vec<u32> {
        (0..count).map(|_| self.below(vocab) as u32).collect()
    }
}

/// Odd sizes on purpose: no dimension is a multiple of a vector or a tile.
pub fn config(architecture: &str, heads: usize, kv_heads: usize, head_dim: usize) -> Value {
    let mut config = json!({
        "architectures": [architecture],
        "vocab_size": 67,
        "hidden_size": 44,
        "intermediate_size": 58,
        "num_hidden_layers": 3,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256,
        "rope_theta": 1000.0,
        "sliding_window": null,
        "tie_word_embeddings": architecture == "Qwen3ForCausalLM",
        "eos_token_id": 2,
    });
    let more = match architecture {
        "Qwen2MoeForCausalLM" => json!({
            "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 22,
            "shared_expert_intermediate_size": 38, "mlp_only_layers": [1],
        }),
        "Qwen3MoeForCausalLM" => json!({
            "num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 22,
            "norm_topk_prob": true,
        }),
        "MixtralForCausalLM" => json!({
            "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 19,
        }),
        // A sliding window that is shorter than some prompts, and longer than others.
        "GptOssForCausalLM" => json!({
            "num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 13,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        }),
        "Gemma3ForCausalLM" => json!({
            "sliding_window": 17, "sliding_window_pattern": 2, "query_pre_attn_scalar": 11,
            "rope_local_base_freq": 300.0,
        }),
        "MistralForCausalLM" => json!({"sliding_window": 21}),
        // Six of ten dimensions are rotated.
        "Phi3ForCausalLM" => json!({
            "sliding_window": 23, "partial_rotary_factor": 0.6,
            "original_max_position_embeddings": 128, "rope_scaling": {
                "type": "longrope",
                "short_factor": Vec::from_iter((0..head_dim * 3 / 10).map(|pair| 1.0 + 0.5 * pair as f64)),
            },
        }),
        _ => json!({}),
    };
    for (key, value) in more.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    config
}

/// Writes `config.json` and random weights, rounded to `dtype`; returns the weights as f32.
pub fn write_model(
    dir: &Path,
    config: &Value,
    dtype: Dtype,
    seed: u64,
) -> (ModelConfig, HashMap<String, Vec<f32>>) {
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let config = ModelConfig::from_dir(dir).unwrap();
    let mut random = Random(seed);
    let mut weights = HashMap::new();
    let mut raw = Vec::new();
    for TensorSpec { name, shape, .. } in minisgl_engine::model::tensors(&config) {
        let len: usize = shape.iter().product();
        let norm = name.ends_with("norm.weight");
        // Large enough that attention and activation are far from linear.
        let scale = if norm { 0.5 } else { 2.0 / (*shape.last().unwrap() as f32).sqrt() };
        let mean = if norm && !config.norms.plus_one { 1.0 } else { 0.0 };
        let draw = |_| random.float() * scale + mean;
        let values: Vec<f32> = (0..len).map(draw).collect();
        let (bytes, values): (Vec<u8>, Vec<f32>) = match dtype {
            Dtype::BF16 => {
                let values: Vec<_> = values.into_iter().map(bf16::from_f32).collect();
                let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                (bytes, values.into_iter().map(bf16::to_f32).collect())
            }
            Dtype::F16 => {
                let values: Vec<_> = values.into_iter().map(f16::from_f32).collect();
                let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                (bytes, values.into_iter().map(f16::to_f32).collect())
            }
            _ => (values.iter().flat_map(|value| value.to_le_bytes()).collect(), values),
        };
        raw.push((name.clone(), shape, bytes));
        weights.insert(name, values);
    }
    let views = raw.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    (config, weights)
}

/// Writes `config.json` and random weights, codes and scales where `quantization_config` says so.
pub fn write_coded_model(dir: &Path, config: &Value, seed: u64) {
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let config = ModelConfig::from_dir(dir).unwrap();
    let codes = Code::E4m3.values();
    let code = |value: f32| {
        let magnitude = codes[..0x7f].partition_point(|&code| code <= value.abs()) as u8 - 1;
        if value < 0.0 { magnitude | 0x80 } else { magnitude }
    };
    let mut random = Random(seed);
    let mut raw = Vec::new();
    // Of the matrix whose scales come next.
    let mut inputs = 1;
    for TensorSpec { name, shape, element, .. } in minisgl_engine::model::tensors(&config) {
        let len: usize = shape.iter().product();
        let (dtype, bytes): (Dtype, Vec<u8>) = match element {
            Element::E4m3 => {
                inputs = *shape.last().unwrap();
                let codes = (0..len).map(|_| code(random.float() * 448.0)).collect();
                (Dtype::F8_E4M3, codes)
            }
            Element::E2m1Pairs => {
                // `[experts, outputs, blocks, 16]`.
                inputs = 2 * shape[shape.len() - 2..].iter().product::<usize>();
                (Dtype::U8, (0..len).map(|_| random.next() as u8).collect())
            }
            Element::E8m0 => {
                // Codes are up to 6.
                let size = (2.0 / (inputs as f32).sqrt() / 6.0).log2().round() as i32 + 127;
                (Dtype::U8, (0..len).map(|_| (size - (random.next() % 3) as i32) as u8).collect())
            }
            Element::Scale => {
                let size = 2.0 / (inputs as f32).sqrt() / 448.0;
                let scale = |_| size * (1.0 + random.float() / 2.0);
                (Dtype::F32, (0..len).map(scale).flat_map(f32::to_le_bytes).collect())
            }
            _ => {
                let norm = name.ends_with("norm.weight");
                let scale = if norm { 0.5 } else { 2.0 / (*shape.last().unwrap() as f32).sqrt() };
                let mean = if norm { 1.0 } else { 0.0 };
                let value = |_| bf16::from_f32(random.float() * scale + mean);
                (Dtype::BF16, (0..len).map(value).flat_map(bf16::to_le_bytes).collect())
            }
        };
        raw.push((name, dtype, shape, bytes));
    }
    let views = raw.iter().map(|(name, dtype, shape, bytes)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
}

/// Makes one value of the last norm of a model of bf16 a NaN, which every logit then is.
pub fn break_model(dir: &Path) {
    break_tensor(dir, "model.norm.weight", 0..1);
}

/// Makes these elements of a tensor of bf16 NaN.
pub fn break_tensor(dir: &Path, name: &str, elements: Range<usize>) {
    let path = dir.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let tensor = &header[name];
    assert_eq!(tensor["dtype"], "BF16");
    let first = 8 + header_len + tensor["data_offsets"][0].as_u64().unwrap() as usize;
    for element in elements {
        bytes[first + 2 * element..][..2].copy_from_slice(&bf16::NAN.to_le_bytes());
    }
    std::fs::write(path, bytes).unwrap();
}

/// What a broken model gives for each token, sampled or given.
pub fn assert_broken(all: &[Vec<Sampled>], tokens: usize) {
    for sampled in all {
        assert_eq!(sampled.len(), tokens);
        for sampled in sampled {
            let Sampled { token, logprob, top } = sampled;
            assert_eq!((*token, *logprob, top.len()), (NO_TOKEN, None, 0));
        }
    }
}
