//! Everything about one SLO in numbers: what it promises, what is left, when it alerts.

use probity_proto::v1::*;

use super::{Burn, burn, find, policy, theory};
use crate::state::State;

/// The numbers behind `slo explain`.
#[derive(Debug, Clone)]
pub struct Explain {
    /// The objective, in parts per million.
    pub target_ppm: u32,
    /// The objective's window.
    pub window_us: u64,
    /// The budget as time of a full outage.
    pub budget_us: u64,
    /// The share of it that is spent; above a million when overspent.
    pub spent_ppm: u64,
    /// Counts over the window.
    pub window: Burn,
    /// Its rules.
    pub rules: Vec<RuleExplain>,
    /// The no-data rule holds now.
    pub no_data: bool,
}

/// One rule of it.
#[derive(Debug, Clone)]
pub struct RuleExplain {
    /// The rule.
    pub rule: BurnRateRule,
    /// Its state.
    pub state: AlertState,
    /// Since when, in log time.
    pub since_us: i64,
    /// Burn over the long window, in thousandths.
    pub long_burn_milli: u64,
    /// Burn over the short window, in thousandths.
    pub short_burn_milli: u64,
    /// A full outage fires after this.
    pub full_outage_us: u64,
    /// Bad runs in the long window that make it fire.
    pub failures_to_fire: u64,
}

/// Explains an SLO; `None` when there is none of that name.
pub fn explain(state: &State, namespace: &str, name: &str) -> Option<Explain> {
    let (_, slo) = find(state, namespace, name)?;
    let record = state.ledgers.get(&format!("{namespace}/{name}"))?;
    let policy = policy::of(state, namespace, slo).unwrap_or_default();
    let evidence = policy.evidence.unwrap_or_default().bad_runs;
    let rules = policy
        .rules
        .iter()
        .map(|rule| {
            let alert = state.alerts.get(&format!("{namespace}/{name}/{}", rule.name)).cloned().unwrap_or_default();
            let width = (rule.short_us / 12).max(1);
            let long = burn::over(state, record, slo, width, rule.long_us);
            let short = burn::over(state, record, slo, width, rule.short_us);
            RuleExplain {
                state: alert.state(),
                since_us: alert.since_us,
                long_burn_milli: long.burn_milli,
                short_burn_milli: short.burn_milli,
                full_outage_us: theory::full_outage_us(slo.target_ppm, rule),
                failures_to_fire: theory::failures_to_fire(slo.target_ppm, rule, long.planned, evidence),
                rule: rule.clone(),
            }
        })
        .collect();
    let no_data = state.alerts.get(&format!("{namespace}/{name}/{}", policy::NO_DATA)).is_some_and(|a| a.state() == AlertState::Firing);
    Some(Explain {
        target_ppm: slo.target_ppm,
        window_us: slo.window_us,
        budget_us: (u128::from(slo.window_us) * u128::from(1_000_000u32.saturating_sub(slo.target_ppm)) / 1_000_000) as u64,
        spent_ppm: burn::budget_spent_ppm(state, namespace, name).unwrap_or(0),
        window: burn::window_counts(state, namespace, name).unwrap_or_default(),
        rules,
        no_data,
    })
}
