//! Pieces against one go, over tokenizers of every manner: the ids must be the same.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::*;
use crate::tiny;

static NOBODY_LEFT: AtomicBool = AtomicBool::new(false);

fn tokenizer(json: &Value) -> Tokenizer {
    Tokenizer::from_bytes(json.to_string()).unwrap()
}

/// Merges of a few English words, over the alphabet of bytes, with this pre-tokenizer.
fn byte_level(pre: Value) -> Tokenizer {
    let mut json = tiny::byte_level();
    let mut vocab: Map<String, Value> = json["model"]["vocab"].as_object().unwrap().clone();
    let mut merges = Vec::new();
    let mut id = 300;
    for word in
        ["Ġthe", "Ġand", "Ġfox", "ing", "Ġa", "Ġb", "ĠĠ", "ĠĠĠĠ", "ĊĊ", ",Ġ", ".Ċ", "1Ġ", "sĠ"]
    {
        let chars: Vec<String> = word.chars().map(String::from).collect();
        let mut left = chars[0].clone();
        for right in &chars[1..] {
            let joined = format!("{left}{right}");
            if !vocab.contains_key(&joined) {
                vocab.insert(joined.clone(), id.into());
                merges.push(format!("{left} {right}"));
                id += 1;
            }
            left = joined;
        }
    }
    json["model"]["vocab"] = vocab.into();
    json["model"]["merges"] = merges.into();
    json["pre_tokenizer"] = pre;
    tokenizer(&json)
}

/// Llama 2's manner: a mark for spaces, one before the text, and no pre-tokenizer.
fn sentencepiece(joins_words: bool) -> Tokenizer {
    let mut words =
        vec!["▁", "a", "b", "▁a", "▁b", "ab", "▁ab", "the", "▁the", "t", "h", "e", "th"];
    if joins_words {
        words.push("a▁");
    }
    let mut vocab: Map<String, Value> =
        (0..256u32).map(|byte| (format!("<0x{byte:02X}>"), byte.into())).collect();
    for (at, word) in words.iter().enumerate() {
        vocab.insert((*word).to_owned(), (256 + at).into());
    }
    let mut merges = vec!["▁ a", "▁ b", "a b", "▁a b", "t h", "th e", "▁ the"];
    if joins_words {
        merges.insert(0, "a ▁");
    }
    tokenizer(&json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "pre_tokenizer": null,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true,
                  "vocab": vocab, "merges": merges},
    }))
}

/// Bytes of a piece in these tests, so that a text has many.
const PIECE: usize = 2 << 10;

fn in_small_pieces(tokenizer: Tokenizer) -> Encoder {
    Encoder { piece: PIECE, ..Encoder::new(tokenizer, None) }
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const QWEN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn split(regex: &str) -> Value {
    json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}]})
}

/// With how a piece begins, where it can.
fn tokenizers() -> Vec<(&'static str, Option<Cut>, Tokenizer)> {
    let gpt2 = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let bare = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    vec![
        ("gpt-2", Some(Cut::Keep), byte_level(gpt2)),
        ("gpt-2 as a regex", Some(Cut::Keep), byte_level(split(GPT2))),
        ("qwen", Some(Cut::Keep), byte_level(split(QWEN))),
        // No rule keeps words apart, and merges go over their ends.
        ("bytes alone", None, byte_level(bare)),
        ("sentencepiece", Some(Cut::Drop), sentencepiece(false)),
        ("sentencepiece that joins words", None, sentencepiece(true)),
    ]
}

/// Text of all manner, the same for the same seed.
fn text(seed: u64, bytes: usize) -> String {
    const PARTS: [&str; 24] = [
        " the",
        " and",
        " a",
        " b",
        "ing",
        " fox",
        "\n",
        "\n\n",
        "  ",
        "    ",
        ", ",
        ". ",
        ".\n",
        "'s",
        " 1",
        "23 ",
        " é",
        "🦀",
        "。次の",
        "，世界",
        "<s>",
        "s ",
        "\t",
        "\r\n",
    ];
    let mut random = seed;
    let mut text = String::new();
    while text.len() < bytes {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push_str(PARTS[(random >> 33) as usize % PARTS.len()]);
    }
    text
}

fn check(name: &str, encoder: &Encoder, text: &str) {
    for add_special in [false, true] {
        let right = encoder.once(text, add_special).unwrap();
        let made = encoder.encode(text, add_special, u32::MAX, &NOBODY_LEFT).unwrap();
        let differs = made.iter().zip(&right).position(|(a, b)| a != b);
        assert!(made == right, "{name}: {differs:?} of {} and {}", made.len(), right.len());
        let most = right.len() as u32;
        assert!(encoder.encode(text, add_special, most, &NOBODY_LEFT).is_ok(), "{name}");
        let refused = encoder.encode(text, add_special, most - 1, &NOBODY_LEFT);
        assert_eq!(refused, Err(TextFault::TooLong { tokens_max: most - 1 }), "{name}");
    }
}

#[test]
fn pieces_have_the_ids_of_the_whole() {
    for (name, cut, tokenizer) in tokenizers() {
        let encoder = in_small_pieces(tokenizer);
        assert_eq!(encoder.cut, cut, "{name}");
        for seed in 0..6 {
            check(name, &encoder, &text(seed, 8 * PIECE + 100 * seed as usize));
        }
        check(name, &encoder, &"a b ".repeat(PIECE));
        check(name, &encoder, &" the\n\n and".repeat(PIECE / 2));
    }
}

/// Real ones, where they were fetched.
#[test]
fn real_tokenizers_have_the_ids_of_the_whole() {
    let told = std::env::var_os("MINISGL_MODELS_DIR");
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/models");
    let models = told.clone().map_or_else(|| PathBuf::from(own), PathBuf::from);
    for model in ["SmolLM2-135M-Instruct", "tokenizers/qwen3", "tokenizers/llama3_1"] {
        let path = models.join(model).join("tokenizer.json");
        if !path.is_file() {
            assert!(told.is_none(), "{} is missing", path.display());
            eprintln!("skipped: {} is missing; `cargo xtask model` fetches it", path.display());
            continue;
        }
        let encoder = in_small_pieces(Tokenizer::from_file(path).unwrap());
        assert_eq!(encoder.cut, Some(Cut::Keep), "{model}");
        for seed in 0..3 {
            check(model, &encoder, &text(seed, 8 * PIECE));
        }
    }
}

#[test]
fn a_text_that_cannot_be_cut_has_a_limit_and_one_that_is_abandoned_an_end() {
    let (_, _, tokenizer) = tokenizers().swap_remove(0);
    let encoder = Encoder::new(tokenizer, Some(10));
    let whole = "x".repeat(UNBROKEN_BYTES_MAX + PIECE_BYTES);
    let refused = encoder.encode(&whole, false, u32::MAX, &NOBODY_LEFT);
    assert!(matches!(refused, Err(TextFault::Unbroken { .. })), "{refused:?}");
    let refused = encoder.encode(&"a b ".repeat(100), false, 39, &NOBODY_LEFT);
    assert_eq!(refused, Err(TextFault::TooLong { tokens_max: 39 }), "by its bytes alone");
    let left = AtomicBool::new(true);
    assert_eq!(encoder.encode("a", false, 9, &left), Err(TextFault::Abandoned));
}
