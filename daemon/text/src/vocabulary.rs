//! The tokenizer of a folder, and the table that the daemon makes text from.
//!
//! Owns: `tokenizer.json` and what the other files add to it. Must never: hand out a table of more than
//! [`VOCABULARY_MAX`] ids.

use std::path::Path;

use minisgl_proto::text::{DecodeStep, Token, VOCABULARY_MAX, Vocabulary};
use tokenizers::models::ModelWrapper;
use tokenizers::{AddedToken, Decoder, DecoderWrapper, Tokenizer};

use crate::files::{Files, LoadError, More, broken, bytes};

/// Reads `tokenizer.json`, and adds what the other files say; `None` when there is no such file.
///
/// # Errors
/// It is broken.
pub fn load(path: &Path, files: &Files) -> Result<Option<Tokenizer>, LoadError> {
    let Some(json) = bytes(path)? else { return Ok(None) };
    let unusable = |why: tokenizers::Error| broken(path, format!("not a usable tokenizer: {why}"));
    let mut tokenizer = Tokenizer::from_bytes(json).map_err(unusable)?;
    // Some folders carry the truncation and padding of their training.
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(unusable)?;
    tokenizer.add_tokens(&files.added);
    for More { token, named } in &files.more {
        match known(&tokenizer, &token.content) {
            Some(known) if *named && !known.special => {
                tokenizer.add_tokens(&[known.special(true)]);
            }
            Some(_) => {}
            None => drop(tokenizer.add_tokens(std::slice::from_ref(token))),
        }
    }
    tokenizer.set_encode_special_tokens(files.split_special);
    Ok(Some(tokenizer))
}

/// An added token as the tokenizer has it.
fn known(tokenizer: &Tokenizer, content: &str) -> Option<AddedToken> {
    let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
    added.values().find(|known| known.content == content).cloned()
}

/// The table, and what about it is only nearly right.
///
/// # Errors
/// Its ids are too many.
pub fn table(
    tokenizer: &Tokenizer,
    eos: Option<&str>,
    path: &Path,
) -> Result<(Vocabulary, Vec<String>), LoadError> {
    let vocabulary = tokenizer.get_vocab(true);
    let ids = vocabulary.values().max().map_or(0, |max| u64::from(*max) + 1);
    if ids > u64::from(VOCABULARY_MAX) {
        return Err(broken(
            path,
            format!("it has an id of {}, the limit is {VOCABULARY_MAX}", ids - 1),
        ));
    }
    let (local, decoder, notes) = match tokenizer.get_decoder() {
        None => (Vec::new(), vec![DecodeStep::Spaces], Vec::new()),
        Some(decoder) => steps(decoder),
    };
    let added = tokenizer.get_added_vocabulary();
    let mut tokens = vec![None; ids as usize];
    for id in 0..ids as u32 {
        // As in decoding: an added token hides one of the model's.
        let Some(spelling) = tokenizer.id_to_token(id) else { continue };
        let special = added.is_special_token(&spelling);
        let piece = piece(&local, &spelling);
        tokens[id as usize] = Some(Token { spelling, piece, special });
    }
    let token_bytes_max = token_bytes_max(tokenizer, &vocabulary);
    let eos = eos.and_then(|token| tokenizer.token_to_id(token));
    Ok((Vocabulary { tokens, decoder, token_bytes_max, eos }, notes))
}

/// A token after the steps that look at it alone; `None` when that is its spelling.
fn piece(local: &[&DecoderWrapper], spelling: &str) -> Option<String> {
    if local.is_empty() {
        return None;
    }
    let mut chain = vec![spelling.to_owned()];
    for step in local {
        // A pattern that fails on a token leaves it as it is.
        chain = step.decode_chain(chain.clone()).unwrap_or(chain);
    }
    Some(chain.concat()).filter(|piece| piece != spelling)
}

/// Steps at the start that look at each token alone and only this library can do, the others as data, and what is
/// not as it should be.
fn steps(decoder: &DecoderWrapper) -> (Vec<&DecoderWrapper>, Vec<DecodeStep>, Vec<String>) {
    let mut flat = Vec::new();
    flatten(decoder, &mut flat);
    let is_regex = |step: &DecoderWrapper| {
        matches!(step, DecoderWrapper::Replace(_)) && described(step).is_none()
    };
    let is_local = |step: &&DecoderWrapper| {
        matches!(step, DecoderWrapper::Replace(_) | DecoderWrapper::Strip(_))
    };
    let leading = flat.iter().take_while(|step| is_local(step)).count();
    // Only up to the last one that data cannot say.
    let local = flat[..leading].iter().rposition(|step| is_regex(step)).map_or(0, |at| at + 1);
    let mut notes = Vec::new();
    let mut data = Vec::new();
    for step in &flat[local..] {
        match described(step) {
            Some(step) => data.push(step),
            None => notes.push(
                "the tokenizer's decoder has a regular expression after other steps; it is left out of text"
                    .to_owned(),
            ),
        }
    }
    (flat[..local].to_vec(), data, notes)
}

fn flatten<'a>(decoder: &'a DecoderWrapper, out: &mut Vec<&'a DecoderWrapper>) {
    match decoder {
        DecoderWrapper::Sequence(sequence) => {
            sequence.get_decoders().iter().for_each(|decoder| flatten(decoder, out));
        }
        other => out.push(other),
    }
}

/// A step as data; `None` for one with a regular expression.
fn described(decoder: &DecoderWrapper) -> Option<DecodeStep> {
    let json = serde_json::to_value(decoder).ok()?;
    let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
    let flag = |name: &str| json[name].as_bool().unwrap_or(false);
    let count = |name: &str| json[name].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    let first = |name: &str, default| text(name).chars().next().unwrap_or(default);
    Some(match decoder {
        DecoderWrapper::ByteLevel(_) => DecodeStep::ByteLevel,
        DecoderWrapper::ByteFallback(_) => DecodeStep::ByteFallback,
        DecoderWrapper::Fuse(_) => DecodeStep::Fuse,
        DecoderWrapper::Replace(_) => DecodeStep::Replace {
            from: json["pattern"]["String"].as_str()?.to_owned(),
            to: text("content"),
        },
        DecoderWrapper::Strip(_) => DecodeStep::Strip {
            content: first("content", ' '),
            start: count("start"),
            stop: count("stop"),
        },
        DecoderWrapper::Metaspace(_) => DecodeStep::Metaspace {
            mark: first("replacement", '▁'),
            keep_first: json["prepend_scheme"] == "never",
        },
        DecoderWrapper::WordPiece(_) => {
            DecodeStep::WordPiece { prefix: text("prefix"), cleanup: flag("cleanup") }
        }
        DecoderWrapper::BPE(_) => DecodeStep::Bpe { suffix: text("suffix") },
        DecoderWrapper::CTC(_) => DecodeStep::Ctc {
            pad: text("pad_token"),
            delimiter: text("word_delimiter_token"),
            cleanup: flag("cleanup"),
        },
        DecoderWrapper::Sequence(_) => return None,
    })
}

/// Bytes of text that one token stands for at most, where a byte of text is never lost: a text of more bytes than
/// this for each token that may be is too long whatever its tokens are.
fn token_bytes_max(
    tokenizer: &Tokenizer,
    vocabulary: &std::collections::HashMap<String, u32>,
) -> Option<u32> {
    let json = tokenizer.get_normalizer().map(serde_json::to_value);
    // What a normalizer may make of a text, as a share: composing makes at most three bytes one.
    let shrinks = match json {
        None => 1,
        Some(Ok(json)) if json["type"] == "NFC" => 3,
        Some(_) => return None,
    };
    let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
    let keeps = !added.values().any(|token| token.lstrip || token.rstrip);
    let is_byte_level = matches!(tokenizer.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
    let is_bpe = matches!(tokenizer.get_model(), ModelWrapper::BPE(_));
    if !(keeps && is_byte_level && is_bpe) {
        return None;
    }
    let longest = vocabulary.keys().map(String::len).max()?;
    u32::try_from(longest * shrinks).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::tiny;

    fn folder(config: Value, more: &[(&str, Value)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, value: &Value| {
            std::fs::write(dir.path().join(name), value.to_string()).unwrap();
        };
        write("tokenizer.json", &tiny::byte_level());
        write("tokenizer_config.json", &config);
        more.iter().for_each(|(name, value)| write(name, value));
        dir
    }

    fn open(dir: &Path) -> (Tokenizer, Vocabulary) {
        let files = Files::read(dir).unwrap();
        let path = dir.join("tokenizer.json");
        let tokenizer = load(&path, &files).unwrap().unwrap();
        let vocabulary = table(&tokenizer, None, &path).unwrap().0;
        (tokenizer, vocabulary)
    }

    fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        tokenizer.encode_fast(text, false).unwrap().get_ids().to_vec()
    }

    /// Values of transformers 4 and 5.
    #[test]
    fn every_file_can_name_a_special_token() {
        let token = json!({"content": "<|x|>", "lstrip": false, "rstrip": false,
                           "single_word": false, "normalized": false, "special": true});
        let ways = [
            (json!({"added_tokens_decoder": {"259": token}}), Vec::new()),
            (json!({"additional_special_tokens": ["<|x|>"]}), Vec::new()),
            (json!({"extra_special_tokens": {"x_token": "<|x|>"}}), Vec::new()),
            (json!({"eos_token": "<|x|>"}), Vec::new()),
            (json!({}), vec![("added_tokens.json", json!({"<|x|>": 259}))]),
            (json!({}), vec![("special_tokens_map.json", json!({"pad_token": token}))]),
        ];
        for (at, (config, more)) in ways.into_iter().enumerate() {
            let dir = folder(config, &more);
            let (tokenizer, vocabulary) = open(dir.path());
            assert_eq!(ids(&tokenizer, "a<|x|>b"), [97, 259, 98], "way {at}");
            let token = vocabulary.tokens[259].as_ref().unwrap();
            assert_eq!((token.spelling.as_str(), token.special), ("<|x|>", at != 4), "way {at}");
        }
    }

    /// Ids and flags of transformers 5.24.
    #[test]
    fn the_older_map_wins_where_the_configuration_has_no_tokens() {
        let map = json!({"eos_token": "<|x|>"});
        let named = |config: Value| {
            let dir = folder(config, &[("special_tokens_map.json", map.clone())]);
            let (tokenizer, _) = open(dir.path());
            (ids(&tokenizer, "<|x|>").len(), ids(&tokenizer, "<|y|>").len())
        };
        assert_eq!(named(json!({"eos_token": "<|y|>"})), (1, 5));
        assert_eq!(named(json!({"eos_token": "<|y|>", "added_tokens_decoder": {}})), (5, 1));
    }

    #[test]
    fn a_model_names_tokens_of_its_own() {
        let unnamed = json!({"content": "<|z|>", "special": false, "__type": "AddedToken"});
        let config = json!({
            "additional_special_tokens": ["<|a|>", unnamed], "image_token": "<|img|>",
            "add_bos_token": false, "extra_special_tokens": {"audio_token": "<|aud|>"}});
        let dir = folder(config, &[]);
        let files = Files::read(dir.path()).unwrap();
        let named: Vec<(&str, &str)> =
            files.special.iter().map(|(name, token)| (&**name, &**token)).collect();
        assert_eq!(named, [("image_token", "<|img|>"), ("audio_token", "<|aud|>")]);
        let (tokenizer, vocabulary) = open(dir.path());
        assert_eq!(ids(&tokenizer, "<|img|><|aud|><|a|><|z|>"), [259, 260, 261, 262]);
        let special: Vec<bool> =
            (259..263).map(|id| vocabulary.tokens[id].as_ref().unwrap().special).collect();
        assert_eq!(special, [true, true, true, false]);
    }

    #[test]
    fn a_list_of_transformers_5_replaces_that_of_4() {
        let config = json!({
            "additional_special_tokens": ["<|a|>"], "extra_special_tokens": ["<|b|>"],
            "model_specific_special_tokens": {"image_token": "<|img|>"}});
        let (tokenizer, _) = open(folder(config, &[]).path());
        assert_eq!(ids(&tokenizer, "<|img|><|b|>"), [259, 260]);
        assert_eq!(ids(&tokenizer, "<|a|>").len(), 5);
    }

    #[test]
    fn a_token_of_the_tokenizer_keeps_its_flags_beside_added_tokens_json() {
        let mut json = tiny::byte_level();
        json["added_tokens"][1]["rstrip"] = true.into();
        let more = [("tokenizer.json", json), ("added_tokens.json", json!({"<|im_start|>": 257}))];
        let (tokenizer, _) = open(folder(json!({}), &more).path());
        assert_eq!(ids(&tokenizer, "<|im_start|>  a"), [257, 97]);
    }

    #[test]
    fn split_special_tokens_are_spelled_out() {
        let dir = folder(json!({"split_special_tokens": true}), &[]);
        let (tokenizer, _) = open(dir.path());
        assert_eq!(ids(&tokenizer, "<s>"), [60, 115, 62]);
        let (tokenizer, _) = open(folder(json!({}), &[]).path());
        assert_eq!(ids(&tokenizer, "<s>"), [256]);
    }

    #[test]
    fn a_special_token_keeps_the_flags_that_the_tokenizer_has() {
        let mut json = tiny::byte_level();
        json["added_tokens"][1]["rstrip"] = true.into();
        json["added_tokens"][1]["special"] = false.into();
        let dir = folder(json!({"eos_token": "<|im_start|>"}), &[("tokenizer.json", json)]);
        let (tokenizer, vocabulary) = open(dir.path());
        assert_eq!(ids(&tokenizer, "<|im_start|>  a"), [257, 97]);
        assert!(vocabulary.tokens[257].as_ref().unwrap().special);
    }

    #[test]
    fn a_regular_expression_before_the_rest_is_done_beforehand() {
        let mut json = tiny::byte_level();
        json["decoder"] = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"Regex": "[ab]"}, "content": "<"},
            {"type": "Fuse"},
        ]});
        let dir = folder(json!({}), &[("tokenizer.json", json.clone())]);
        let (_, vocabulary) = open(dir.path());
        assert_eq!(vocabulary.decoder, [DecodeStep::Fuse]);
        assert_eq!(vocabulary.tokens[97].as_ref().unwrap().piece.as_deref(), Some("<"));
        assert_eq!(vocabulary.tokens[99].as_ref().unwrap().piece, None);
        json["decoder"]["decoders"].as_array_mut().unwrap().reverse();
        let tokenizer = Tokenizer::from_bytes(json.to_string()).unwrap();
        let notes = table(&tokenizer, None, Path::new("x")).unwrap().1;
        assert!(notes[0].contains("regular expression"), "{notes:?}");
    }

    #[test]
    fn ids_beyond_the_limit_and_pointers_of_git_lfs_are_refused() {
        let mut json = tiny::byte_level();
        json["model"]["vocab"]["far"] = (u64::from(VOCABULARY_MAX) + 5).into();
        let tokenizer = Tokenizer::from_bytes(json.to_string()).unwrap();
        assert!(table(&tokenizer, None, Path::new("x")).unwrap_err().to_string().contains("limit"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        std::fs::write(&path, "version https://git-lfs.github.com/spec/v1\n").unwrap();
        let why = load(&path, &Files::default()).unwrap_err().to_string();
        assert!(why.contains("git lfs pull") && why.contains("tokenizer.json"), "{why}");
    }
}
