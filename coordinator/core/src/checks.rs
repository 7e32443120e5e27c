//! Checks: one per target of a probe. What is run, or when, changing makes a new generation of its schedule.

use std::collections::BTreeSet;

use probity_proto::check::CheckName;
use probity_proto::lower;
use probity_proto::v1::resource::Spec;
use probity_proto::v1::*;

use crate::state::{State, resource_key};
use crate::{assign, placement, verdict, voice};

/// Makes the checks of a probe follow its resource; without one they go.
pub(crate) fn sync(state: &mut State, fleet: &placement::Fleet, namespace: &str, probe: &str) {
    let wanted = wanted(state, namespace, probe);
    let names: BTreeSet<&String> = wanted.iter().map(|w| &w.check).collect();
    for check in of_probe(state, namespace, probe) {
        if !names.contains(&check) {
            remove(state, &check);
        }
    }
    for mut new in wanted {
        let same_schedule = |old: &CheckRecord| old.spec == new.spec && old.interval_us == new.interval_us && old.thresholds_us == new.thresholds_us;
        let changed = state.checks.get(&new.check).is_some_and(|old| !same_schedule(old));
        if changed {
            // First: what is folded now goes into the old record's account.
            assign::end_all(state, &new.check);
        }
        match state.checks.get(&new.check) {
            Some(old) => {
                new = CheckRecord {
                    generation: old.generation + u64::from(changed),
                    created_at_us: old.created_at_us,
                    verdict: old.verdict,
                    verdict_since_us: old.verdict_since_us,
                    verdict_seen_at_us: old.verdict_seen_at_us,
                    verdict_clock_error_us: old.verdict_clock_error_us,
                    closed: old.closed.clone(),
                    ..new
                };
            }
            None => new.created_at_us = state.now(),
        }
        let check = new.check.clone();
        state.checks.put(new);
        placement::place(state, fleet, &check);
        // Its assignments may have ended above, and its rule may be another one.
        voice::drop_unassigned(state, &check);
        verdict::judge(state, &check, state.now(), 0);
    }
}

/// The names of a probe's checks.
pub fn of_probe(state: &State, namespace: &str, probe: &str) -> Vec<String> {
    let whole = format!("{namespace}/{probe}");
    let prefix = format!("{whole}/");
    let single = state.checks.get(&whole).map(|c| c.check.clone());
    single.into_iter().chain(state.checks.prefix(&prefix).map(|c| c.check.clone())).collect()
}

fn wanted(state: &State, namespace: &str, probe: &str) -> Vec<CheckRecord> {
    let Some(resource) = state.resources.get(&resource_key("Probe", namespace, probe)) else { return Vec::new() };
    let Some(Spec::Probe(spec)) = &resource.spec else { return Vec::new() };
    let thresholds_us = thresholds(state, namespace, probe);
    spec.targets
        .iter()
        .filter_map(|target| {
            // Lowering was tried before the change was proposed.
            let check_spec = lower::check_spec(spec, target).ok()?;
            let placement = lower::placement(&spec.placement.clone().unwrap_or_default(), target).ok()?;
            let check = CheckName { namespace, probe, target: &target.key }.to_string();
            Some(CheckRecord {
                check,
                namespace: namespace.to_owned(),
                probe: probe.to_owned(),
                target_key: target.key.clone(),
                generation: 1,
                spec: Some(check_spec),
                interval_us: spec.interval_us.max(1),
                thresholds_us: thresholds_us.clone(),
                placement: Some(placement),
                rule: spec.verdict,
                labels: target.labels.clone(),
                ..CheckRecord::default()
            })
        })
        .collect()
}

/// The duration limits of the SLOs on a probe: ascending, distinct.
fn thresholds(state: &State, namespace: &str, probe: &str) -> Vec<u64> {
    let mut thresholds: Vec<u64> = crate::slo::of_probe(state, namespace, probe).map(|(_, slo)| slo.max_duration_us).filter(|t| *t > 0).collect();
    thresholds.sort_unstable();
    thresholds.dedup();
    thresholds
}

fn remove(state: &mut State, check: &str) {
    assign::end_all(state, check);
    // What is still pending is folded when it is known, or given up.
    if let Some(record) = state.checks.remove(check)
        && let Some(closed) = record.closed
    {
        crate::account::fold_closed(state, &closed);
    }
    state.placed.remove(check);
    voice::drop_unassigned(state, check);
}
