//! Assignments: who runs a check, from when until when. What is planned is counted from these intervals (rule R1).

use std::collections::BTreeSet;

use probity_proto::slots::Schedule;
use probity_proto::v1::*;
use prost::Message;

use crate::state::State;
use crate::{account, desired, number_key, placement};

/// From the commit of an assignment to its first slot: the prober must hear of it first.
pub const LEAD_US: i64 = 300_000;

/// The schedule of an assignment.
pub fn schedule(a: &AssignmentRecord) -> Schedule {
    Schedule { interval_us: a.interval_us.max(1), phase_us: a.phase_us }
}

/// The slot after its last one, seen from `t`: for an open assignment those due before `t`.
pub fn end_n(a: &AssignmentRecord, t: i64) -> u64 {
    let until = if a.until_us == 0 { t } else { a.until_us.min(t) };
    schedule(a).first_at_or_after(until).max(a.first_n)
}

/// The slot after its very last one; there is none while it is open.
pub fn last_end_n(a: &AssignmentRecord) -> u64 {
    if a.until_us == 0 { u64::MAX } else { end_n(a, a.until_us) }
}

/// What its rows are counted by: all of it but its counts and what it runs, which are larger than the rest.
pub(crate) fn outline(a: &AssignmentRecord) -> AssignmentRecord {
    // Every field is named: a new one has to be thought of.
    let AssignmentRecord {
        id,
        check,
        prober,
        generation,
        interval_us,
        phase_us,
        from_us,
        until_us,
        next_n,
        first_n,
        thresholds_us,
        good: _,
        bad: _,
        missed: _,
        extra: _,
        spec: _,
        bad_by_reason: _,
        retried: _,
        timeout_us: _,
    } = a;
    AssignmentRecord {
        id: *id,
        check: check.clone(),
        prober: prober.clone(),
        generation: *generation,
        interval_us: *interval_us,
        phase_us: *phase_us,
        from_us: *from_us,
        until_us: *until_us,
        first_n: *first_n,
        next_n: *next_n,
        thresholds_us: thresholds_us.clone(),
        ..AssignmentRecord::default()
    }
}

/// The assignments of a check, oldest first.
pub fn of_check<'a>(state: &'a State, check: &str) -> impl Iterator<Item = &'a AssignmentRecord> {
    ids(state, state.index.by_check.get(check))
}

/// The checks that have assignments, after `check`, in order: also those that are gone.
pub fn checks_after<'a>(state: &'a State, check: &str) -> impl Iterator<Item = &'a String> + use<'a> {
    let after = (std::ops::Bound::Excluded(check.to_owned()), std::ops::Bound::Unbounded);
    state.index.by_check.range(after).map(|(check, _)| check)
}

/// The assignments of a probe's checks, of those whose target is gone too.
pub(crate) fn of_probe<'a>(state: &'a State, namespace: &str, probe: &str) -> impl Iterator<Item = &'a AssignmentRecord> + use<'a> {
    let whole = format!("{namespace}/{probe}");
    let prefix = format!("{whole}/");
    let single = state.index.by_check.get(&whole);
    let targets = state.index.by_check.range(prefix.clone()..).take_while(move |(check, _)| check.starts_with(&prefix));
    single.into_iter().chain(targets.map(|(_, ids)| ids)).flat_map(|found| ids(state, Some(found)))
}

/// The assignments of a prober, oldest first.
pub fn of_prober<'a>(state: &'a State, prober: &str) -> impl Iterator<Item = &'a AssignmentRecord> {
    ids(state, state.index.by_prober.get(prober))
}

fn ids<'a>(state: &'a State, ids: Option<&'a BTreeSet<u64>>) -> impl Iterator<Item = &'a AssignmentRecord> {
    ids.into_iter().flatten().filter_map(|id| state.assignments.get(&number_key(*id)))
}

/// Starts one; its first slots come after [`LEAD_US`].
pub(crate) fn start(state: &mut State, check: &CheckRecord, prober: &str) {
    let from_us = state.now() + LEAD_US;
    let meta = state.meta_mut();
    meta.next_assignment += 1;
    let id = meta.next_assignment;
    let interval_us = check.interval_us.max(1);
    // In whole milliseconds: slots that are due together are one waking of their prober.
    let phase_us = placement::score(&check.check, prober) % interval_us / 1_000 * 1_000;
    let first_n = Schedule { interval_us, phase_us }.first_at_or_after(from_us);
    let assignment = AssignmentRecord {
        id,
        check: check.check.clone(),
        prober: prober.to_owned(),
        generation: check.generation,
        interval_us,
        phase_us,
        from_us,
        first_n,
        next_n: first_n,
        spec: check.spec.as_ref().map(|s| s.encode_to_vec().into()).unwrap_or_default(),
        timeout_us: check.spec.as_ref().map_or(0, |s| s.timeout_us),
        thresholds_us: check.thresholds_us.clone(),
        ..AssignmentRecord::default()
    };
    state.index.add(&assignment);
    state.assignments.put(assignment);
    desired::changed(state, prober, id);
}

/// Ends one now, or where its reports already reach: slots due before stay owed.
pub(crate) fn end(state: &mut State, id: u64) {
    let now = state.now();
    let Some(prober) = state.assignments.get(&number_key(id)).map(|a| a.prober.clone()) else { return };
    desired::changed(state, &prober, id);
    update(state, id, |a| {
        if a.until_us == 0 {
            // One that has not begun never has a slot. What was reported ahead of log time was planned, then.
            let reported = if a.next_n > a.first_n { schedule(a).due(a.next_n - 1) + 1 } else { 0 };
            a.until_us = now.max(a.from_us).max(reported);
        }
    });
    account::fold_if_done(state, id);
}

/// Changes one, and what is derived from it. Its check, prober and id stay.
pub(crate) fn update(state: &mut State, id: u64, change: impl FnOnce(&mut AssignmentRecord)) {
    let Some(a) = state.assignments.get_mut(&number_key(id)) else { return };
    let before = account::attention_at(a);
    change(a);
    let after = account::attention_at(a);
    if before != after {
        state.index.attention.remove(&(before, id));
        state.index.attention.insert((after, id));
    }
}

/// Ends all open assignments of a check.
pub(crate) fn end_all(state: &mut State, check: &str) {
    let open: Vec<u64> = of_check(state, check).filter(|a| a.until_us == 0).map(|a| a.id).collect();
    for id in open {
        end(state, id);
    }
}

/// Takes one out of the state.
pub(crate) fn remove(state: &mut State, id: u64) -> Option<AssignmentRecord> {
    let a = state.assignments.remove(&number_key(id))?;
    state.index.remove(&a);
    desired::changed(state, &a.prober, id);
    Some(a)
}
