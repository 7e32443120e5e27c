//! Slot arithmetic: slot n of a check on a prober is due at `phase + n * interval`, in cluster time since the Unix epoch.
//!
//! Integers only, so that the core and a prober never disagree about what was planned.

/// When slots of one check are due on one prober.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// Microseconds between slots; at least 1.
    pub interval_us: u64,
    /// Offset in [0, interval).
    pub phase_us: u64,
}

impl Schedule {
    /// When slot `n` is due; the end of time for an `n` beyond it.
    pub fn due(&self, n: u64) -> i64 {
        i64::try_from(n.saturating_mul(self.interval_us).saturating_add(self.phase_us)).unwrap_or(i64::MAX)
    }

    /// The first slot that is due at or after `t` (0 for times before the epoch).
    pub fn first_at_or_after(&self, t: i64) -> u64 {
        let t = t.max(0) as u64;
        t.saturating_sub(self.phase_us).div_ceil(self.interval_us)
    }

    /// How many slots are due in `[from, until)`.
    pub fn count(&self, from: i64, until: i64) -> u64 {
        self.first_at_or_after(until).saturating_sub(self.first_at_or_after(from))
    }
}
