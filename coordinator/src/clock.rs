//! Cluster time by this host's clocks.

use std::sync::Mutex;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The clock of this member.
#[derive(Debug)]
pub(crate) struct ClusterClock {
    start: Instant,
    inner: Mutex<probity_replica::ClusterClock>,
}

pub(crate) fn wall_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as i64
}

impl ClusterClock {
    pub(crate) fn new() -> ClusterClock {
        ClusterClock { start: Instant::now(), inner: Mutex::new(probity_replica::ClusterClock::new(wall_us(), 0)) }
    }

    pub(crate) fn mono_us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    /// This member leads from now on.
    pub(crate) fn lead_from(&self, log_time_us: i64, wall_us: i64, mono_us: u64) {
        if let Ok(mut inner) = self.inner.lock() {
            inner.lead_from(log_time_us, wall_us, mono_us);
        }
    }

    /// A follower learns log time as it applies.
    pub(crate) fn follow(&self, log_time_us: i64) {
        if let Ok(mut inner) = self.inner.lock() {
            inner.follow(log_time_us, self.mono_us());
        }
    }

    /// Cluster time now.
    pub(crate) fn now_us(&self) -> i64 {
        self.inner.lock().map_or_else(|_| wall_us(), |inner| inner.now_us(self.mono_us()))
    }
}
