//! The fleet: who is there. Heartbeats live in the leader's memory; only transitions are commands.

use probity_proto::v1::*;

use crate::placement;
use crate::state::State;
use crate::{events, verdict};

/// A prober that came back must stay this long before it gets checks again: two leases; doubled with each flap.
const RETURN_US: i64 = 30 * 1_000_000;
/// The longest of these waits.
const RETURN_MAX_US: i64 = 600 * 1_000_000;
/// One that stayed this long is forgiven its flaps.
const FORGIVEN_US: i64 = 600 * 1_000_000;
/// How many old spool ids of a prober are remembered, so that their rows are never taken for new ones.
pub(crate) const RETIRED_SPOOLS_KEPT: usize = 8;

/// Whether it may be given checks at `now`.
pub fn eligible(prober: &ProberRecord, now: i64) -> bool {
    prober.alive && prober.eligible_at_us <= now
}

/// Whether somebody became eligible by the passing of time alone.
pub(crate) fn became_eligible(state: &State, before: i64, now: i64) -> bool {
    state.probers.iter().any(|p| p.alive && p.eligible_at_us > before && p.eligible_at_us <= now)
}

/// When that happens next.
pub(crate) fn next_deadline(state: &State) -> Option<i64> {
    let now = state.now();
    state.probers.iter().filter(|p| p.alive && p.eligible_at_us > now).map(|p| p.eligible_at_us).min()
}

/// Applies transitions, then moves checks once.
pub(crate) fn change(state: &mut State, op: &FleetChange) {
    for name in &op.left {
        left(state, name);
    }
    for joined in &op.joined {
        if let Some(hello) = &joined.hello {
            join(state, hello);
        }
    }
    for sickness in &op.sickness {
        sick(state, sickness);
    }
    placement::place_all(state);
    state.meta_mut().desired_revision += 1;
}

fn left(state: &mut State, name: &str) {
    let now = state.now();
    let Some(prober) = state.probers.get_mut(name) else { return };
    if !prober.alive {
        return;
    }
    if now - prober.since_us > FORGIVEN_US {
        prober.flaps = 0;
    }
    prober.alive = false;
    prober.since_us = now;
    events::record(state, "prober", "", &format!("Prober/{name}"), "silent: its checks move".to_owned());
}

fn join(state: &mut State, hello: &ProberHello) {
    let now = state.now();
    let others = state.probers.iter().any(|p| p.alive && p.name != hello.name);
    let known = state.probers.get(&hello.name).cloned();
    let mut prober = ProberRecord {
        name: hello.name.clone(),
        labels: hello.labels.clone(),
        capabilities: hello.capabilities.clone(),
        proxies: hello.proxies.clone(),
        version: hello.version.clone(),
        alive: true,
        ..known.clone().unwrap_or_default()
    };
    let message = match known {
        Some(old) if old.alive => None,
        Some(old) => {
            prober.flaps = old.flaps + 1;
            prober.since_us = now;
            let wait = RETURN_US.saturating_mul(1 << (prober.flaps - 1).min(10)).min(RETURN_MAX_US);
            // With nobody else to run the checks, waiting helps no one.
            prober.eligible_at_us = if others { now + wait } else { now };
            Some("is back")
        }
        None => {
            prober.since_us = now;
            Some("joined")
        }
    };
    state.probers.put(prober);
    if let Some(message) = message {
        events::record(state, "prober", "", &format!("Prober/{}", hello.name), message.to_owned());
    }
}

fn sick(state: &mut State, op: &ProberSickness) {
    let now = state.now();
    let Some(prober) = state.probers.get_mut(&op.prober) else { return };
    if prober.sick == op.sick {
        return;
    }
    prober.sick = op.sick;
    prober.sick_since_us = if op.sick { now } else { 0 };
    let message = if op.sick { "is sick: it does not trust its own network" } else { "is well again" };
    events::record(state, "prober", "", &format!("Prober/{}", op.prober), message.to_owned());
    let checks: Vec<String> = crate::assign::of_prober(state, &op.prober).map(|a| a.check.clone()).collect();
    for check in checks {
        verdict::judge(state, &check, now, 0);
    }
}
