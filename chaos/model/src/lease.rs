//! The lease of a fault: it ends when nobody renews it, and at its own end whoever renews it (rule R5).
//!
//! Times are of one monotonic clock of the host; the wall clock, which can be set back, has no say.

/// How long a fault may live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    ends_at_us: u64,
    not_after_us: u64,
}

impl Lease {
    /// From now for `lease_us`, renewed or not never longer than `not_after_us` from now.
    pub fn new(now_us: u64, lease_us: u64, not_after_us: u64) -> Lease {
        Lease { ends_at_us: now_us.saturating_add(lease_us), not_after_us: now_us.saturating_add(not_after_us) }
    }

    /// Prolongs it to `lease_us` from now.
    pub fn renew(&mut self, now_us: u64, lease_us: u64) {
        self.ends_at_us = now_us.saturating_add(lease_us);
    }

    /// Why it is over; none while it lasts.
    pub fn over(&self, now_us: u64) -> Option<&'static str> {
        if now_us >= self.not_after_us {
            Some("its time was over")
        } else if now_us >= self.ends_at_us {
            Some("its lease ended: nobody renewed it")
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_renewal_passes_its_end() {
        let mut lease = Lease::new(100, 10, 25);
        assert_eq!((lease.over(109), lease.over(110)), (None, Some("its lease ended: nobody renewed it")));
        lease.renew(108, 10);
        assert_eq!(lease.over(117), None);
        lease.renew(117, 10);
        assert_eq!((lease.over(124), lease.over(125)), (None, Some("its time was over")));
    }
}
