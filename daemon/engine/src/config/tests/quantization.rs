//! `quantization_config`: which modules are stored how, and what is refused.

use super::*;
use crate::scheme::{Scales, Scheme};

const GPT_OSS: &str = r#"{"architectures": ["GptOssForCausalLM"], "vocab_size": 201088,
    "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24, "head_dim": 64,
    "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 131072,
    "num_local_experts": 32, "num_experts_per_tok": 4}"#;

const BLOCKS: Scheme = Scheme::Fp8 { scales: Scales::Block { rows: 128, cols: 128 } };

/// The modules that patterns are held against, and which of them are plain.
fn plain(base: &str, quantization: Value) -> Vec<&'static str> {
    const MODULES: [&str; 5] = [
        "lm_head",
        "model.layers.1.mlp.down_proj",
        "model.layers.10.mlp.down_proj",
        "model.layers.2.mlp.down_proj",
        "model.layers.0.mlp.experts.3.down_proj",
    ];
    let config = parsed(base, json!({"quantization_config": quantization}));
    let scheme = |module: &&&str| config.quantization.scheme_of(module) == Scheme::Plain;
    MODULES.iter().filter(scheme).copied().collect()
}

/// The lists, and what transformers 5.17's `should_convert_module` says of the modules; experts are one to it,
/// `model.layers.0.mlp.experts`.
#[test]
fn fp8_skips_what_transformers_skips() {
    let [head, one, ten, two, expert] = [
        "lm_head",
        "model.layers.1.mlp.down_proj",
        "model.layers.10.mlp.down_proj",
        "model.layers.2.mlp.down_proj",
        "model.layers.0.mlp.experts.3.down_proj",
    ];
    for (list, wanted) in [
        (json!(["lm_head"]), vec![head]),
        (json!(["model.layers.1"]), vec![one, ten]),
        (json!(["down_proj"]), vec![one, ten, two]),
        (json!(["model.layers.*.mlp"]), vec![one, ten, two, expert]),
        (json!(["mlp.down_proj"]), vec![one, ten, two]),
        (json!(["model.layers.0.mlp.experts.3"]), vec![]),
        (json!(["layers.1"]), vec![]),
        (json!([]), vec![]),
        (json!(null), vec![head]),
    ] {
        for key in ["modules_to_not_convert", "ignored_layers"] {
            let mut said = json!({"quant_method": "fp8", "weight_block_size": [128, 128],
                "activation_scheme": "dynamic", "fmt": "e4m3"});
            said[key] = list.clone();
            assert_eq!(plain(QWEN3_30B_A3B, said), wanted, "{list}");
        }
    }
}

#[test]
fn fp8_says_what_a_scale_is_of() {
    let of = |said: Value| {
        let config = parsed(QWEN3_0_6B, json!({"quantization_config": said}));
        config.quantization.scheme_of("model.layers.0.self_attn.q_proj")
    };
    let block = json!({"quant_method": "fp8", "weight_block_size": [128, 128]});
    assert_eq!(of(block), BLOCKS);
    for said in [
        json!({"quant_method": "fp8", "activation_scheme": "static"}),
        json!({"quant_method": "fp8", "weight_block_size": null}),
    ] {
        assert_eq!(of(said), Scheme::Fp8 { scales: Scales::Tensor });
    }
}

fn compressed(weights: Value, more: Value) -> Value {
    let mut said = json!({"quant_method": "compressed-tensors", "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights,
            "input_activations": {"num_bits": 8, "type": "float", "dynamic": true}}}});
    for (key, value) in more.as_object().into_iter().flatten() {
        said[key] = value.clone();
    }
    said
}

#[test]
fn compressed_tensors_are_found_by_name_and_by_expression() {
    let channel = json!({"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": true});
    let said = compressed(
        channel.clone(),
        json!({"ignore": ["lm_head", "re:.*layers.1.*down_proj", "mlp.down_proj"],
            "kv_cache_scheme": {"num_bits": 8, "type": "float", "strategy": "tensor"}}),
    );
    // Neither an end nor a beginning is enough without re:.
    let skipped = ["lm_head", "model.layers.1.mlp.down_proj", "model.layers.10.mlp.down_proj"];
    assert_eq!(plain(QWEN3_30B_A3B, said), skipped);
    let mut said = compressed(channel, json!({}));
    said["config_groups"]["group_0"]["targets"] =
        json!(["re:.*experts", "model.layers.2.mlp.down_proj"]);
    assert_eq!(plain(QWEN3_30B_A3B, said), skipped);
    let block = json!({"num_bits": 8, "type": "float", "strategy": "block",
        "block_structure": [128, 128]});
    let config = parsed(QWEN3_0_6B, json!({"quantization_config": compressed(block, json!({}))}));
    assert_eq!(config.quantization.scheme_of("model.layers.0.self_attn.q_proj"), BLOCKS);
}

#[test]
fn mxfp4_is_of_the_experts_of_gpt_oss() {
    let said = json!({"quant_method": "mxfp4", "modules_to_not_convert": [
        "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head",
        "model.layers.3.mlp"]});
    let config = parsed(GPT_OSS, json!({"quantization_config": said}));
    let of = |module| config.quantization.scheme_of(module);
    assert_eq!(of("model.layers.0.mlp.experts"), Scheme::Mxfp4);
    assert_eq!(of("model.layers.3.mlp.experts"), Scheme::Plain);
    assert_eq!(of("model.layers.0.self_attn.q_proj"), Scheme::Plain);
    assert_eq!(of("lm_head"), Scheme::Plain);
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let all = "\"fp8\" (E4M3; block, channel or tensor scales), \"compressed-tensors\" (8-bit float \
         weights), \"mxfp4\" (gpt-oss); or unquantized bf16, fp16 and fp32 weights";
    let of = |key: &str, value: &str, supported: &str| {
        format!(
            "\"quantization_config.{key}\" is {value}, which is not supported; supported: {supported}"
        )
    };
    let check = |base: &str, said: Value, message: String| {
        refused(base, json!({"quantization_config": said}), &message);
    };
    for method in ["awq", "gptq", "bitsandbytes", "modelopt"] {
        let said = json!({"quant_method": method, "bits": 4});
        check(QWEN3_0_6B, said, of("quant_method", &format!("{method:?}"), all));
    }
    check(
        QWEN3_0_6B,
        json!({"quant_method": "mxfp4"}),
        of("quant_method", "\"mxfp4\"", &format!("{all}; this is a Qwen3ForCausalLM")),
    );
    check(
        GPT_OSS,
        json!({"quant_method": "fp8"}),
        of("quant_method", "\"fp8\"", "\"mxfp4\" for gpt-oss"),
    );
    let group = "config_groups.group_0.weights";
    let packed = compressed(
        json!({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}),
        json!({"format": "pack-quantized"}),
    );
    check(QWEN3_0_6B, packed, of("format", "\"pack-quantized\"", "\"float-quantized\""));
    let weights = |weights: Value, key: &str, value: &str, supported: &str| {
        let said = compressed(weights, json!({}));
        check(QWEN3_0_6B, said, of(&format!("{group}.{key}"), value, supported));
    };
    weights(json!({"num_bits": 8}), "type", "absent", "\"float\" with 8 bits");
    let four = json!({"num_bits": 4, "type": "float"});
    weights(four, "num_bits", "4", "8, with \"type\": \"float\"");
    let grouped = json!({"num_bits": 8, "type": "float", "strategy": "group"});
    let known = "\"tensor\", \"channel\" and \"block\"";
    weights(grouped, "strategy", "\"group\"", known);
    let skewed = json!({"num_bits": 8, "type": "float", "symmetric": false});
    weights(skewed, "symmetric", "false", "true");
    let channel = json!({"num_bits": 8, "type": "float", "strategy": "channel"});
    let rotated = compressed(
        channel.clone(),
        json!({"transform_config": {"config_groups": {"u": {"type": "hadamard"}}}}),
    );
    let value = "{\"config_groups\":{\"u\":{\"type\":\"hadamard\"}}}";
    check(QWEN3_0_6B, rotated, of("transform_config", value, "none"));
    let frozen = compressed(channel.clone(), json!({"quantization_status": "frozen"}));
    check(QWEN3_0_6B, frozen, of("quantization_status", "\"frozen\"", "\"compressed\""));
    let ahead = compressed(channel, json!({"ignore": ["re:(?!x)"]}));
    let known = "regular expressions without look-around behind re:; \"re:(?!x)\" is none";
    check(QWEN3_0_6B, ahead, of("ignore", "[\"re:(?!x)\"]", known));

    let e5m2 = json!({"quant_method": "fp8", "fmt": "e5m2"});
    check(QWEN3_0_6B, e5m2, of("fmt", "\"e5m2\"", "e4m3"));
    for size in [json!([0, 128]), json!([128]), json!(128), json!([128, 1 << 17])] {
        refused(
            QWEN3_0_6B,
            json!({"quantization_config": {"quant_method": "fp8", "weight_block_size": size}}),
            &format!(
                "\"quantization_config.weight_block_size\" is {size}: it must be two integers from 1 \
                 to 65536"
            ),
        );
    }
    refused(
        GPT_OSS,
        json!({"hidden_size": 2896, "quantization_config": {"quant_method": "mxfp4"}}),
        "\"hidden_size\" is 2896: it must be a multiple of 32, because of its \"quantization_config\"",
    );
}
