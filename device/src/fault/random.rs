//! Reproducible random numbers.

/// Splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Whether an event of this probability happens.
    #[allow(clippy::cast_precision_loss)] // 53 bits are what a double holds.
    pub(super) fn chance(&mut self, probability: f64) -> bool {
        probability >= 1.0 || (self.next() >> 11) as f64 / ((1u64 << 53) as f64) < probability
    }
}

/// `count` bit positions below `bits`, determined by `seed`.
pub(super) fn flipped_bits(count: u32, seed: u64, bits: u64) -> impl Iterator<Item = u64> {
    let mut random = Random::new(seed);
    (0..count)
        .filter(move |_| bits > 0)
        .map(move |_| random.next() % bits)
}
