//! Changes to bytes, from a seed: the same seed, the same bytes, in every process.

/// Splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    /// Below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Inputs grow no further: what is long is slow, and finds little.
const BYTES_MAX: usize = 4_096;
/// What parsers like to trip over.
const WORDS: [&[u8]; 16] = [
    b"\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80",
    b"\xc0\x0c",
    b"{",
    b"[",
    b"]",
    b"\"",
    b"\r\n",
    b"\n  ",
    b": ",
    b"&a *a",
    b"$(",
    b"99999999999999999999",
    b"\xf0\x9f\x98\x80",
];

/// A neighbour of one of the seeds: a few changes to it, or a mixture of two.
pub fn mutated(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = seeds.get(random.below(seeds.len())).cloned().unwrap_or_default();
    for _ in 0..=random.below(6) {
        change(&mut bytes, seeds, random);
    }
    bytes.truncate(BYTES_MAX);
    bytes
}

fn change(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    let length = random.below(16).min(bytes.len() - at);
    match random.below(9) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        1 if at < bytes.len() => bytes[at] = random.below(256) as u8,
        2 => drop(bytes.drain(at..at + length)),
        3 => bytes.truncate(at),
        4 => {
            // The same again, up to a hundred times: what nests, and what repeats.
            let piece = bytes[at..at + length].repeat(1 + random.below(100));
            drop(bytes.splice(at..at, piece));
        }
        5 | 6 => drop(bytes.splice(at..at, WORDS[random.below(WORDS.len())].iter().copied())),
        7 => {
            let other = seeds.get(random.below(seeds.len())).map_or(&[][..], Vec::as_slice);
            let from = random.below(other.len() + 1);
            let to = from + random.below(other.len() - from + 1);
            drop(bytes.splice(at..at + length, other[from..to].iter().copied()));
        }
        _ => {
            // A number of several bytes, in the place of one.
            let width = [1, 2, 4, 8][random.below(4)].min(bytes.len() - at);
            let value = [0, 1, 0xff, u64::MAX, 1 << 31, bytes.len() as u64][random.below(6)];
            bytes[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
        }
    }
}
