//! Phi 3 and 4: what their files say of rotations.

use serde_json::{Value, json};

use super::super::{AttentionBias, RopeConfig, RopeScaling};
use super::{parsed, refused, windows};

/// As it was published, of transformers 4.
const PHI_4_MINI: &str = r#"{"architectures": ["Phi3ForCausalLM"], "attention_bias": false,
    "attention_dropout": 0.0, "bos_token_id": 199999, "embd_pdrop": 0.0, "eos_token_id": 199999,
    "full_attn_mod": 1, "hidden_act": "silu", "hidden_size": 3072, "interpolate_factor": 1,
    "intermediate_size": 8192, "lm_head_bias": false, "max_position_embeddings": 131072,
    "mlp_bias": false, "model_type": "phi3", "num_attention_heads": 24, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "original_max_position_embeddings": 4096, "pad_token_id": 199999,
    "partial_rotary_factor": 0.75, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
    "rope_scaling": {"type": "longrope", "long_factor": [], "short_factor": []},
    "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": true,
    "use_cache": true, "vocab_size": 200064}"#;

/// With `count` factors and some more changes.
fn phi(count: usize, more: Value) -> Value {
    let mut changes = json!({"rope_scaling":
        {"type": "longrope", "long_factor": vec![9.0; count], "short_factor": vec![1.5; count]}});
    for (key, value) in more.as_object().unwrap() {
        changes[key] = value.clone();
    }
    changes
}

#[test]
fn phi_rotates_a_part_of_each_head_as_far_as_its_first_context_goes() {
    let config = parsed(PHI_4_MINI, phi(48, json!({})));
    let long = |magnitude| RopeScaling::LongRope {
        divisors: vec![1.5; 48],
        original_max_position: 4096,
        magnitude,
    };
    // sqrt(1 + ln 32 / ln 4096)
    let scaling = long(1.190_238_071_423_808_3);
    assert_eq!(config.ropes, [RopeConfig { still: 32, theta: 1e4, scaling }]);
    assert_eq!((config.max_position, config.head_dim, config.kv_heads), (4096, 128, 8));
    // Longer than the context.
    assert_eq!(windows(&config), [None; 32]);
    for (window, found) in [(4096, None), (4095, Some(4095)), (2047, Some(2047))] {
        let config = parsed(PHI_4_MINI, phi(48, json!({"sliding_window": window})));
        assert_eq!(windows(&config), [found; 32]);
    }
    assert_eq!(config.attention_bias, AttentionBias::default());
    assert_eq!((config.rms_norm_eps, config.tie_word_embeddings), (1e-5, true));
    // What Phi 3 mini called it, and transformers 5 writes, with the share beside the factors.
    let mut factors = phi(48, json!({}))["rope_scaling"].clone();
    factors["type"] = json!("su");
    assert_eq!(parsed(PHI_4_MINI, json!({"rope_scaling": factors})).ropes, config.ropes);
    factors["rope_type"] = json!("longrope");
    factors["partial_rotary_factor"] = json!(0.75);
    let written = json!({"rope_scaling": "-", "rope_theta": "-", "partial_rotary_factor": "-", "rope_parameters": factors});
    assert_eq!(parsed(PHI_4_MINI, written).ropes, config.ropes);
    let said = phi(48, json!({"original_max_position_embeddings": "-"}));
    assert_eq!(parsed(PHI_4_MINI, said).max_position, 4096);
    let mut said = phi(48, json!({}));
    said["rope_scaling"]["attention_factor"] = json!(1.25);
    assert_eq!(parsed(PHI_4_MINI, said).ropes[0].scaling, long(1.25));
    // Phi 4 has none of this.
    let phi_4 = json!({"rope_scaling": null, "rope_theta": 250_000, "partial_rotary_factor": "-",
        "sliding_window": null, "max_position_embeddings": 16384, "rms_norm_eps": "-",
        "original_max_position_embeddings": 16384, "tie_word_embeddings": false});
    let config = parsed(PHI_4_MINI, phi_4);
    let plain = RopeConfig { still: 0, theta: 250_000.0, scaling: RopeScaling::None };
    assert_eq!((&config.ropes[..], config.max_position), (&[plain][..], 16_384));
    assert_eq!((windows(&config)[0], config.rms_norm_eps), (None, 1e-5));
}

#[test]
fn rotations_that_phi_does_not_have_are_refused() {
    refused(
        PHI_4_MINI,
        phi(47, json!({})),
        "\"rope_scaling.short_factor\" is [1.5,1.5,1.5,1.5,1.5,1.5,1.5,1.5,1.5,1.5,1.5,1.5,1.5,1.5,\
         1.5,1.5,1.5,1.5,1.5,1.5,1.5,1.5,1.5,1.5,1.5,1.5,1.5,1.5,1.5,1.5...: it must be a list of 48 \
         positive numbers",
    );
    refused(
        PHI_4_MINI,
        json!({"rope_scaling": {"type": "longrope", "long_factor": [1.0]}}),
        "\"rope_scaling.short_factor\" is missing",
    );
    refused(
        PHI_4_MINI,
        json!({"rope_scaling": {"type": "linear", "factor": 2.0}}),
        "\"rope_scaling.type\" is \"linear\", which is not supported; supported: \"default\", \
         \"longrope\"",
    );
    for (share, rotated) in [(0.0, 0), (0.7, 89)] {
        refused(
            PHI_4_MINI,
            json!({"partial_rotary_factor": share}),
            &format!(
                "\"partial_rotary_factor\" is {share:?}: it must be a share that rotates an even \
                 number of a head's 128 dimensions, and not {rotated}"
            ),
        );
    }
}
