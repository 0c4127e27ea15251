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
    assert_eq!(
        config,
        ModelConfig {
            architecture: Architecture::Llama,
            vocab_size: 128_256,
            hidden_size: 4096,
            intermediate_size: 14_336,
            layers: 32,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            rms_norm_eps: 1e-5,
            max_position: 131_072,
            rope: RopeConfig {
                theta: 500_000.0,
                scaling: RopeScaling::Llama3 {
                    factor: 8.0,
                    low_freq_factor: 1.0,
                    high_freq_factor: 4.0,
                    original_max_position: 8192,
                },
            },
            tie_word_embeddings: false,
            qkv_bias: false,
            qk_norm: false,
            eos_token_ids: vec![128_001],
        }
    );
    // The count on the model card.
    assert_eq!(config.parameters(), 8_030_261_248);
}

#[test]
fn qwen3_0_6b() {
    let config = parse(&object(QWEN3_0_6B), None).unwrap();
    assert_eq!(config.parameters(), 596_049_920);
    assert_eq!((config.qk_norm, config.qkv_bias), (true, false));
    assert_eq!(config.rope, RopeConfig { theta: 1e6, scaling: RopeScaling::None });
    // Heads times their width is more than the hidden size.
    let tensors: std::collections::HashMap<_, _> = config.tensors().into_iter().collect();
    assert_eq!(tensors["model.layers.27.self_attn.q_proj.weight"], [2048, 1024]);
    assert_eq!(tensors["model.layers.0.self_attn.k_norm.weight"], [128]);
    assert!(!tensors.contains_key("lm_head.weight"));
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
    assert_eq!((config.qkv_bias, config.qk_norm, config.head_dim), (true, false, 64));
    assert_eq!(config.max_position, 40_960, "a window that is not used caps nothing");
    let biases: Vec<_> =
        config.tensors().into_iter().filter(|(name, _)| name.ends_with("bias")).take(3).collect();
    assert_eq!(
        biases,
        [("q", 896), ("k", 128), ("v", 128)]
            .map(|(name, rows)| (format!("model.layers.0.self_attn.{name}_proj.bias"), vec![rows]))
    );
    assert_eq!(config.parameters(), 494_032_768);
}

#[test]
fn defaults_are_those_of_transformers() {
    let absent = json!({"head_dim": "-", "num_key_value_heads": "-", "rms_norm_eps": "-",
        "rope_theta": "-", "rope_scaling": "-", "tie_word_embeddings": "-", "hidden_act": "-"});
    let config = parsed(LLAMA_3_1_8B, absent);
    assert_eq!((config.head_dim, config.kv_heads), (128, 32));
    assert_eq!((config.rms_norm_eps, config.rope.theta), (1e-6, 10_000.0));
    assert!(!config.tie_word_embeddings);
    // Qwen3's class has its own default.
    assert_eq!(parsed(QWEN3_0_6B, json!({"head_dim": "-"})).head_dim, 128);
    assert_eq!(parsed(QWEN3_0_6B, json!({"head_dim": null})).head_dim, 64);
}

#[test]
fn a_sliding_window_caps_the_context() {
    let mistral = |changes: Value| {
        let mut changes = changes;
        changes["architectures"] = json!(["MistralForCausalLM"]);
        parsed(LLAMA_3_1_8B, changes).max_position
    };
    assert_eq!(mistral(json!({"sliding_window": 1000})), 1000);
    assert_eq!(mistral(json!({"sliding_window": null})), 131_072);
    assert_eq!(mistral(json!({})), 4096);
    let used = json!({"use_sliding_window": true, "sliding_window": 2048});
    assert_eq!(parsed(QWEN3_0_6B, used).max_position, 2048);
}

#[test]
fn rope_in_all_its_spellings() {
    let rope = |changes| parsed(LLAMA_3_1_8B, changes).rope;
    let old = json!({"rope_scaling": {"type": "linear", "factor": 2}});
    let linear = RopeConfig { theta: 500_000.0, scaling: RopeScaling::Linear { factor: 2.0 } };
    assert_eq!(rope(old), linear);
    let five = json!({"rope_scaling": "-", "rope_theta": "-",
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500000}});
    assert_eq!(rope(five), linear);
    let plain = json!({"rope_scaling": "-", "rope_theta": "-", "rope_parameters": {"rope_theta": 7e4, "rope_type": "default"}});
    assert_eq!(rope(plain), RopeConfig { theta: 7e4, scaling: RopeScaling::None });
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
        json!({"architectures": ["MixtralForCausalLM"]}),
        "\"architectures\" is [\"MixtralForCausalLM\"], which is not supported; supported: \
         LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM",
    );
    refused(
        LLAMA_3_1_8B,
        json!({"quantization_config": {"quant_method": "awq"}}),
        "\"quantization_config\" is {\"quant_method\":\"awq\"}, which is not supported; \
         supported: unquantized bf16, fp16 and fp32 weights",
    );
    refused(
        LLAMA_3_1_8B,
        json!({"hidden_act": "gelu"}),
        "\"hidden_act\" is \"gelu\", which is not supported; supported: \"silu\"",
    );
    for (base, key) in [
        (LLAMA_3_1_8B, "attention_bias"),
        (QWEN3_0_6B, "attention_bias"),
        (LLAMA_3_1_8B, "mlp_bias"),
    ] {
        let message = format!("\"{key}\" is true, which is not supported; supported: false");
        refused(base, json!({key: true}), &message);
    }
    refused(
        LLAMA_3_1_8B,
        json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
        "\"rope_scaling.rope_type\" is \"yarn\", which is not supported; \
         supported: \"default\", \"linear\", \"llama3\"",
    );
    refused(
        LLAMA_3_1_8B,
        json!({"rope_scaling": {"factor": 4.0}}),
        "\"rope_scaling\" is {\"factor\":4.0}, which is not supported; \
         supported: a \"rope_type\" of \"default\", \"linear\", \"llama3\"",
    );
    refused(
        LLAMA_3_1_8B,
        json!({"partial_rotary_factor": 0.5}),
        "\"partial_rotary_factor\" is 0.5, which is not supported; supported: 1.0",
    );
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
