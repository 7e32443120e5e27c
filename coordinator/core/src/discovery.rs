//! The targets that a probe's discovery found: which set counts, and when a new one must wait for a person.
//!
//! The leader asks outside the log, and proposes what it got when that differs from what is known. A discovery that fails or finds
//! nothing changes nothing. A set that is much smaller than the present one is held: an inventory that lost its half looks just so.

use std::collections::BTreeMap;

use probity_proto::bugs::{self, Bug};
use probity_proto::v1::resource::Spec;
use probity_proto::v1::*;

use crate::apply::refused;
use crate::state::{State, resource_key};
use crate::{audit, checks, events, slo};

/// So many targets a probe may have at most, whatever its `max` says.
pub const TARGETS_MAX: usize = 10_000;
/// A set that shrinks by more than this share is held, in percent.
pub const SHRINK_PERCENT: usize = 30;

fn key_of(namespace: &str, probe: &str) -> String {
    format!("{namespace}/{probe}")
}

/// What is known of a probe's targets.
pub fn of_probe<'a>(state: &'a State, namespace: &str, probe: &str) -> Option<&'a DiscoveryRecord> {
    state.discoveries.get(&key_of(namespace, probe))
}

/// Whether going from `before` targets to `after` waits for a person.
pub fn shrinks_too_much(before: usize, after: usize) -> bool {
    after * 100 < before * (100 - SHRINK_PERCENT) && !bugs::on(Bug::SmallSetTaken)
}

/// The probe's resource and its spec, when it has a discovery.
fn asked<'a>(state: &'a State, namespace: &str, probe: &str) -> Option<(&'a Resource, &'a ProbeSpec)> {
    let resource = state.resources.get(&resource_key("Probe", namespace, probe))?;
    match &resource.spec {
        Some(Spec::Probe(spec)) if spec.discovery.is_some() => Some((resource, spec)),
        _ => None,
    }
}

/// Takes what the leader found.
pub(crate) fn discovered(state: &mut State, op: &DiscoverTargets) -> Result<(), Refused> {
    let Some((resource, spec)) = asked(state, &op.namespace, &op.probe) else {
        return Err(refused(RefusalCode::NotFound, format!("no probe {}/{} that discovers its targets", op.namespace, op.probe)));
    };
    if resource.generation != op.generation {
        return Err(refused(RefusalCode::Conflict, "the probe changed while its targets were asked for"));
    }
    let max = spec.discovery.as_ref().map_or(0, |d| d.max as usize).min(TARGETS_MAX);
    let sorted = op.targets.windows(2).all(|pair| pair[0].key < pair[1].key) && op.targets.iter().all(|t| !t.key.is_empty());
    if op.targets.len() > max || !sorted {
        return Err(refused(RefusalCode::Invalid, format!("a set of targets has at most {max}, sorted by keys that differ")));
    }
    let now = state.now();
    let mut record = of_probe(state, &op.namespace, &op.probe).cloned().unwrap_or_else(|| DiscoveryRecord {
        namespace: op.namespace.clone(),
        probe: op.probe.clone(),
        ..DiscoveryRecord::default()
    });
    let subject = format!("Probe/{}", op.probe);
    if !op.error.is_empty() || op.targets.is_empty() {
        let error = if op.error.is_empty() { "nothing was found" } else { &op.error };
        if record.failing_since_us == 0 {
            record.failing_since_us = now.max(1);
            events::record(state, "discovery", &op.namespace, &subject, format!("discovery fails, {} targets are kept: {error}", record.targets.len()));
        }
        record.error = error.to_owned();
        store(state, record);
        return Ok(());
    }
    if record.failing_since_us != 0 {
        record.failing_since_us = 0;
        record.error.clear();
        events::record(state, "discovery", &op.namespace, &subject, format!("discovery works again: {} targets", op.targets.len()));
    }
    record.note = op.note.clone();
    if !shrinks_too_much(record.targets.len(), op.targets.len()) {
        take(state, record, op.targets.clone());
        return Ok(());
    }
    if record.held != op.targets {
        record.held_revision += 1;
        record.held = op.targets.clone();
    }
    if record.held_since_us == 0 {
        record.held_since_us = now.max(1);
        let (from, to) = (record.targets.len(), record.held.len());
        let message = format!("the targets of probe {} would shrink from {from} to {to}: the {from} are kept until somebody accepts it", op.probe);
        events::record(state, "discovery", &op.namespace, &subject, message.clone());
        slo::targets_alert(state, &op.namespace, &op.probe, Some(&message));
    }
    store(state, record);
    Ok(())
}

/// Whether what was found says anything that is not known.
pub fn is_news(state: &State, op: &DiscoverTargets) -> bool {
    let Some(known) = of_probe(state, &op.namespace, &op.probe) else { return true };
    if !op.error.is_empty() || op.targets.is_empty() {
        return known.failing_since_us == 0 || known.error != op.error;
    }
    let held = shrinks_too_much(known.targets.len(), op.targets.len());
    let other = if held { known.held != op.targets } else { known.held_since_us != 0 || known.targets != op.targets };
    known.failing_since_us != 0 || known.note != op.note || other
}

/// A person takes the set that is held.
pub(crate) fn accept(state: &mut State, command: &Command, op: &AcceptTargets) -> Result<(), Refused> {
    let held = of_probe(state, &op.namespace, &op.probe).filter(|r| r.held_since_us != 0).cloned();
    let Some(mut record) = held else {
        return Err(refused(RefusalCode::NotFound, format!("no set of targets is held for probe {:?} in namespace {:?}", op.probe, op.namespace)));
    };
    if record.held_revision != op.revision {
        return Err(refused(RefusalCode::Conflict, "another set is held by now; look again"));
    }
    let (before, after) = (format!("{} targets", record.targets.len()), format!("{} targets", record.held.len()));
    audit::record_in(state, command, &op.namespace, "accept targets", &format!("Probe/{}", op.probe), &before, &after);
    let held = std::mem::take(&mut record.held);
    take(state, record, held);
    Ok(())
}

/// Makes a set the probe's own: what comes gets checks, what goes loses them. Nothing is held any more.
fn take(state: &mut State, mut record: DiscoveryRecord, targets: Vec<Target>) {
    let old: BTreeMap<String, Target> = std::mem::replace(&mut record.targets, targets).into_iter().map(|t| (t.key.clone(), t)).collect();
    let (namespace, probe) = (record.namespace.clone(), record.probe.clone());
    record.held.clear();
    if std::mem::take(&mut record.held_since_us) != 0 {
        slo::targets_alert(state, &namespace, &probe, None);
    }
    let changed: Vec<Target> = record.targets.iter().filter(|t| old.get(&t.key) != Some(t)).cloned().collect();
    let gone: Vec<String> = old.keys().filter(|key| record.targets.binary_search_by(|t| t.key.cmp(key)).is_err()).cloned().collect();
    if changed.is_empty() && gone.is_empty() {
        store(state, record);
        return;
    }
    record.changed_at_us = state.now();
    let new = changed.iter().filter(|t| !old.contains_key(&t.key)).count();
    let message = format!("{} targets: {new} came, {} went, {} changed", record.targets.len(), gone.len(), changed.len() - new);
    store(state, record);
    events::record(state, "discovery", &namespace, &format!("Probe/{probe}"), message);
    checks::sync_targets(state, &namespace, &probe, &changed, &gone);
}

/// A probe without a discovery, or none at all, has no discovered targets.
pub(crate) fn follow_resource(state: &mut State, namespace: &str, probe: &str) {
    if asked(state, namespace, probe).is_none() && state.discoveries.remove(&key_of(namespace, probe)).is_some() {
        slo::targets_alert(state, namespace, probe, None);
    }
}

fn store(state: &mut State, record: DiscoveryRecord) {
    if of_probe(state, &record.namespace, &record.probe) != Some(&record) {
        state.discoveries.put(record);
    }
}
