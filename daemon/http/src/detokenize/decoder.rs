//! Hugging Face's decoders, over data.
//!
//! Owns: what each step does to a list of tokens, exactly as the `tokenizers` library does it. Must never: be needed
//! for each token of a usual vocabulary; [`super::Table`] is.

use minisgl_proto::text::DecodeStep;

/// The text of a list of tokens.
pub fn decode(steps: &[DecodeStep], tokens: Vec<String>) -> String {
    steps.iter().fold(tokens, |tokens, step| apply(step, tokens)).concat()
}

fn apply(step: &DecodeStep, tokens: Vec<String>) -> Vec<String> {
    match step {
        DecodeStep::ByteLevel => {
            let bytes: Vec<u8> = tokens.iter().flat_map(|token| alphabet_bytes(token)).collect();
            vec![String::from_utf8_lossy(&bytes).into_owned()]
        }
        DecodeStep::ByteFallback => byte_fallback(tokens),
        DecodeStep::Fuse => vec![tokens.concat()],
        DecodeStep::Bpe { suffix } => {
            let last = tokens.len().saturating_sub(1);
            let replace = |(at, token): (usize, &String)| {
                token.replace(suffix.as_str(), if at == last { "" } else { " " })
            };
            tokens.iter().enumerate().map(replace).collect()
        }
        DecodeStep::Ctc { pad, delimiter, cleanup } => {
            let mut out = Vec::new();
            for (at, token) in tokens.iter().enumerate() {
                if at > 0 && tokens[at - 1] == *token {
                    continue;
                }
                let mut text = token.replace(pad.as_str(), "");
                if *cleanup {
                    text = clean(&text).replace(delimiter.as_str(), " ");
                }
                if !text.is_empty() {
                    out.push(text);
                }
            }
            out
        }
        local => {
            let each = |(at, token): (usize, &String)| alone(local, at == 0, token);
            tokens.iter().enumerate().map(each).collect()
        }
    }
}

/// A step that looks at one token and at whether it is the first; others leave the token as it is.
pub fn alone(step: &DecodeStep, is_first: bool, token: &str) -> String {
    match step {
        DecodeStep::Spaces if is_first => token.to_owned(),
        DecodeStep::Spaces => format!(" {token}"),
        DecodeStep::Replace { from, to } if !from.is_empty() => token.replace(from.as_str(), to),
        DecodeStep::Strip { content, start, stop } => strip(token, *content, *start, *stop),
        DecodeStep::Metaspace { mark, keep_first } => {
            let space = if is_first && !keep_first { "" } else { " " };
            token.replace(*mark, space)
        }
        DecodeStep::WordPiece { prefix, cleanup } => {
            let text = match token.strip_prefix(prefix.as_str()) {
                _ if is_first => token.to_owned(),
                Some(rest) => rest.to_owned(),
                None => format!(" {token}"),
            };
            if *cleanup { clean(&text) } else { text }
        }
        _ => token.to_owned(),
    }
}

/// As the library: the characters at the end are counted even where those at the start were taken.
fn strip(token: &str, content: char, start: u32, stop: u32) -> String {
    let chars: Vec<char> = token.chars().collect();
    let is_content = |c: &&char| **c == content;
    let from = chars.iter().take(start as usize).take_while(is_content).count();
    let cut = chars.iter().rev().take(stop as usize).take_while(is_content).count();
    let to = chars.len() - cut;
    if from < to { chars[from..to].iter().collect() } else { String::new() }
}

/// Spaces before punctuation and in English contractions, out.
fn clean(text: &str) -> String {
    text.replace(" .", ".")
        .replace(" ?", "?")
        .replace(" !", "!")
        .replace(" ,", ",")
        .replace(" ' ", "'")
        .replace(" n't", "n't")
        .replace(" 'm", "'m")
        .replace(" do not", " don't")
        .replace(" 's", "'s")
        .replace(" 've", "'ve")
        .replace(" 're", "'re")
}

fn byte_fallback(tokens: Vec<String>) -> Vec<String> {
    fn flush(run: &mut Vec<u8>, out: &mut Vec<String>) {
        let bytes = std::mem::take(run);
        let count = bytes.len();
        match String::from_utf8(bytes) {
            Ok(text) if text.is_empty() => {}
            Ok(text) => out.push(text),
            Err(_) => out.extend((0..count).map(|_| char::REPLACEMENT_CHARACTER.to_string())),
        }
    }
    let (mut run, mut out) = (Vec::new(), Vec::new());
    for token in tokens {
        match byte_of(&token) {
            Some(byte) => run.push(byte),
            None => {
                flush(&mut run, &mut out);
                out.push(token);
            }
        }
    }
    flush(&mut run, &mut out);
    out
}

/// The byte that `<0xNN>` stands for.
pub fn byte_of(token: &str) -> Option<u8> {
    let code = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if code.len() == 2 { u8::from_str_radix(code, 16).ok() } else { None }
}

/// The bytes of a token in GPT-2's alphabet; a token with other characters stands for itself.
pub fn alphabet_bytes(token: &str) -> Vec<u8> {
    token.chars().map(alphabet_byte).collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.into())
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
