//! Objectives: integer ledgers, burn rates, alerts, and what receivers should know of them.

mod alert;
mod burn;
mod explain;
pub mod ledger;
pub mod outbox;
pub mod policy;
pub mod theory;

pub(crate) use alert::{prober_alert, silent_alert, targets_alert};
pub use burn::{Burn, budget_spent_ppm, window_counts};
pub use explain::{Explain, RuleExplain, explain};

use probity_proto::v1::resource::Spec;
use probity_proto::v1::*;

use crate::state::State;

/// Some slots of one outcome, next to each other.
#[derive(Debug, Clone, Copy)]
pub struct SlotFacts<'a> {
    /// Whose slots.
    pub assignment: &'a AssignmentRecord,
    /// The first of them.
    pub first_n: u64,
    /// How many.
    pub count: u64,
    /// Their outcome.
    pub reason: Reason,
    /// How many of the assignment's thresholds a good run exceeded.
    pub slower_than: u32,
}

/// The SLOs of a namespace, with their resources.
pub(crate) fn all(state: &State) -> impl Iterator<Item = (&Resource, &SloSpec)> {
    state.resources.prefix("SLO/").filter_map(|r| match &r.spec {
        Some(Spec::Slo(slo)) => Some((r, slo)),
        _ => None,
    })
}

/// The SLOs on a probe.
pub(crate) fn of_probe<'a>(state: &'a State, namespace: &str, probe: &str) -> impl Iterator<Item = (&'a Resource, &'a SloSpec)> + use<'a> {
    let names = state.index.slos_of_probe.get(&(namespace.to_owned(), probe.to_owned()));
    let namespace = namespace.to_owned();
    names.into_iter().flatten().filter_map(move |name| find(state, &namespace, name))
}

/// One SLO.
pub fn find<'a>(state: &'a State, namespace: &str, name: &str) -> Option<(&'a Resource, &'a SloSpec)> {
    let resource = state.resources.get(&crate::resource_key("SLO", namespace, name))?;
    match &resource.spec {
        Some(Spec::Slo(slo)) => Some((resource, slo)),
        _ => None,
    }
}

/// Makes ledgers and alerts follow the resources.
pub(crate) fn on_resources_changed(state: &mut State) {
    let slos: Vec<(String, String, SloSpec)> = all(state).map(|(r, s)| (r.namespace.clone(), r.name.clone(), s.clone())).collect();
    for (namespace, name, spec) in &slos {
        ledger::ensure(state, namespace, name, spec);
    }
    alert::drop_orphans(state);
}

/// An SLO is deleted: its ledger stays as a tombstone for its window, unless purged.
pub(crate) fn on_deleted(state: &mut State, old: &Resource, purge: bool) {
    if old.kind != "SLO" {
        return;
    }
    let now = state.now();
    let key = format!("{}/{}", old.namespace, old.name);
    if purge {
        ledger::forget(state, &key);
    } else {
        ledger::update(state, &key, |ledger| ledger.deleted_at_us = now);
    }
}

/// Judges the SLOs that are due: something bad or missing came in, a window moved on, or nobody looked for a while. Costs those, not all.
pub(crate) fn evaluate(state: &mut State) {
    while let Some((at, key)) = state.index.judge.first().cloned()
        && at <= state.now()
    {
        match state.ledgers.get(&key) {
            Some(ledger) if ledger.deleted_at_us == 0 => alert::judge_slo(state, &key),
            _ => ledger::forget(state, &key),
        }
    }
}

/// When a rule may change without a command.
pub(crate) fn next_deadline(state: &State) -> Option<i64> {
    state.index.judge.first().map(|(at, _)| *at).filter(|at| *at != ledger::NEVER)
}

/// What speaks against an SLO's rules: (path, message, hint).
pub(crate) fn rule_problems(slo: &SloSpec, policy: Option<&Resource>) -> Vec<(String, String, String)> {
    let spec = match policy.and_then(|r| r.spec.as_ref()) {
        Some(Spec::BurnRatePolicy(spec)) => spec.clone(),
        _ => policy::workbook(),
    };
    let path = if slo.policy.is_empty() { "spec.objectives[0].target" } else { "spec.alertPolicies[0].alertPolicyRef" };
    spec.rules
        .iter()
        .filter_map(|rule| {
            let (message, hint) = theory::never_fires(slo.target_ppm, rule)?;
            Some((path.to_owned(), format!("rule {:?}: {message}", rule.name), hint))
        })
        .collect()
}
