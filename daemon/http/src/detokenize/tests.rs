//! Against the `tokenizers` library, which makes the tables' vocabularies and knows the right text.

use std::path::Path;
use std::sync::LazyLock;

use minisgl_text::{TextSide, tiny};
use proptest::prelude::*;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::*;
use crate::stop::StopMatcher;

struct Own {
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    table: Table,
}

impl Own {
    fn new(json: &Value) -> Own {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
        Own::open(dir.path())
    }

    fn open(dir: &Path) -> Own {
        let vocabulary = TextSide::load(dir, None).unwrap().1.vocabulary.unwrap();
        let tokenizer = Tokenizer::from_file(dir.join("tokenizer.json")).unwrap();
        let table = Table::new(&vocabulary, &[]);
        Own { tokenizer, vocabulary, table }
    }

    fn with_decoder(mut json: Value, decoder: Value) -> Own {
        json["decoder"] = decoder;
        Own::new(&json)
    }

    /// The pieces that come of some tokens, the flushed rest last.
    fn pieces(&self, tokens: &[u32], skip: bool) -> Vec<String> {
        let mut detokenizer =
            Detokenizer::new(&self.table, if skip { Show::None } else { Show::All }, true);
        let mut pieces = Vec::new();
        for &token in tokens {
            let mut piece = String::new();
            detokenizer.push(&self.table, &self.vocabulary, token, &mut piece);
            pieces.push(piece);
        }
        let mut rest = String::new();
        detokenizer.finish(&self.vocabulary, &mut rest);
        pieces.push(rest);
        pieces
    }

    fn text(&self, tokens: &[u32], skip: bool) -> String {
        self.pieces(tokens, skip).concat()
    }

    fn right(&self, tokens: &[u32], skip: bool) -> String {
        // The library's BPE decoder panics without tokens.
        let is_left = |id: &&u32| !(skip && self.table.mark(**id).special);
        if tokens.iter().filter(is_left).count() == 0 {
            return String::new();
        }
        self.tokenizer.decode(tokens, skip).unwrap()
    }
}

static BYTE_LEVEL: LazyLock<Own> = LazyLock::new(|| Own::new(&tiny::byte_level()));
static BYTE_FALLBACK: LazyLock<Own> = LazyLock::new(|| Own::new(&tiny::byte_fallback()));

/// Words of every manner, for decoders of every kind.
fn words() -> Value {
    let words = [
        "▁a", "▁", "b", "▁▁", "##c", "##", "d", "e</w>", "</w>f", "<pad>", "|", "g|h", ".", "n't",
        "'", "do", "not", "?", "é", "🦀", "<0xC3>", "<0xA9>", "<0x20>", "<0xFF>", "  i", "j ",
        "''",
    ];
    let vocab: serde_json::Map<String, Value> =
        words.iter().enumerate().map(|(id, word)| ((*word).to_owned(), id.into())).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [{"id": 9, "content": "<pad>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "b"},
    })
}

const WORDS: u32 = 27;

fn decoders() -> Vec<(&'static str, bool, Value)> {
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let regex = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"Regex": from}, "content": to});
    let strip = |start: u32, stop: u32| json!({"type": "Strip", "content": " ", "start": start, "stop": stop});
    let sequence = |steps: Vec<Value>| json!({"type": "Sequence", "decoders": steps});
    let metaspace = |scheme: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true});
    let wordpiece =
        |cleanup: bool| json!({"type": "WordPiece", "prefix": "##", "cleanup": cleanup});
    let ctc = |cleanup: bool| json!({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": cleanup});
    let fallback = || json!({"type": "ByteFallback"});
    let fuse = || json!({"type": "Fuse"});
    let bpe = || json!({"type": "BPEDecoder", "suffix": "</w>"});
    // With whether each token's text is told by a table.
    vec![
        ("none", true, Value::Null),
        ("metaspace", true, metaspace("always")),
        ("metaspace that keeps the first", true, metaspace("never")),
        ("wordpiece", true, wordpiece(false)),
        ("wordpiece, cleaned", true, wordpiece(true)),
        ("replace", true, replace("▁", " ")),
        ("strip", true, strip(1, 1)),
        ("two strips", true, sequence(vec![strip(2, 0), strip(0, 2)])),
        ("a regex first", true, sequence(vec![regex("[a-d]", "<"), replace("▁", " "), fuse()])),
        ("llama", true, sequence(vec![replace("▁", " "), fallback(), fuse(), strip(1, 0)])),
        ("gemma", true, sequence(vec![replace("▁", " "), fallback(), fuse()])),
        ("fallback alone", true, sequence(vec![fallback()])),
        ("fallback, then metaspace", false, sequence(vec![fallback(), metaspace("always")])),
        ("bpe", false, bpe()),
        ("ctc", false, ctc(true)),
        ("ctc, not cleaned", false, ctc(false)),
        ("ctc, then metaspace", false, sequence(vec![ctc(true), metaspace("always")])),
        ("replaced over tokens", false, sequence(vec![fuse(), replace("▁a", "x")])),
        (
            "byte level in a sequence",
            false,
            sequence(vec![
                json!({"type": "ByteLevel", "add_prefix_space": true,
            "trim_offsets": true, "use_regex": true}),
                replace("b", "c"),
            ]),
        ),
    ]
}

static ALL: LazyLock<Vec<(&str, bool, Own)>> = LazyLock::new(|| {
    let own = |(name, is_table, decoder)| (name, is_table, Own::with_decoder(words(), decoder));
    decoders().into_iter().map(own).collect()
});

#[test]
fn every_decoder_has_its_kind() {
    for (name, is_table, own) in &*ALL {
        assert_eq!(own.table.kind != Kind::Window, *is_table, "{name}: {:?}", own.table.kind);
    }
}

/// Text of all tokens at once, over data: exact for every decoder, valid bytes or not.
#[test]
fn the_steps_are_the_librarys() {
    let mut random = 7u64;
    let mut next = move |below: u32| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((random >> 33) as u32) % below
    };
    for (name, _, own) in &*ALL {
        for _ in 0..400 {
            let tokens: Vec<u32> = (0..next(9)).map(|_| next(WORDS)).collect();
            assert_eq!(
                window(&own.vocabulary, &tokens),
                own.right(&tokens, false),
                "{name}: {tokens:?}"
            );
        }
    }
}

#[test]
fn half_a_character_waits_for_the_other_half() {
    let crab: Vec<u32> = "é🦀".bytes().map(u32::from).collect();
    assert_eq!(BYTE_LEVEL.pieces(&crab, true), ["", "é", "", "", "", "🦀", ""]);
    assert_eq!(BYTE_LEVEL.pieces(&crab[..4], true), ["", "é", "", "", "\u{fffd}"]);
    assert_eq!(BYTE_FALLBACK.pieces(&crab[..4], true), ["", "é", "", "", "\u{fffd}\u{fffd}"]);
}

#[test]
fn bytes_that_are_no_character_are_replaced_once_that_is_sure() {
    let tokens = [0xf0, 0x9f, u32::from(b'a'), 0x80, u32::from(b'b')];
    let expected = ["", "", "\u{fffd}a", "\u{fffd}", "b", ""];
    assert_eq!(BYTE_LEVEL.pieces(&tokens, true), expected);
}

#[test]
fn special_tokens_are_text_only_when_asked_for() {
    assert_eq!(BYTE_LEVEL.text(&[tiny::IM_END], true), "");
    assert_eq!(BYTE_LEVEL.text(&[tiny::IM_END], false), "<|im_end|>");
    assert_eq!(BYTE_LEVEL.text(&[400], false), "", "an id outside the vocabulary");
}

#[test]
fn byte_fallback_strips_the_first_space_of_a_text_alone() {
    let own = &*BYTE_FALLBACK;
    let tokens = [257, 258, 256, 0xc3, 0xa9, 257];
    let text = own.text(&tokens, true);
    assert_eq!(text, "ab é a");
    assert_eq!(text, own.right(&tokens, true));
    let mut continued = Detokenizer::new(&own.table, Show::None, false);
    let mut text = String::new();
    continued.push(&own.table, &own.vocabulary, 257, &mut text);
    assert_eq!(text, " a");
}

#[test]
fn a_token_is_looked_up_without_allocating() {
    // What the allocator would be asked for is room in `out`, which has it.
    let own = &*BYTE_LEVEL;
    let mut out = String::with_capacity(64);
    let mut detokenizer = Detokenizer::new(&own.table, Show::None, true);
    let before = out.as_ptr();
    for token in "thirty-two plain bytes of a text.".bytes() {
        detokenizer.push(&own.table, &own.vocabulary, token.into(), &mut out);
    }
    assert_eq!((out.as_ptr(), out.len()), (before, 33));
    let State::Bytes { pending } = &detokenizer.state else { panic!("another kind") };
    assert_eq!(pending.capacity(), 0);
}

/// Whether every run of byte tokens is text: a run of which only a part is cannot be taken back from a stream.
fn has_whole_runs(own: &Own, tokens: &[u32]) -> bool {
    let mut run = Vec::new();
    let mut whole = true;
    for token in tokens {
        if own.table.mark(*token).is_byte {
            run.extend(own.table.bytes(*token));
        } else {
            whole &= std::str::from_utf8(&run).is_ok();
            run.clear();
        }
    }
    whole && std::str::from_utf8(&run).is_ok()
}

proptest! {
    #[test]
    fn any_tokens_stream_to_the_librarys_text(tokens in prop::collection::vec(0..WORDS, 0..40)) {
        for (name, _, own) in &*ALL {
            // What looks at more than a few neighbours, or takes text back, has no stream.
            if name.starts_with("ctc, then") || !has_whole_runs(own, &tokens) && own.table.kind != Kind::Window {
                continue;
            }
            let right = own.right(&tokens, true);
            if own.table.kind == Kind::Window && (right.contains(char::REPLACEMENT_CHARACTER)
                || *name == "replaced over tokens" || name.starts_with("fallback") || name.starts_with("byte level")) {
                continue;
            }
            prop_assert_eq!(own.text(&tokens, true), right, "{}", name);
        }
    }

    /// Tokens of one byte: every split that a tokenizer could make is a union of these.
    #[test]
    fn any_text_comes_back_whole(text in "\\PC{0,24}") {
        for own in [&*BYTE_LEVEL, &*BYTE_FALLBACK] {
            let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
            let pieces = own.pieces(&tokens, true);
            let clean = !text.contains(char::REPLACEMENT_CHARACTER);
            for piece in &pieces {
                prop_assert!(!clean || !piece.contains(char::REPLACEMENT_CHARACTER));
            }
            let expected = match own.table.kind {
                Kind::Pieces { .. } => text.strip_prefix(' ').unwrap_or(&text),
                _ => &text,
            };
            prop_assert_eq!(pieces.concat(), expected);
        }
    }

    #[test]
    fn any_bytes_are_decoded_as_the_library_does(bytes in prop::collection::vec(any::<u8>(), 0..24)) {
        let tokens: Vec<u32> = bytes.iter().map(|&byte| byte.into()).collect();
        let whole = BYTE_LEVEL.right(&tokens, true);
        prop_assert_eq!(BYTE_LEVEL.text(&tokens, true), whole);
        prop_assert_eq!(window(&BYTE_FALLBACK.vocabulary, &tokens), BYTE_FALLBACK.right(&tokens, false));
    }

    #[test]
    fn stop_strings_end_the_text_exactly(text in "[aé🦀]{0,12}", stop in "[aé🦀]{1,3}") {
        let own = &*BYTE_LEVEL;
        let mut detokenizer = Detokenizer::new(&own.table, Show::None, true);
        let mut matcher = StopMatcher::new(vec![stop.clone()], false);
        let (mut out, mut stopped) = (String::new(), false);
        for byte in text.bytes() {
            let mut piece = String::new();
            detokenizer.push(&own.table, &own.vocabulary, byte.into(), &mut piece);
            stopped = matcher.push(&piece, &mut out).is_some();
            if stopped {
                break;
            }
        }
        if !stopped {
            matcher.finish(&mut out);
        }
        let expected = text.split_once(&stop);
        prop_assert_eq!(stopped, expected.is_some());
        prop_assert_eq!(out, expected.map_or(&text[..], |(before, _)| before));
    }
}
