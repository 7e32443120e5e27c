//! Checks: one per target of a probe. What is run, or when, changing makes a new generation of its schedule.

use std::collections::BTreeSet;

use probity_proto::check::CheckName;
use probity_proto::lower;
use probity_proto::v1::resource::Spec;
use probity_proto::v1::*;

use crate::state::{State, resource_key};
use crate::{assign, discovery, pass, placement, voice};

/// How many checks without their target are remembered; the oldest go into the cluster's account.
pub const RETIRED_KEPT: usize = 20_000;

/// Makes the checks of a probe follow its resource; without one they go.
pub(crate) fn sync(state: &mut State, fleet: &placement::Fleet, namespace: &str, probe: &str) {
    discovery::follow_resource(state, namespace, probe);
    let wanted = wanted(state, namespace, probe);
    let names: BTreeSet<&String> = wanted.iter().map(|w| &w.check).collect();
    for check in of_probe(state, namespace, probe) {
        if !names.contains(&check) {
            remove(state, &check);
        }
    }
    for new in wanted {
        put(state, fleet, new);
    }
    if state.resources.get(&resource_key("Probe", namespace, probe)).is_none() {
        forget_retired(state, namespace, probe);
    }
}

/// Makes the checks of some targets of a probe follow them; the others stay as they are.
pub(crate) fn sync_targets(state: &mut State, namespace: &str, probe: &str, changed: &[Target], gone: &[String]) {
    for target in gone {
        remove(state, &CheckName { namespace, probe, target }.to_string());
    }
    let fleet = placement::Fleet::of(state);
    let records: Vec<CheckRecord> = of_targets(state, namespace, probe, changed);
    for new in records {
        put(state, &fleet, new);
    }
}

/// Makes a check, or lets the one that there is follow.
fn put(state: &mut State, fleet: &placement::Fleet, mut new: CheckRecord) {
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
        None => match state.retired_checks.remove(&new.check) {
            // Its target was gone: the account goes on, with a new generation of its schedule.
            Some(old) => (new.generation, new.closed, new.created_at_us) = (old.generation + 1, old.closed, old.created_at_us),
            None => new.created_at_us = state.now(),
        },
    }
    let check = new.check.clone();
    state.checks.put(new);
    // Its assignments may have ended above, and its rule may be another one.
    voice::drop_unassigned(state, &check);
    pass::soon(state, fleet, &check);
}

/// The names of a probe's checks.
pub fn of_probe(state: &State, namespace: &str, probe: &str) -> Vec<String> {
    let whole = format!("{namespace}/{probe}");
    let prefix = format!("{whole}/");
    let single = state.checks.get(&whole).map(|c| c.check.clone());
    single.into_iter().chain(state.checks.prefix(&prefix).map(|c| c.check.clone())).collect()
}

/// The namespace and the probe of a check; of one whose target is gone too, since what was due before is still reported.
pub(crate) fn probe_of(state: &State, check: &str) -> Option<(String, String)> {
    let present = state.checks.get(check).map(|c| (c.namespace.clone(), c.probe.clone()));
    present.or_else(|| state.retired_checks.get(check).map(|r| (r.namespace.clone(), r.probe.clone())))
}

fn wanted(state: &State, namespace: &str, probe: &str) -> Vec<CheckRecord> {
    let Some(resource) = state.resources.get(&resource_key("Probe", namespace, probe)) else { return Vec::new() };
    let Some(Spec::Probe(spec)) = &resource.spec else { return Vec::new() };
    let discovered = discovery::of_probe(state, namespace, probe).filter(|_| spec.discovery.is_some());
    of_targets(state, namespace, probe, discovered.map_or(&spec.targets, |d| &d.targets))
}

fn of_targets(state: &State, namespace: &str, probe: &str, targets: &[Target]) -> Vec<CheckRecord> {
    let Some(resource) = state.resources.get(&resource_key("Probe", namespace, probe)) else { return Vec::new() };
    let Some(Spec::Probe(spec)) = &resource.spec else { return Vec::new() };
    let thresholds_us = thresholds(state, namespace, probe);
    targets
        .iter()
        .filter_map(|target| {
            // Lowering was tried before the change was proposed.
            let check_spec = lower::check_spec(spec, target).ok()?;
            let placement = placement_of(spec, &check_spec, target).ok()?;
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

/// Where the check of a target is to run.
pub fn placement_of(probe: &ProbeSpec, check: &CheckSpec, target: &Target) -> Result<Placement, String> {
    let placement = lower::placement(&probe.placement.clone().unwrap_or_default(), target)?;
    Ok(Placement { needs: placement::needs(check), ..placement })
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
    if let Some(record) = state.checks.remove(check) {
        retire(state, record);
    }
    state.placed.remove(check);
    voice::drop_unassigned(state, check);
}

/// A target that is gone may come back, with what was counted; the probe's own end is the end of it.
fn retire(state: &mut State, record: CheckRecord) {
    if state.resources.get(&resource_key("Probe", &record.namespace, &record.probe)).is_none() {
        record.closed.iter().for_each(|closed| crate::account::fold_closed(state, closed));
        return;
    }
    let gone_at_us = state.now();
    state.retired_checks.put(RetiredCheckRecord {
        check: record.check,
        namespace: record.namespace,
        probe: record.probe,
        generation: record.generation,
        closed: record.closed,
        created_at_us: record.created_at_us,
        gone_at_us,
    });
    if state.retired_checks.len() > RETIRED_KEPT {
        // Many at once, so that the next ones cost nothing.
        let mut all: Vec<(i64, String)> = state.retired_checks.iter().map(|r| (r.gone_at_us, r.check.clone())).collect();
        all.sort();
        all.truncate(RETIRED_KEPT / 10);
        all.into_iter().for_each(|(_, check)| forget_one(state, &check));
    }
}

/// The checks of a probe whose target is gone for now.
pub(crate) fn retired_of<'a>(state: &'a State, namespace: &str, probe: &str) -> impl Iterator<Item = &'a RetiredCheckRecord> + use<'a> {
    let whole = format!("{namespace}/{probe}");
    state.retired_checks.get(&whole).into_iter().chain(state.retired_checks.prefix(&format!("{whole}/")))
}

fn forget_retired(state: &mut State, namespace: &str, probe: &str) {
    let all: Vec<String> = retired_of(state, namespace, probe).map(|r| r.check.clone()).collect();
    all.into_iter().for_each(|check| forget_one(state, &check));
}

fn forget_one(state: &mut State, check: &str) {
    if let Some(closed) = state.retired_checks.remove(check).and_then(|r| r.closed) {
        crate::account::fold_closed(state, &closed);
    }
}
