//! Game days: one run of a scenario, from its steady state to its report. A state machine that only looks at the state.
//!
//! steady -> steps (wait, inject, hold, undo) -> settling -> ended. Abort, halt and the longest duration lead from anywhere to
//! undoing. No fault is ever wanted after its game day; each has its own end by `notAfter` and lease besides (rules R4, R5).

mod conditions;
mod engine;
mod hooks;
mod report;

pub(crate) use engine::{abort, advance, next_deadline, on_halt, start};
pub(crate) use hooks::{on_alert, on_bad_run, on_delivered, on_fault_reports, on_verdict};

use probity_proto::check::CheckName;
use probity_proto::v1::*;

use crate::state::State;

/// Ended game days that are kept.
pub const KEPT: usize = 100;
/// Game days that may run at once.
pub const RUNNING_MAX: usize = 16;
/// A leader's wish for a fault lasts this long without renewal; with the kernel's or engine's own lease every fault ends at worst
/// this much and 5 s after everything died.
pub const LEASE_US: i64 = 15 * 1_000_000;

/// `namespace/name`.
pub(crate) fn key(day: &GameDayRecord) -> String {
    crate::Record::key(day).into()
}

/// The running game days' keys.
pub fn running(state: &State) -> Vec<String> {
    state.game_days.iter().filter(|d| d.phase() != GameDayPhase::Ended).map(key).collect()
}

/// The trace of the running game day that watches or disturbs a check; empty when there is none.
pub(crate) fn trace_of_check(state: &State, check: &str) -> String {
    let Some(name) = CheckName::parse(check) else { return String::new() };
    state
        .game_days
        .iter()
        .filter(|d| d.phase() != GameDayPhase::Ended)
        .find(|d| d.plan.as_ref().is_some_and(|p| p.namespace == name.namespace && report::probes(state, p).contains(name.probe)))
        .map(|d| d.trace_id.clone())
        .unwrap_or_default()
}

/// Adds a line to the timeline.
pub(crate) fn note(day: &mut GameDayRecord, log_time_us: i64, at_us: i64, clock_error_us: u64, what: &str, detail: String) {
    day.timeline.push(TimelineEntry { at_us, clock_error_us, log_time_us, what: what.to_owned(), detail });
}
