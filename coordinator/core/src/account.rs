//! The account of slots (rules R1, R10): planned = good + bad + missed(reason) + pending.
//!
//! What was planned comes from the assignments' intervals alone, what became of it from rows ([`crate::rows`]): two
//! countings, so that `unexplained` can be other than 0. An assignment that ended stays until each of its slots is known,
//! or given up as missed(prober_lost); then its sums go to its check's account, and with the check to the cluster's.

use std::collections::BTreeMap;

use probity_proto::v1::*;

use crate::state::State;
use crate::{assign, checks, number_key, rows, slo};

/// A prober's spool keeps rows this long; an hour later nobody waits for them any more.
pub const SPOOL_AGE_US: i64 = 24 * 3_600 * 1_000_000;
const GIVEN_UP_AFTER_US: i64 = SPOOL_AGE_US + 3_600 * 1_000_000;

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
    pub missed: BTreeMap<u32, u64>,
    /// Due, not yet reported.
    pub pending: u64,
    /// Runs outside any interval.
    pub extra: u64,
    /// Of the good ones, those that needed more than one attempt.
    pub retried: u64,
    /// Bad runs, by [`Reason`] number.
    pub bad_by_reason: BTreeMap<u32, u64>,
    /// What the sum lacks; anything but 0 is a bug.
    pub unexplained: i64,
}

impl AccountView {
    /// All missed slots.
    pub fn missed_total(&self) -> u64 {
        self.missed.values().sum()
    }

    /// Adds what is kept of assignments that are over.
    pub fn add_closed(&mut self, account: &Account) {
        self.planned += account.planned;
        self.good += account.good;
        self.bad += account.bad;
        self.extra += account.extra;
        self.retried += account.retried;
        merge_counts(&mut self.missed, &account.missed);
        merge_counts(&mut self.bad_by_reason, &account.bad_by_reason);
    }

    /// Adds an assignment, as of `t`.
    pub fn add(&mut self, a: &AssignmentRecord, t: i64) {
        // A run that finished early is reported before the reader's clock reaches its slot.
        let end = assign::end_n(a, t).max(a.next_n.min(assign::last_end_n(a)));
        self.planned += end - a.first_n;
        self.pending += end.saturating_sub(a.next_n);
        self.good += a.good;
        self.bad += a.bad;
        self.extra += a.extra;
        self.retried += a.retried;
        merge_counts(&mut self.missed, &a.missed);
        merge_counts(&mut self.bad_by_reason, &a.bad_by_reason);
    }

    /// Says by how much it does not add up.
    pub fn finish(mut self) -> Self {
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
    for closed in state.checks.iter().filter_map(|c| c.closed.as_ref()).chain(state.retired_checks.iter().filter_map(|c| c.closed.as_ref())) {
        view.add_closed(closed);
    }
    for a in state.assignments.iter() {
        view.add(a, t);
    }
    view.finish()
}

/// The account of a check, as of `t`.
pub fn of_check(state: &State, check: &str, t: i64) -> AccountView {
    let mut view = AccountView::default();
    add_check(state, check, t, &mut view);
    view.finish()
}

/// The account of a probe's checks, as of `t`: present ones, and those whose target is gone for now.
pub fn of_probe(state: &State, namespace: &str, probe: &str, t: i64) -> AccountView {
    let mut view = AccountView::default();
    for check in checks::of_probe(state, namespace, probe) {
        add_check(state, &check, t, &mut view);
    }
    add_retired(state, namespace, probe, t, &mut view);
    view.finish()
}

/// Adds the checks of a probe whose target is gone.
pub fn add_retired(state: &State, namespace: &str, probe: &str, t: i64, view: &mut AccountView) {
    for retired in checks::retired_of(state, namespace, probe) {
        retired.closed.iter().for_each(|closed| view.add_closed(closed));
        assign::of_check(state, &retired.check).for_each(|a| view.add(a, t));
    }
}

/// Adds a check that has its target.
pub fn add_check(state: &State, check: &str, t: i64, view: &mut AccountView) {
    if let Some(closed) = state.checks.get(check).and_then(|c| c.closed.as_ref()) {
        view.add_closed(closed);
    }
    for a in assign::of_check(state, check) {
        view.add(a, t);
    }
}

/// An ended assignment whose every slot is known goes into its check's closed account.
pub(crate) fn fold_if_done(state: &mut State, id: u64) {
    let Some(a) = state.assignments.get(&number_key(id)) else { return };
    // The ledgers count planned slots from assignments: they must have seen this one to its end.
    if !done(a) || a.until_us > state.now() {
        return;
    }
    let check = a.check.clone();
    slo::ledger::materialize_check(state, &check);
    let Some(a) = assign::remove(state, id) else { return };
    let account = Account {
        planned: assign::last_end_n(&a) - a.first_n,
        good: a.good,
        bad: a.bad,
        missed: a.missed,
        extra: a.extra,
        bad_by_reason: a.bad_by_reason,
        retried: a.retried,
    };
    match (state.checks.get_mut(&check), state.retired_checks.get_mut(&check)) {
        (Some(record), _) => merge(record.closed.get_or_insert_default(), &account),
        (None, Some(record)) => merge(record.closed.get_or_insert_default(), &account),
        (None, None) => fold_closed(state, &account),
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
    into.retried += from.retried;
    merge_counts(&mut into.missed, &from.missed);
    merge_counts(&mut into.bad_by_reason, &from.bad_by_reason);
}

fn merge_counts(into: &mut BTreeMap<u32, u64>, from: &BTreeMap<u32, u64>) {
    for (reason, count) in from {
        *into.entry(*reason).or_default() += count;
    }
}

/// Folds what ended meanwhile, and gives up slots that nobody will report any more: missed(prober_lost).
pub(crate) fn expire(state: &mut State) {
    let now = state.now();
    let due: Vec<u64> = state.index.attention.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| *id).collect();
    for id in due {
        let Some(mut a) = state.assignments.get(&number_key(id)).map(assign::outline) else { continue };
        let given_up = assign::end_n(&a, now - GIVEN_UP_AFTER_US);
        rows::missed(state, &mut a, given_up, Reason::ProberLost);
        fold_if_done(state, id);
    }
}

/// Nobody waits for the reports of one that has ended any longer.
pub(crate) fn give_up(state: &mut State, id: u64) {
    let Some(mut a) = state.assignments.get(&number_key(id)).map(assign::outline) else { return };
    let end = assign::last_end_n(&a);
    rows::missed(state, &mut a, end, Reason::ProberLost);
    fold_if_done(state, id);
}

/// Whether it ended, and every slot is known.
fn done(a: &AssignmentRecord) -> bool {
    a.until_us != 0 && a.next_n >= assign::last_end_n(a)
}

/// When something is to do about an assignment without any row.
pub(crate) fn attention_at(a: &AssignmentRecord) -> i64 {
    // A slot is given up a microsecond after its bound, since `end_n` counts those due before.
    if done(a) { a.until_us } else { assign::schedule(a).due(a.next_n).saturating_add(GIVEN_UP_AFTER_US + 1) }
}

/// When that is next.
pub(crate) fn next_deadline(state: &State) -> Option<i64> {
    state.index.attention.first().map(|(at, _)| *at)
}
