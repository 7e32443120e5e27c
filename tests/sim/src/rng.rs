//! Randomness in separate streams, so that one more draw in one place does not shift all the others.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// One stream.
#[derive(Debug, Clone)]
pub(crate) struct Rng(ChaCha8Rng);

impl Rng {
    /// The stream of a name in a seed.
    pub(crate) fn new(seed: u64, name: &str) -> Rng {
        let mut key = [0u8; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        for (i, byte) in name.bytes().enumerate() {
            key[8 + i % 24] ^= byte.rotate_left(i as u32 / 24);
        }
        Rng(ChaCha8Rng::from_seed(key))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// In [0, n).
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.next() % n }
    }

    /// In [from, to].
    pub(crate) fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to.saturating_sub(from) + 1)
    }

    /// True this often, in parts per million.
    pub(crate) fn chance(&mut self, ppm: u64) -> bool {
        self.below(1_000_000) < ppm
    }

    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }

    /// Small values often, the largest seldom: in [from, to], by orders of magnitude.
    pub(crate) fn skewed(&mut self, from: u64, to: u64) -> u64 {
        let span = (to / from.max(1)).max(1).ilog2() + 1;
        let low = from.max(1) << self.below(u64::from(span));
        self.between(low.min(to), (low * 2).min(to))
    }
}
