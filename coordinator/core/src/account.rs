//! The account of slots (rules R1, R2, R10): planned = good + bad + missed(reason) + pending.
//!
//! What was planned comes from the assignments' intervals, never from a prober. Rows are applied exactly once, in order;
//! whatever a row leaves out is missed, with a reason.

use probity_proto::reason::{self, Class};
use probity_proto::v1::*;

use crate::fleet::RETIRED_SPOOLS_KEPT;
use crate::state::State;
use crate::{assign, checks, gameday, number_key, slo, verdict};

/// A prober's spool keeps rows this long; an hour later nobody waits for them any more.
pub const SPOOL_AGE_US: i64 = 24 * 3_600 * 1_000_000;
const GIVEN_UP_AFTER_US: i64 = SPOOL_AGE_US + 3_600 * 1_000_000;
/// A row with more slots is nonsense.
const ROW_SLOTS_MAX: u64 = 1_000_000;
/// How many outcomes of a prober a check shows.
const RECENT_KEPT: u64 = 60;
/// How many details of a prober a check shows.
const DETAILS_KEPT: usize = 4;

/// An account that adds up, or says by how much it does not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccountView {
    /// Slots that were due.
    pub planned: u64,
    /// Runs that met what is expected.
    pub good: u64,
    /// Runs that did not.
    pub bad: u64,
    /// Slots without a run that counts, by [`Reason`] number.
    pub missed: std::collections::BTreeMap<u32, u64>,
    /// Due, not yet reported.
    pub pending: u64,
    /// Runs outside any interval.
    pub extra: u64,
    /// What the sum lacks; anything but 0 is a bug.
    pub unexplained: i64,
}

impl AccountView {
    /// All missed slots.
    pub fn missed_total(&self) -> u64 {
        self.missed.values().sum()
    }

    fn add_closed(&mut self, account: &Account) {
        self.planned += account.planned;
        self.good += account.good;
        self.bad += account.bad;
        self.extra += account.extra;
        for (reason, count) in &account.missed {
            *self.missed.entry(*reason).or_default() += count;
        }
    }

    fn add(&mut self, a: &AssignmentRecord, t: i64) {
        let end = assign::end_n(a, t);
        // A run that finished early is reported before the reader's clock reaches its slot.
        self.planned += end.max(a.next_n) - a.first_n;
        self.pending += end.saturating_sub(a.next_n);
        self.good += a.good;
        self.bad += a.bad;
        self.extra += a.extra;
        for (reason, count) in &a.missed {
            *self.missed.entry(*reason).or_default() += count;
        }
    }

    fn finish(mut self) -> Self {
        let known = self.good + self.bad + self.missed_total() + self.pending;
        self.unexplained = self.planned as i64 - known as i64;
        self
    }
}

/// The account of everything, as of `t`.
pub fn total(state: &State, t: i64) -> AccountView {
    let mut view = AccountView::default();
    if let Some(closed) = &state.meta().closed {
        view.add_closed(closed);
    }
    for closed in state.checks.iter().filter_map(|c| c.closed.as_ref()) {
        view.add_closed(closed);
    }
    for a in state.assignments.iter() {
        view.add(a, t);
    }
    view.finish()
}

/// The account of a probe, as of `t`.
pub fn of_probe(state: &State, namespace: &str, probe: &str, t: i64) -> AccountView {
    let mut view = AccountView::default();
    for check in checks::of_probe(state, namespace, probe) {
        if let Some(closed) = state.checks.get(&check).and_then(|c| c.closed.as_ref()) {
            view.add_closed(closed);
        }
        for a in assign::of_check(state, &check) {
            view.add(a, t);
        }
    }
    view.finish()
}

/// Takes rows in, in their order.
pub(crate) fn accept(state: &mut State, rows: &[ReportRow]) {
    for row in rows {
        if next_in_order(state, row) {
            row_content(state, row);
        }
    }
}

/// Whether a row is the next of its prober's spool (rule R2); remembers that it came.
fn next_in_order(state: &mut State, row: &ReportRow) -> bool {
    let Some(prober) = state.probers.get(&row.prober) else { return false };
    let same = prober.spool_id == row.spool_id;
    let fresh = !same && row.sequence == 1 && !row.spool_id.is_empty() && !prober.retired_spools.contains(&row.spool_id);
    if !(fresh || same && row.sequence == prober.last_sequence + 1) {
        return false;
    }
    let Some(prober) = state.probers.get_mut(&row.prober) else { return false };
    if fresh {
        let old = std::mem::replace(&mut prober.spool_id, row.spool_id.clone());
        if !old.is_empty() {
            prober.retired_spools.push(old);
            if prober.retired_spools.len() > RETIRED_SPOOLS_KEPT {
                prober.retired_spools.remove(0);
            }
        }
    }
    prober.last_sequence = row.sequence;
    true
}

fn row_content(state: &mut State, row: &ReportRow) {
    let slots: u64 = row.outcomes.iter().map(|o| u64::from(o.count)).sum();
    let end_of_row = row.first_n.checked_add(slots);
    if slots > ROW_SLOTS_MAX || end_of_row.is_none() {
        return;
    }
    let key = number_key(row.assignment);
    let Some(a) = state.assignments.get(&key).filter(|a| a.prober == row.prober).cloned() else {
        // Runs of an assignment that was given up or never was: shown, in no SLI.
        let closed = state.meta_mut().closed.get_or_insert_default();
        closed.extra += slots;
        return;
    };
    let end = if a.until_us == 0 { u64::MAX } else { assign::end_n(&a, a.until_us) };
    if row.first_n > a.next_n {
        let owed = row.first_n.min(end) - a.next_n.min(end);
        missed(state, &a, a.next_n, owed, gap_reason(state, row));
    }
    let mut n = row.first_n;
    for run in &row.outcomes {
        let reason = reason::from_number(run.reason);
        let (from, to) = (n, n + u64::from(run.count));
        n = to;
        let next = state.assignments.get(&key).map_or(u64::MAX, |a| a.next_n);
        let counted_from = from.max(next);
        let counted_to = to.min(end);
        if counted_to > counted_from {
            count(state, &a, counted_from, counted_to - counted_from, reason, run.slower_than, row);
        }
        let extra = to.saturating_sub(from.max(end));
        if extra > 0
            && let Some(a) = state.assignments.get_mut(&key)
        {
            a.extra += extra;
        }
    }
    show(state, &a, row);
    fold_if_done(state, row.assignment);
}

/// Why slots between two rows are missing: a new spool, or one that had to drop.
fn gap_reason(state: &State, row: &ReportRow) -> Reason {
    let replaced = row.sequence == 1 && state.probers.get(&row.prober).is_some_and(|p| !p.retired_spools.is_empty());
    if replaced { Reason::SpoolReplaced } else { Reason::SpoolDropped }
}

fn missed(state: &mut State, a: &AssignmentRecord, from: u64, slots: u64, reason: Reason) {
    if slots > 0 {
        count(state, a, from, slots, reason, 0, &ReportRow::default());
    }
}

/// Adds slots [from, from + slots) of one outcome to every account that they belong to.
fn count(state: &mut State, a: &AssignmentRecord, from: u64, slots: u64, reason: Reason, slower_than: u32, row: &ReportRow) {
    if let Some(a) = state.assignments.get_mut(&number_key(a.id)) {
        a.next_n = from + slots;
        match reason.class() {
            Class::Good => a.good += slots,
            Class::Bad => {
                a.bad += slots;
                *a.bad_by_reason.entry(reason as u32).or_default() += slots;
            }
            Class::Missed => *a.missed.entry(reason as u32).or_default() += slots,
        }
    }
    let facts = slo::SlotFacts { assignment: a, first_n: from, count: slots, reason, slower_than };
    slo::ledger::on_slots(state, &facts);
    if reason.class() == Class::Bad {
        let detail = row.details.iter().find(|d| d.n >= from && d.n < from + slots);
        let at_us = detail.map_or(assign::schedule(a).due(from), |d| d.started_at_us + d.duration_us as i64);
        gameday::on_bad_run(state, &a.check, &a.prober, at_us, row.clock_error_us, reason);
    }
    verdict::on_slots(state, &facts, row);
}

/// Keeps what people look at: the newest outcomes and details.
fn show(state: &mut State, a: &AssignmentRecord, row: &ReportRow) {
    let Some(voter) = state.voters.get_mut(&crate::pair_key(&a.check, &a.prober)) else { return };
    for run in &row.outcomes {
        match voter.recent.last_mut() {
            Some(last) if last.reason == run.reason => last.count = last.count.saturating_add(run.count),
            _ => voter.recent.push(*run),
        }
    }
    let mut surplus = voter.recent.iter().map(|r| u64::from(r.count)).sum::<u64>().saturating_sub(RECENT_KEPT);
    while surplus > 0 {
        let oldest = u64::from(voter.recent[0].count);
        if oldest > surplus {
            voter.recent[0].count -= surplus as u32;
            break;
        }
        surplus -= oldest;
        voter.recent.remove(0);
    }
    voter.details.extend(row.details.iter().cloned());
    let surplus = voter.details.len().saturating_sub(DETAILS_KEPT);
    voter.details.drain(..surplus);
    if let Some(newest) = voter.details.last()
        && newest.n >= voter.last_n.saturating_sub(RECENT_KEPT)
    {
        voter.last_duration_us = newest.duration_us;
    }
}

/// An ended assignment whose every slot is known goes into its check's closed account.
pub(crate) fn fold_if_done(state: &mut State, id: u64) {
    let Some(a) = state.assignments.get(&number_key(id)) else { return };
    if a.until_us == 0 || a.next_n < assign::end_n(a, a.until_us) {
        return;
    }
    // The ledgers count planned slots from assignments: they must have seen this one to its end.
    if a.until_us > state.now() {
        return;
    }
    let check = a.check.clone();
    slo::ledger::materialize_check(state, &check);
    let Some(a) = assign::remove(state, id) else { return };
    let account = Account {
        planned: a.next_n - a.first_n,
        good: a.good,
        bad: a.bad,
        missed: a.missed,
        extra: a.extra,
        bad_by_reason: a.bad_by_reason,
    };
    match state.checks.get_mut(&check) {
        Some(record) => merge(record.closed.get_or_insert_default(), &account),
        None => fold_closed(state, &account),
    }
}

/// Adds to the account of what is gone.
pub(crate) fn fold_closed(state: &mut State, account: &Account) {
    merge(state.meta_mut().closed.get_or_insert_default(), account);
}

fn merge(into: &mut Account, from: &Account) {
    into.planned += from.planned;
    into.good += from.good;
    into.bad += from.bad;
    into.extra += from.extra;
    for (reason, count) in &from.missed {
        *into.missed.entry(*reason).or_default() += count;
    }
    for (reason, count) in &from.bad_by_reason {
        *into.bad_by_reason.entry(*reason).or_default() += count;
    }
}

/// Folds what ended meanwhile, and gives up slots that nobody will report any more: missed(prober_lost).
pub(crate) fn expire(state: &mut State) {
    let now = state.now();
    let ended: Vec<AssignmentRecord> = state.assignments.iter().filter(|a| due(a) <= now).cloned().collect();
    for a in ended {
        let lost_before = assign::end_n(&a, now - GIVEN_UP_AFTER_US);
        if lost_before > a.next_n {
            missed(state, &a, a.next_n, lost_before - a.next_n, Reason::ProberLost);
        }
        fold_if_done(state, a.id);
    }
}

/// When something is to do about an assignment without any row.
fn due(a: &AssignmentRecord) -> i64 {
    let done = a.until_us != 0 && a.next_n >= assign::end_n(a, a.until_us);
    if done { a.until_us } else { assign::schedule(a).due(a.next_n) + GIVEN_UP_AFTER_US }
}

/// When that is next.
pub(crate) fn next_deadline(state: &State) -> Option<i64> {
    state.assignments.iter().map(due).min()
}
