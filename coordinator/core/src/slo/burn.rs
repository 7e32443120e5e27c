//! Burn rates and budgets, from the ledgers.
//!
//! error ratio = bad / (planned - missed) over the whole window. Slots before the SLO existed count as good, pending ones too:
//! a young SLO or a slow report never pages (rule R10).

use probity_proto::v1::*;

use super::{find, ledger};
use crate::state::State;
use crate::{assign, checks};

/// A window's counts and burn rate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Burn {
    /// Slots of the window, those before the SLO existed included.
    pub planned: u64,
    /// Bad ones.
    pub bad: u64,
    /// Missed ones.
    pub missed: u64,
    /// Good ones that were reported.
    pub good: u64,
    /// Thousandths of the rate that would spend the budget just over the objective's window.
    pub burn_milli: u64,
}

/// How many slots per `window_us` the present assignments of a probe have, in thousandths.
fn rate_milli(state: &State, namespace: &str, probe: &str, window_us: u64) -> u64 {
    checks::of_probe(state, namespace, probe)
        .iter()
        .flat_map(|check| assign::of_check(state, check))
        .filter(|a| a.until_us == 0)
        .map(|a| (u128::from(window_us) * 1_000 / u128::from(a.interval_us.max(1))) as u64)
        .sum()
}

/// The burn over the newest `window_us`, by the buckets of `width_us`. The ledger must be materialised.
pub(crate) fn over(state: &State, record: &LedgerRecord, slo: &SloSpec, width_us: u64, window_us: u64) -> Burn {
    let Some(series) = record.series.iter().find(|s| s.width_us == width_us) else { return Burn::default() };
    let now = state.now().max(0) as u64;
    let newest = now / width_us;
    let oldest = (newest + 1).saturating_sub(window_us.div_ceil(width_us));
    let sum = ledger::sum(series, oldest, newest);
    let start = oldest * width_us;
    let created = record.created_at_us.max(0) as u64;
    let before = created.min(now).saturating_sub(start);
    let planned = sum.planned + rate_milli(state, &record.namespace, &slo.probe, before) / 1_000;
    let known = planned.saturating_sub(sum.missed).max(sum.bad + sum.good);
    let budget_ppm = u128::from(1_000_000u32.saturating_sub(slo.target_ppm).max(1));
    let burn_milli = if known == 0 { 0 } else { u128::from(sum.bad) * 1_000_000_000 / (u128::from(known) * budget_ppm) };
    Burn { planned, bad: sum.bad, missed: sum.missed, good: sum.good, burn_milli: u64::try_from(burn_milli).unwrap_or(u64::MAX) }
}

/// Counts over the objective's whole window, as of the last materialisation.
pub fn window_counts(state: &State, namespace: &str, name: &str) -> Option<Burn> {
    let (_, slo) = find(state, namespace, name)?;
    let record = state.ledgers.get(&format!("{namespace}/{name}"))?;
    Some(over(state, record, slo, 3_600 * 1_000_000, slo.window_us))
}

/// The share of the window's error budget that is spent, in parts per million: bad runs of those that the budget allows over the
/// whole window at the present schedule.
pub fn budget_spent_ppm(state: &State, namespace: &str, name: &str) -> Option<u64> {
    let (_, slo) = find(state, namespace, name)?;
    let counts = window_counts(state, namespace, name)?;
    let allowed = allowed_milli(state, namespace, slo).max(1);
    Some((u128::from(counts.bad) * 1_000 * 1_000_000 / u128::from(allowed)) as u64)
}

/// Bad runs that the budget allows over the whole window at the present schedule, in thousandths.
pub(crate) fn allowed_milli(state: &State, namespace: &str, slo: &SloSpec) -> u64 {
    let planned_milli = rate_milli(state, namespace, &slo.probe, slo.window_us);
    (u128::from(planned_milli) * u128::from(1_000_000u32.saturating_sub(slo.target_ppm)) / 1_000_000) as u64
}

/// Distinct probers of the SLO's probe that had a bad run due at or after `since`, and how many are assigned.
pub(crate) fn witnesses(state: &State, namespace: &str, probe: &str, since: i64) -> (u32, u32) {
    let mut bad = std::collections::BTreeSet::new();
    let mut assigned = std::collections::BTreeSet::new();
    for check in checks::of_probe(state, namespace, probe) {
        for a in assign::of_check(state, &check).filter(|a| a.until_us == 0) {
            assigned.insert(a.prober.clone());
            let voter = state.voters.get(&crate::pair_key(&check, &a.prober));
            if voter.is_some_and(|v| v.last_bad_at_us >= since) {
                bad.insert(a.prober.clone());
            }
        }
    }
    (bad.len() as u32, assigned.len() as u32)
}
