//! Philox4x32-10, a counter-based random number generator: any draw is computed from its key and
//! counter alone, with no state to carry. From Salmon, Moraes, Dror and Shaw, "Parallel random
//! numbers: as easy as 1, 2, 3", SC 2011, section 3.3.

const ROUNDS: usize = 10;
const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
const KEY_STEPS: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];

/// The 64 random bits for the token at `position` of a request with `seed`: the first two words
/// under the key `seed` (low word first) and the counter `(position, 0, 0, 0)`, low word first.
pub(super) fn uniform(seed: u64, position: u32) -> u64 {
    let [low, high, _, _] = philox4x32_10([position, 0, 0, 0], [seed as u32, (seed >> 32) as u32]);
    u64::from(high) << 32 | u64::from(low)
}

fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let product = |lane: usize| u64::from(counter[2 * lane]) * u64::from(MULTIPLIERS[lane]);
        let (p0, p1) = (product(0), product(1));
        counter = [
            (p1 >> 32) as u32 ^ counter[1] ^ key[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ counter[3] ^ key[1],
            p0 as u32,
        ];
        key = [key[0].wrapping_add(KEY_STEPS[0]), key[1].wrapping_add(KEY_STEPS[1])];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers published with the paper's reference implementation (Random123).
    #[test]
    fn known_answers() {
        let all = u32::MAX;
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(
            philox4x32_10([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32_10([all; 4], [all; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32_10(pi, [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn seed_and_position_both_count() {
        let mut draws: Vec<u64> = (0..8_u64)
            .flat_map(|seed| (0..8).map(move |position| uniform(seed << 30, position)))
            .collect();
        draws.sort_unstable();
        draws.dedup();
        assert_eq!(draws.len(), 64);
    }
}
