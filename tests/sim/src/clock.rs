//! A host's two clocks: a monotonic one that drifts, a wall clock that is off and may be set at any moment.

/// True time zero of every simulation, on a perfect wall clock: a day in 2026.
pub(crate) const EPOCH_US: i64 = 1_780_000_000 * 1_000_000;

/// Clocks of one host. Times are of the simulation, which no host knows.
#[derive(Debug, Clone)]
pub(crate) struct HostClock {
    drift_ppm: i64,
    /// Where the monotonic clock stood when the drift last changed.
    base: (u64, u64),
    pub(crate) wall_offset_us: i64,
}

impl HostClock {
    pub(crate) fn new(drift_ppm: i64, wall_offset_us: i64, mono_us: u64) -> HostClock {
        HostClock { drift_ppm, base: (0, mono_us), wall_offset_us }
    }

    pub(crate) fn mono_us(&self, now: u64) -> u64 {
        let (at, mono) = self.base;
        let elapsed = (now - at) as i64;
        mono + (elapsed + elapsed * self.drift_ppm / 1_000_000) as u64
    }

    pub(crate) fn wall_us(&self, now: u64) -> i64 {
        EPOCH_US + now as i64 + self.wall_offset_us
    }

    pub(crate) fn set_drift(&mut self, now: u64, drift_ppm: i64) {
        self.base = (now, self.mono_us(now));
        self.drift_ppm = drift_ppm;
    }

    /// How long `us` of the monotonic clock take in true time.
    pub(crate) fn true_us(&self, us: u64) -> u64 {
        (us as i64 * 1_000_000 / (1_000_000 + self.drift_ppm)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_drift_does_not_move_the_monotonic_clock() {
        let mut clock = HostClock::new(500, 0, 1_000);
        assert_eq!(clock.mono_us(2_000_000), 2_002_000);
        clock.set_drift(2_000_000, -500);
        assert_eq!(clock.mono_us(2_000_000), 2_002_000);
        assert_eq!(clock.mono_us(4_000_000), 4_001_000);
        assert_eq!(clock.true_us(999_500), 1_000_000);
    }
}
