//! Keeping the first part of a ranking without sorting it, and drawing from what is left.
//!
//! The ranking is by key, the higher first, then by token id, the lower first. Both filters look for
//! the last candidate that still belongs, by a radix descent over the key: a histogram of the
//! highest bits finds the bin in which the wanted sum is reached, and so on to the lowest bits. That
//! is three passes whatever the logits are, and the same three on a GPU.

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
    for (shift, bits) in [(21, 11), (10, 11), (0, 10)] {
        let mut bins = [0_u64; 1 << 11];
        let mask = (1 << bits) - 1;
        for candidate in candidates.iter() {
            let key = u64::from(candidate.key);
            if key >> (shift + bits) == last {
                bins[(key >> shift & mask) as usize] += measure(candidate);
            }
        }
        let mut bin = mask as usize;
        while bin > 0 && bins[bin] < need {
            need -= bins[bin];
            bin -= 1;
        }
        last = last << bits | bin as u64;
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

/// The first candidate with which the running sum of weights exceeds `floor(uniform * sum / 2^64)`;
/// `None` without candidates.
pub(super) fn draw(candidates: &[Candidate], uniform: u64) -> Option<u32> {
    let sum: u64 = candidates.iter().map(|candidate| candidate.weight).sum();
    let target = ((u128::from(uniform) * u128::from(sum)) >> 64) as u64;
    let mut running = 0;
    let drawn = candidates.iter().find(|candidate| {
        running += candidate.weight;
        running > target
    });
    drawn.map(|candidate| candidate.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(weights: &[u64]) -> Vec<Candidate> {
        let ids = weights.iter().zip(0..);
        ids.map(|(&weight, id)| Candidate { key: weight as u32, id, weight }).collect()
    }

    fn ids(candidates: &[Candidate]) -> Vec<u32> {
        candidates.iter().map(|candidate| candidate.id).collect()
    }

    #[test]
    fn mass_is_rounded_up_and_ties_go_to_low_ids() {
        for (share, kept) in [
            (0.0, vec![1]),
            (0.299, vec![1]),
            (0.31, vec![0, 1]),       // 3.1 of 10 is 4
            (0.5, vec![0, 1]),        // 5 is 5
            (0.6, vec![0, 1, 2]),     // in f32 a little above 0.6, so 7
            (0.75, vec![0, 1, 2, 3]), // 7.5 is 8
            (0.9, vec![0, 1, 2, 3]),
            (0.91, vec![0, 1, 2, 3, 4]),
        ] {
            let mut all = candidates(&[2, 3, 2, 2, 1]);
            keep_mass(&mut all, share);
            assert_eq!(ids(&all), kept, "{share}");
        }
    }

    #[test]
    fn count_is_exact_among_ties() {
        for (count, kept) in
            [(1, vec![1]), (2, vec![0, 1]), (3, vec![0, 1, 2]), (9, vec![0, 1, 2, 3])]
        {
            let mut all = candidates(&[5, 9, 5, 5]);
            keep_count(&mut all, count);
            assert_eq!(ids(&all), kept);
        }
    }

    #[test]
    fn the_draw_cuts_the_range_in_proportion() {
        let all = candidates(&[1, 2, 1]);
        let quarter = 1_u64 << 62;
        let at = |uniform| draw(&all, uniform);
        assert_eq!([at(0), at(quarter - 1)], [Some(0); 2]);
        assert_eq!([at(quarter), at(3 * quarter - 1)], [Some(1); 2]);
        assert_eq!([at(3 * quarter), at(u64::MAX)], [Some(2); 2]);
        assert_eq!(draw(&[], 7), None);
    }

    #[test]
    fn keys_keep_the_order_of_floats() {
        let floats = [f32::NEG_INFINITY, f32::MIN, -1.0, -1e-45, 0.0, 1e-45, 2.0, f32::MAX];
        assert!(floats.is_sorted_by(|&a, &b| key(a) < key(b)));
    }
}
