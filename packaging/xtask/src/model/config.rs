//! `config.json` and `generation_config.json` from the metadata of a Llama GGUF file.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::gguf::Gguf;
use super::weights::Heads;

/// Query and key/value heads.
pub fn heads(file: &Gguf<'_>) -> Result<Heads> {
    let count = |key| Ok::<_, anyhow::Error>(file.int(key)? as usize);
    Ok(Heads {
        q: count("llama.attention.head_count")?,
        kv: count("llama.attention.head_count_kv")?,
    })
}

/// `config.json` of a Llama.
pub fn config_json(file: &Gguf<'_>) -> Result<Value> {
    let architecture = file.text("general.architecture")?;
    ensure!(architecture == "llama", "architecture {architecture:?}, only \"llama\" is known");
    let heads = heads(file)?;
    let head_dim = file.int("llama.rope.dimension_count")?;
    let hidden = file.int("llama.embedding_length")?;
    ensure!(
        head_dim * heads.q as u64 == hidden,
        "{} heads of {head_dim} are not {hidden}",
        heads.q
    );
    Ok(json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": file.int("tokenizer.ggml.bos_token_id")?,
        "eos_token_id": file.int("tokenizer.ggml.eos_token_id")?,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": file.int("llama.feed_forward_length")?,
        "max_position_embeddings": file.int("llama.context_length")?,
        "mlp_bias": false,
        "model_type": "llama",
        "num_attention_heads": heads.q,
        "num_hidden_layers": file.int("llama.block_count")?,
        "num_key_value_heads": heads.kv,
        "pad_token_id": file.int("tokenizer.ggml.padding_token_id")?,
        "rms_norm_eps": decimal(file.f32("llama.attention.layer_norm_rms_epsilon")?)?,
        "rope_scaling": null,
        "rope_theta": decimal(file.f32("llama.rope.freq_base")?)?,
        "tie_word_embeddings": !file.tensors().any(|(name, _)| name == "output.weight"),
        "torch_dtype": "bfloat16",
        "use_cache": true,
        "vocab_size": file.int("llama.vocab_size")?,
    }))
}

/// `generation_config.json`.
pub fn generation_config_json(file: &Gguf<'_>) -> Result<Value> {
    Ok(json!({
        "bos_token_id": file.int("tokenizer.ggml.bos_token_id")?,
        "eos_token_id": file.int("tokenizer.ggml.eos_token_id")?,
        "pad_token_id": file.int("tokenizer.ggml.padding_token_id")?,
    }))
}

/// The shortest decimal that reads back as this f32: 1e-5, where a plain conversion to f64 would
/// write 0.000009999999747378752.
fn decimal(x: f32) -> Result<f64> {
    Ok(format!("{x:?}").parse()?)
}

#[cfg(test)]
mod tests {
    #[test]
    fn decimals_are_short() {
        assert_eq!(super::decimal(1e-5).unwrap(), 1e-5);
        assert_eq!(super::decimal(100_000.0).unwrap(), 100_000.0);
    }
}
