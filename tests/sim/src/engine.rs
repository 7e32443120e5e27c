//! A prober's fault engine without the kernel: what it holds, under the product's own [`Lease`]s, and the journal that outlives
//! the process. The rules R4 and R5 are checked here, against true time.

use std::collections::{BTreeMap, BTreeSet};

use probity_core::gameday::LEASE_US;
use probity_scenario::Lease;

/// What a fault may outlive its lease by.
const GRACE_US: u64 = 1_000_000;

#[derive(Debug)]
struct Active {
    lease: Lease,
    /// True times, which only the simulation knows.
    renewed_at: u64,
    ends_by: u64,
}

/// The engine of one process.
#[derive(Debug, Default)]
pub(crate) struct Engine {
    active: BTreeMap<String, Active>,
}

/// What of a host outlives its processes.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    /// Faults that were begun and not undone.
    pub(crate) open: BTreeSet<String>,
    /// Everything that ever began here: nothing may begin twice.
    begun: BTreeSet<String>,
}

/// A fault to hold.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) id: String,
    pub(crate) lease_us: u64,
    pub(crate) not_after_us: u64,
}

impl Engine {
    /// Whether something disturbs this host's probes.
    pub(crate) fn disturbs(&self) -> bool {
        !self.active.is_empty()
    }

    /// Begins a fault; an error is a broken rule. `clock_us` is the clock that leases are measured by.
    pub(crate) fn start(&mut self, order: Order, journal: &mut Journal, clock_us: u64, now: u64) -> Result<(), String> {
        if !journal.begun.insert(order.id.clone()) {
            return Err(format!("fault {} began a second time", order.id));
        }
        journal.open.insert(order.id.clone());
        let lease = Lease::new(clock_us, order.lease_us, order.not_after_us);
        self.active.insert(order.id, Active { lease, renewed_at: now, ends_by: now.saturating_add(order.not_after_us) });
        Ok(())
    }

    pub(crate) fn renew(&mut self, id: &str, lease_us: u64, clock_us: u64, now: u64) {
        if let Some(active) = self.active.get_mut(id) {
            active.lease.renew(clock_us, lease_us);
            active.renewed_at = now;
        }
    }

    /// Ends a fault; whether there was one.
    pub(crate) fn end(&mut self, id: &str, journal: &mut Journal) -> bool {
        journal.open.remove(id);
        self.active.remove(id).is_some()
    }

    /// The faults that are over, and why.
    pub(crate) fn over(&self, clock_us: u64) -> Vec<(String, &'static str)> {
        self.active.iter().filter_map(|(id, a)| a.lease.over(clock_us).map(|why| (id.clone(), why))).collect()
    }

    /// R5: a fault that should have ended. Clocks may be off by `drift_ppm`.
    pub(crate) fn outlived(&self, now: u64, drift_ppm: u64) -> Option<String> {
        let slack = |us: u64| us / 1_000_000 * drift_ppm + GRACE_US;
        self.active.iter().find_map(|(id, a)| {
            let unrenewed = now.saturating_sub(a.renewed_at);
            let lease = LEASE_US as u64;
            let beyond = now.saturating_sub(a.ends_by);
            if unrenewed > lease + slack(lease) {
                Some(format!("fault {id} lives on {} ms after it was last renewed, its lease is {} ms", unrenewed / 1_000, lease / 1_000))
            } else if beyond > slack(600_000_000) {
                Some(format!("fault {id} lives on {} ms after its end", beyond / 1_000))
            } else {
                None
            }
        })
    }
}
