//! R1, R2, R9: runs and rows as the probers know them, beside the account as the cluster keeps it.

use std::collections::{BTreeMap, BTreeSet};

use probity_core::{State, account};
use probity_proto::reason::{Class, from_number};
use probity_proto::v1::*;

/// Runs, rows and acknowledgements.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// Every run, by assignment and slot.
    ran: BTreeSet<(u64, u64)>,
    ran_in_life: BTreeSet<(usize, u64, u64, u64)>,
    /// The runs of every row that was ever sent, by spool and sequence.
    sent: BTreeMap<(String, u64), Vec<(u64, u64)>>,
    /// Up to where each spool was acknowledged.
    acked: BTreeMap<String, u64>,
}

impl Rows {
    /// A run has ended. No slot runs twice in one life of a prober.
    pub(crate) fn ran(&mut self, (p, life): (usize, u64), assignment: u64, n: u64) -> Option<String> {
        self.ran.insert((assignment, n));
        let fresh = self.ran_in_life.insert((p, life, assignment, n));
        (!fresh).then(|| format!("prober {p} ran slot {n} of assignment {assignment} twice"))
    }

    pub(crate) fn sent(&mut self, rows: &[ReportRow]) {
        for row in rows {
            let mut n = row.first_n;
            let mut runs = Vec::new();
            for run in &row.outcomes {
                if from_number(run.reason).class() != Class::Missed {
                    runs.extend((n..n + u64::from(run.count)).map(|n| (row.assignment, n)));
                }
                n += u64::from(run.count);
            }
            self.sent.insert((row.spool_id.clone(), row.sequence), runs);
        }
    }

    pub(crate) fn acked(&mut self, ack: &RowsAck) {
        let known = self.acked.entry(ack.spool_id.clone()).or_default();
        *known = (*known).max(ack.sequence);
    }

    /// R2: no run is counted twice, nor one that never was.
    pub(crate) fn counted_once(&self, state: &State) -> Option<String> {
        let counted = counted(state);
        let ran = self.ran.len() as u64;
        (counted > ran).then(|| format!("{counted} runs are counted, {ran} ran"))
    }

    /// R2: what was acknowledged is in the account.
    pub(crate) fn lost(&self, state: &State) -> Option<String> {
        for (spool, sequence) in &self.acked {
            let prober = state.probers.iter().find(|p| p.spool_id == *spool || p.retired_spools.contains(spool));
            let owner = spool.rsplit_once('-').map_or("", |(name, _)| name);
            match prober {
                _ if *sequence == 0 => {}
                // With a prober that was removed its retired spools were forgotten.
                None if was_removed(state, owner) => {}
                Some(p) if p.spool_id != *spool || p.last_sequence >= *sequence => {}
                Some(p) => return Some(format!("spool {spool} was acknowledged up to {sequence}, the state knows it up to {}", p.last_sequence)),
                None => return Some(format!("spool {spool} was acknowledged up to {sequence}, the state does not know it")),
            }
        }
        let acked: BTreeSet<(u64, u64)> = self
            .sent
            .iter()
            .filter(|((spool, sequence), _)| self.acked.get(spool).is_some_and(|a| a >= sequence))
            .flat_map(|(_, runs)| runs.iter().copied())
            .collect();
        let (counted, acked) = (counted(state), acked.len() as u64);
        // Rows that are no sense are refused, and say so.
        (counted < acked && state.meta().refused_rows == 0).then(|| format!("{acked} runs were acknowledged, {counted} are counted"))
    }
}

/// Runs that the cluster has counted, wherever.
fn counted(state: &State) -> u64 {
    let total = account::total(state, state.now());
    let sick = total.missed.get(&(Reason::ProberSick as u32)).copied().unwrap_or(0);
    total.good + total.bad + total.extra + sick
}

/// Whether a prober was ever removed by an operator.
fn was_removed(state: &State, prober: &str) -> bool {
    state.audit.iter().any(|a| a.action == "remove" && a.subject.strip_prefix("Prober/") == Some(prober))
}

/// What may have happened to slots in a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Excuses {
    pub(crate) probers_stopped: bool,
    pub(crate) clocks_set: bool,
    pub(crate) spools_lost: bool,
    /// So many slots the probers' clocks may have gone over, when cluster time turned out to be later than they thought.
    pub(crate) overslept_max: u64,
}

/// R9: slots that were missed for a reason that nothing in this run can explain.
pub(crate) fn unexplained_misses(state: &State, excuses: Excuses) -> Option<String> {
    let Excuses { probers_stopped, clocks_set, spools_lost, overslept_max } = excuses;
    let removed = state.probers.iter().any(|p| was_removed(state, &p.name));
    let total = account::total(state, state.now());
    let at_most = |reason: Reason| match reason {
        // Faults of game days make a prober look sick: its own checks fail, those of the others do not.
        Reason::AssignedLate | Reason::ProberSick => u64::MAX,
        Reason::ProberOff if probers_stopped || clocks_set => u64::MAX,
        Reason::SpoolReplaced if spools_lost => u64::MAX,
        Reason::SpoolDropped if clocks_set || spools_lost => u64::MAX,
        Reason::ProberLost if removed => u64::MAX,
        Reason::Overloaded => overslept_max,
        _ => 0,
    };
    let found = total.missed.iter().find(|(reason, n)| **n > at_most(from_number(**reason as i32)));
    found.map(|(reason, n)| {
        let reason = from_number(*reason as i32);
        format!("{n} slots are missed({}), what happened in this run explains {}", reason.label(), at_most(reason))
    })
}

/// R10: an objective's ledger says what the account of its probe says; what is missing is neither good nor bad.
pub(crate) fn ledger_differs(state: &State, probe: &str) -> Option<String> {
    let ledger = state.ledgers.get(&format!("default/{probe}"))?;
    // An operator may have made the probe before its objective came: what ran until then is the account's alone.
    let mut made = state.checks.iter().filter(|c| c.probe == probe).map(|c| c.created_at_us);
    let mut made_and_gone = state.retired_checks.iter().filter(|c| c.probe == probe).map(|c| c.created_at_us);
    if made.any(|at| at < ledger.created_at_us) || made_and_gone.any(|at| at < ledger.created_at_us) {
        return None;
    }
    let account = account::of_probe(state, "default", probe, state.now());
    let hourly = ledger.series.iter().max_by_key(|s| s.width_us)?;
    let (mut good, mut bad, mut missed) = (0, 0, 0);
    for bucket in &hourly.buckets {
        good += bucket.good;
        bad += bucket.bad;
        missed += bucket.missed;
    }
    let (ledger, account) = ((good, bad, missed), (account.good, account.bad, account.missed_total()));
    (ledger != account).then(|| format!("good, bad and missed of {probe} are {ledger:?} in the ledger, {account:?} in the account"))
}
