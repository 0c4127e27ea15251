//! Keeping the first part of a ranking without sorting it.
//!
//! The ranking is by key, the higher first, then by token id, the lower first. Both filters look for
//! the last candidate that still belongs, by a radix descent over the key: a histogram of the
//! highest byte finds the bin in which the wanted sum is reached, and so on to the lowest byte. That
//! is four passes whatever the logits are, and the same four on a GPU.

/// A token that may be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// [`key`] of its logit.
    pub(super) key: u32,
    /// Token id.
    pub(super) id: u32,
    /// Its share in the draw.
    pub(super) weight: u64,
}

/// Maps floats to integers of the same order. Takes no NaN and no -0.
pub(super) fn key(logit: f32) -> u32 {
    let bits = logit.to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

/// Top-k: keeps the first `count` candidates of the ranking, in the order they stand in.
pub(super) fn keep_count(candidates: &mut Vec<Candidate>, count: usize) {
    if count < candidates.len() {
        keep(candidates, count as u64, |_| 1);
    }
}

/// Top-p: keeps the fewest first candidates of the ranking whose weights reach `share` of the sum,
/// at least one, in the order they stand in.
pub(super) fn keep_mass(candidates: &mut Vec<Candidate>, share: f32) {
    let sum: u64 = candidates.iter().map(|candidate| candidate.weight).sum();
    let need = (f64::from(share) * sum as f64).ceil() as u64;
    if need < sum {
        keep(candidates, need.max(1), |candidate| candidate.weight);
    }
}

/// Keeps the fewest first candidates whose measures, all positive, add up to `need` at least.
/// `need` is positive and not above the sum of all.
fn keep(
    candidates: &mut Vec<Candidate>,
    mut need: u64,
    measure: impl Fn(&Candidate) -> u64 + Copy,
) {
    let mut last: u64 = 0;
    for shift in [24, 16, 8, 0] {
        let mut bins = [0_u64; 256];
        for candidate in candidates.iter() {
            let key = u64::from(candidate.key);
            if key >> (shift + 8) == last {
                bins[(key >> shift & 0xff) as usize] += measure(candidate);
            }
        }
        let mut bin = 255;
        while bin > 0 && bins[bin] < need {
            need -= bins[bin];
            bin -= 1;
        }
        last = last << 8 | bin as u64;
    }
    // What is still needed now must come from those equal to the last key, the lowest ids first.
    candidates.retain(|candidate| {
        let key = u64::from(candidate.key);
        if key != last {
            return key > last;
        }
        let wanted = need > 0;
        need = need.saturating_sub(measure(candidate));
        wanted
    });
}
