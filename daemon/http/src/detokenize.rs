//! Token ids to text, a token at a time, from a table of what each stands for.
//!
//! Owns: the table, and text that is never half a character. Must never: emit a replacement character for bytes that
//! a later token may complete, or allocate for a token of a usual vocabulary.
//!
//! Byte-level and byte-fallback vocabularies, WordPiece and SentencePiece map each token to bytes of its own, but for
//! the first; the text is the concatenation. Other decoders look at neighbours, so for them the text grows by the
//! difference between decoding with and without the new token, over a short window.

mod decoder;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use minisgl_proto::text::{DecodeStep, Token, Vocabulary};

/// How text is made of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Each token is some bytes of UTF-8 text; bytes that are none are replaced as `String::from_utf8_lossy` does.
    Bytes,
    /// Each token is a text; or a byte of one, and each byte that is none is replaced.
    Pieces {
        /// The first token of a text is another text than in its middle.
        first_differs: bool,
        /// A character and how many of it are taken off the start of a text.
        strip_start: Option<(char, u32)>,
    },
    /// Neighbours matter.
    Window,
}

/// What each token of a vocabulary stands for.
pub struct Table {
    kind: Kind,
    /// Where each token's bytes end; they begin where those before it end.
    ends: Vec<u32>,
    bytes: Vec<u8>,
    marks: Vec<Mark>,
}

#[derive(Clone, Copy, Default)]
struct Mark {
    special: bool,
    /// A marker of the model's dialect.
    marker: bool,
    /// Its bytes are a part of a character at most.
    is_byte: bool,
    exists: bool,
}

impl Table {
    /// The table of a vocabulary, some of whose tokens are `markers`. Takes some milliseconds.
    pub fn new(vocabulary: &Vocabulary, markers: &[&str]) -> Table {
        let steps = &vocabulary.decoder[..];
        let kind = kind(steps);
        let falls_back = steps.contains(&DecodeStep::ByteFallback);
        let mut table = Table {
            kind,
            ends: Vec::with_capacity(vocabulary.tokens.len()),
            bytes: Vec::new(),
            marks: Vec::with_capacity(vocabulary.tokens.len()),
        };
        for token in &vocabulary.tokens {
            let Some(token) = token else {
                table.push(Mark::default(), &[]);
                continue;
            };
            let piece = piece(token);
            let marker = markers.contains(&&*token.spelling);
            let mut mark = Mark { special: token.special, marker, is_byte: false, exists: true };
            match kind {
                Kind::Bytes => table.push(mark, &decoder::alphabet_bytes(piece)),
                Kind::Pieces { .. } => {
                    let text = in_place(steps, false, piece);
                    match decoder::byte_of(&text) {
                        Some(byte) if falls_back => {
                            mark.is_byte = true;
                            table.push(mark, &[byte]);
                        }
                        _ => table.push(mark, text.as_bytes()),
                    }
                }
                Kind::Window => {
                    table.push(mark, decoder::decode(steps, vec![piece.to_owned()]).as_bytes());
                }
            }
        }
        table
    }

    fn push(&mut self, mark: Mark, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        // A vocabulary comes in one frame, so its bytes fit.
        self.ends.push(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX));
        self.marks.push(mark);
    }

    /// The bytes a token stands for on its own; none for an id outside the vocabulary.
    pub fn bytes(&self, id: u32) -> &[u8] {
        let at = id as usize;
        let Some(&end) = self.ends.get(at) else { return &[] };
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start as usize..end as usize]
    }

    /// Whether it is one of the markers.
    pub fn is_marker(&self, id: u32) -> bool {
        self.mark(id).marker
    }

    fn mark(&self, id: u32) -> Mark {
        self.marks.get(id as usize).copied().unwrap_or_default()
    }
}

/// What the decoder begins with.
fn piece(token: &Token) -> &str {
    token.piece.as_deref().unwrap_or(&token.spelling)
}

/// A token after all steps that look at it alone.
fn in_place(steps: &[DecodeStep], is_first: bool, piece: &str) -> String {
    let mut text = Cow::Borrowed(piece);
    for step in steps.iter().take_while(|step| !matches!(step, DecodeStep::Fuse)) {
        text = Cow::Owned(decoder::alone(step, is_first, &text));
    }
    text.into_owned()
}

/// Which kind the steps are: `Pieces` for those that are known to be, token by token.
fn kind(steps: &[DecodeStep]) -> Kind {
    if let [DecodeStep::ByteLevel] = steps {
        return Kind::Bytes;
    }
    let fuse = steps.iter().position(|step| matches!(step, DecodeStep::Fuse));
    let (before, after) = match fuse {
        Some(at) => (&steps[..at], &steps[at + 1..]),
        None => (steps, &[][..]),
    };
    let strip_start = match after {
        [] => None,
        [DecodeStep::Strip { content, start, stop: 0 }] => Some((*content, *start)),
        _ => return Kind::Window,
    };
    let (mut first_differs, mut fell_back) = (false, false);
    for step in before {
        match step {
            // Bytes are not text yet; later steps would look at what they make together.
            _ if fell_back => return Kind::Window,
            DecodeStep::Replace { .. } | DecodeStep::Strip { .. } => {}
            DecodeStep::Spaces | DecodeStep::Metaspace { .. } | DecodeStep::WordPiece { .. } => {
                first_differs = true;
            }
            // Whether the first is another is told by its place, which bytes would shift.
            DecodeStep::ByteFallback if !first_differs => fell_back = true,
            _ => return Kind::Window,
        }
    }
    Kind::Pieces { first_differs, strip_start }
}

/// Turns one request's tokens into text.
pub struct Detokenizer {
    state: State,
    show: Show,
}

/// Which special tokens are text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// All.
    All,
    /// Markers: what is a thought and what a call is read from them.
    Markers,
    /// None.
    None,
}

enum State {
    Bytes {
        /// Bytes that begin a character.
        pending: Vec<u8>,
    },
    Pieces {
        /// Bytes that begin a character.
        pending: Vec<u8>,
        /// The next token is the first of its text.
        is_first: bool,
        /// Characters still to be taken off the start.
        strip: Option<(char, u32)>,
    },
    Window {
        tokens: Vec<u32>,
        /// Bytes of text of the tokens before the last one that completed a character.
        known: usize,
    },
}

/// Tokens that a windowed decoder sees at least; enough for any character and space rule.
const WINDOW_TOKENS: usize = 8;

impl Detokenizer {
    /// `at_start`: the text begins here, so a decoder that strips the first space does.
    pub fn new(table: &Table, show: Show, at_start: bool) -> Detokenizer {
        let state = match table.kind {
            Kind::Bytes => State::Bytes { pending: Vec::new() },
            Kind::Pieces { strip_start, .. } => State::Pieces {
                pending: Vec::new(),
                is_first: at_start,
                strip: strip_start.filter(|_| at_start),
            },
            Kind::Window => State::Window { tokens: Vec::new(), known: 0 },
        };
        Detokenizer { state, show }
    }

    /// Appends the text that this token completes.
    pub fn push(&mut self, table: &Table, vocabulary: &Vocabulary, id: u32, out: &mut String) {
        let mark = table.mark(id);
        let shown = match self.show {
            Show::All => true,
            Show::Markers => !mark.special || mark.marker,
            Show::None => !mark.special,
        };
        if !mark.exists || !shown {
            return;
        }
        let bytes = table.bytes(id);
        match &mut self.state {
            State::Bytes { pending } => take_characters(pending, bytes, Replace::Parts, out),
            State::Pieces { pending, is_first, strip } => {
                let from = out.len();
                let was_first = std::mem::take(is_first);
                if mark.is_byte {
                    take_characters(pending, bytes, Replace::Each, out);
                } else {
                    replace_each(pending, out);
                    let differs = matches!(table.kind, Kind::Pieces { first_differs: true, .. });
                    match vocabulary.tokens.get(id as usize) {
                        Some(Some(token)) if differs && was_first => {
                            out.push_str(&in_place(&vocabulary.decoder, true, piece(token)));
                        }
                        // Pieces are made of text.
                        _ => out.push_str(&String::from_utf8_lossy(bytes)),
                    }
                }
                strip_start(out, from, strip);
            }
            State::Window { tokens, known } => {
                tokens.push(id);
                let (whole, stable) = settled(vocabulary, tokens);
                if whole[..stable].ends_with(char::REPLACEMENT_CHARACTER) || stable <= *known {
                    return;
                }
                out.push_str(whole.get(*known..stable).unwrap_or_default());
                *known = stable;
                if tokens.len() >= 2 * WINDOW_TOKENS {
                    let held = whole.len() - stable;
                    tokens.drain(..tokens.len() - WINDOW_TOKENS);
                    *known = window(vocabulary, tokens).len().saturating_sub(held);
                }
            }
        }
    }

    /// The tokens ended: what is pending comes out, incomplete characters replaced.
    pub fn finish(&mut self, vocabulary: &Vocabulary, out: &mut String) {
        match &mut self.state {
            State::Bytes { pending } => {
                out.push_str(&String::from_utf8_lossy(&std::mem::take(pending)));
            }
            State::Pieces { pending, .. } => replace_each(pending, out),
            State::Window { tokens, known } => {
                let whole = window(vocabulary, tokens);
                tokens.clear();
                out.push_str(whole.get(std::mem::take(known)..).unwrap_or_default());
            }
        }
    }
}

fn pieces(vocabulary: &Vocabulary, ids: &[u32]) -> Vec<String> {
    let tokens = ids.iter().filter_map(|&id| vocabulary.tokens.get(id as usize)?.as_ref());
    tokens.map(|token| piece(token).to_owned()).collect()
}

fn window(vocabulary: &Vocabulary, ids: &[u32]) -> String {
    decoder::decode(&vocabulary.decoder, pieces(vocabulary, ids))
}

/// The text of some tokens, and how many of its bytes stay when others follow: a decoder may write the last one
/// in another way.
fn settled(vocabulary: &Vocabulary, ids: &[u32]) -> (String, usize) {
    let whole = window(vocabulary, ids);
    let mut followed = pieces(vocabulary, ids);
    followed.push(String::new());
    let followed = decoder::decode(&vocabulary.decoder, followed);
    let same = whole.chars().zip(followed.chars()).take_while(|(a, b)| a == b);
    let stable = same.map(|(c, _)| c.len_utf8()).sum();
    (whole, stable)
}

/// What becomes of bytes that are no text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Replace {
    /// One replacement for each part that could have begun a character.
    Parts,
    /// One for each byte.
    Each,
}

fn replace_each(pending: &mut Vec<u8>, out: &mut String) {
    out.extend(pending.drain(..).map(|_| char::REPLACEMENT_CHARACTER));
}

/// Appends all but an incomplete last character, which is left pending; bytes that can never be one are replaced.
fn take_characters(pending: &mut Vec<u8>, bytes: &[u8], replace: Replace, out: &mut String) {
    // The usual case: whole characters, and nothing before them.
    if pending.is_empty()
        && let Ok(text) = std::str::from_utf8(bytes)
    {
        return out.push_str(text);
    }
    pending.extend_from_slice(bytes);
    let mut at = 0;
    loop {
        match std::str::from_utf8(&pending[at..]) {
            Ok(rest) => {
                out.push_str(rest);
                at = pending.len();
                break;
            }
            Err(why) => {
                let valid = at + why.valid_up_to();
                out.push_str(&String::from_utf8_lossy(&pending[at..valid]));
                at = valid;
                let Some(bad) = why.error_len() else { break };
                let count = if replace == Replace::Each { bad } else { 1 };
                out.extend((0..count).map(|_| char::REPLACEMENT_CHARACTER));
                at += bad;
            }
        }
    }
    pending.drain(..at);
}

/// Takes characters off what was appended from `from` on, which is the start of a text.
fn strip_start(out: &mut String, from: usize, strip: &mut Option<(char, u32)>) {
    let Some((mark, left)) = strip else { return };
    if out.len() == from {
        return;
    }
    let mut to = from;
    while *left > 0 && out[to..].starts_with(*mark) {
        to += mark.len_utf8();
        *left -= 1;
    }
    // What does not start with the mark ends the start of the text.
    if *left == 0 || to < out.len() {
        *strip = None;
    }
    out.replace_range(from..to, "");
}
