//! Resources in and out. What was validated and lowered is taken as it is; only a concurrent change that it cannot stand beside refuses it.

use std::collections::BTreeSet;

use probity_proto::v1::resource::Spec;
use probity_proto::v1::*;

use crate::apply::refused;
use crate::placement;
use crate::state::{State, resource_key};
use crate::{admission, audit, checks, events, slo};

/// Applies a checked change as a whole.
pub(crate) fn apply(state: &mut State, command: &Command, op: &ApplyResources) -> Result<Vec<ResourceChange>, Refused> {
    // It was judged at that revision; at another one it is judged again. Its author then hears the problems from a new judgement.
    let judged = op.base_revision == state.meta().resource_revision;
    if !judged && !admission::problems(state, &op.put, &op.delete).is_empty() {
        return Err(refused(RefusalCode::Conflict, "the resources changed meanwhile; try again"));
    }
    let mut changes = Vec::new();
    // Probes whose checks must be looked at again, as (namespace, name).
    let mut probes = BTreeSet::new();
    for key in &op.delete {
        if let Some(old) = state.resources.remove(&resource_key(&key.kind, &key.namespace, &key.name)) {
            state.index.remove_resource(&old);
            note_probe(&old, &mut probes);
            slo::on_deleted(state, &old, op.purge);
            record(state, command, &old, "deleted", &old.document_json, "");
            changes.push(ResourceChange { key: Some(key.clone()), action: "deleted".to_owned(), generation: old.generation });
        }
    }
    for new in &op.put {
        changes.push(put(state, command, new, &mut probes));
    }
    if changes.iter().any(|c| c.action != "unchanged") {
        state.meta_mut().resource_revision += 1;
    }
    let fleet = if probes.is_empty() { placement::Fleet::default() } else { placement::Fleet::of(state) };
    for (namespace, probe) in &probes {
        checks::sync(state, &fleet, namespace, probe);
    }
    let judged_anew = |c: &&ResourceChange| c.action != "unchanged" && c.key.as_ref().is_some_and(|k| k.kind == "SLO" || k.kind == "BurnRatePolicy");
    if changes.iter().find(judged_anew).is_some() {
        slo::on_resources_changed(state);
    }
    Ok(changes)
}

fn put(state: &mut State, command: &Command, new: &Resource, probes: &mut BTreeSet<(String, String)>) -> ResourceChange {
    let now = state.now();
    let key = resource_key(&new.kind, &new.namespace, &new.name);
    let same = |old: &Resource| old.spec == new.spec && old.labels == new.labels && old.document_json == new.document_json;
    let (action, generation, created_at_us) = match state.resources.get(&key) {
        Some(old) if same(old) => ("unchanged", old.generation, old.created_at_us),
        Some(old) => ("configured", old.generation + u64::from(old.spec != new.spec), old.created_at_us),
        None => ("created", 1, now),
    };
    if action != "unchanged" {
        note_probe(new, probes);
        let old = state.resources.put(Resource { generation, created_at_us, updated_at_us: now, ..new.clone() });
        if let Some(old) = &old {
            note_probe(old, probes);
            state.index.remove_resource(old);
        }
        state.index.add_resource(new);
        record(state, command, new, action, old.as_ref().map_or("", |old| &old.document_json), &new.document_json);
    }
    let key = ResourceKey { kind: new.kind.clone(), namespace: new.namespace.clone(), name: new.name.clone() };
    ResourceChange { key: Some(key), action: action.to_owned(), generation }
}

/// A probe's own checks, and those of the probe that an SLO sets a threshold for.
fn note_probe(resource: &Resource, probes: &mut BTreeSet<(String, String)>) {
    match &resource.spec {
        Some(Spec::Probe(_)) => probes.insert((resource.namespace.clone(), resource.name.clone())),
        Some(Spec::Slo(slo)) => probes.insert((resource.namespace.clone(), slo.probe.clone())),
        _ => false,
    };
}

fn record(state: &mut State, command: &Command, resource: &Resource, action: &str, before: &str, after: &str) {
    let subject = [resource.kind.as_str(), "/", &resource.name].concat();
    audit::record_in(state, command, &resource.namespace, action, &subject, before, after);
    events::record(state, "resource", &resource.namespace, &subject, [action, " by ", &command.actor].concat());
}
