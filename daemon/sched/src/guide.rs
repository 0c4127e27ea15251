//! Which tokens may come next in a request's output.
//!
//! Owns: masks, `[vocab / 32]` words of a bit for each token, the lowest bit of a word for its first. Must never: depend on anything
//! but a request's parameters and its output, so that a mask is the same after a preemption, or on another worker.
//!
//! A mask may depend on the token before, so that it comes late: see [`crate::Late`].

use minisgl_proto::SamplingParams;

use crate::held::Held;

/// Tokens of a word of a mask.
const BITS: usize = u32::BITS as usize;

/// Words of a mask over `vocab_size` tokens.
pub const fn mask_words(vocab_size: usize) -> usize {
    vocab_size.div_ceil(BITS)
}

/// Whether a mask allows a token. Those past its end are not allowed.
pub fn is_allowed(mask: &[u32], token: u32) -> bool {
    mask.get(token as usize / BITS).is_some_and(|word| word >> (token as usize % BITS) & 1 == 1)
}

/// What a request says about its output.
#[derive(Debug)]
pub(crate) struct Guide {
    /// What is allowed whatever came before.
    always: Vec<u32>,
    /// Sequences of two tokens and more that do not come.
    avoided: Vec<Vec<u32>>,
    /// What else it is held to.
    held: Option<Held>,
    /// Why no token may come, once that is so.
    stuck: Option<Stuck>,
}

/// Why no token may come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stuck {
    /// What the output is held to says so.
    Held(String),
    /// All that the request says together leaves none.
    Together,
}

/// The field to name where a request rules every token out.
pub(crate) fn field_of(sampling: &SamplingParams) -> String {
    if let Some(guided) = &sampling.guided {
        guided.field.clone()
    } else if !sampling.bad_words.is_empty() {
        "bad_words".to_owned()
    } else if !sampling.allowed_token_ids.is_empty() {
        "allowed_token_ids".to_owned()
    } else {
        "min_tokens".to_owned()
    }
}

impl Guide {
    /// What `sampling` says, which is taken from it, and `held`; `None` if every token may come at any time. Token ids are below
    /// `vocab_size`.
    pub(crate) fn take(
        sampling: &mut SamplingParams,
        held: Option<Held>,
        vocab_size: u32,
    ) -> Option<Guide> {
        let allowed = std::mem::take(&mut sampling.allowed_token_ids);
        let bad_words = std::mem::take(&mut sampling.bad_words);
        if allowed.is_empty() && bad_words.is_empty() && held.is_none() {
            return None;
        }
        let mut always = if allowed.is_empty() {
            all(vocab_size as usize)
        } else {
            vec![0; mask_words(vocab_size as usize)]
        };
        for token in allowed {
            always[token as usize / BITS] |= 1 << (token as usize % BITS);
        }
        let (words, avoided) = bad_words.into_iter().partition::<Vec<_>, _>(|word| word.len() == 1);
        for word in words {
            forbid(&mut always, word[0]);
        }
        Some(Guide { always, avoided, held, stuck: None })
    }

    /// Whether there is a token that may come first.
    pub(crate) fn allows_any(&self) -> bool {
        self.always.iter().any(|&word| word != 0)
    }

    /// Appends the mask of the token after `output`, which [`Guide::held`] has still to narrow.
    pub(crate) fn push_mask(&self, output: &[u32], masks: &mut Vec<u32>) {
        let at = masks.len();
        masks.extend_from_slice(&self.always);
        for token in self.forbidden(output) {
            forbid(&mut masks[at..], token);
        }
    }

    /// What it is held to beside that.
    pub(crate) fn held(&self) -> Option<&Held> {
        self.held.as_ref()
    }

    /// No token may come any more, and why.
    pub(crate) fn get_stuck(&mut self, why: Stuck) {
        self.stuck.get_or_insert(why);
    }

    /// Why no token may come, if so.
    pub(crate) fn stuck(&self) -> Option<&Stuck> {
        self.stuck.as_ref()
    }

    /// Whether `token` may come after `output`, as far as lists say.
    pub(crate) fn allows(&self, output: &[u32], token: u32) -> bool {
        is_allowed(&self.always, token) && self.forbidden(output).all(|other| other != token)
    }

    /// Last tokens of the sequences of which `output` ends with the rest.
    fn forbidden<'a>(&'a self, output: &'a [u32]) -> impl Iterator<Item = u32> + 'a {
        self.avoided.iter().filter_map(|word| {
            let (&last, before) = word.split_last()?;
            output.ends_with(before).then_some(last)
        })
    }
}

/// Appends a mask that allows every token.
pub(crate) fn push_all(vocab_size: usize, masks: &mut Vec<u32>) {
    masks.extend(all(vocab_size));
}

/// A mask that allows every token.
pub(crate) fn all(vocab_size: usize) -> Vec<u32> {
    let mut mask = vec![u32::MAX; mask_words(vocab_size)];
    if let Some(last) = mask.last_mut().filter(|_| !vocab_size.is_multiple_of(BITS)) {
        *last = (1 << (vocab_size % BITS)) - 1;
    }
    mask
}

fn forbid(mask: &mut [u32], token: u32) {
    mask[token as usize / BITS] &= !(1 << (token as usize % BITS));
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCAB: u32 = 70;

    fn allowed_after(guide: &Guide, output: &[u32]) -> Vec<u32> {
        let mut masks = vec![7; 2];
        guide.push_mask(output, &mut masks);
        assert_eq!(masks.len(), 2 + mask_words(VOCAB as usize), "appended");
        let allowed: Vec<u32> = (0..VOCAB + 50).filter(|&t| is_allowed(&masks[2..], t)).collect();
        let asked: Vec<u32> = (0..VOCAB).filter(|&t| guide.allows(output, t)).collect();
        assert_eq!(allowed, asked, "one token is asked for as the mask says");
        allowed
    }

    #[test]
    fn what_asks_for_nothing_has_no_guide() {
        assert!(Guide::take(&mut SamplingParams::default(), None, VOCAB).is_none());
    }

    #[test]
    fn only_allowed_tokens_come() {
        let mut sampling =
            SamplingParams { allowed_token_ids: vec![69, 0, 33, 33], ..SamplingParams::default() };
        let guide = Guide::take(&mut sampling, None, VOCAB).expect("it has one");
        assert_eq!(allowed_after(&guide, &[]), [0, 33, 69]);
        assert_eq!(allowed_after(&guide, &[33, 0]), [0, 33, 69]);
    }

    #[test]
    fn the_last_token_of_a_bad_word_does_not_come_after_the_others() {
        let bad_words = vec![vec![5], vec![1, 2, 3], vec![2, 4], vec![7, 7]];
        let mut sampling = SamplingParams { bad_words, ..SamplingParams::default() };
        let guide = Guide::take(&mut sampling, None, VOCAB).expect("it has one");
        let missing = |output: &[u32]| {
            let allowed = allowed_after(&guide, output);
            (0..VOCAB).filter(|token| !allowed.contains(token)).collect::<Vec<_>>()
        };
        assert_eq!(missing(&[]), [5]);
        assert_eq!(missing(&[1, 2]), [3, 4, 5]);
        assert_eq!(missing(&[9, 2]), [4, 5], "only part of a word came before");
        assert_eq!(missing(&[7]), [5, 7]);
        assert_eq!(missing(&[1]), [5]);
    }

    #[test]
    fn a_guide_may_leave_nothing() {
        let mut sampling = SamplingParams {
            allowed_token_ids: vec![3],
            bad_words: vec![vec![3]],
            ..SamplingParams::default()
        };
        assert!(!Guide::take(&mut sampling, None, VOCAB).expect("it has one").allows_any());
    }
}
