//! Log-probabilities of the raw logits: `(z - z_max) - ln(sum of w / 2^40)`, with the weights of the
//! draw at temperature 1. Of all that sampling reports, only this logarithm may differ between
//! devices, in its last place.

use minisgl_proto::TokenLogprob;

use super::filter::{Candidate, keep_count, key};
use super::weight::{ONE, weight};
use super::{argmax, clean};

/// What turns clean logits into log-probabilities.
#[derive(Clone, Copy)]
pub(super) struct Normalizer {
    highest: f32,
    log_sum: f64,
}

pub(super) fn normalizer(logits: &[f32]) -> Normalizer {
    let (_, highest) = argmax(logits);
    let sum: u64 = logits.iter().map(|&logit| weight(logit - highest)).sum();
    Normalizer { highest, log_sum: (sum as f64 / ONE as f64).ln() }
}

/// The log-probability of a token with this clean logit; -inf for a logit of -inf.
pub(super) fn of(logit: f32, normalizer: Normalizer) -> f32 {
    if logit == f32::NEG_INFINITY {
        return logit;
    }
    (f64::from(logit - normalizer.highest) - normalizer.log_sum) as f32
}

/// The `count` most likely tokens, in the order of the ranking.
pub(super) fn top(
    logits: &[f32],
    normalizer: Normalizer,
    count: u32,
    candidates: &mut Vec<Candidate>,
) -> Vec<TokenLogprob> {
    if count == 0 {
        return Vec::new();
    }
    let all = logits.iter().enumerate();
    candidates.clear();
    candidates.extend(all.map(|(id, &logit)| Candidate {
        key: key(logit),
        id: id as u32,
        weight: 1,
    }));
    keep_count(candidates, count as usize);
    candidates.sort_unstable_by_key(|candidate| (!candidate.key, candidate.id));
    let logprob = |token: u32| of(clean(logits[token as usize]), normalizer);
    candidates
        .iter()
        .map(|candidate| TokenLogprob { token: candidate.id, logprob: logprob(candidate.id) })
        .collect()
}
