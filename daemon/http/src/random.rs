//! Seeds and ids. Not for secrets.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};

/// A keyed hash of a counter; the key is drawn from the system once.
#[derive(Debug, Default)]
pub struct Random {
    key: RandomState,
    counter: AtomicU64,
}

impl Random {
    /// 64 bits that nobody has seen before.
    pub fn next(&self) -> u64 {
        self.key.hash_one(self.counter.fetch_add(1, Ordering::Relaxed))
    }

    /// An id that nothing else has.
    pub fn id(&self) -> String {
        format!("{:016x}{:016x}", self.next(), self.next())
    }
}

/// The seed of choice number `choice` of a request with this seed. The first keeps it, so that
/// `n = 1` and the first of `n = 4` say the same; the others are mixed by SplitMix64 (Steele, Lea
/// and Flood, 2014).
pub fn choice_seed(seed: u64, choice: u32) -> u64 {
    if choice == 0 {
        return seed;
    }
    let mut z = seed.wrapping_add(u64::from(choice).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_differ_and_the_first_keeps_the_seed() {
        assert_eq!(choice_seed(7, 0), 7);
        let seeds: std::collections::HashSet<_> = (0..1000).map(|i| choice_seed(7, i)).collect();
        assert_eq!(seeds.len(), 1000);
    }

    #[test]
    fn numbers_do_not_repeat() {
        let random = Random::default();
        assert_ne!(random.next(), random.next());
        assert_ne!(Random::default().next(), Random::default().next());
    }
}
