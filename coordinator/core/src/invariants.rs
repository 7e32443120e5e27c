//! Rules of the design that a state must fulfil, by their names: checked in tests, in the simulation, and counted in production.
//!
//! Only what can be seen in one state. That replicas agree (R3), that what was acknowledged stays (R2), that a host is as it
//! was (R5, R6) needs more than one look, and is checked where that is to be had.

use std::collections::BTreeSet;

use probity_proto::v1::*;

use crate::fleet::RETIRED_SPOOLS_KEPT;
use crate::index::Index;
use crate::state::State;
use crate::{access, account, assign, audit, checks, discovery, events, number_key, requests, voice};

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// R1, R4, ...
    pub rule: &'static str,
    /// What was seen.
    pub detail: String,
}

/// Looks at everything that can be seen in one state.
pub fn check(state: &State) -> Vec<Violation> {
    let mut found = Found(Vec::new());
    accounts(state, &mut found);
    schedules(state, &mut found);
    spools(state, &mut found);
    faults(state, &mut found);
    bounds(state, &mut found);
    derived(state, &mut found);
    found.0
}

struct Found(Vec<Violation>);

impl Found {
    fn unless(&mut self, holds: bool, rule: &'static str, detail: impl FnOnce() -> String) {
        if !holds {
            self.0.push(Violation { rule, detail: detail() });
        }
    }
}

/// R1: every slot is accounted for, once.
fn accounts(state: &State, found: &mut Found) {
    let total = account::total(state, state.now());
    found.unless(total.unexplained == 0, "R1", || format!("{} slots are unexplained", total.unexplained));
    for a in state.assignments.iter() {
        let known = a.good + a.bad + a.missed.values().sum::<u64>();
        found.unless(a.next_n >= a.first_n && known == a.next_n - a.first_n, "R1", || {
            format!("assignment {}: {known} outcomes for slots {} to {}", a.id, a.first_n, a.next_n)
        });
        found.unless(a.next_n <= assign::last_end_n(a), "R1", || format!("assignment {}: slots after its end are counted", a.id));
        let reasons: u64 = a.bad_by_reason.values().sum();
        found.unless(reasons == a.bad, "R1", || format!("assignment {}: {} bad, by reason {reasons}", a.id, a.bad));
    }
}

/// R1: nobody runs a check twice, or one that is no more, or an old generation of it.
fn schedules(state: &State, found: &mut Found) {
    let mut running = BTreeSet::new();
    for a in state.assignments.iter() {
        found.unless(a.until_us == 0 || a.until_us >= a.from_us, "R1", || format!("assignment {} ends before it begins", a.id));
        if a.until_us != 0 {
            continue;
        }
        found.unless(running.insert((&a.check, &a.prober)), "R1", || format!("two open assignments of {} to {}", a.check, a.prober));
        let generation = state.checks.get(&a.check).map(|c| c.generation);
        found.unless(generation == Some(a.generation), "R1", || {
            format!("open assignment {} of {} at generation {}, the check is at {generation:?}", a.id, a.check, a.generation)
        });
        found.unless(state.probers.get(&a.prober).is_some(), "R1", || format!("assignment {} to nobody", a.id));
    }
    for v in state.voters.iter() {
        found.unless(running.contains(&(&v.check, &v.prober)), "R12", || format!("{} still votes on {}", v.prober, v.check));
    }
}

/// R2: a retired spool never comes back.
fn spools(state: &State, found: &mut Found) {
    for p in state.probers.iter() {
        found.unless(!p.retired_spools.contains(&p.spool_id), "R2", || format!("the spool of {} is a retired one", p.name));
    }
}

/// R4 and R5: what ended is not wanted, and nothing is wanted after its game day, in a halt, or without a fence and an end.
fn faults(state: &State, found: &mut Found) {
    for fault in state.faults.iter().filter(|f| f.wanted) {
        let id = &fault.id;
        found.unless(fault.ended_at_us == 0, "R4", || format!("fault {id} ended and is wanted"));
        found.unless(fault.fence <= state.meta().fence, "R4", || format!("fault {id} has a fence from the future"));
        found.unless(fault.not_after_us > 0, "R4", || format!("fault {id} has no end"));
        let day_runs = state.game_days.get(&fault.game_day).is_some_and(|d| d.ended_at_us == 0);
        found.unless(day_runs, "R5", || format!("fault {id} is wanted after its game day"));
        found.unless(state.meta().halt.is_none(), "R5", || format!("fault {id} is wanted in a halt"));
    }
}

/// R12: nothing is unbounded.
fn bounds(state: &State, found: &mut Found) {
    let mut at_most = |what: &str, is: usize, bound: usize| {
        found.unless(is <= bound, "R12", || format!("{is} {what}, the bound is {bound}"));
    };
    at_most("events", state.events.len(), events::EVENTS_KEPT);
    at_most("audit records", state.audit.len(), audit::AUDIT_KEPT as usize);
    at_most("answered requests", state.requests.len(), requests::REQUESTS_KEPT);
    at_most("tokens", state.tokens.len(), access::TOKENS_KEPT);
    at_most("revocations", state.revocations.len(), access::REVOCATIONS_KEPT);
    at_most("checks without their target", state.retired_checks.len(), checks::RETIRED_KEPT);
    for d in state.discoveries.iter() {
        at_most("discovered targets", d.targets.len().max(d.held.len()), discovery::TARGETS_MAX);
    }
    for p in state.probers.iter() {
        at_most("retired spools", p.retired_spools.len(), RETIRED_SPOOLS_KEPT);
    }
    for v in state.voters.iter() {
        at_most("recent outcomes", v.recent.iter().map(|r| r.count as usize).sum(), voice::RECENT_KEPT as usize);
        at_most("details", v.details.len(), voice::DETAILS_KEPT);
    }
}

/// R3: what is derived from records is what a restart would derive.
fn derived(state: &State, found: &mut Found) {
    let mut index = Index::default();
    state.assignments.iter().for_each(|a| index.add(a));
    state.probers.iter().for_each(|p| index.add_prober(p));
    state.requests.iter().for_each(|r| index.add_request(r));
    state.ledgers.iter().for_each(|l| index.add_ledger(l));
    state.resources.iter().for_each(|r| index.add_resource(r));
    found.unless(index == state.index, "R3", || "an index differs from its table".to_owned());
    for a in state.assignments.iter() {
        found.unless(state.assignments.get(&number_key(a.id)).is_some_and(|same: &AssignmentRecord| same.id == a.id), "R3", || {
            format!("assignment {} is not at its key", a.id)
        });
    }
}
