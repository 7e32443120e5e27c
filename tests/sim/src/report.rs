//! What a run says: how often each fault was really injected, a hash of everything that happened, and the broken rule.

use std::collections::BTreeMap;

/// How often something happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<&'static str, u64>);

impl Counts {
    /// Once more.
    pub fn add(&mut self, what: &'static str) {
        self.add_n(what, 1);
    }

    /// So many times more.
    pub fn add_n(&mut self, what: &'static str, n: u64) {
        if n > 0 {
            *self.0.entry(what).or_default() += n;
        }
    }

    /// Adds those of another run.
    pub fn merge(&mut self, other: &Counts) {
        for (what, n) in &other.0 {
            *self.0.entry(what).or_default() += n;
        }
    }

    /// How often one thing happened.
    pub fn get(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    /// All, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.0.iter().map(|(what, n)| (*what, *n))
    }
}

/// A running hash over all events (FNV-1a, which is the same everywhere and for ever).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trace(u64);

impl Trace {
    pub(crate) fn new() -> Trace {
        Trace(0xcbf2_9ce4_8422_2325)
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    pub(crate) fn number(&mut self, n: u64) {
        self.bytes(&n.to_le_bytes());
    }

    pub(crate) fn hash(self) -> u64 {
        self.0
    }
}

/// A rule that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Name of the rule: R1 to R14 of the design, or of raft, or "progress".
    pub rule: &'static str,
    /// What was seen.
    pub detail: String,
    /// When, in microseconds of the simulation.
    pub at_us: u64,
}

/// What came of one seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Which.
    pub seed: u64,
    /// Hash of everything that happened.
    pub trace: u64,
    /// What was injected, and what happened.
    pub counts: Counts,
    /// The first rule that was broken.
    pub violation: Option<Violation>,
}
