//! Cluster time: the leader advances log time by its monotonic clock from max(log time, wall clock at election); it never goes back.

use std::sync::Mutex;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The clock of this member.
#[derive(Debug)]
pub(crate) struct ClusterClock {
    base: Mutex<(i64, Instant)>,
}

pub(crate) fn wall_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as i64
}

impl ClusterClock {
    pub(crate) fn new() -> ClusterClock {
        ClusterClock { base: Mutex::new((wall_us(), Instant::now())) }
    }

    /// This member leads from now on.
    pub(crate) fn lead_from(&self, log_time_us: i64) {
        self.set(log_time_us.max(wall_us()));
    }

    /// A follower learns log time as it applies.
    pub(crate) fn follow(&self, log_time_us: i64) {
        if log_time_us > 0 {
            self.set(log_time_us);
        }
    }

    fn set(&self, us: i64) {
        if let Ok(mut base) = self.base.lock() {
            *base = (us, Instant::now());
        }
    }

    /// Cluster time now.
    pub(crate) fn now_us(&self) -> i64 {
        self.base.lock().map_or_else(|_| wall_us(), |base| base.0 + base.1.elapsed().as_micros() as i64)
    }
}
