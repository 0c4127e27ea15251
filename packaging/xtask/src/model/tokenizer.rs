//! A `tokenizers` file from the vocabulary and merges of a GGUF file: byte-level BPE, with the
//! pre-tokenizer that SmolLM2 was trained with.

use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};

use super::gguf::Gguf;

/// GGUF's mark of a control token, never split and never in text.
const TOKEN_TYPE_CONTROL: i64 = 3;

/// `tokenizer.json`.
///
/// The vocabulary has no unknown token and lacks the bytes that UTF-8 text does not have; the few
/// others that it lacks are dropped when encoding, as with the original.
pub fn tokenizer_json(file: &Gguf<'_>) -> Result<Value> {
    let kind = (file.text("tokenizer.ggml.model")?, file.text("tokenizer.ggml.pre")?);
    ensure!(kind == ("gpt2", "smollm"), "tokenizer {kind:?}, only (\"gpt2\", \"smollm\") is known");

    let tokens = file.texts("tokenizer.ggml.tokens")?;
    let types = file.ints("tokenizer.ggml.token_type")?;
    ensure!(tokens.len() == types.len(), "{} tokens, {} types", tokens.len(), types.len());
    let added: Vec<Value> = special_tokens(&tokens, &types)
        .map(|(id, content)| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        })
        .collect();
    let vocab: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), id.into())).collect();
    ensure!(vocab.len() == tokens.len(), "a token occurs twice in the vocabulary");

    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": true}, byte_level],
        },
        "post_processor": null,
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true,
        },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": file.texts("tokenizer.ggml.merges")?,
        },
    }))
}

/// `tokenizer_config.json`, with the chat template, and `special_tokens_map.json`.
pub fn config_json(file: &Gguf<'_>) -> Result<(Value, Value)> {
    let tokens = file.texts("tokenizer.ggml.tokens")?;
    let types = file.ints("tokenizer.ggml.token_type")?;
    let token = |key: &str| -> Result<&str> {
        let id = file.int(&format!("tokenizer.ggml.{key}_token_id"))? as usize;
        ensure!(id < tokens.len(), "the {key} token {id} is outside the vocabulary");
        Ok(tokens[id])
    };
    let (bos, eos) = (token("bos")?, token("eos")?);
    let (pad, unk) = (token("padding")?, token("unknown")?);
    let special = json!({
        "additional_special_tokens": [bos, eos],
        "bos_token": bos, "eos_token": eos, "pad_token": pad, "unk_token": unk,
    });
    let added: Map<String, Value> = special_tokens(&tokens, &types)
        .map(|(id, content)| {
            let token = json!({
                "content": content, "lstrip": false, "normalized": false, "rstrip": false,
                "single_word": false, "special": true,
            });
            (id.to_string(), token)
        })
        .collect();
    let config = json!({
        "add_prefix_space": false,
        "added_tokens_decoder": added,
        "additional_special_tokens": [bos, eos],
        "bos_token": bos,
        "chat_template": file.text("tokenizer.chat_template")?,
        "clean_up_tokenization_spaces": false,
        "eos_token": eos,
        "model_max_length": file.int("llama.context_length")?,
        "pad_token": pad,
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": unk,
        "vocab_size": tokens.len(),
    });
    Ok((config, special))
}

fn special_tokens<'a>(
    tokens: &'a [&'a str],
    types: &'a [i64],
) -> impl Iterator<Item = (usize, &'a str)> {
    let tokens = tokens.iter().copied().enumerate();
    tokens.zip(types).filter(|(_, kind)| **kind == TOKEN_TYPE_CONTROL).map(|(token, _)| token)
}
