//! Cluster time: the leader advances log time by its monotonic clock from max(log time, wall clock at election); it never goes back.
//!
//! The host's two clocks are parameters: `mono_us` only ever grows, `wall_us` may be set at any time.

/// Cluster time as a member knows it.
#[derive(Debug, Clone, Copy)]
pub struct ClusterClock {
    base_us: i64,
    base_mono_us: u64,
}

impl ClusterClock {
    /// Before anything is known: the host's wall clock.
    pub fn new(wall_us: i64, mono_us: u64) -> ClusterClock {
        ClusterClock { base_us: wall_us, base_mono_us: mono_us }
    }

    /// This member leads from now on.
    pub fn lead_from(&mut self, log_time_us: i64, wall_us: i64, mono_us: u64) {
        *self = ClusterClock { base_us: log_time_us.max(wall_us), base_mono_us: mono_us };
    }

    /// A follower learns log time as it applies.
    pub fn follow(&mut self, log_time_us: i64, mono_us: u64) {
        if log_time_us > 0 {
            *self = ClusterClock { base_us: log_time_us, base_mono_us: mono_us };
        }
    }

    /// Cluster time now.
    pub fn now_us(&self, mono_us: u64) -> i64 {
        self.base_us + mono_us.saturating_sub(self.base_mono_us) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_time_never_goes_back_and_does_not_follow_the_wall() {
        let mut clock = ClusterClock::new(1_000, 0);
        clock.follow(5_000, 10);
        assert_eq!(clock.now_us(110), 5_100);
        // The wall clock lags behind log time: log time goes on.
        clock.lead_from(5_000, 2_000, 200);
        assert_eq!(clock.now_us(300), 5_100);
        // It is ahead at the election: log time jumps forward, once.
        clock.lead_from(5_100, 9_000, 400);
        assert_eq!((clock.now_us(400), clock.now_us(500)), (9_000, 9_100));
        clock.follow(0, 600);
        assert_eq!(clock.now_us(600), 9_200, "a log without a time says nothing");
    }
}
