//! Texts to token ids, long ones in pieces.
//!
//! The library needs 250 bytes of memory for each byte that it tokenizes in one go. A long text is cut where that
//! changes no id, and given up as soon as it has too many tokens.
//!
//! A text is cut before a space, a line break or a comma between two letters. Whether that changes an id is asked of
//! the tokenizer itself, for each cut: the text on both sides, [`Encoder::window`] bytes each, must have the same
//! ids together as apart. What looks further than that is left alone: a BPE model without a pre-tokenizer whose
//! vocabulary joins words, and a Unigram model without one.
//!
//! Owns: the tokenizer. Must never: answer other ids than the tokenizer does in one go.

use std::sync::atomic::{AtomicBool, Ordering};

use minisgl_proto::text::TextFault;
use tokenizers::models::ModelWrapper;
use tokenizers::{PostProcessorWrapper, Tokenizer};

/// Bytes of a piece, and of a text that is tokenized in one go in any case.
const PIECE_BYTES: usize = 64 << 10;
/// Bytes tokenized in one go at most, where no place to cut is found.
const UNBROKEN_BYTES_MAX: usize = 2 << 20;
/// Bytes looked at on each side of a cut, at least; more where added tokens are long.
const WINDOW_BYTES_MIN: usize = 128;
/// Places tried for one cut.
const TRIES_MAX: usize = 64;
/// What the kinds of cut are tried on.
const SAMPLE: &str = "The quick brown fox jumps over the lazy dog, then sleeps for a while";

/// Where a piece begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// With the space.
    Keep,
    /// After the space, which the tokenizer puts before every text by itself.
    Drop,
}

/// A tokenizer that bounds what one text costs.
pub struct Encoder {
    tokenizer: Tokenizer,
    cut: Option<Cut>,
    /// What comes before and after a bare prompt.
    around: Option<(Vec<u32>, Vec<u32>)>,
    window: usize,
    piece: usize,
    token_bytes_max: Option<u32>,
}

impl Encoder {
    /// Looks at how texts can be cut.
    pub fn new(tokenizer: Tokenizer, token_bytes_max: Option<u32>) -> Encoder {
        let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        let longest = added.values().map(|token| token.content.len()).max().unwrap_or(0);
        let mut encoder = Encoder {
            tokenizer,
            cut: None,
            around: None,
            window: WINDOW_BYTES_MIN.max(2 * longest),
            piece: PIECE_BYTES,
            token_bytes_max,
        };
        encoder.around = encoder.probe_around();
        if encoder.cuts_by_words() {
            let works = |cut: &Cut| {
                let places = SAMPLE.match_indices(' ').map(|(at, _)| at);
                places.into_iter().all(|at| encoder.may_cut(SAMPLE, at, *cut))
            };
            encoder.cut = [Cut::Keep, Cut::Drop].into_iter().find(works);
        }
        encoder
    }

    /// Whether no token reaches over a space between words, whatever the words are.
    fn cuts_by_words(&self) -> bool {
        let has_pre = self.tokenizer.get_pre_tokenizer().is_some();
        match self.tokenizer.get_model() {
            ModelWrapper::BPE(_) if !has_pre => {
                let joins = |token: &String| {
                    let mut before_mark = false;
                    token.chars().any(|c| {
                        let joins = matches!(c, '▁' | ' ') && before_mark;
                        before_mark = !matches!(c, '▁' | ' ');
                        joins
                    })
                };
                let added = self.tokenizer.get_added_vocabulary();
                let vocabulary = self.tokenizer.get_vocab(false);
                !vocabulary.keys().any(|token| joins(token) && !added.is_special_token(token))
            }
            ModelWrapper::Unigram(_) => has_pre,
            ModelWrapper::BPE(_) | ModelWrapper::WordPiece(_) | ModelWrapper::WordLevel(_) => true,
        }
    }

    /// What the post-processor puts around the tokens of a bare prompt; `None` if it does more than that.
    fn probe_around(&self) -> Option<(Vec<u32>, Vec<u32>)> {
        fn only_surrounds(processor: &PostProcessorWrapper) -> bool {
            match processor {
                PostProcessorWrapper::Sequence(sequence) => serde_json::to_value(sequence)
                    .is_ok_and(|json| {
                        json["processors"].as_array().is_some_and(|parts| {
                            parts.iter().all(|part| part["type"] != "Sequence")
                        })
                    }),
                _ => true,
            }
        }
        if !self.tokenizer.get_post_processor().is_none_or(only_surrounds) {
            return None;
        }
        let find = |sample: &str| {
            let bare = self.once(sample, false).ok()?;
            let whole = self.once(sample, true).ok()?;
            let at = whole.windows(bare.len().max(1)).position(|part| part == bare)?;
            Some((whole[..at].to_vec(), whole[at + bare.len()..].to_vec()))
        };
        let found = find(SAMPLE)?;
        (find("once more") == Some(found.clone())).then_some(found)
    }

    /// Token ids of a text, with what the tokenizer puts around a bare prompt if `add_special`.
    ///
    /// # Errors
    /// It has more tokens than `tokens_max`, cannot be cut, or nobody waits any more.
    pub fn encode(
        &self,
        text: &str,
        add_special: bool,
        tokens_max: u32,
        abandoned: &AtomicBool,
    ) -> Result<Vec<u32>, TextFault> {
        let too_long = || TextFault::TooLong { tokens_max };
        let least = self.token_bytes_max.map_or(0, |bytes| text.len() / bytes.max(1) as usize);
        if least > tokens_max as usize {
            return Err(too_long());
        }
        if abandoned.load(Ordering::Relaxed) {
            return Err(TextFault::Abandoned);
        }
        let (before, after) = match (&self.around, add_special) {
            _ if text.len() <= self.piece => {
                let ids = self.once(text, add_special)?;
                return if ids.len() > tokens_max as usize { Err(too_long()) } else { Ok(ids) };
            }
            (Some((before, after)), true) => (&before[..], &after[..]),
            (None, true) => return self.unbroken(text, true, tokens_max),
            (_, false) => (&[][..], &[][..]),
        };
        let mut ids = before.to_vec();
        let mut rest = text;
        while !rest.is_empty() {
            if abandoned.load(Ordering::Relaxed) {
                return Err(TextFault::Abandoned);
            }
            let (piece, next) = self.take(rest)?;
            ids.extend(self.once(piece, false)?);
            if ids.len() + after.len() > tokens_max as usize {
                return Err(too_long());
            }
            rest = next;
        }
        ids.extend(after);
        Ok(ids)
    }

    fn unbroken(&self, text: &str, add_special: bool, max: u32) -> Result<Vec<u32>, TextFault> {
        if text.len() > UNBROKEN_BYTES_MAX {
            return Err(TextFault::Unbroken { bytes: text.len(), limit: UNBROKEN_BYTES_MAX });
        }
        let ids = self.once(text, add_special)?;
        if ids.len() > max as usize {
            return Err(TextFault::TooLong { tokens_max: max });
        }
        Ok(ids)
    }

    fn once(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextFault> {
        let encoding = self
            .tokenizer
            .encode_fast(text, add_special)
            .map_err(|why| TextFault::TokenizerFailed(why.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The next piece of a text, and what follows it.
    fn take<'a>(&self, text: &'a str) -> Result<(&'a str, &'a str), TextFault> {
        let mut bytes = self.piece;
        if let Some(cut) = self.cut {
            while bytes < text.len() && bytes <= UNBROKEN_BYTES_MAX {
                let end = floor(text, bytes);
                // In the later half of what was not looked at yet.
                let from = floor(text, bytes / 2);
                if let Some(at) = self.find_cut(text, from, end, cut) {
                    let dropped = if cut == Cut::Drop { 1 } else { 0 };
                    return Ok((&text[..at], &text[at + dropped..]));
                }
                bytes *= 2;
            }
        }
        if text.len() > UNBROKEN_BYTES_MAX {
            return Err(TextFault::Unbroken { bytes: text.len(), limit: UNBROKEN_BYTES_MAX });
        }
        Ok((text, ""))
    }

    fn find_cut(&self, text: &str, from: usize, end: usize, cut: Cut) -> Option<usize> {
        let is_mark = |c: char| match cut {
            Cut::Keep => matches!(c, ' ' | '\n' | ',' | '.' | '，' | '。'),
            Cut::Drop => c == ' ',
        };
        let stretch = &text[from..end];
        let marks = stretch.char_indices().rev().filter(|(_, c)| is_mark(*c));
        let places = marks.map(|(at, c)| (from + at, c)).filter(|(at, c)| {
            let before = text[..*at].chars().next_back();
            let after = text[at + c.len_utf8()..].chars().next();
            before.is_some_and(is_letter) && after.is_some_and(is_letter)
        });
        places.map(|(at, _)| at).take(TRIES_MAX).find(|at| self.may_cut(text, *at, cut))
    }

    /// Whether the text around this place has the same ids in two pieces as in one.
    fn may_cut(&self, text: &str, at: usize, cut: Cut) -> bool {
        let from = floor(text, at.saturating_sub(self.window));
        let end = floor(text, at + self.window);
        let after = if cut == Cut::Drop { at + 1 } else { at };
        let ids = |from: usize, to: usize| self.once(&text[from..to], false);
        match (ids(from, end), ids(from, at), ids(after, end)) {
            (Ok(whole), Ok(mut left), Ok(right)) => {
                left.extend(right);
                left == whole
            }
            _ => false,
        }
    }

    /// The text of some ids, as the library has it.
    ///
    /// # Errors
    /// It fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextFault> {
        let added = self.tokenizer.get_added_vocabulary();
        let is_special = |id: &u32| {
            added.simple_id_to_token(*id).is_some_and(|token| added.is_special_token(&token))
        };
        // A decoder of the library panics on no tokens.
        if ids
            .iter()
            .all(|id| self.tokenizer.id_to_token(*id).is_none() || skip_special && is_special(id))
        {
            return Ok(String::new());
        }
        self.tokenizer
            .decode(ids, skip_special)
            .map_err(|why| TextFault::TokenizerFailed(why.to_string()))
    }
}

/// The last place at or before this byte where no character is cut.
fn floor(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// Letters that no rule of a pre-tokenizer joins to a space or a comma: ASCII, and the scripts that have no spaces.
fn is_letter(c: char) -> bool {
    matches!(c, 'a'..='z' | 'A'..='Z' | 'ぁ'..='ん' | 'ァ'..='ヺ' | '一'..='鿿' | '가'..='힣')
}

#[cfg(test)]
mod tests;
