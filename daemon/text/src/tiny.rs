//! Tokenizers with one token a byte: every character outside ASCII is split over tokens.

#![allow(clippy::unwrap_used, missing_docs, reason = "for tests")]

use serde_json::{Map, Value, json};

pub const BOS: u32 = 256;
pub const IM_START: u32 = 257;
pub const IM_END: u32 = 258;

fn special(id: u32, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
           "normalized": false, "special": true})
}

fn whole(
    vocab: Map<String, Value>,
    pre: Value,
    post: Value,
    decoder: Value,
    special: Value,
) -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": special, "pre_tokenizer": pre, "post_processor": post, "decoder": decoder,
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
                  "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
                  "byte_fallback": false, "vocab": vocab, "merges": []},
    })
}

/// GPT-2's alphabet, and `<s>` (which a bare prompt begins with), `<|im_start|>`, `<|im_end|>`.
pub fn byte_level() -> Value {
    // Printable Latin-1 stands for itself, the others for the characters from U+0100 on.
    let mut next = 0x100;
    let mut vocab = Map::new();
    for byte in 0..=255u32 {
        let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if printable {
            byte
        } else {
            next += 1;
            next - 1
        };
        vocab.insert(
            char::from_u32(code).expect("the alphabet of bytes ends below U+0144").to_string(),
            byte.into(),
        );
    }
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                            "use_regex": false});
    let post = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}},
    });
    let added = json!([
        special(BOS, "<s>"),
        special(IM_START, "<|im_start|>"),
        special(IM_END, "<|im_end|>")
    ]);
    whole(vocab, byte_level.clone(), post, byte_level, added)
}

/// Bytes as `<0xNN>`, then `▁` (256), `▁a` (257) and `b` (258), decoded as Llama 2 does.
pub fn byte_fallback() -> Value {
    let mut vocab: Map<String, Value> =
        (0..=255u32).map(|byte| (format!("<0x{byte:02X}>"), byte.into())).collect();
    for (token, id) in [("▁", 256), ("▁a", 257), ("b", 258)] {
        vocab.insert(token.into(), id.into());
    }
    let decoder = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]});
    whole(vocab, Value::Null, Value::Null, decoder, json!([]))
}
