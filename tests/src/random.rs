//! Numbers that look random and come again: xorshift64* (Vigna 2016, "An experimental exploration of
//! Marsaglia's xorshift generators").

/// A seeded sequence.
pub struct Random(u64);

impl Random {
    /// Starts at `seed` and prints it: a failing test's output says how to see it again.
    pub fn new(seed: u64) -> Self {
        println!("seed {seed}");
        Random(seed.max(1))
    }

    /// The next number, in `0..below`.
    pub fn below(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % below
    }
}
