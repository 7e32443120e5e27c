//! Cluster time as a prober knows it: its own monotonic clock plus an offset, learned from the heartbeats' round trips.

/// How many samples the best is chosen from.
const SAMPLES: usize = 8;

/// An estimate of cluster time and its uncertainty.
#[derive(Debug, Clone)]
pub struct Clock {
    offset_us: i64,
    error_us: u64,
    /// (round trip, offset), newest last.
    samples: Vec<(u64, i64)>,
}

impl Clock {
    /// Before anything is known: the host's own wall clock, `offset_us` ahead of its monotonic one.
    pub fn new(offset_us: i64) -> Clock {
        Clock { offset_us, error_us: 1_000_000, samples: Vec::new() }
    }

    /// A round trip: sent and received by the own monotonic clock, answered with the cluster's time in between.
    pub fn on_sample(&mut self, sent_us: u64, received_us: u64, cluster_us: i64) {
        let round_trip = received_us.saturating_sub(sent_us);
        let middle = sent_us + round_trip / 2;
        if self.samples.len() == SAMPLES {
            self.samples.remove(0);
        }
        self.samples.push((round_trip, cluster_us - middle as i64));
        // The shortest round trip says most.
        if let Some((round_trip, offset)) = self.samples.iter().min_by_key(|(r, _)| *r) {
            self.offset_us = *offset;
            self.error_us = round_trip / 2 + 1;
        }
    }

    /// Cluster time at a moment of the own monotonic clock.
    pub fn cluster_us(&self, mono_us: u64) -> i64 {
        mono_us as i64 + self.offset_us
    }

    /// How far off it may be.
    pub fn error_us(&self) -> u64 {
        self.error_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_round_trip_counts() {
        let mut clock = Clock::new(0);
        clock.on_sample(1_000, 3_000, 1_000_002_000);
        assert_eq!((clock.cluster_us(2_000), clock.error_us()), (1_000_002_000, 1_001));
        clock.on_sample(10_000, 90_000, 1_000_070_000);
        assert_eq!(clock.error_us(), 1_001, "a slow answer says less");
        clock.on_sample(100_000, 100_100, 1_000_100_050);
        assert_eq!((clock.cluster_us(100_050), clock.error_us()), (1_000_100_050, 51));
    }
}
