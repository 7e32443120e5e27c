//! Conditions of steadyState and abortIf, against the state as it is.

use probity_proto::v1::*;

use crate::slo;
use crate::state::State;

/// The worst verdict of a probe's checks; unknown when it has none.
pub(crate) fn verdict_of_probe(state: &State, namespace: &str, probe: &str) -> Verdict {
    let verdicts: Vec<Verdict> = crate::checks::of_probe(state, namespace, probe).iter().filter_map(|c| state.checks.get(c)).map(|c| c.verdict()).collect();
    [Verdict::Down, Verdict::Unknown].into_iter().find(|v| verdicts.contains(v)).unwrap_or(if verdicts.is_empty() { Verdict::Unknown } else { Verdict::Up })
}

pub(crate) fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Up => "up",
        Verdict::Down => "down",
        Verdict::Unknown => "unknown",
    }
}

/// Percent of parts per million, with three digits.
pub(crate) fn percent(ppm: u64) -> String {
    let text = format!("{}.{:04}", ppm / 10_000, ppm % 10_000);
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text}%")
}

/// Whether a condition holds, and what is the case, in words. Budgets spent are counted from `spent_before_ppm` of that SLO.
pub(crate) fn holds(state: &State, namespace: &str, condition: &Condition, spent_before_ppm: impl Fn(&str) -> u64) -> (bool, String) {
    if !condition.probe.is_empty() {
        let now = verdict_of_probe(state, namespace, &condition.probe);
        return (now == condition.verdict(), format!("probe {} is {}", condition.probe, word(now)));
    }
    if !condition.alert.is_empty() {
        let firing = state.alerts.get(&format!("{namespace}/{}", condition.alert)).is_some_and(|a| a.state() == AlertState::Firing);
        return (firing, format!("alert {} is {}", condition.alert, if firing { "firing" } else { "not firing" }));
    }
    let spent = slo::budget_spent_ppm(state, namespace, &condition.slo).unwrap_or(0);
    if let Some(left) = condition.budget_left_ppm {
        let now = 1_000_000u64.saturating_sub(spent);
        return (now >= u64::from(left), format!("slo {} has {} of its budget left", condition.slo, percent(now)));
    }
    let here = spent.saturating_sub(spent_before_ppm(&condition.slo));
    let limit = u64::from(condition.budget_spent_ppm.unwrap_or(0));
    (here >= limit, format!("slo {} spent {} of its budget in this game day", condition.slo, percent(here)))
}
