mod phi;
mod quantization;

use std::fs;

use serde_json::{Value, json};

use super::*;

const LLAMA_3_1_8B: &str = r#"{"architectures": ["LlamaForCausalLM"], "attention_bias": false,
    "bos_token_id": 128000, "eos_token_id": 128001, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 131072,
    "mlp_bias": false, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    "vocab_size": 128256}"#;

const QWEN3_0_6B: &str = r#"{"architectures": ["Qwen3ForCausalLM"], "attention_bias": false,
    "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960,
    "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16,
    "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
    "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
    "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151936}"#;

fn object(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// `base` with the keys of `changes`; a key that is `"-"` is removed.
fn with(base: &str, changes: Value) -> Value {
    let mut config = object(base);
    for (key, value) in changes.as_object().unwrap() {
        if value == "-" {
            config.as_object_mut().unwrap().remove(key);
        } else {
            config[key] = value.clone();
        }
    }
    config
}

fn parse(config: &Value, generation: Option<&Value>) -> Result<ModelConfig, String> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    if let Some(generation) = generation {
        fs::write(dir.path().join("generation_config.json"), generation.to_string()).unwrap();
    }
    ModelConfig::from_dir(dir.path())
        .map_err(|error| error.to_string().replace(dir.path().to_str().unwrap(), "DIR"))
}

fn parsed(base: &str, changes: Value) -> ModelConfig {
    parse(&with(base, changes), None).unwrap()
}

fn refused(base: &str, changes: Value, message: &str) {
    let found = parse(&with(base, changes), None).unwrap_err();
    assert_eq!(found, format!("DIR/config.json: {message}"));
}

#[test]
fn llama_3_1_8b() {
    let config = parse(&object(LLAMA_3_1_8B), None).unwrap();
    let attention = AttentionSpec { window: None, rope: 0 };
    let layer = LayerSpec { attention, ffn: Ffn::Dense { width: 14_336 } };
    assert_eq!(
        config,
        ModelConfig {
            architecture: Architecture::Llama,
            vocab_size: 128_256,
            hidden_size: 4096,
            layers: vec![layer; 32],
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            attention_scale: 1.0 / 128.0f32.sqrt(),
            attention_bias: AttentionBias::default(),
            qk_norm: false,
            sinks: false,
            activation: Activation::Silu,
            norms: NormSpec::default(),
            rms_norm_eps: 1e-5,
            embedding_scale: 1.0,
            max_position: 131_072,
            ropes: vec![RopeConfig {
                still: 0,
                theta: 500_000.0,
                scaling: RopeScaling::Llama3 {
                    factor: 8.0,
                    low_freq_factor: 1.0,
                    high_freq_factor: 4.0,
                    original_max_position: 8192,
                },
            }],
            tie_word_embeddings: false,
            quantization: Quantization::default(),
            eos_token_ids: vec![128_001],
        }
    );
}

#[test]
fn qwen3_0_6b() {
    let config = parse(&object(QWEN3_0_6B), None).unwrap();
    assert_eq!((config.qk_norm, config.attention_bias.qkv), (true, false));
    assert_eq!(config.ropes, [RopeConfig { still: 0, theta: 1e6, scaling: RopeScaling::None }]);
    // Heads times their width is more than the hidden size.
    assert_eq!((config.heads * config.head_dim, config.hidden_size), (2048, 1024));
    assert!(config.tie_word_embeddings);
}

#[test]
fn qwen2_has_biases_on_q_k_and_v_only() {
    // Qwen2.5-0.5B.
    let config = parsed(
        QWEN3_0_6B,
        json!({"architectures": ["Qwen2ForCausalLM"], "hidden_size": 896, "intermediate_size": 4864,
               "num_attention_heads": 14, "num_key_value_heads": 2, "num_hidden_layers": 24,
               "head_dim": "-", "sliding_window": 32768, "attention_bias": "-"}),
    );
    assert_eq!(config.attention_bias, AttentionBias { qkv: true, output: false });
    assert_eq!((config.qk_norm, config.head_dim), (false, 64));
    assert_eq!(windows(&config), [None; 24], "a window that is not used is none");
}

#[test]
fn defaults_are_those_of_transformers() {
    let absent = json!({"head_dim": "-", "num_key_value_heads": "-", "rms_norm_eps": "-",
        "rope_theta": "-", "rope_scaling": "-", "tie_word_embeddings": "-", "hidden_act": "-"});
    let config = parsed(LLAMA_3_1_8B, absent);
    assert_eq!((config.head_dim, config.kv_heads), (128, 32));
    assert_eq!((config.rms_norm_eps, config.ropes[0].theta), (1e-6, 10_000.0));
    assert!(!config.tie_word_embeddings);
    // Qwen3's class has its own default.
    assert_eq!(parsed(QWEN3_0_6B, json!({"head_dim": "-"})).head_dim, 128);
    assert_eq!(parsed(QWEN3_0_6B, json!({"head_dim": null})).head_dim, 64);
}

fn windows(config: &ModelConfig) -> Vec<Option<usize>> {
    config.layers.iter().map(|layer| layer.attention.window).collect()
}

#[test]
fn windows_are_where_transformers_puts_them() {
    let mistral = |changes: Value| {
        let mut changes = changes;
        changes["architectures"] = json!(["MistralForCausalLM"]);
        parsed(LLAMA_3_1_8B, changes)
    };
    assert_eq!(windows(&mistral(json!({"sliding_window": 1000}))), [Some(1000); 32]);
    assert_eq!(windows(&mistral(json!({"sliding_window": null}))), [None; 32]);
    assert_eq!(windows(&mistral(json!({}))), [Some(4096); 32]);
    let used = json!({"use_sliding_window": true, "sliding_window": 2048, "max_window_layers": 20});
    let config = parsed(QWEN3_0_6B, used);
    assert_eq!(windows(&config), [vec![None; 20], vec![Some(2048); 8]].concat());
    let listed = json!({"num_hidden_layers": 2, "sliding_window": 77, "use_sliding_window": true,
        "layer_types": ["sliding_attention", "full_attention"]});
    assert_eq!(windows(&parsed(QWEN3_0_6B, listed)), [Some(77), None]);
    let short = json!({"layer_types": ["full_attention"]});
    refused(
        QWEN3_0_6B,
        short,
        "\"layer_types\" is [\"full_attention\"]: it must be a list of \"full_attention\" and \
         \"sliding_attention\", one for each layer",
    );
}

#[test]
fn rope_in_all_its_spellings() {
    let rope = |changes| parsed(LLAMA_3_1_8B, changes).ropes.remove(0);
    let old = json!({"rope_scaling": {"type": "linear", "factor": 2}});
    let scaling = RopeScaling::Linear { factor: 2.0 };
    let linear = RopeConfig { still: 0, theta: 500_000.0, scaling };
    assert_eq!(rope(old), linear);
    let five = json!({"rope_scaling": "-", "rope_theta": "-",
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500000}});
    assert_eq!(rope(five), linear);
    let plain = json!({"rope_scaling": "-", "rope_theta": "-", "rope_parameters": {"rope_theta": 7e4, "rope_type": "default"}});
    assert_eq!(rope(plain), RopeConfig { still: 0, theta: 7e4, scaling: RopeScaling::None });
    let mut llama3 = object(LLAMA_3_1_8B)["rope_scaling"].clone();
    llama3["rope_theta"] = json!(500_000);
    let five = json!({"rope_scaling": "-", "rope_theta": "-", "rope_parameters": llama3});
    assert_eq!(rope(five), rope(json!({})));
}

#[test]
fn eos_from_generation_config_first() {
    let eos = |config: Value, generation: Option<Value>| {
        parse(&with(LLAMA_3_1_8B, json!({"eos_token_id": config})), generation.as_ref())
            .map(|config| config.eos_token_ids)
    };
    assert_eq!(eos(json!(7), None), Ok(vec![7]));
    assert_eq!(eos(json!([9, 7, 9]), None), Ok(vec![7, 9]));
    assert_eq!(eos(json!(7), Some(json!({"eos_token_id": [1, 2]}))), Ok(vec![1, 2]));
    assert_eq!(eos(json!(7), Some(json!({"eos_token_id": null}))), Ok(vec![7]));
    assert_eq!(eos(json!(null), Some(json!({}))), Ok(vec![]));
    assert_eq!(
        eos(json!(7), Some(json!({"eos_token_id": 128_256}))).unwrap_err(),
        "DIR/generation_config.json: \"eos_token_id\" is 128256: it must be a token id below \
         128256, or a list of up to 64"
    );
}

#[test]
fn arithmetic_that_is_not_implemented_is_refused() {
    refused(
        LLAMA_3_1_8B,
        json!({"architectures": ["FalconForCausalLM"]}),
        "\"architectures\" is [\"FalconForCausalLM\"], which is not supported; supported: \
         LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, \
         Qwen2MoeForCausalLM, Qwen3MoeForCausalLM, MixtralForCausalLM, GptOssForCausalLM, \
         Gemma3ForCausalLM, Phi3ForCausalLM",
    );
    refused(
        LLAMA_3_1_8B,
        json!({"quantization_config": {"quant_method": "awq"}}),
        "\"quantization_config.quant_method\" is \"awq\", which is not supported; \
         supported: \"fp8\" (E4M3; block, channel or tensor scales), \"compressed-tensors\" (8-bit \
         float weights), \"mxfp4\" (gpt-oss); or unquantized bf16, fp16 and fp32 weights",
    );
    refused(
        LLAMA_3_1_8B,
        json!({"hidden_act": "gelu"}),
        "\"hidden_act\" is \"gelu\", which is not supported; supported: \"silu\"",
    );
    let biased = json!({"mlp_bias": true});
    refused(LLAMA_3_1_8B, biased, "\"mlp_bias\" is true, which is not supported; supported: false");
    refused(
        LLAMA_3_1_8B,
        json!({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}),
        "\"rope_scaling.rope_type\" is \"longrope\", which is not supported; \
         supported: \"default\", \"linear\", \"llama3\", \"yarn\"",
    );
    refused(
        LLAMA_3_1_8B,
        json!({"rope_scaling": {"factor": 4.0}}),
        "\"rope_scaling\" is {\"factor\":4.0}, which is not supported; \
         supported: a \"rope_type\" of \"default\", \"linear\", \"llama3\", \"yarn\"",
    );
    refused(
        LLAMA_3_1_8B,
        json!({"partial_rotary_factor": 0.5}),
        "\"partial_rotary_factor\" is 0.5, which is not supported; supported: 1.0",
    );
}

const QWEN3_30B_A3B: &str = r#"{"architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 151936,
    "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
    "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
    "max_position_embeddings": 40960, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "decoder_sparse_step": 1, "moe_intermediate_size": 768, "num_experts_per_tok": 8,
    "num_experts": 128, "norm_topk_prob": true, "mlp_only_layers": []}"#;

#[test]
fn experts_are_where_transformers_puts_them() {
    let experts = ExpertsSpec {
        count: 128,
        chosen: 8,
        width: 768,
        router: Router::Softmax { renormalised: true },
        bias: false,
        shared: None,
    };
    let all = |config: &ModelConfig| -> Vec<Ffn> {
        config.layers.iter().map(|layer| layer.ffn.clone()).collect()
    };
    let config = parsed(QWEN3_30B_A3B, json!({}));
    assert_eq!(all(&config), vec![Ffn::Experts(experts.clone()); 48]);
    assert!(config.qk_norm);
    let dense = Ffn::Dense { width: 6144 };
    let changes = json!({"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3],
        "num_experts": "-", "num_local_experts": 128, "norm_topk_prob": "-"});
    let unnormed =
        ExpertsSpec { router: Router::Softmax { renormalised: false }, ..experts.clone() };
    let expected = [dense.clone(), Ffn::Experts(unnormed.clone()), dense.clone(), dense];
    assert_eq!(all(&parsed(QWEN3_30B_A3B, changes)), expected);
    let shared = parsed(
        QWEN3_30B_A3B,
        json!({"architectures": ["Qwen2MoeForCausalLM"], "shared_expert_intermediate_size": 5632,
               "norm_topk_prob": false}),
    );
    let expected =
        ExpertsSpec { shared: Some(SharedExpert { width: 5632, gated: true }), ..unnormed };
    assert_eq!(shared.layers[0].ffn, Ffn::Experts(expected));
    assert_eq!(shared.attention_bias, AttentionBias { qkv: true, output: false });
    let mixtral = parsed(
        QWEN3_30B_A3B,
        json!({"architectures": ["MixtralForCausalLM"], "num_experts": 8, "rope_theta": "-",
               "num_experts_per_tok": 2}),
    );
    let expected = ExpertsSpec { count: 8, chosen: 2, width: 6144, ..experts };
    assert_eq!(mixtral.layers[0].ffn, Ffn::Experts(expected));
    assert_eq!((windows(&mixtral)[0], mixtral.ropes[0].theta), (None, 1e6));
    refused(
        QWEN3_30B_A3B,
        json!({"num_experts_per_tok": 129}),
        "\"num_experts_per_tok\" is 129: it must be at most the number of experts, which is 128",
    );
    refused(
        QWEN3_30B_A3B,
        json!({"mlp_only_layers": [48]}),
        "\"mlp_only_layers\" is [48]: it must be a list of layers below 48",
    );
}

#[test]
fn gpt_oss_has_sinks_windows_and_a_stretched_rotation() {
    let gpt_oss = json!({"architectures": ["GptOssForCausalLM"], "num_hidden_layers": 3,
        "num_local_experts": 32, "num_experts": "-", "num_experts_per_tok": 4, "head_dim": 64,
        "sliding_window": 128, "rope_theta": 150000,
        "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
            "truncate": false, "original_max_position_embeddings": 4096}});
    let config = parsed(QWEN3_30B_A3B, gpt_oss.clone());
    assert_eq!(windows(&config), [Some(128), None, Some(128)]);
    assert_eq!(config.attention_bias, AttentionBias { qkv: true, output: true });
    assert!(config.sinks && !config.qk_norm);
    assert_eq!(config.activation, Activation::ClampedSwish);
    let Ffn::Experts(experts) = &config.layers[0].ffn else { panic!() };
    assert!(experts.bias && experts.router == Router::SoftmaxOfChosen);
    assert_eq!(config.ropes.len(), 1);
    let RopeScaling::Yarn { magnitude, truncated, .. } = config.ropes[0].scaling else { panic!() };
    assert!((magnitude - 1.346_573_6).abs() < 1e-7 && !truncated);
    // The same without a word.
    let mut silent = gpt_oss;
    for key in ["rope_scaling", "rope_theta"] {
        silent[key] = json!("-");
    }
    assert_eq!(parsed(QWEN3_30B_A3B, silent).ropes, config.ropes);
}

#[test]
fn gemma_3_has_two_rotations_and_norms_all_around() {
    let gemma = |more: Value| {
        let mut changes = json!({"architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 7,
            "head_dim": 256, "hidden_size": 1152, "query_pre_attn_scalar": 256,
            "sliding_window": 512, "rope_theta": 1_000_000, "rope_local_base_freq": 10_000});
        for (key, value) in more.as_object().unwrap() {
            changes[key] = value.clone();
        }
        parsed(QWEN3_30B_A3B, changes)
    };
    let config = gemma(json!({}));
    let window = Some(512);
    let expected = [window, window, window, window, window, None, window];
    assert_eq!(windows(&config), expected);
    let ropes: Vec<usize> = config.layers.iter().map(|layer| layer.attention.rope).collect();
    assert_eq!(ropes, [1, 1, 1, 1, 1, 0, 1]);
    let plain = |theta| RopeConfig { still: 0, theta, scaling: RopeScaling::None };
    assert_eq!(config.ropes, [plain(1e6), plain(1e4)]);
    assert_eq!(config.norms, NormSpec { plus_one: true, after_blocks: true });
    assert_eq!((config.attention_scale, config.embedding_scale), (1.0 / 16.0, 34.0));
    assert!(config.tie_word_embeddings && config.qk_norm);
    assert_eq!(config.activation, Activation::GeluTanh);
    // As transformers 5 writes it, with one of the two stretched.
    let new = gemma(json!({"rope_theta": "-", "rope_local_base_freq": "-", "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}));
    let scaling = RopeScaling::Linear { factor: 8.0 };
    let linear = RopeConfig { still: 0, theta: 1e6, scaling };
    assert_eq!(new.ropes, [linear, plain(1e4)]);
    assert_eq!(gemma(json!({"dtype": "float32"})).embedding_scale, 1152.0f32.sqrt());
}

#[test]
fn dimensions_have_bounds() {
    for (key, max) in [
        ("vocab_size", 4_194_304),
        ("hidden_size", 131_072),
        ("intermediate_size", 1_048_576),
        ("num_hidden_layers", 1024),
        ("num_attention_heads", 1024),
        ("num_key_value_heads", 1024),
        ("head_dim", 1024),
        ("max_position_embeddings", 16_777_216),
    ] {
        for wrong in [json!(0), json!(-1), json!(max + 1), json!(2.5), json!("8"), json!(u64::MAX)]
        {
            let message = format!("\"{key}\" is {wrong}: it must be an integer from 1 to {max}");
            refused(LLAMA_3_1_8B, json!({key: wrong}), &message);
        }
        if !["num_key_value_heads", "head_dim"].contains(&key) {
            refused(LLAMA_3_1_8B, json!({key: "-"}), &format!("\"{key}\" is missing"));
        }
    }
    refused(
        LLAMA_3_1_8B,
        json!({"num_key_value_heads": 5}),
        "\"num_key_value_heads\" is 5: it must be a divisor of \"num_attention_heads\", which is 32",
    );
    refused(
        LLAMA_3_1_8B,
        json!({"head_dim": 65}),
        "\"head_dim\" is 65: it must be an even number, because RoPE rotates pairs",
    );
    refused(
        LLAMA_3_1_8B,
        json!({"head_dim": "-", "hidden_size": 100}),
        "\"hidden_size\" is 100: it must be a multiple of \"num_attention_heads\" (32) without \
         \"head_dim\"",
    );
    refused(
        LLAMA_3_1_8B,
        json!({"head_dim": "-", "hidden_size": 96}),
        "\"head_dim\" is absent: it must be even and at most 1024; \
         \"hidden_size\" / \"num_attention_heads\" is 3",
    );
    refused(
        LLAMA_3_1_8B,
        json!({"rms_norm_eps": 0.5}),
        "\"rms_norm_eps\" is 0.5: it must be a number from 1e-12 to 0.1",
    );
    refused(
        LLAMA_3_1_8B,
        json!({"rope_theta": "big"}),
        "\"rope_theta\" is \"big\": it must be a number from 1.0 to 1000000000000000.0",
    );
    refused(
        LLAMA_3_1_8B,
        json!({"tie_word_embeddings": 1}),
        "\"tie_word_embeddings\" is 1: it must be true or false",
    );
    refused(
        LLAMA_3_1_8B,
        json!({"architectures": []}),
        "\"architectures\" is []: it must be a list with the model's class name",
    );
    refused(LLAMA_3_1_8B, json!({"architectures": "-"}), "\"architectures\" is missing");
    let mut scaling = object(LLAMA_3_1_8B)["rope_scaling"].clone();
    scaling["high_freq_factor"] = json!(1.0);
    refused(
        LLAMA_3_1_8B,
        json!({"rope_scaling": scaling}),
        "\"rope_scaling.high_freq_factor\" is 1.0: it must be above \"low_freq_factor\", which is 1.0",
    );
    scaling.as_object_mut().unwrap().remove("factor");
    scaling["high_freq_factor"] = json!(4.0);
    refused(LLAMA_3_1_8B, json!({"rope_scaling": scaling}), "\"rope_scaling.factor\" is missing");
}

#[test]
fn files_that_are_no_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let message = || ModelConfig::from_dir(dir.path()).unwrap_err().to_string();
    let shown = path.display();
    assert_eq!(message(), format!("cannot read {shown}: No such file or directory (os error 2)"));
    fs::write(&path, "{\"vocab_size\": ").unwrap();
    assert_eq!(
        message(),
        format!("{shown} is not a JSON object: EOF while parsing a value at line 1 column 15")
    );
    fs::write(&path, "[]").unwrap();
    assert!(message().starts_with(&format!("{shown} is not a JSON object: invalid type: ")));
    fs::write(&path, b"{\"a\": \"\xff\"}").unwrap();
    assert!(message().starts_with(&format!("{shown} is not a JSON object: ")), "{}", message());
    fs::write(&path, vec![b' '; (4 << 20) + 1]).unwrap();
    assert_eq!(
        message(),
        format!("{shown} is larger than 4194304 bytes: it is not a model configuration")
    );
    fs::write(&path, LLAMA_3_1_8B).unwrap();
    fs::write(dir.path().join("generation_config.json"), "no").unwrap();
    assert!(message().contains("generation_config.json is not a JSON object"), "{}", message());
}
