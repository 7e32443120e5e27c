//! What game days learn from the rest of the state: faults, runs, verdicts, alerts, deliveries. Times are those of the origin.

use probity_proto::check::CheckName;
use probity_proto::v1::*;

use super::{note, report, running};
use crate::state::State;

/// Calls `tell` for each running game day of a namespace, and stores what it changed.
fn each(state: &mut State, namespace: &str, mut tell: impl FnMut(&State, &mut GameDayRecord, &GameDayPlan)) {
    let prefix = format!("{namespace}/");
    for key in running(state) {
        let Some(day) = state.game_days.get(&key).filter(|_| key.starts_with(&prefix)) else { continue };
        let Some(plan) = day.plan.clone() else { continue };
        let mut next = day.clone();
        tell(state, &mut next, &plan);
        if state.game_days.get(&key) != Some(&next) {
            state.game_days.put(next);
        }
    }
}

/// What probers say of their faults.
pub(crate) fn on_fault_reports(state: &mut State, reports: &[ProberFaultReport]) {
    for ProberFaultReport { prober, report } in reports {
        let Some(report) = report else { continue };
        let known = state.faults.get(&report.fault_id).filter(|f| &f.prober == prober && f.ended_at_us == 0);
        let Some(old) = known.cloned() else { continue };
        let mut fault = FaultRecord { clock_error_us: report.clock_error_us, detail: report.detail.clone(), ..old.clone() };
        let what = match report.state() {
            FaultState::Active if old.active_at_us == 0 => {
                fault.active_at_us = report.at_us;
                fault.state = FaultState::Active as i32;
                "injected"
            }
            FaultState::Seen if old.seen_at_us == 0 => {
                fault.seen_at_us = report.at_us;
                fault.state = FaultState::Seen as i32;
                "effect_seen"
            }
            FaultState::Undone | FaultState::Unknown | FaultState::Refused => {
                fault.state = report.state;
                fault.ended_at_us = report.at_us.max(1);
                fault.wanted = false;
                match report.state() {
                    FaultState::Undone => "undone",
                    FaultState::Unknown => "undo_unknown",
                    _ => "fault_refused",
                }
            }
            _ => continue,
        };
        let kind = fault.spec.as_ref().map_or_else(String::new, |s| s.kind.clone());
        let (game_day, prober, error, at) = (fault.game_day.clone(), fault.prober.clone(), fault.clock_error_us, report.at_us);
        let detail = match what {
            "undone" => format!("verified: {}", fault.detail),
            "injected" => format!("{kind} by {prober}"),
            "effect_seen" => format!("{kind} touched traffic"),
            _ => format!("{kind} by {prober}: {}", fault.detail),
        };
        if fault.ended_at_us != 0 {
            crate::desired::everybody(state);
        }
        state.faults.put(fault);
        let now = state.now();
        if let Some(day) = state.game_days.get(&game_day).cloned() {
            let mut day = day;
            note(&mut day, now, at, error, what, detail);
            let namespace = day.plan.as_ref().map(|p| p.namespace.clone()).unwrap_or_default();
            state.game_days.put(day);
            let subject = format!("GameDay/{}", game_day.rsplit('/').next().unwrap_or(&game_day));
            crate::events::record(state, "fault", &namespace, &subject, format!("{what} {kind} on {prober}"));
        }
    }
}

/// A bad run: the first of each probe that the plan names is in the timeline.
pub(crate) fn on_bad_run(state: &mut State, check: &str, prober: &str, at_us: i64, clock_error_us: u64, reason: Reason) {
    let Some(name) = CheckName::parse(check) else { return };
    let now = state.now();
    each(state, name.namespace, |state, day, plan| {
        let probe = name.probe.to_owned();
        let since_injection = day.timeline.iter().any(|t| t.what == "injected" && at_us + clock_error_us as i64 >= t.at_us);
        if !since_injection || day.first_bad_seen.contains(&probe) || !report::probes(state, plan).contains(&probe) {
            return;
        }
        day.first_bad_seen.push(probe);
        note(day, now, at_us, clock_error_us, "first_bad", format!("{} from {prober}: {}", name.probe, reason.label()));
    });
}

/// A verdict changed.
pub(crate) fn on_verdict(state: &mut State, check: &str, new: Verdict, at_us: i64, clock_error_us: u64, down: usize, probers: usize) {
    let Some(name) = CheckName::parse(check) else { return };
    let now = state.now();
    each(state, name.namespace, |state, day, plan| {
        if !report::probes(state, plan).contains(name.probe) {
            return;
        }
        let what = match new {
            Verdict::Down => "down",
            Verdict::Up if day.timeline.iter().any(|t| t.what == "down" && t.detail.starts_with(name.probe)) => "recovered",
            _ => return,
        };
        let detail = match new {
            Verdict::Down => format!("{}: {down} of {probers} probers", name.probe),
            _ => format!("{} up", name.probe),
        };
        note(day, now, at_us, clock_error_us, what, detail);
        for (expectation, progress) in plan.expect.iter().zip(&mut day.progress) {
            let Some(expectation::Expect::Verdict(e)) = &expectation.expect else { continue };
            if e.probe != name.probe {
                continue;
            }
            if new == Verdict::Down && progress.fired_at_us == 0 {
                progress.fired_at_us = at_us;
                progress.fired_error_us = clock_error_us;
            }
            if new == Verdict::Up && progress.fired_at_us != 0 {
                progress.recovered_at_us = at_us;
                progress.recovered_error_us = clock_error_us;
            }
        }
    });
}

/// An alert fired or resolved: `alert` is slo/rule.
pub(crate) fn on_alert(state: &mut State, namespace: &str, alert: &str, firing: bool) {
    let now = state.now();
    each(state, namespace, |_, day, plan| {
        let concerns = plan.expect.iter().any(|e| matches!(&e.expect, Some(expectation::Expect::Alert(e)) if e.alert == alert));
        if !concerns {
            return;
        }
        note(day, now, now, 0, if firing { "firing" } else { "resolved" }, alert.to_owned());
        for (expectation, progress) in plan.expect.iter().zip(&mut day.progress) {
            let Some(expectation::Expect::Alert(e)) = &expectation.expect else { continue };
            if e.alert != alert {
                continue;
            }
            if firing && progress.fired_at_us == 0 {
                progress.fired_at_us = now;
            } else if !firing && progress.fired_at_us != 0 {
                progress.recovered_at_us = now;
            }
        }
    });
}

/// A receiver was told.
pub(crate) fn on_delivered(state: &mut State, episode: &str, receiver: &str, status: u32, resolved: bool, at_us: i64) {
    let Some(record) = state.episodes.get(episode) else { return };
    let (namespace, alert) = (record.namespace.clone(), format!("{}/{}", record.slo, record.rule));
    let now = state.now();
    each(state, &namespace, |_, day, plan| {
        let concerns = plan.expect.iter().any(|e| matches!(&e.expect, Some(expectation::Expect::Alert(e)) if e.alert == alert));
        if concerns {
            let what = if resolved { "told_resolved" } else { "delivered" };
            note(day, now, at_us, 0, what, format!("{alert} to {receiver} ({status})"));
        }
    });
}
