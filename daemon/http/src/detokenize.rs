//! Token ids to text, a token at a time.
//!
//! Owns: the bytes of a token, and text that is never half a character. Must never: emit a
//! replacement character for bytes that a later token may complete.
//!
//! Byte-level and byte-fallback vocabularies, which is nearly all of them, map each token to bytes of
//! its own; the text is the concatenation. Other decoders look at neighbours, so for them the text
//! grows by the difference between decoding with and without the new token, over a short window.

use serde_json::Value;
use tokenizers::Tokenizer;

/// How a tokenizer's decoder makes bytes of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// GPT-2's alphabet of 256 printable characters, one a byte (Llama 3, Qwen, SmolLM2).
    ByteLevel,
    /// Words with a space mark, and `<0xNN>` for bytes outside the vocabulary (Llama 2, Mistral).
    ByteFallback {
        /// Marks and what they stand for, usually `▁` and a space.
        replace: Vec<(String, String)>,
        /// A character and how many of it are taken off the start of a text.
        strip_start: Option<(char, usize)>,
    },
    /// Anything else: neighbours matter.
    Window,
}

impl Scheme {
    /// Reads the scheme off a tokenizer's decoder.
    pub fn of(tokenizer: &Tokenizer) -> Scheme {
        let decoder = tokenizer.get_decoder().and_then(|d| serde_json::to_value(d).ok());
        decoder.as_ref().map_or(Scheme::Window, Scheme::from_json)
    }

    fn from_json(decoder: &Value) -> Scheme {
        match decoder["type"].as_str() {
            Some("ByteLevel") => Scheme::ByteLevel,
            Some("Sequence") => {
                let parts = decoder["decoders"].as_array().map_or(&[][..], Vec::as_slice);
                if let [only] = parts { Scheme::from_json(only) } else { Scheme::fallback(parts) }
            }
            _ => Scheme::Window,
        }
    }

    fn fallback(parts: &[Value]) -> Scheme {
        let (mut replace, mut strip_start, mut bytes) = (Vec::new(), None, false);
        for part in parts {
            match part["type"].as_str() {
                Some("Replace") => {
                    match (part["pattern"]["String"].as_str(), part["content"].as_str()) {
                        (Some(from), Some(to)) => replace.push((from.into(), to.into())),
                        _ => return Scheme::Window,
                    }
                }
                Some("ByteFallback") => bytes = true,
                Some("Fuse") => {}
                Some("Strip") => {
                    let mark = part["content"].as_str().and_then(|text| text.chars().next());
                    match (mark, part["start"].as_u64(), part["stop"].as_u64()) {
                        (Some(mark), Some(count), Some(0)) => {
                            strip_start = Some((mark, count as usize));
                        }
                        _ => return Scheme::Window,
                    }
                }
                _ => return Scheme::Window,
            }
        }
        if bytes { Scheme::ByteFallback { replace, strip_start } } else { Scheme::Window }
    }
}

/// The bytes a token stands for on its own; none for an id outside the vocabulary.
pub fn token_bytes(tokenizer: &Tokenizer, scheme: &Scheme, id: u32) -> Vec<u8> {
    let Some(token) = tokenizer.id_to_token(id) else { return Vec::new() };
    match scheme {
        // An added token may hold characters that are not of the alphabet: it stands for itself.
        Scheme::ByteLevel => {
            token.chars().map(alphabet_byte).collect::<Option<Vec<u8>>>().unwrap_or(token.into())
        }
        Scheme::ByteFallback { replace, .. } => {
            let code = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
            if let Some(byte) = code.filter(|code| code.len() == 2)
                && let Ok(byte) = u8::from_str_radix(byte, 16)
            {
                return vec![byte];
            }
            let mut text = token;
            for (from, to) in replace {
                text = text.replace(from.as_str(), to);
            }
            text.into_bytes()
        }
        Scheme::Window => tokenizer.decode(&[id], false).unwrap_or(token).into_bytes(),
    }
}

/// Inverse of GPT-2's byte alphabet: printable Latin-1 characters stand for themselves, the 68 other
/// bytes for U+0100 onwards in order.
fn alphabet_byte(c: char) -> Option<u8> {
    let code = c as u32;
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => Some(code as u8),
        0x100..=0x120 => Some((code - 0x100) as u8),
        0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// Turns one request's tokens into text.
pub struct Detokenizer {
    state: State,
    skip_special: bool,
}

enum State {
    Bytes {
        /// Bytes that begin a character.
        pending: Vec<u8>,
        /// Characters still to be taken off the start.
        strip: Option<(char, usize)>,
    },
    Window {
        tokens: Vec<u32>,
        /// Text of the tokens before the last one that completed a character.
        known: usize,
    },
}

/// Tokens that a windowed decoder sees at least; enough for any character and space rule.
const WINDOW_TOKENS: usize = 8;

impl Detokenizer {
    /// `at_start`: the text begins here, so a decoder that strips the first space does.
    pub fn new(scheme: &Scheme, skip_special: bool, at_start: bool) -> Detokenizer {
        let strip = match scheme {
            Scheme::ByteFallback { strip_start, .. } if at_start => *strip_start,
            _ => None,
        };
        let state = match scheme {
            Scheme::Window => State::Window { tokens: Vec::new(), known: 0 },
            _ => State::Bytes { pending: Vec::new(), strip },
        };
        Detokenizer { state, skip_special }
    }

    /// Text that this token completes.
    pub fn push(&mut self, tokenizer: &Tokenizer, scheme: &Scheme, id: u32) -> String {
        if self.skip_special && is_special(tokenizer, id) {
            return String::new();
        }
        match &mut self.state {
            State::Bytes { pending, strip } => {
                pending.extend(token_bytes(tokenizer, scheme, id));
                let text = take_characters(pending);
                strip_start(text, strip)
            }
            State::Window { tokens, known } => {
                tokens.push(id);
                let whole = tokenizer.decode(tokens, false).unwrap_or_default();
                if whole.ends_with(char::REPLACEMENT_CHARACTER) || whole.len() < *known {
                    return String::new();
                }
                let text = whole.get(*known..).unwrap_or_default().to_string();
                *known = whole.len();
                if tokens.len() >= 2 * WINDOW_TOKENS {
                    tokens.drain(..tokens.len() - WINDOW_TOKENS);
                    *known = tokenizer.decode(tokens, false).map_or(0, |text| text.len());
                }
                text
            }
        }
    }

    /// The tokens ended: what is pending comes out, incomplete characters replaced.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> String {
        match &mut self.state {
            State::Bytes { pending, .. } => {
                String::from_utf8_lossy(&std::mem::take(pending)).into_owned()
            }
            State::Window { tokens, known } => {
                let whole = tokenizer.decode(tokens, false).unwrap_or_default();
                tokens.clear();
                whole.get(std::mem::take(known)..).unwrap_or_default().to_string()
            }
        }
    }
}

fn is_special(tokenizer: &Tokenizer, id: u32) -> bool {
    let added = tokenizer.get_added_vocabulary();
    added.get_added_tokens_decoder().get(&id).is_some_and(|token| token.special)
}

/// Takes all but an incomplete last character; bytes that can never be one are replaced.
fn take_characters(pending: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut at = 0;
    loop {
        match std::str::from_utf8(&pending[at..]) {
            Ok(rest) => {
                text.push_str(rest);
                at = pending.len();
                break;
            }
            Err(why) => {
                let valid = at + why.valid_up_to();
                text.push_str(&String::from_utf8_lossy(&pending[at..valid]));
                at = valid;
                let Some(bad) = why.error_len() else { break };
                text.push(char::REPLACEMENT_CHARACTER);
                at += bad;
            }
        }
    }
    pending.drain(..at);
    text
}

fn strip_start(text: String, strip: &mut Option<(char, usize)>) -> String {
    let Some((mark, left)) = strip else { return text };
    if text.is_empty() {
        return text;
    }
    let mut rest = text.as_str();
    while *left > 0 {
        let Some(shorter) = rest.strip_prefix(*mark) else { break };
        rest = shorter;
        *left -= 1;
    }
    let rest = rest.to_string();
    // What does not start with the mark ends the start of the text.
    if *left == 0 || !rest.is_empty() {
        *strip = None;
    }
    rest
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use crate::stop::StopMatcher;
    use crate::tiny_tokenizer::{IM_END, byte_fallback, byte_level};
    use proptest::prelude::*;

    static BYTE_LEVEL: LazyLock<(Tokenizer, Scheme)> = LazyLock::new(|| load(byte_level()));
    static BYTE_FALLBACK: LazyLock<(Tokenizer, Scheme)> = LazyLock::new(|| load(byte_fallback()));

    fn load(json: Value) -> (Tokenizer, Scheme) {
        let tokenizer = Tokenizer::from_bytes(json.to_string()).unwrap();
        let scheme = Scheme::of(&tokenizer);
        (tokenizer, scheme)
    }

    /// The pieces that come of some tokens, the flushed rest last.
    fn pieces(tokenizer: &Tokenizer, scheme: &Scheme, tokens: &[u32], skip: bool) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(scheme, skip, true);
        let mut pieces: Vec<_> =
            tokens.iter().map(|&t| detokenizer.push(tokenizer, scheme, t)).collect();
        pieces.push(detokenizer.finish(tokenizer));
        pieces
    }

    #[test]
    fn half_a_character_waits_for_the_other_half() {
        let (tokenizer, scheme) = &*BYTE_LEVEL;
        assert_eq!(*scheme, Scheme::ByteLevel);
        let crab: Vec<u32> = "é🦀".bytes().map(u32::from).collect();
        assert_eq!(pieces(tokenizer, scheme, &crab, true), ["", "é", "", "", "", "🦀", ""]);
        assert_eq!(pieces(tokenizer, scheme, &crab[..4], true), ["", "é", "", "", "\u{fffd}"]);
    }

    #[test]
    fn bytes_that_are_no_character_are_replaced_once_that_is_sure() {
        let (tokenizer, scheme) = &*BYTE_LEVEL;
        let tokens = [0xf0, 0x9f, u32::from(b'a'), 0x80, u32::from(b'b')];
        let expected = ["", "", "\u{fffd}a", "\u{fffd}", "b", ""];
        assert_eq!(pieces(tokenizer, scheme, &tokens, true), expected);
    }

    #[test]
    fn special_tokens_are_text_only_when_asked_for() {
        let (tokenizer, scheme) = &*BYTE_LEVEL;
        assert_eq!(pieces(tokenizer, scheme, &[IM_END], true).concat(), "");
        assert_eq!(pieces(tokenizer, scheme, &[IM_END], false).concat(), "<|im_end|>");
    }

    #[test]
    fn byte_fallback_strips_the_first_space_of_a_text_alone() {
        let (tokenizer, scheme) = &*BYTE_FALLBACK;
        assert!(matches!(scheme, Scheme::ByteFallback { .. }), "{scheme:?}");
        let tokens = [257, 258, 256, 0xc3, 0xa9, 257];
        let text = pieces(tokenizer, scheme, &tokens, true).concat();
        assert_eq!(text, "ab é a");
        assert_eq!(text, tokenizer.decode(&tokens, true).unwrap());
        let mut continued = Detokenizer::new(scheme, true, false);
        assert_eq!(continued.push(tokenizer, scheme, 257), " a");
    }

    proptest! {
        /// Tokens of one byte: every split that a tokenizer could make is a union of these.
        #[test]
        fn any_text_comes_back_whole(text in "\\PC{0,24}") {
            for (tokenizer, scheme) in [&*BYTE_LEVEL, &*BYTE_FALLBACK] {
                let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
                let pieces = pieces(tokenizer, scheme, &tokens, true);
                let clean = !text.contains(char::REPLACEMENT_CHARACTER);
                for piece in &pieces {
                    prop_assert!(!clean || !piece.contains(char::REPLACEMENT_CHARACTER));
                }
                let expected = match scheme {
                    Scheme::ByteFallback { .. } => text.strip_prefix(' ').unwrap_or(&text),
                    _ => &text,
                };
                prop_assert_eq!(pieces.concat(), expected);
            }
        }

        #[test]
        fn any_bytes_are_decoded_as_the_tokenizer_does(bytes in prop::collection::vec(any::<u8>(), 0..24)) {
            let (tokenizer, scheme) = &*BYTE_LEVEL;
            let tokens: Vec<u32> = bytes.iter().map(|&byte| byte.into()).collect();
            let whole = tokenizer.decode(&tokens, true).unwrap();
            prop_assert_eq!(pieces(tokenizer, scheme, &tokens, true).concat(), &whole[..]);
            let windowed = pieces(tokenizer, &Scheme::Window, &tokens, true);
            prop_assert!(String::from_utf8(bytes).is_err() || windowed.concat() == whole);
        }

        #[test]
        fn stop_strings_end_the_text_exactly(text in "[aé🦀]{0,12}", stop in "[aé🦀]{1,3}") {
            let (tokenizer, scheme) = &*BYTE_LEVEL;
            let mut detokenizer = Detokenizer::new(scheme, true, true);
            let mut matcher = StopMatcher::new(vec![stop.clone()], false);
            let (mut out, mut stopped) = (String::new(), false);
            for byte in text.bytes() {
                let piece = detokenizer.push(tokenizer, scheme, byte.into());
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
}
