//! The report: what was expected, within what, and what was measured. Durations come from times at the origins (rule R14).

use std::collections::BTreeSet;

use probity_proto::v1::expectation::Expect;
use probity_proto::v1::*;

use super::conditions::{percent, verdict_of_probe, word};
use crate::state::State;
use crate::{account, slo};

/// The probes that a plan is about: those it names, and those of the SLOs it names.
pub(crate) fn probes(state: &State, plan: &GameDayPlan) -> BTreeSet<String> {
    let mut probes = BTreeSet::new();
    for condition in plan.steady_state.iter().chain(&plan.abort_if) {
        probes.insert(condition.probe.clone());
    }
    for expectation in &plan.expect {
        if let Some(Expect::Verdict(e)) = &expectation.expect {
            probes.insert(e.probe.clone());
        }
    }
    for name in slos(plan) {
        if let Some((_, spec)) = slo::find(state, &plan.namespace, &name) {
            probes.insert(spec.probe.clone());
        }
    }
    probes.remove("");
    probes
}

/// The SLOs that it names.
fn slos(plan: &GameDayPlan) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let of_alert = |alert: &str| alert.split('/').next().unwrap_or("").to_owned();
    for condition in plan.steady_state.iter().chain(&plan.abort_if) {
        names.insert(condition.slo.clone());
        names.insert(of_alert(&condition.alert));
    }
    for expectation in &plan.expect {
        match &expectation.expect {
            Some(Expect::Alert(e)) => names.insert(of_alert(&e.alert)),
            Some(Expect::Budget(e)) => names.insert(e.slo.clone()),
            _ => false,
        };
    }
    names.remove("");
    names
}

fn account_of(state: &State, namespace: &str, probe: &str) -> Account {
    let view = account::of_probe(state, namespace, probe, state.now());
    Account { planned: view.planned - view.pending, good: view.good, bad: view.bad, missed: view.missed, extra: view.extra, ..Account::default() }
}

pub(crate) fn accounts_at_start(state: &State, plan: &GameDayPlan) -> Vec<ProbeAccount> {
    let account = |probe: String| ProbeAccount { start: Some(account_of(state, &plan.namespace, &probe)), probe, end: None };
    probes(state, plan).into_iter().map(account).collect()
}

pub(crate) fn budgets_at_start(state: &State, plan: &GameDayPlan) -> Vec<BudgetSpent> {
    slos(plan)
        .into_iter()
        .map(|name| BudgetSpent {
            start_ppm: slo::budget_spent_ppm(state, &plan.namespace, &name).unwrap_or(0),
            bad_start: slo::window_counts(state, &plan.namespace, &name).map_or(0, |w| w.bad),
            slo: name,
            ..BudgetSpent::default()
        })
        .collect()
}

/// By when everything that was expected must have come.
pub(crate) fn settle_by(day: &GameDayRecord, plan: &GameDayPlan) -> i64 {
    let within = |e: &Expectation| match &e.expect {
        Some(Expect::Alert(e)) => e.resolves_within_us.max(e.fires_within_us),
        Some(Expect::Verdict(e)) => e.recovers_within_us,
        _ => 0,
    };
    day.undone_at_us + plan.expect.iter().map(within).max().unwrap_or(0) as i64
}

/// A margin, so that a report on its way is not judged as missing.
const MARGIN_US: i64 = 1_000_000;

/// Whether nothing more is to wait for: all has come, or its time has passed.
pub(crate) fn settled(state: &State, day: &GameDayRecord, plan: &GameDayPlan, now: i64) -> bool {
    // What did not come in its time after the injection makes the expectation fail: what was to follow it is not waited for.
    let too_late = |fired_at_us: i64, within_us: u64| within_us > 0 && fired_at_us == 0 && now > day.injected_at_us + within_us as i64 + MARGIN_US;
    let decided = |e: &Expectation, p: &ExpectationProgress| match &e.expect {
        // Only the end of the day tells that it never fired.
        Some(Expect::Alert(e)) if e.never => false,
        Some(Expect::Alert(e)) => {
            let came = (e.fires_within_us == 0 || p.fired_at_us != 0) && (e.resolves_within_us == 0 || p.recovered_at_us != 0);
            came || too_late(p.fired_at_us, e.fires_within_us)
        }
        Some(Expect::Verdict(e)) => {
            let recovered = || p.recovered_at_us != 0 && verdict_of_probe(state, &plan.namespace, &e.probe) == Verdict::Up;
            let came = (e.within_us == 0 || p.fired_at_us != 0) && (e.recovers_within_us == 0 || recovered());
            came || too_late(p.fired_at_us, e.within_us)
        }
        _ => true,
    };
    plan.expect.iter().zip(&day.progress).all(|(e, p)| decided(e, p)) || now >= day.deadline_us + MARGIN_US
}

/// Measures, and judges by what was measured.
pub(crate) fn judge(state: &State, day: &mut GameDayRecord, plan: &GameDayPlan) -> (GameDayResult, String) {
    close_books(state, day, plan);
    day.measured = measure(state, day, plan);
    let unknown = state.faults.iter().any(|f| f.game_day == super::key(day) && f.state() == FaultState::Unknown);
    let failed: Vec<&str> = day.measured.iter().filter(|m| !m.ok).map(|m| m.what.as_str()).collect();
    match (unknown, failed.is_empty()) {
        (true, _) => (GameDayResult::Inconclusive, "an undo was not verified: look at the host".to_owned()),
        (false, true) => (GameDayResult::Passed, String::new()),
        (false, false) => (GameDayResult::Failed, failed.join("; ")),
    }
}

/// The last entries of a report, also of one that was cut short.
pub(crate) fn close(state: &State, day: &mut GameDayRecord) {
    let Some(plan) = day.plan.clone() else { return };
    close_books(state, day, &plan);
    if day.measured.is_empty() && day.injected_at_us != 0 {
        day.measured = measure(state, day, &plan);
    }
}

fn close_books(state: &State, day: &mut GameDayRecord, plan: &GameDayPlan) {
    for entry in &mut day.accounts {
        entry.end = Some(account_of(state, &plan.namespace, &entry.probe));
    }
    for entry in &mut day.budgets {
        entry.end_ppm = slo::budget_spent_ppm(state, &plan.namespace, &entry.slo).unwrap_or(0);
        entry.bad_end = slo::window_counts(state, &plan.namespace, &entry.slo).map_or(0, |w| w.bad);
    }
}

/// A time between two origins; not there when one of them never came.
fn between(what: &str, within_us: u64, from: (i64, u64), to: (i64, u64), note: String) -> Measured {
    let came = from.0 != 0 && to.0 != 0;
    let measured_us = if came { (to.0 - from.0).max(0) } else { 0 };
    Measured {
        what: what.to_owned(),
        within_us,
        measured_us,
        error_us: if came { from.1 + to.1 } else { 0 },
        ok: came && (within_us == 0 || measured_us as u64 <= within_us),
        text: if came { String::new() } else { "never".to_owned() },
        note,
        ..Measured::default()
    }
}

fn measure(state: &State, day: &GameDayRecord, plan: &GameDayPlan) -> Vec<Measured> {
    let injected = (day.injected_at_us, day.injected_error_us);
    let undone = (day.undone_at_us, day.undone_error_us);
    let mut lines: Vec<(u32, Measured)> = Vec::new();
    for (expectation, p) in plan.expect.iter().zip(&day.progress) {
        let (fired, over) = ((p.fired_at_us, p.fired_error_us), (p.recovered_at_us, p.recovered_error_us));
        match &expectation.expect {
            Some(Expect::Verdict(e)) if e.within_us == 0 && e.recovers_within_us == 0 => lines.push((4, stays(state, plan, e, p))),
            Some(Expect::Verdict(e)) => {
                if e.within_us > 0 {
                    lines.push((0, between("detected after injection", e.within_us, injected, fired, String::new())));
                }
                if e.recovers_within_us > 0 {
                    lines.push((2, between("recovered after undo", e.recovers_within_us, undone, over, String::new())));
                }
            }
            Some(Expect::Alert(e)) if e.never => lines.push((4, never_fires(e, p))),
            Some(Expect::Alert(e)) => {
                if e.fires_within_us > 0 {
                    lines.push((1, between("paged after injection", e.fires_within_us, injected, fired, theory(state, plan, &e.alert))));
                }
                if e.resolves_within_us > 0 {
                    lines.push((3, between("resolved after undo", e.resolves_within_us, undone, over, String::new())));
                }
            }
            Some(Expect::Budget(e)) => lines.push((5, budget(state, day, plan, e))),
            None => {}
        }
    }
    lines.sort_by_key(|(place, _)| *place);
    lines.into_iter().map(|(_, line)| line).collect()
}

fn stays(state: &State, plan: &GameDayPlan, e: &VerdictExpectation, p: &ExpectationProgress) -> Measured {
    let now = verdict_of_probe(state, &plan.namespace, &e.probe);
    let broke = e.verdict() == Verdict::Up && p.fired_at_us != 0;
    Measured {
        what: format!("{} stays {}", e.probe, word(e.verdict())),
        ok: !broke && now == e.verdict(),
        text: if broke { "was down".to_owned() } else { word(now).to_owned() },
        ..Measured::default()
    }
}

fn never_fires(e: &AlertExpectation, p: &ExpectationProgress) -> Measured {
    let fired = p.fired_at_us != 0;
    Measured { what: format!("{} never fires", e.alert), ok: !fired, text: if fired { "fired" } else { "did not fire" }.to_owned(), ..Measured::default() }
}

/// "theory 8.6 s": when a full outage makes the rule fire.
fn theory(state: &State, plan: &GameDayPlan, alert: &str) -> String {
    let Some((name, rule)) = alert.split_once('/') else { return String::new() };
    let Some((_, spec)) = slo::find(state, &plan.namespace, name) else { return String::new() };
    let Some(policy) = slo::policy::of(state, &plan.namespace, spec) else { return String::new() };
    let Some(rule) = policy.rules.iter().find(|r| r.name == rule) else { return String::new() };
    let tenths = slo::theory::full_outage_us(spec.target_ppm, rule) / 100_000;
    format!("theory {}.{} s", tenths / 10, tenths % 10)
}

fn budget(state: &State, day: &GameDayRecord, plan: &GameDayPlan, e: &BudgetExpectation) -> Measured {
    let Some(spent) = day.budgets.iter().find(|b| b.slo == e.slo) else { return Measured::default() };
    let ppm = spent.end_ppm.saturating_sub(spent.start_ppm);
    let whole_us = slo::find(state, &plan.namespace, &e.slo)
        .map_or(0, |(_, s)| u128::from(s.window_us) * u128::from(1_000_000u32.saturating_sub(s.target_ppm)) / 1_000_000) as u64;
    let spent_us = (u128::from(whole_us) * u128::from(ppm) / 1_000_000) as u64;
    Measured {
        what: "budget spent".to_owned(),
        ok: ppm <= u64::from(e.at_most_ppm),
        text: percent(ppm / 1_000 * 1_000),
        limit: percent(u64::from(e.at_most_ppm)),
        note: format!("{} of {}", probity_proto::units::format_duration(spent_us / 100_000 * 100_000), probity_proto::units::format_duration(whole_us)),
        ..Measured::default()
    }
}
