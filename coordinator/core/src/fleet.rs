//! The fleet: who is there. Heartbeats live in the leader's memory; only transitions are commands.
//!
//! A prober that falls silent loses its checks in the same command, to whoever else may run them. Where nobody else may, the
//! assignment stays open: a prober alone goes on probing (rule R9), or says when it is back that it was off, so every slot is
//! explained (rule R1). It gets checks back after it has stayed for a while, longer with each flap; at once when there is
//! nobody else. When the whole fleet was gone (a restart of everything), nobody waits, and those who come back soon after the
//! first one go on with the assignments they had.

use std::collections::BTreeSet;

use probity_proto::units;
use probity_proto::v1::*;

use crate::apply::refused;
use crate::state::State;
use crate::{account, assign, events, pass, placement, sickness, slo, voice};

/// A prober that came back must stay this long before it gets checks again: two leases; doubled with each flap.
const RETURN_US: i64 = 30 * 1_000_000;
/// The longest of these waits.
const RETURN_MAX_US: i64 = 600 * 1_000_000;
/// One that stayed this long is forgiven its flaps.
const FORGIVEN_US: i64 = 600 * 1_000_000;
/// How many old spool ids of a prober are remembered, so that their rows are never taken for new ones.
pub const RETIRED_SPOOLS_KEPT: usize = 8;
/// Probers that are gone, of whom it is kept how far their rows were taken.
pub const DEPARTED_KEPT: usize = 1_000;
/// Silent for this long, it is somebody's to look after: a reboot is over by then.
pub const SILENT_ALERT_US: i64 = 600 * 1_000_000;
/// Silent for this long, and with nothing owed, it is forgotten: those that live for a day leave nothing behind.
pub const FORGOTTEN_US: i64 = 7 * 24 * 3_600 * 1_000_000;
/// Where something is still owed, it is looked again after this.
const FORGET_AGAIN_US: i64 = 24 * 3_600 * 1_000_000;
/// `kept_until_us` of the absent while nobody is there.
const UNTIL_SOMEBODY_RETURNS: i64 = i64::MAX;

/// Whether it may be given checks at `now`.
pub fn eligible(prober: &ProberRecord, now: i64) -> bool {
    prober.alive && prober.eligible_at_us <= now
}

/// Whether an absent prober keeps the checks it has, although others could run them.
pub(crate) fn keeps(prober: &ProberRecord, now: i64) -> bool {
    !prober.alive && prober.kept_until_us > now
}

/// When the passing of time alone changes something about a prober: for who may have which checks, and for itself.
pub(crate) fn turns(prober: &ProberRecord) -> impl Iterator<Item = i64> {
    let eligible = prober.alive.then_some(prober.eligible_at_us);
    let kept = (!prober.alive && prober.kept_until_us != UNTIL_SOMEBODY_RETURNS).then_some(prober.kept_until_us);
    let absent = (!prober.alive).then(|| [missed_at(prober), forgotten_at(prober)]);
    eligible.into_iter().chain(kept).chain(absent.into_iter().flatten()).filter(|at| *at > 0)
}

fn missed_at(prober: &ProberRecord) -> i64 {
    prober.since_us.saturating_add(SILENT_ALERT_US)
}

fn forgotten_at(prober: &ProberRecord) -> i64 {
    prober.forget_at_us.max(prober.since_us.saturating_add(FORGOTTEN_US))
}

/// What the passing of time alone changed: who may be given checks again, who is not waited for any longer, who is missed, and who is forgotten.
pub(crate) fn turn(state: &mut State, before: i64) {
    let now = state.now();
    let turns = state.index.turns.range((before.saturating_add(1), String::new())..).take_while(|(at, _)| *at <= now);
    let turned: BTreeSet<String> = turns.map(|(_, name)| name.clone()).collect();
    if turned.is_empty() {
        return;
    }
    let passed = |at: i64| at > before && at <= now;
    let mut placed = Vec::new();
    for prober in turned.iter().filter_map(|name| state.probers.get(name).cloned()).collect::<Vec<_>>() {
        if passed(if prober.alive { prober.eligible_at_us } else { prober.kept_until_us }) {
            placed.push(prober.name.clone());
        }
        if !prober.alive && passed(missed_at(&prober)) {
            slo::silent_alert(state, &prober.name, Some(units::format_duration(SILENT_ALERT_US.unsigned_abs())));
        }
        if !prober.alive && passed(forgotten_at(&prober)) {
            forget(state, prober);
        }
    }
    let absent = placed.iter().filter(|name| state.probers.get(name).is_some_and(|p| !p.alive));
    let moved: BTreeSet<String> = absent.flat_map(|name| held(state, name)).collect();
    let fleet = placement::Fleet::of(state);
    for check in &moved {
        pass::soon(state, &fleet, check);
    }
    if !placed.is_empty() {
        pass::compare_with(state, placed);
    }
}

/// Forgets one that has been gone for long, unless slots of it are not accounted for yet.
fn forget(state: &mut State, prober: ProberRecord) {
    if assign::of_prober(state, &prober.name).next().is_some() {
        let forget_at_us = state.now().saturating_add(FORGET_AGAIN_US);
        put(state, ProberRecord { forget_at_us, ..prober });
        return;
    }
    drop_record(state, &prober.name);
    events::record(state, "prober", "", &format!("Prober/{}", prober.name), "silent for a week: forgotten".to_owned());
}

fn drop_record(state: &mut State, name: &str) {
    if let Some(old) = state.probers.remove(name) {
        state.index.remove_prober(&old);
        let ProberRecord { name, spool_id, last_sequence, retired_spools, .. } = old;
        state.departed.put(DepartedProberRecord { name, spool_id, last_sequence, retired_spools, gone_at_us: state.now() });
        if state.departed.len() > DEPARTED_KEPT
            && let Some(oldest) = state.departed.iter().min_by_key(|d| d.gone_at_us).map(|d| d.name.clone())
        {
            state.departed.remove(&oldest);
        }
    }
    slo::silent_alert(state, name, None);
    slo::prober_alert(state, name, None);
}

/// Removes one that is gone for good: its slots that nobody reported are lost from now on, its checks are others', and its name is free.
pub(crate) fn remove(state: &mut State, name: &str) -> Result<(), Refused> {
    let now = state.now();
    let Some(prober) = state.probers.get(name) else { return Err(refused(RefusalCode::NotFound, format!("no prober {name:?}"))) };
    if prober.alive {
        return Err(refused(RefusalCode::Invalid, format!("prober {name:?} is alive: stop it first, or it would be back at once")));
    }
    // One that was given anew a moment ago, or reported ahead of log time, ends a moment later.
    let ends_at = |a: &AssignmentRecord| match a.until_us {
        0 if a.next_n > a.first_n => a.from_us.max(assign::schedule(a).due(a.next_n - 1).saturating_add(1)),
        0 => a.from_us,
        until => until,
    };
    if assign::of_prober(state, name).any(|a| ends_at(a) > now) {
        return Err(refused(RefusalCode::Conflict, format!("assignments of prober {name:?} end only just now; try again in some seconds")));
    }
    let moved: BTreeSet<String> = held(state, name).into_iter().collect();
    let ids: Vec<u64> = assign::of_prober(state, name).map(|a| a.id).collect();
    for id in ids {
        assign::end(state, id);
        account::give_up(state, id);
    }
    drop_record(state, name);
    let fleet = placement::Fleet::of(state);
    for check in &moved {
        voice::drop_unassigned(state, check);
        pass::soon(state, &fleet, check);
    }
    events::record(state, "prober", "", &format!("Prober/{name}"), "removed".to_owned());
    Ok(())
}

/// The checks that a prober has now.
fn held(state: &State, prober: &str) -> Vec<String> {
    assign::of_prober(state, prober).filter(|a| a.until_us == 0).map(|a| a.check.clone()).collect()
}

/// When time changes something next.
pub(crate) fn next_deadline(state: &State) -> Option<i64> {
    next_turn(state, state.now())
}

fn next_turn(state: &State, after: i64) -> Option<i64> {
    state.index.turns.range((after.saturating_add(1), String::new())..).next().map(|(at, _)| *at)
}

/// Stores a prober, and what is derived from it.
pub(crate) fn put(state: &mut State, prober: ProberRecord) {
    if let Some(old) = state.probers.get(&prober.name) {
        state.index.remove_prober(old);
    }
    state.index.add_prober(&prober);
    state.probers.put(prober);
}

/// Applies transitions, then moves checks once.
pub(crate) fn change(state: &mut State, op: &FleetChange) {
    // Whoever leaves moves its own checks only.
    let mut moved = BTreeSet::new();
    for name in &op.left {
        left(state, name, &mut moved);
    }
    let mut newcomers = Vec::new();
    let mut relabelled = false;
    for hello in op.joined.iter().filter_map(|j| j.hello.as_ref()) {
        let old = state.probers.get(&hello.name);
        let same = |p: &ProberRecord| p.labels == hello.labels && placement::able(&p.capabilities) == placement::able(&hello.capabilities);
        relabelled |= old.is_some_and(|p| !same(p));
        if old.is_none_or(|p| !p.alive) {
            newcomers.push(hello.name.clone());
        }
        join(state, hello);
    }
    if state.probers.iter().all(|p| !p.alive) {
        keep_absent(state, UNTIL_SOMEBODY_RETURNS);
    }
    for told in &op.sickness {
        sickness::told(state, told);
    }
    // A hello of somebody known moves nothing, and after a change of leader everybody says it.
    let fleet = if moved.is_empty() { placement::Fleet::default() } else { placement::Fleet::of(state) };
    for check in &moved {
        pass::soon(state, &fleet, check);
    }
    // Whoever comes may be wanted by any; whoever has other labels than before, or can do something else, may be wanted by others.
    if relabelled {
        pass::everything(state);
    } else if !newcomers.is_empty() {
        pass::compare_with(state, newcomers);
    }
}

fn keep_absent(state: &mut State, until: i64) {
    let absent: Vec<ProberRecord> = state.probers.iter().filter(|p| !p.alive).cloned().collect();
    for prober in absent {
        put(state, ProberRecord { kept_until_us: until, ..prober });
    }
}

fn left(state: &mut State, name: &str, moved: &mut BTreeSet<String>) {
    let now = state.now();
    let Some(mut prober) = state.probers.get(name).filter(|p| p.alive).cloned() else { return };
    if now - prober.since_us > FORGIVEN_US {
        prober.flaps = 0;
    }
    prober.alive = false;
    prober.since_us = now;
    prober.forget_at_us = now.saturating_add(FORGOTTEN_US);
    put(state, prober);
    moved.extend(held(state, name));
    voice::silence(state, name);
    events::record(state, "prober", "", &format!("Prober/{name}"), "silent: its checks move".to_owned());
}

fn join(state: &mut State, hello: &ProberHello) {
    let now = state.now();
    if state.probers.iter().all(|p| !p.alive) {
        keep_absent(state, now + RETURN_US);
    }
    let others = state.probers.iter().any(|p| p.name != hello.name && eligible(p, now));
    let known = state.probers.get(&hello.name).cloned();
    let was_known = known.is_some();
    let mut prober = ProberRecord {
        name: hello.name.clone(),
        labels: hello.labels.clone(),
        capabilities: hello.capabilities.clone(),
        proxies: hello.proxies.clone(),
        version: hello.version.clone(),
        alive: true,
        kept_until_us: 0,
        ..known.clone().unwrap_or_default()
    };
    let message = match known {
        Some(old) if old.alive => None,
        Some(old) => {
            prober.since_us = now;
            // With nobody else to run the checks, waiting helps no one.
            if others && !keeps(&old, now) {
                prober.flaps = old.flaps.saturating_add(1);
                let wait = RETURN_US.saturating_mul(1 << (prober.flaps - 1).min(10)).min(RETURN_MAX_US);
                prober.eligible_at_us = now + wait;
            } else {
                prober.eligible_at_us = now;
            }
            Some("is back")
        }
        None => {
            prober.since_us = now;
            Some("joined")
        }
    };
    if let Some(gone) = state.departed.remove(&hello.name) {
        // Its rows go on where they were taken, whether it heard of that or not.
        (prober.spool_id, prober.last_sequence, prober.retired_spools) = (gone.spool_id, gone.last_sequence, gone.retired_spools);
    } else if !was_known && !hello.cluster_id.is_empty() && hello.cluster_id == state.meta().cluster_id {
        // Gone for so long that nothing is kept of it, and back with the spool that it had: its rows go on where they were acknowledged.
        (prober.spool_id, prober.last_sequence) = (hello.spool_id.clone(), hello.acknowledged);
    }
    put(state, prober);
    slo::silent_alert(state, &hello.name, None);
    if let Some(message) = message {
        events::record(state, "prober", "", &format!("Prober/{}", hello.name), message.to_owned());
    }
}
