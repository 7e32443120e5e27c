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
            match prober {
                _ if *sequence == 0 => {}
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

/// R9: slots that were missed for a reason that nothing in this run can explain.
pub(crate) fn unexplained_misses(state: &State, probers_stopped: bool, clocks_set: bool, clocks_stepped: bool, spools_lost: bool) -> Option<String> {
    let total = account::total(state, state.now());
    let allowed = |reason: Reason| match reason {
        // Faults of game days make a prober look sick: its own checks fail, those of the others do not.
        Reason::AssignedLate | Reason::ProberSick => true,
        Reason::ProberOff => probers_stopped || clocks_set,
        Reason::SpoolReplaced => spools_lost,
        Reason::SpoolDropped => clocks_set || spools_lost,
        Reason::Overloaded => clocks_set || clocks_stepped,
        _ => false,
    };
    let found = total.missed.iter().find(|(reason, n)| **n > 0 && !allowed(from_number(**reason as i32)));
    found.map(|(reason, n)| format!("{n} slots are missed({}) in a run that gives no reason for it", from_number(*reason as i32).label()))
}

/// R10: an objective's ledger says what the account of its probe says; what is missing is neither good nor bad.
pub(crate) fn ledger_differs(state: &State) -> Option<String> {
    let ledger = state.ledgers.get("default/steady")?;
    let account = account::of_probe(state, "default", "steady", state.now());
    let hourly = ledger.series.iter().max_by_key(|s| s.width_us)?;
    let (mut good, mut bad, mut missed) = (0, 0, 0);
    for bucket in &hourly.buckets {
        good += bucket.good;
        bad += bucket.bad;
        missed += bucket.missed;
    }
    let (ledger, account) = ((good, bad, missed), (account.good, account.bad, account.missed_total()));
    (ledger != account).then(|| format!("good, bad and missed are {ledger:?} in the ledger, {account:?} in the account"))
}
