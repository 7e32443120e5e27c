//! The shape of one run, drawn from its seed: how many hosts, which faults, how often. Each run has some faults switched off
//! altogether, since one fault can hide what another would show.

use crate::net::Weather;
use crate::rng::Rng;

const SECOND: u64 = 1_000_000;

/// A class of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// Members split in two.
    Partition,
    /// Some directions of some links.
    OneWay,
    /// The leader alone.
    IsolateLeader,
    /// A process ends; its disk keeps everything.
    Kill,
    /// A host loses power: unsynced writes are lost or torn.
    PowerCut,
    /// A host loses power in the middle of a write or a sync.
    CrashInWrite,
    /// A prober's process or host ends.
    ProberCrash,
    /// A prober cannot be reached for long, most likely one that holds a fault.
    ProberAlone,
    /// A member stands still, and does not know it.
    Pause,
    /// A wall clock is set.
    ClockJump,
    /// A monotonic clock runs at another speed.
    Drift,
    /// Loss, delay, reordering, duplication.
    Weather,
    /// A member's disk is slow.
    SlowDisk,
    /// The targets of the probes are down.
    Outage,
    /// A member's disk has no more room.
    DiskFull,
    /// A sync fails.
    SyncError,
    /// Bits on a member's disk change by themselves.
    BitRot,
    /// Members join, are replaced and removed; leadership is handed over.
    Membership,
    /// Members run newer and older builds; the cluster's version is raised.
    Upgrade,
    /// A prober loses its disk.
    ProberWiped,
    /// Silent probers are removed by operators, and come back.
    ProberRemoved,
    /// What a probe's targets are discovered from changes, fails, is empty.
    Inventory,
}

const ALL: &[Fault] = &[
    Fault::Partition,
    Fault::OneWay,
    Fault::IsolateLeader,
    Fault::Kill,
    Fault::PowerCut,
    Fault::CrashInWrite,
    Fault::ProberCrash,
    Fault::ProberAlone,
    Fault::Pause,
    Fault::ClockJump,
    Fault::Drift,
    Fault::Weather,
    Fault::SlowDisk,
    Fault::Outage,
    Fault::DiskFull,
    Fault::SyncError,
    Fault::BitRot,
    Fault::Membership,
    Fault::Upgrade,
    Fault::ProberWiped,
    Fault::ProberRemoved,
    Fault::Inventory,
];

/// What a run is made of.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The first voters.
    pub(crate) members: usize,
    /// Hosts that may join later.
    pub(crate) spares: usize,
    /// A leader's entries leave while its own disk still writes.
    pub(crate) early: bool,
    pub(crate) probers: usize,
    pub(crate) clients: usize,
    /// Safety under faults until then.
    pub(crate) chaos_us: u64,
    /// Progress within this time after everything is healed.
    pub(crate) heal_us: u64,
    pub(crate) faults: Vec<Fault>,
    /// Time between two faults.
    pub(crate) pace_us: u64,
    pub(crate) weather: Weather,
    pub(crate) flush_entries: u64,
    pub(crate) flush_ticks: u64,
    /// Few bytes make many steps of one write of the state.
    pub(crate) piece_bytes: usize,
    /// Few bytes make many steps of a backlog.
    pub(crate) apply_bytes: u64,
    /// Few bytes make the state be written anew often.
    pub(crate) changes_bytes_min: u64,
    pub(crate) log_entries_max: u64,
    /// All election time-outs are within so many ticks: few make split votes likely.
    pub(crate) election_spread: u64,
    /// How often a member dies right after it has voted, in parts per million.
    pub(crate) crash_after_vote_ppm: u64,
    pub(crate) max_drift_ppm: u64,
    pub(crate) sync_us: u64,
    /// Whether the operator halts all game days at the end, or waits for them.
    pub(crate) halt_at_the_end: bool,
}

impl Plan {
    pub(crate) fn new(seed: u64) -> Plan {
        let rng = &mut Rng::new(seed, "plan");
        let members = match rng.below(10) {
            0 => 1,
            1 => 5,
            _ => 3,
        };
        let faults: Vec<Fault> = ALL.iter().copied().filter(|_| rng.percent(55)).collect();
        let weather = Weather {
            delay_us: (200, rng.skewed(1_000, 60_000)),
            loss_ppm: if rng.percent(60) { rng.skewed(1_000, 150_000) } else { 0 },
            duplicate_ppm: if rng.percent(50) { rng.skewed(1_000, 100_000) } else { 0 },
            late_ppm: if rng.percent(50) { rng.skewed(1_000, 100_000) } else { 0 },
            late_us: rng.skewed(20_000, 2 * SECOND),
        };
        let spares = if faults.contains(&Fault::Membership) { rng.below(3) as usize } else { 0 };
        // A small log makes whoever lags behind pull a snapshot.
        let log_entries_max = if rng.percent(40) { rng.between(8, 40) } else { rng.skewed(16, 2_000) };
        Plan {
            members,
            spares,
            early: rng.percent(80),
            probers: rng.between(1, 4) as usize,
            clients: rng.between(1, 3) as usize,
            chaos_us: if rng.percent(25) { rng.between(40, 60) } else { rng.between(8, 20) } * SECOND,
            heal_us: 180 * SECOND,
            faults,
            pace_us: rng.skewed(100_000, 3 * SECOND),
            weather,
            flush_entries: rng.skewed(8, 512),
            flush_ticks: rng.skewed(10, 200),
            log_entries_max,
            election_spread: rng.between(1, 10),
            crash_after_vote_ppm: if rng.percent(70) { rng.skewed(50_000, 500_000) } else { 0 },
            max_drift_ppm: rng.skewed(10, 500),
            sync_us: rng.skewed(50, 4_000),
            halt_at_the_end: rng.percent(30),
            piece_bytes: rng.skewed(200, 512 << 10) as usize,
            changes_bytes_min: rng.skewed(1_000, 8 << 20),
            apply_bytes: rng.skewed(100, 512 << 10),
        }
    }

    /// Hosts of coordinators.
    pub(crate) fn hosts(&self) -> usize {
        self.members + self.spares
    }

    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }
}
