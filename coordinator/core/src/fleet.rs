//! The fleet: who is there. Heartbeats live in the leader's memory; only transitions are commands.
//!
//! A prober that falls silent loses its checks in the same command, to whoever else may run them. Where nobody else may, the
//! assignment stays open: a prober alone goes on probing (rule R9), or says when it is back that it was off, so every slot is
//! explained (rule R1). It gets checks back after it has stayed for a while, longer with each flap; at once when there is
//! nobody else. When the whole fleet was gone (a restart of everything), nobody waits, and those who come back soon after the
//! first one go on with the assignments they had.

use std::collections::BTreeSet;

use probity_proto::v1::*;

use crate::state::State;
use crate::{assign, events, placement, sickness, voice};

/// A prober that came back must stay this long before it gets checks again: two leases; doubled with each flap.
const RETURN_US: i64 = 30 * 1_000_000;
/// The longest of these waits.
const RETURN_MAX_US: i64 = 600 * 1_000_000;
/// One that stayed this long is forgiven its flaps.
const FORGIVEN_US: i64 = 600 * 1_000_000;
/// How many old spool ids of a prober are remembered, so that their rows are never taken for new ones.
pub const RETIRED_SPOOLS_KEPT: usize = 8;
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

/// Whether the passing of time alone changed what somebody may run.
pub(crate) fn turned(state: &State, before: i64, now: i64) -> bool {
    next_turn(state, before).is_some_and(|at| at <= now)
}

/// When that happens next.
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
    // Whoever leaves moves its own checks only; whoever comes may be wanted by any.
    let mut moved = BTreeSet::new();
    for name in &op.left {
        left(state, name, &mut moved);
    }
    for hello in op.joined.iter().filter_map(|j| j.hello.as_ref()) {
        join(state, hello);
    }
    if state.probers.iter().all(|p| !p.alive) {
        keep_absent(state, UNTIL_SOMEBODY_RETURNS);
    }
    for told in &op.sickness {
        sickness::told(state, told);
    }
    if op.joined.is_empty() {
        for check in &moved {
            placement::place(state, check);
        }
    } else {
        placement::place_all(state);
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
    put(state, prober);
    moved.extend(assign::of_prober(state, name).filter(|a| a.until_us == 0).map(|a| a.check.clone()));
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
    put(state, prober);
    if let Some(message) = message {
        events::record(state, "prober", "", &format!("Prober/{}", hello.name), message.to_owned());
    }
}
