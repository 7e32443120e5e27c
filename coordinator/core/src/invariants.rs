//! Rules of the design that a state must fulfil, by their names: checked in tests, in the simulation, and counted in production.

use std::collections::BTreeSet;

use crate::account;
use crate::state::State;

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
    let mut found = Vec::new();
    let mut violated = |rule, detail: String| found.push(Violation { rule, detail });
    let total = account::total(state, state.now());
    if total.unexplained != 0 {
        violated("R1", format!("{} slots are unexplained", total.unexplained));
    }
    for a in state.assignments.iter() {
        let known = a.good + a.bad + a.missed.values().sum::<u64>();
        if known != a.next_n - a.first_n {
            violated("R1", format!("assignment {}: {known} outcomes for {} slots", a.id, a.next_n - a.first_n));
        }
    }
    let mut running = BTreeSet::new();
    for a in state.assignments.iter().filter(|a| a.until_us == 0) {
        if !running.insert((&a.check, &a.prober)) {
            violated("R1", format!("two open assignments of {} to {}", a.check, a.prober));
        }
    }
    for fault in state.faults.iter() {
        if fault.ended_at_us != 0 && fault.wanted {
            violated("R4", format!("fault {} ended and is wanted", fault.id));
        }
        let day_ended = state.game_days.get(&fault.game_day).is_none_or(|d| d.ended_at_us != 0);
        if day_ended && fault.wanted {
            violated("R5", format!("fault {} is wanted after its game day", fault.id));
        }
    }
    found
}
