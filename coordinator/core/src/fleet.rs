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
use crate::{assign, events, placement, sickness, verdict, voice};

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

/// What the passing of time alone changed: who may be given checks again, and who is not waited for any longer.
pub(crate) fn turn(state: &mut State, before: i64) {
    let now = state.now();
    let turns = state.index.turns.range((before.saturating_add(1), String::new())..).take_while(|(at, _)| *at <= now);
    let turned: BTreeSet<String> = turns.map(|(_, name)| name.clone()).collect();
    if turned.is_empty() {
        return;
    }
    let absent = turned.iter().filter(|name| state.probers.get(name).is_some_and(|p| !p.alive));
    let moved: BTreeSet<String> = absent.flat_map(|name| held(state, name)).collect();
    let fleet = placement::Fleet::of(state);
    for check in &moved {
        placement::place(state, &fleet, check);
    }
    placement::place_for(state, &Vec::from_iter(turned));
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
        relabelled |= old.is_some_and(|p| p.labels != hello.labels);
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
        placement::place(state, &fleet, check);
        // Whoever left is not heard any more, even if nobody else can run it.
        verdict::judge(state, check, state.now(), 0);
    }
    // Whoever comes may be wanted by any; whoever has other labels than before may be wanted by others.
    if relabelled {
        placement::place_all(state);
    } else if !newcomers.is_empty() {
        placement::place_for(state, &newcomers);
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
