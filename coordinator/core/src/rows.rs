//! Report rows: applied exactly once and in order (rule R2); every slot that one leaves out is missed, with a reason (rule R1).
//!
//! A row costs its own length. Nothing that a prober sends is believed without a look: a row that makes no sense is refused
//! as a whole and counted; its slots show up as a gap before the next one.

use probity_proto::bugs::{self, Bug};
use probity_proto::reason::{self, Class};
use probity_proto::v1::*;
use prost::Message;

use crate::fleet::RETIRED_SPOOLS_KEPT;
use crate::slo::SlotFacts;
use crate::state::State;
use crate::{account, assign, gameday, number_key, sickness, slo, voice};

/// A row with more slots is nonsense.
const ROW_SLOTS_MAX: u64 = 1_000_000;
/// More changes of outcome than a row may hold.
const ROW_RUNS_MAX: usize = 10_000;
/// Details of one row.
const DETAILS_MAX: usize = 16;
/// Bytes of one detail.
const DETAIL_BYTES_MAX: usize = 4_096;
/// Times and uncertainties beyond this are nonsense.
pub(crate) const LONGEST_US: u64 = 24 * 3_600 * 1_000_000;
/// A prober's clock may run ahead of log time by this much.
pub(crate) const AHEAD_US: i64 = 10 * 1_000_000;

/// What is wrong with a row by itself.
pub fn malformed(row: &ReportRow) -> Option<&'static str> {
    let slots = slots(row);
    let Some(end) = row.first_n.checked_add(slots) else { return Some("slot numbers overflow") };
    if slots > ROW_SLOTS_MAX || row.outcomes.len() > ROW_RUNS_MAX {
        return Some("too many slots or outcomes");
    }
    if row.details.len() > DETAILS_MAX || row.details.iter().any(|d| d.encoded_len() > DETAIL_BYTES_MAX) {
        return Some("too many or too large details");
    }
    let outside = |d: &RunDetail| d.n < row.first_n || d.n >= end || d.duration_us > LONGEST_US || d.started_at_us < 0;
    if row.details.iter().any(outside) {
        return Some("a detail outside the row's slots, or of an impossible time");
    }
    (row.clock_error_us > LONGEST_US).then_some("an impossible clock error")
}

fn slots(row: &ReportRow) -> u64 {
    row.outcomes.iter().map(|o| u64::from(o.count)).sum()
}

/// Takes rows in, in their order.
pub(crate) fn accept(state: &mut State, rows: &[ReportRow]) {
    for row in rows {
        if next_in_order(state, row) && !content(state, row) {
            state.meta_mut().refused_rows += 1;
        }
    }
}

/// Whether a row is the next of its prober's spool (rule R2); remembers that it came.
fn next_in_order(state: &mut State, row: &ReportRow) -> bool {
    let Some(known) = state.probers.get(&row.prober) else { return false };
    let same = known.spool_id == row.spool_id;
    let fresh = !same && row.sequence == 1 && !row.spool_id.is_empty() && !known.retired_spools.contains(&row.spool_id);
    if same && row.sequence <= known.last_sequence && bugs::on(Bug::DuplicateRowApplied) {
        return true;
    }
    if !(fresh || same && known.last_sequence.checked_add(1) == Some(row.sequence)) {
        return false;
    }
    let now = state.now();
    let Some(prober) = state.probers.get_mut(&row.prober) else { return false };
    if fresh {
        let old = std::mem::replace(&mut prober.spool_id, row.spool_id.clone());
        prober.spool_since_us = now;
        if !old.is_empty() {
            prober.retired_spools.push(old);
            let surplus = prober.retired_spools.len().saturating_sub(RETIRED_SPOOLS_KEPT);
            prober.retired_spools.drain(..surplus);
        }
    }
    prober.last_sequence = row.sequence;
    true
}

/// Counts a row; false when it makes no sense.
fn content(state: &mut State, row: &ReportRow) -> bool {
    if malformed(row).is_some() {
        return false;
    }
    let Some(mut a) = state.assignments.get(&number_key(row.assignment)).filter(|a| a.prober == row.prober).map(assign::outline) else {
        // Runs of an assignment that is gone or never was.
        let runs = row.outcomes.iter().map(|o| runs(o.reason(), u64::from(o.count))).sum::<u64>();
        if runs > 0 {
            state.meta_mut().closed.get_or_insert_default().extra += runs;
        }
        return true;
    };
    let last_n = (row.first_n + slots(row)).saturating_sub(1);
    if assign::schedule(&a).due(last_n) > state.now().saturating_add(AHEAD_US) {
        return false;
    }
    gap(state, &mut a, row);
    let end = assign::last_end_n(&a);
    let good = |state: &State| state.assignments.get(&number_key(row.assignment)).map_or(0, |now| now.good);
    let good_before = if row.retried > 0 { good(state) } else { 0 };
    let mut n = row.first_n;
    for run in &row.outcomes {
        let reason = reason::from_number(run.reason);
        let (from, to) = (n, n + u64::from(run.count));
        n = to;
        let outside = to.min(a.first_n).saturating_sub(from) + to.saturating_sub(from.max(end));
        extra(state, a.id, runs(reason, outside));
        // What overlaps with earlier rows was counted with them.
        count(state, &mut a, to.min(end), Outcome { from, reason, counts_as: reason, slower_than: run.slower_than, row: Some(row) });
    }
    // What was counted before, or counts as missed, was not saved by a retry.
    if row.retried > 0 {
        let saved = row.retried.min(good(state).saturating_sub(good_before));
        assign::update(state, a.id, |a| a.retried += saved);
    }
    voice::show(state, &a, row);
    account::fold_if_done(state, row.assignment);
    true
}

/// Missed slots are no runs: outside their interval they are nothing.
fn runs(reason: Reason, count: u64) -> u64 {
    if reason.class() == Class::Missed { 0 } else { count }
}

fn extra(state: &mut State, assignment: u64, runs: u64) {
    if runs > 0 {
        assign::update(state, assignment, |a| a.extra += runs);
    }
}

/// Slots between the last row and this one: the old spool's, or dropped by the present one.
fn gap(state: &mut State, a: &mut AssignmentRecord, row: &ReportRow) {
    let spool = state.probers.get(&row.prober);
    let spool_since_us = spool.filter(|p| !p.retired_spools.is_empty()).map_or(0, |p| p.spool_since_us);
    let until = row.first_n.min(assign::last_end_n(a));
    let replaced = until.min(assign::schedule(a).first_at_or_after(spool_since_us));
    missed(state, a, replaced, Reason::SpoolReplaced);
    missed(state, a, until, Reason::SpoolDropped);
}

/// All slots before `to` that are not known yet are missed.
pub(crate) fn missed(state: &mut State, a: &mut AssignmentRecord, to: u64, reason: Reason) {
    count(state, a, to, Outcome { from: 0, reason, counts_as: reason, slower_than: 0, row: None });
}

/// One outcome of some slots.
#[derive(Clone, Copy)]
struct Outcome<'a> {
    from: u64,
    /// What the prober found.
    reason: Reason,
    /// What the account takes it for.
    counts_as: Reason,
    slower_than: u32,
    row: Option<&'a ReportRow>,
}

/// Counts the slots before `to` that are not known yet. While its prober was sick, its runs say nothing (rule R10).
fn count(state: &mut State, a: &mut AssignmentRecord, to: u64, outcome: Outcome<'_>) {
    let (sick_from, sick_to) = match sickness::between(state, &a.prober) {
        Some((since, until)) if outcome.reason.class() != Class::Missed => {
            let schedule = assign::schedule(a);
            (schedule.first_at_or_after(since), schedule.first_at_or_after(until))
        }
        _ => (u64::MAX, u64::MAX),
    };
    piece(state, a, to.min(sick_from), outcome);
    piece(state, a, to.min(sick_to), Outcome { counts_as: Reason::ProberSick, ..outcome });
    piece(state, a, to, outcome);
}

/// Adds one outcome to every account that its slots belong to. `a` is an outline whose `next_n` follows the record's.
fn piece(state: &mut State, a: &mut AssignmentRecord, to: u64, outcome: Outcome<'_>) {
    let counted_again = outcome.row.is_some() && bugs::on(Bug::DuplicateRowApplied);
    let from = if counted_again { outcome.from } else { outcome.from.max(a.next_n) };
    if to <= from {
        return;
    }
    let (slots, reason) = (to - from, outcome.counts_as);
    a.next_n = a.next_n.max(to);
    assign::update(state, a.id, |a| {
        a.next_n = a.next_n.max(to);
        match reason.class() {
            Class::Good => a.good += slots,
            Class::Bad => {
                a.bad += slots;
                *a.bad_by_reason.entry(reason as u32).or_default() += slots;
            }
            Class::Missed => *a.missed.entry(reason as u32).or_default() += slots,
        }
    });
    let facts = SlotFacts { assignment: a, first_n: from, count: slots, reason, slower_than: outcome.slower_than };
    slo::ledger::on_slots(state, &facts);
    let clock_error_us = outcome.row.map_or(0, |r| r.clock_error_us);
    if reason.class() == Class::Bad {
        let at_us = ended_at(a, outcome.row, from, to);
        gameday::on_bad_run(state, &a.check, &a.prober, at_us, clock_error_us, reason);
    }
    // A sick one is still listened to, though not believed: that is how it is seen to recover.
    voice::on_slots(state, &SlotFacts { reason: outcome.reason, ..facts }, outcome.row);
}

/// When the first run that is known in [from, to) ended, at its origin; without one, when the first was due.
pub(crate) fn ended_at(a: &AssignmentRecord, row: Option<&ReportRow>, from: u64, to: u64) -> i64 {
    let detail = row.and_then(|r| r.details.iter().find(|d| d.n >= from && d.n < to));
    detail.map_or_else(|| assign::schedule(a).due(from), |d| d.started_at_us.saturating_add(d.duration_us as i64))
}
