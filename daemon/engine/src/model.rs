//! Models, written once over [`crate::ops::Ops`].
//!
//! Owns: the order of operations of a forward pass, and which tensors it needs. Must never: know a
//! device, or touch memory itself.
//!
//! Every architecture served is one decoder whose layers say what they are ([`crate::config::LayerSpec`]).
//!
//! How another one is added is in `docs/adding-a-model.md`.

mod decoder;
pub mod layout;
mod loader;
pub mod reader;

pub use decoder::Decoder;
pub use loader::Loader;

use crate::config::ModelConfig;
use crate::shard::Shard;
use crate::weights::TensorSpec;
use reader::Listing;

/// Every tensor the model needs, with its full shape, in the order of the forward pass.
pub fn tensors(config: &ModelConfig) -> Vec<TensorSpec> {
    let mut listing = Listing::whole(config);
    let Ok(_) = layout::layout(config, &mut listing);
    listing.into_tensors()
}

/// Number of parameters; a tied head counts once.
pub fn parameters(config: &ModelConfig) -> u64 {
    parameters_of(config, &Shard::whole(config))
}

/// Number of parameters that one rank holds.
pub fn parameters_of(config: &ModelConfig, shard: &Shard) -> u64 {
    let mut listing = Listing::new(shard.clone());
    let Ok(_) = layout::layout(config, &mut listing);
    listing.elements()
}

/// Bytes that the weights of one rank take, as most checkpoints have them: plain numbers in 16 bits.
pub fn bytes_of(config: &ModelConfig, shard: &Shard) -> u64 {
    let mut listing = Listing::new(shard.clone());
    let Ok(_) = layout::layout(config, &mut listing);
    listing.bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> ModelConfig {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), json).unwrap();
        ModelConfig::from_dir(dir.path()).unwrap()
    }

    fn shape(tensors: &[TensorSpec], name: &str) -> Option<Vec<usize>> {
        tensors.iter().find(|tensor| tensor.name == name).map(|tensor| tensor.shape.clone())
    }

    const QWEN2_5_0_5B: &str = r#"{"architectures": ["Qwen2ForCausalLM"], "hidden_size": 896,
        "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2,
        "num_hidden_layers": 24, "vocab_size": 151936, "max_position_embeddings": 32768,
        "tie_word_embeddings": true}"#;
    const MIXTRAL: &str = r#"{"architectures": ["MixtralForCausalLM"], "hidden_size": 4096,
        "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
        "num_hidden_layers": 32, "vocab_size": 32000, "max_position_embeddings": 32768,
        "num_local_experts": 8, "num_experts_per_tok": 2}"#;
    const QWEN3_30B_A3B: &str = r#"{"architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 151936,
        "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
        "max_position_embeddings": 40960, "moe_intermediate_size": 768, "num_experts": 128,
        "num_experts_per_tok": 8}"#;
    const QWEN1_5_MOE: &str = r#"{"architectures": ["Qwen2MoeForCausalLM"], "vocab_size": 151936,
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
        "num_attention_heads": 16, "num_key_value_heads": 16, "max_position_embeddings": 8192,
        "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "num_experts": 60,
        "num_experts_per_tok": 4}"#;
    const GPT_OSS_20B: &str = r#"{"architectures": ["GptOssForCausalLM"], "vocab_size": 201088,
        "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24, "head_dim": 64,
        "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 131072,
        "num_local_experts": 32, "num_experts_per_tok": 4}"#;
    const GEMMA_3_1B: &str = r#"{"architectures": ["Gemma3ForCausalLM"], "vocab_size": 262144,
        "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "head_dim": 256,
        "num_attention_heads": 4, "num_key_value_heads": 1, "max_position_embeddings": 32768}"#;
    const PHI_4: &str = r#"{"architectures": ["Phi3ForCausalLM"], "vocab_size": 100352,
        "hidden_size": 5120, "intermediate_size": 17920, "num_hidden_layers": 40,
        "num_attention_heads": 40, "num_key_value_heads": 10, "max_position_embeddings": 16384}"#;
    const PHI_4_MINI: &str = r#"{"architectures": ["Phi3ForCausalLM"], "vocab_size": 200064,
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
        "num_attention_heads": 24, "num_key_value_heads": 8, "max_position_embeddings": 131072,
        "partial_rotary_factor": 0.75, "tie_word_embeddings": true}"#;

    /// The counts on the model cards, or of their files.
    #[test]
    fn models_have_as_many_parameters_as_their_cards_say() {
        for (json, parameters) in [
            (QWEN2_5_0_5B, 494_032_768),
            (MIXTRAL, 46_702_792_704),
            (QWEN3_30B_A3B, 30_532_122_624),
            (QWEN1_5_MOE, 14_315_784_192),
            (GPT_OSS_20B, 20_914_757_184),
            (GEMMA_3_1B, 999_885_952),
            (PHI_4, 14_659_507_200),
            (PHI_4_MINI, 3_836_021_760),
        ] {
            let config = config(json);
            assert_eq!(super::parameters(&config), parameters, "{:?}", config.architecture);
            let listed: u64 = tensors(&config).iter().map(TensorSpec::elements).sum();
            assert_eq!(listed, parameters);
        }
    }

    fn quantised(json: &str, quantization: &str) -> ModelConfig {
        let open = json.trim_end().trim_end_matches('}');
        config(&format!("{open}, \"quantization_config\": {quantization}}}"))
    }

    const FP8: &str = r#"{"quant_method": "fp8", "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head"]}"#;
    const MXFP4: &str = r#"{"quant_method": "mxfp4", "modules_to_not_convert": [
        "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]}"#;

    #[test]
    fn a_scheme_changes_what_is_stored_and_not_how_many_parameters_there_are() {
        let qwen = quantised(QWEN3_30B_A3B, FP8);
        assert_eq!(parameters(&qwen), 30_532_122_624);
        let all = tensors(&qwen);
        let expert = "model.layers.47.mlp.experts.127.down_proj.weight";
        assert_eq!(shape(&all, expert), Some(vec![2048, 768]));
        assert_eq!(shape(&all, &format!("{expert}_scale_inv")), Some(vec![16, 6]));
        assert_eq!(
            shape(&all, "model.layers.0.self_attn.k_proj.weight_scale_inv"),
            Some(vec![4, 16])
        );
        for plain in ["lm_head", "model.embed_tokens", "model.layers.0.mlp.gate"] {
            assert!(shape(&all, &format!("{plain}.weight")).is_some());
            assert_eq!(shape(&all, &format!("{plain}.weight_scale_inv")), None);
        }
        // A byte for each quantised weight, and 4 for each block of them.
        let coded =
            30_532_122_624 - 2 * 151_936 * 2048 - 48 * (128 * 2048 + 2 * 2048 + 2 * 128) - 2048;
        let plain = 30_532_122_624 - coded;
        let bytes: u64 = all.iter().map(TensorSpec::bytes).sum();
        assert_eq!(bytes, 2 * plain + coded + coded / (128 * 128) * 4);
        assert_eq!(bytes_of(&qwen, &Shard::whole(&qwen)), bytes);
        let ranks = (0..4).map(|rank| Shard::new(&qwen, 4, rank).unwrap());
        let held: u64 = ranks.map(|shard| bytes_of(&qwen, &shard)).sum();
        // Norms, those of heads too, and routers are whole on each.
        let whole = 97 * 2048 + 48 * (2 * 128 + 128 * 2048);
        assert_eq!(held, bytes + 3 * 2 * whole);

        let gpt_oss = quantised(GPT_OSS_20B, MXFP4);
        assert_eq!(parameters(&gpt_oss), 20_914_757_184);
        let all = tensors(&gpt_oss);
        let experts = "model.layers.0.mlp.experts";
        let of = |what: &str| shape(&all, &format!("{experts}.{what}"));
        assert_eq!(of("gate_up_proj_blocks"), Some(vec![32, 5760, 90, 16]));
        assert_eq!(of("gate_up_proj_scales"), Some(vec![32, 5760, 90]));
        assert_eq!(of("down_proj_blocks"), Some(vec![32, 2880, 90, 16]));
        assert_eq!(of("gate_up_proj_bias"), Some(vec![32, 5760]));
        assert_eq!(of("gate_up_proj"), None);
        let names: std::collections::BTreeSet<&str> =
            all.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names.len(), all.len(), "each is listed once");
        assert!(shape(&all, "model.layers.0.self_attn.q_proj.weight").is_some());
    }

    #[test]
    fn tensors_have_the_names_that_checkpoints_give_them() {
        let qwen = tensors(&config(QWEN2_5_0_5B));
        assert_eq!(shape(&qwen, "model.layers.0.self_attn.k_proj.bias"), Some(vec![128]));
        assert_eq!(shape(&qwen, "model.layers.23.mlp.down_proj.weight"), Some(vec![896, 4864]));
        assert_eq!(shape(&qwen, "lm_head.weight"), None);
        assert_eq!(shape(&qwen, "model.layers.0.self_attn.o_proj.bias"), None);
        let mixtral = tensors(&config(MIXTRAL));
        let name = "model.layers.31.block_sparse_moe.experts.7.w2.weight";
        assert_eq!(shape(&mixtral, name), Some(vec![4096, 14336]));
        let gpt_oss = tensors(&config(GPT_OSS_20B));
        let name = "model.layers.0.mlp.experts.gate_up_proj";
        assert_eq!(shape(&gpt_oss, name), Some(vec![32, 2880, 5760]));
        assert_eq!(shape(&gpt_oss, "model.layers.0.mlp.router.bias"), Some(vec![32]));
        let gemma = tensors(&config(GEMMA_3_1B));
        let name = "model.layers.0.pre_feedforward_layernorm.weight";
        assert_eq!(shape(&gemma, name), Some(vec![1152]));
        let phi = tensors(&config(PHI_4));
        let name = "model.layers.39.self_attn.qkv_proj.weight";
        assert_eq!(shape(&phi, name), Some(vec![60 * 128, 5120]));
        let name = "model.layers.0.mlp.gate_up_proj.weight";
        assert_eq!(shape(&phi, name), Some(vec![2 * 17_920, 5120]));
        // Once each, whatever is cut out of it.
        let count = |json| (tensors(&config(json)).len(), config(json).layers.len());
        assert_eq!((count(PHI_4), count(PHI_4_MINI)), ((40 * 6 + 3, 40), (32 * 6 + 2, 32)));
    }

    /// What `tp` ranks hold together.
    fn held(config: &ModelConfig, tp: usize) -> (u64, u64) {
        let ranks = (0..tp).map(|rank| Shard::new(config, tp, rank).unwrap());
        let of = |shard: Shard| (parameters_of(config, &shard), bytes_of(config, &shard));
        ranks.map(of).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    /// All ranks together hold every element once, but for what each of them needs whole.
    #[test]
    fn ranks_divide_experts_as_they_divide_all_else() {
        let config = config(MIXTRAL);
        // Norms, and routers of 8 experts, in 32 layers.
        let whole = 65 * 4096 + 32 * 8 * 4096;
        assert_eq!(held(&config, 4).0, super::parameters(&config) + 3 * whole);
    }

    /// Projections that share a tensor are cut out of it, each number and each scale once.
    #[test]
    fn ranks_divide_projections_that_share_a_tensor() {
        for (json, norms) in [(PHI_4, 81 * 5120), (PHI_4_MINI, 65 * 3072)] {
            let plain = config(json);
            let parameters = super::parameters(&plain);
            for tp in [1, 2, 5, 8] {
                if plain.kv_heads.is_multiple_of(tp) {
                    let whole = (tp as u64 - 1) * norms;
                    let expected = (parameters + whole, 2 * (parameters + whole));
                    assert_eq!(held(&plain, tp), expected, "tp {tp}");
                }
            }
            let coded = plain.quantised_to_fp8().unwrap();
            let stored: u64 = tensors(&coded).iter().map(TensorSpec::bytes).sum();
            // Of what ranks sum, each has the scales of all outputs; they are counted by its share of the inputs.
            assert_eq!(held(&coded, 2), (parameters + norms, stored + 2 * norms));
        }
    }
}
