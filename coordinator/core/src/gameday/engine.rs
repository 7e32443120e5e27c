//! The state machine of a game day.

use probity_proto::v1::*;

use super::{KEPT, LEASE_US, RUNNING_MAX, conditions, key, note, report};
use crate::apply::refused;
use crate::state::State;
use crate::{desired, events};

/// A fault must be confirmed within this time of being asked for.
const CONFIRM_US: i64 = 15 * 1_000_000;
/// A fault may outlive its hold by this much: for the way of the order.
const MARGIN_US: i64 = 5 * 1_000_000;
/// After everything was undone, expectations without a bound of their own are given this long.
const SETTLE_US: i64 = 2 * 1_000_000;

/// Starts a planned game day; returns its name.
pub(crate) fn start(state: &mut State, _index: u64, op: &StartGameDay, actor: &str) -> Result<String, Refused> {
    let Some(mut plan) = op.plan.clone() else { return Err(refused(RefusalCode::Invalid, "a game day without a plan")) };
    if super::running(state).len() >= RUNNING_MAX {
        return Err(refused(RefusalCode::Conflict, format!("{RUNNING_MAX} game days run already")));
    }
    let prefix = format!("{}/{}-", plan.namespace, plan.scenario);
    if state.game_days.prefix(&prefix).any(|d| d.phase() != GameDayPhase::Ended && d.plan.as_ref().is_some_and(|p| p.scenario == plan.scenario)) {
        return Err(refused(RefusalCode::Conflict, format!("a game day of {:?} runs already", plan.scenario)));
    }
    let newest = state
        .game_days
        .prefix(&prefix)
        .filter(|d| d.plan.as_ref().is_some_and(|p| p.scenario == plan.scenario))
        .filter_map(|d| d.plan.as_ref()?.name.rsplit_once('-')?.1.parse::<u64>().ok())
        .max()
        .unwrap_or(0);
    plan.name = format!("{}-{}", plan.scenario, newest + 1);
    for fault in plan.steps.iter_mut().flat_map(|s| &mut s.faults) {
        fault.fault_id = format!("{}/{}/{}", plan.namespace, plan.name, fault.fault_id);
    }
    let now = state.now();
    let name = plan.name.clone();
    let mut day = GameDayRecord {
        phase: GameDayPhase::Steady as i32,
        actor: actor.to_owned(),
        started_at_us: now,
        trace_id: op.trace_id.clone(),
        progress: vec![ExpectationProgress::default(); plan.expect.len()],
        accounts: report::accounts_at_start(state, &plan),
        budgets: report::budgets_at_start(state, &plan),
        plan: Some(plan.clone()),
        ..GameDayRecord::default()
    };
    let unmet: Vec<String> =
        plan.steady_state.iter().map(|c| conditions::holds(state, &plan.namespace, c, |_| 0)).filter(|(met, _)| !met).map(|(_, what)| what).collect();
    events::record(state, "gameday", &plan.namespace, &format!("GameDay/{name}"), format!("started by {actor}"));
    if unmet.is_empty() {
        note(&mut day, now, now, 0, "steady", "steady state met".to_owned());
        day.phase = GameDayPhase::Steps as i32;
        day.deadline_us = now + plan.steps.first().map_or(0, |s| s.after_us as i64);
    } else {
        end(state, &mut day, GameDayResult::Inconclusive, format!("steady state not met: {}", unmet.join("; ")));
    }
    state.game_days.put(day);
    desired::traces_changed(state, &plan.namespace, &report::probes(state, &plan));
    trim(state);
    Ok(name)
}

/// Keeps the newest ended ones.
fn trim(state: &mut State) {
    let surplus = state.game_days.len().saturating_sub(KEPT);
    if surplus > 0 {
        let mut ended: Vec<(i64, String)> = state.game_days.iter().filter(|d| d.phase() == GameDayPhase::Ended).map(|d| (d.ended_at_us, key(d))).collect();
        ended.sort();
        for (_, old) in ended.into_iter().take(surplus) {
            for fault in state.faults.iter().filter(|f| f.game_day == old).map(|f| f.id.clone()).collect::<Vec<_>>() {
                state.faults.remove(&fault);
            }
            state.game_days.remove(&old);
        }
    }
}

/// An operator wants it to end.
pub(crate) fn abort(state: &mut State, op: &AbortGameDay) -> Result<(), Refused> {
    let key = format!("{}/{}", op.namespace, op.name);
    let Some(day) = state.game_days.get(&key).cloned() else {
        return Err(refused(RefusalCode::NotFound, format!("no game day {:?} in namespace {:?}", op.name, op.namespace)));
    };
    if day.phase() == GameDayPhase::Ended {
        return Err(refused(RefusalCode::Conflict, format!("{} has ended already", op.name)));
    }
    stop(state, day, &op.reason);
    Ok(())
}

/// A halt: every game day ends, every fault is unwanted.
pub(crate) fn on_halt(state: &mut State) {
    for key in super::running(state) {
        if let Some(day) = state.game_days.get(&key).cloned() {
            stop(state, day, "halted");
        }
    }
}

/// Leads to undoing, whatever the phase; a second reason does not replace the first.
fn stop(state: &mut State, mut day: GameDayRecord, reason: &str) {
    if !day.abort_asked {
        day.abort_asked = true;
        day.result_reason = reason.to_owned();
        let now = state.now();
        note(&mut day, now, now, 0, "aborted", reason.to_owned());
    }
    undo_all(state, &mut day);
    state.game_days.put(day);
}

/// No fault of the game day is wanted any more.
fn undo_all(state: &mut State, day: &mut GameDayRecord) {
    let key = key(day);
    for id in fault_ids(state, &key) {
        if let Some(fault) = state.faults.get(&id)
            && fault.wanted
            && let Some(fault) = state.faults.get_mut(&id)
        {
            fault.wanted = false;
        }
    }
    day.phase = GameDayPhase::Undoing as i32;
    desired::everybody(state);
}

fn fault_ids(state: &State, game_day: &str) -> Vec<String> {
    state.faults.iter().filter(|f| f.game_day == game_day).map(|f| f.id.clone()).collect()
}

/// Moves every running game day on, as far as the state allows.
pub(crate) fn advance(state: &mut State) {
    for key in super::running(state) {
        // Each turn moves a phase on at most; a few settle it.
        for _ in 0..8 {
            let Some(day) = state.game_days.get(&key).cloned() else { break };
            let mut next = day.clone();
            turn(state, &mut next);
            if next == day {
                break;
            }
            state.game_days.put(next);
        }
    }
}

fn turn(state: &mut State, day: &mut GameDayRecord) {
    let now = state.now();
    let Some(plan) = day.plan.clone() else { return };
    if day.phase() == GameDayPhase::Steps || day.phase() == GameDayPhase::Settling {
        watch(state, day, &plan, now);
    }
    match day.phase() {
        GameDayPhase::Steps => step(state, day, &plan, now),
        GameDayPhase::Undoing => undoing(state, day, &plan, now),
        GameDayPhase::Settling if report::settled(state, day, &plan, now) => {
            let (result, reason) = report::judge(state, day, &plan);
            end(state, day, result, reason);
        }
        _ => {}
    }
}

/// abortIf, and the longest duration.
fn watch(state: &mut State, day: &mut GameDayRecord, plan: &GameDayPlan, now: i64) {
    let too_long = day.phase() == GameDayPhase::Steps && now >= day.started_at_us + plan.max_duration_us as i64;
    let before = |slo: &str| day.budgets.iter().find(|b| b.slo == slo).map_or(0, |b| b.start_ppm);
    let broken = plan.abort_if.iter().map(|c| conditions::holds(state, &plan.namespace, c, before)).find(|(met, _)| *met);
    let reason = match broken {
        Some((_, what)) => format!("abortIf: {what}"),
        None if too_long => "its maxDuration has passed".to_owned(),
        None => return,
    };
    if !day.abort_asked {
        day.abort_asked = true;
        day.result_reason = reason.clone();
        note(day, now, now, 0, "aborted", reason);
        undo_all(state, day);
    }
}

/// One step: wait, inject, wait for it to be confirmed, hold, undo.
fn step(state: &mut State, day: &mut GameDayRecord, plan: &GameDayPlan, now: i64) {
    let Some(step) = plan.steps.get(day.step as usize) else {
        undo_all(state, day);
        return;
    };
    let records: Vec<FaultRecord> = step.faults.iter().filter_map(|f| state.faults.get(&f.fault_id)).cloned().collect();
    if records.is_empty() {
        if now >= day.deadline_us {
            inject(state, day, plan, step, now);
        }
        return;
    }
    if let Some(refused) = records.iter().find(|f| f.state() == FaultState::Refused) {
        let reason = format!("fault {} refused by {}: {}", kind_of(refused), refused.prober, refused.detail);
        day.abort_asked = true;
        day.result_reason = reason.clone();
        note(day, now, now, 0, "refused", reason);
        undo_all(state, day);
        return;
    }
    let confirmed = records.iter().all(|f| f.active_at_us != 0);
    if !confirmed {
        if now >= day.deadline_us {
            let reason = format!("a fault of step {:?} was not confirmed in time", step.name);
            day.abort_asked = true;
            day.result_reason = reason.clone();
            note(day, now, now, 0, "refused", reason);
            undo_all(state, day);
        }
        return;
    }
    let active_at = records.iter().map(|f| f.active_at_us).max().unwrap_or(now);
    if day.injected_at_us == 0 {
        day.injected_at_us = active_at;
        day.injected_error_us = records.iter().map(|f| f.clock_error_us).max().unwrap_or(0);
    }
    if records.iter().all(|f| f.wanted) && now < active_at + step.hold_us as i64 {
        day.deadline_us = active_at + step.hold_us as i64;
        return;
    }
    if records.iter().any(|f| f.wanted) {
        for fault in &records {
            if let Some(fault) = state.faults.get_mut(&fault.id) {
                fault.wanted = false;
            }
        }
        desired::everybody(state);
        return;
    }
    if records.iter().all(|f| f.ended_at_us != 0) {
        day.step += 1;
        match plan.steps.get(day.step as usize) {
            Some(next) => day.deadline_us = now + next.after_us as i64,
            None => day.phase = GameDayPhase::Undoing as i32,
        }
    } else {
        give_up(state, &records, now);
    }
}

fn kind_of(fault: &FaultRecord) -> &str {
    fault.spec.as_ref().map_or("?", |s| s.kind.as_str())
}

fn inject(state: &mut State, day: &mut GameDayRecord, plan: &GameDayPlan, step: &PlannedStep, now: i64) {
    let end_of_day = day.started_at_us + plan.max_duration_us as i64;
    let not_after_us = (now + CONFIRM_US + step.hold_us as i64 + MARGIN_US).min(end_of_day + MARGIN_US);
    let fence = state.meta().fence;
    for fault in &step.faults {
        state.faults.put(FaultRecord {
            id: fault.fault_id.clone(),
            game_day: key(day),
            prober: fault.prober.clone(),
            spec: fault.spec.clone(),
            fence,
            not_after_us,
            wanted: true,
            state: FaultState::Wanted as i32,
            created_at_us: now,
            ..FaultRecord::default()
        });
    }
    day.deadline_us = now + CONFIRM_US;
    desired::everybody(state);
}

/// A prober that never said how its fault ended: by now the lease has ended it, but nobody looked ("unknown" is never "undone", R6).
fn give_up(state: &mut State, records: &[FaultRecord], now: i64) {
    for fault in records.iter().filter(|f| f.ended_at_us == 0) {
        if now < fault.not_after_us + LEASE_US + MARGIN_US {
            continue;
        }
        if let Some(fault) = state.faults.get_mut(&fault.id) {
            fault.wanted = false;
            fault.state = FaultState::Unknown as i32;
            fault.ended_at_us = now;
            fault.detail = "the prober did not say how it ended; its lease has passed, nobody looked".to_owned();
        }
        desired::everybody(state);
    }
}

fn undoing(state: &mut State, day: &mut GameDayRecord, plan: &GameDayPlan, now: i64) {
    let records: Vec<FaultRecord> = state.faults.iter().filter(|f| f.game_day == key(day)).cloned().collect();
    if records.iter().any(|f| f.ended_at_us == 0) {
        give_up(state, &records, now);
        return;
    }
    if !records.is_empty() && day.undone_at_us == 0 {
        let last = records.iter().max_by_key(|f| f.ended_at_us);
        day.undone_at_us = last.map_or(now, |f| f.ended_at_us);
        day.undone_error_us = last.map_or(0, |f| f.clock_error_us);
    }
    if day.abort_asked {
        let never_injected = day.injected_at_us == 0;
        let refused = records.iter().any(|f| f.state() == FaultState::Refused);
        let result = if refused || never_injected && !records.is_empty() { GameDayResult::Inconclusive } else { GameDayResult::Aborted };
        let reason = day.result_reason.clone();
        end(state, day, result, reason);
        return;
    }
    day.phase = GameDayPhase::Settling as i32;
    day.deadline_us = report::settle_by(day, plan).max(now + SETTLE_US);
}

/// Ends it, with its report.
fn end(state: &mut State, day: &mut GameDayRecord, result: GameDayResult, reason: String) {
    day.phase = GameDayPhase::Ended as i32;
    day.result = result as i32;
    day.result_reason = reason.clone();
    day.ended_at_us = state.now();
    report::close(state, day);
    let Some(plan) = &day.plan else { return };
    desired::traces_changed(state, &plan.namespace, &report::probes(state, plan));
    let word = match result {
        GameDayResult::Passed => "passed",
        GameDayResult::Failed => "failed",
        GameDayResult::Aborted => "aborted",
        _ => "inconclusive",
    };
    let message = if reason.is_empty() { word.to_owned() } else { format!("{word}: {reason}") };
    let (namespace, subject) = (plan.namespace.clone(), format!("GameDay/{}", plan.name));
    events::record(state, "gameday", &namespace, &subject, message);
}

/// When a running game day moves on by the passing of time.
pub(crate) fn next_deadline(state: &State) -> Option<i64> {
    let now = state.now();
    state
        .game_days
        .iter()
        .filter(|d| d.phase() != GameDayPhase::Ended)
        .map(|d| {
            let longest = d.started_at_us + d.plan.as_ref().map_or(0, |p| p.max_duration_us as i64);
            // While something is under way the conditions are looked at once a second.
            let wanted = if d.deadline_us > now { d.deadline_us } else { now + 1_000_000 };
            let longest = if longest > now { longest } else { wanted };
            wanted.min(longest).min(now + 1_000_000)
        })
        .min()
}
