//! What a change must fulfil beside being well-formed: that what it refers to exists, and that its rules can work.
//!
//! Runs before a change is proposed, so that a person hears of every problem with its place; and again in apply when other changes
//! came in between, so that two changes conflict only where they really do.

use std::collections::{BTreeMap, BTreeSet};

use probity_proto::v1::resource::Spec;
use probity_proto::v1::*;

use crate::state::{State, resource_key};
use crate::table::Key;

/// Something wrong with one resource of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdmissionProblem {
    /// Which resource.
    pub key: ResourceKey,
    /// Path in its document.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub hint: String,
}

/// The resources as they would be after a change: the state's, with the change laid over them. Costs the change, not the state.
pub struct After<'a> {
    state: &'a State,
    puts: BTreeMap<Key, &'a Resource>,
    deleted: BTreeSet<Key>,
}

impl<'a> After<'a> {
    /// Lays a change over a state.
    pub fn new(state: &'a State, puts: &'a [Resource], deletes: &[ResourceKey]) -> Self {
        let deleted = deletes.iter().map(|k| resource_key(&k.kind, &k.namespace, &k.name)).collect();
        let puts = puts.iter().map(|r| (resource_key(&r.kind, &r.namespace, &r.name), r)).collect();
        After { state, puts, deleted }
    }

    /// One resource.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<&'a Resource> {
        let key = resource_key(kind, namespace, name);
        let stays = || self.state.resources.get(&key).filter(|_| !self.deleted.contains(&key));
        self.puts.get(&key).copied().or_else(stays)
    }

    /// Those whose key begins with `prefix`.
    fn with_prefix(&self, prefix: &str) -> impl Iterator<Item = &'a Resource> {
        let put: Vec<&'a Resource> = self.puts.range(Key::from(prefix)..).take_while(|(k, _)| k.starts_with(prefix)).map(|(_, r)| *r).collect();
        let stays = self.state.resources.prefix(prefix).filter(|r| {
            let key = resource_key(&r.kind, &r.namespace, &r.name);
            !self.puts.contains_key(&key) && !self.deleted.contains(&key)
        });
        let all: Vec<&'a Resource> = put.into_iter().chain(stays).collect();
        all.into_iter()
    }

    fn names(&self, kind: &str, namespace: &str) -> String {
        let mut names: Vec<&str> = self.with_prefix(&format!("{kind}/{namespace}/")).map(|r| r.name.as_str()).collect();
        names.sort_unstable();
        if names.is_empty() { format!("there is no {kind} in namespace {namespace:?}") } else { format!("there are: {}", names.join(", ")) }
    }
}

/// Everything that speaks against a change.
pub fn problems(state: &State, puts: &[Resource], deletes: &[ResourceKey]) -> Vec<AdmissionProblem> {
    let after = After::new(state, puts, deletes);
    let mut found = Vec::new();
    for resource in puts {
        check(&after, resource, &mut found);
    }
    if deletes.is_empty() {
        return found;
    }
    // What stays must not lose what it refers to.
    for resource in after.with_prefix("").filter(|r| !after.puts.contains_key(&resource_key(&r.kind, &r.namespace, &r.name))) {
        let mut broken = Vec::new();
        check(&after, resource, &mut broken);
        for problem in broken {
            let by = deletes.iter().find(|d| problem.message.contains(&format!("{:?}", d.name)));
            if let Some(deleted) = by {
                found.push(AdmissionProblem {
                    key: deleted.clone(),
                    path: "metadata.name".to_owned(),
                    message: format!("{} {:?} still refers to it at {}", resource.kind, resource.name, problem.path),
                    hint: format!("delete or change {} {:?} first, or in the same apply", resource.kind, resource.name),
                });
            }
        }
    }
    found
}

fn check(after: &After<'_>, resource: &Resource, found: &mut Vec<AdmissionProblem>) {
    let key = ResourceKey { kind: resource.kind.clone(), namespace: resource.namespace.clone(), name: resource.name.clone() };
    let mut problem = |path: &str, message: String, hint: String| {
        found.push(AdmissionProblem { key: key.clone(), path: path.to_owned(), message, hint });
    };
    let namespace = &resource.namespace;
    let mut refer = |kind: &str, name: &str, path: &str| {
        let known = after.get(kind, namespace, name);
        if known.is_none() {
            problem(path, format!("no {kind} {name:?} is defined"), after.names(kind, namespace));
        }
        known
    };
    match &resource.spec {
        Some(Spec::Slo(slo)) => {
            refer("Probe", &slo.probe, "spec.indicator.spec.ratioMetric.good.metricSource.spec.probe");
            let policy = if slo.policy.is_empty() { None } else { refer("BurnRatePolicy", &slo.policy, "spec.alertPolicies[0].alertPolicyRef") };
            if slo.no_alerts {
                return;
            }
            for (path, message, hint) in crate::slo::rule_problems(slo, policy) {
                problem(&path, message, hint);
            }
        }
        Some(Spec::Route(route)) => {
            for (i, receiver) in route.receivers.iter().enumerate() {
                refer("Receiver", receiver, &format!("spec.receivers[{i}]"));
            }
        }
        Some(Spec::BurnRatePolicy(policy)) => {
            // A new rule must be able to fire for every objective that uses it.
            for user in after.with_prefix(&format!("SLO/{namespace}/")) {
                let Some(Spec::Slo(slo)) = &user.spec else { continue };
                if slo.policy != resource.name || slo.no_alerts {
                    continue;
                }
                for (i, rule) in policy.rules.iter().enumerate() {
                    if let Some((message, hint)) = crate::slo::theory::never_fires(slo.target_ppm, rule) {
                        problem(&format!("spec.rules[{i}].burnRate"), format!("SLO {:?}: {message}", user.name), hint);
                    }
                }
            }
        }
        Some(Spec::Scenario(scenario)) => {
            for (path, kind, name) in scenario_references(scenario) {
                refer(kind, &name, &path);
            }
        }
        _ => {}
    }
}

/// What a scenario's conditions and expectations name: (path, kind, name).
fn scenario_references(scenario: &ScenarioSpec) -> Vec<(String, &'static str, String)> {
    let mut found = Vec::new();
    let mut add = |path: String, kind, name: &str| {
        if !name.is_empty() {
            found.push((path, kind, name.to_owned()));
        }
    };
    for (list, conditions) in [("steadyState", &scenario.steady_state), ("abortIf", &scenario.abort_if)] {
        for (i, condition) in conditions.iter().enumerate() {
            add(format!("spec.{list}[{i}].probe"), "Probe", &condition.probe);
            add(format!("spec.{list}[{i}].slo"), "SLO", &condition.slo);
            add(format!("spec.{list}[{i}].alert"), "SLO", condition.alert.split('/').next().unwrap_or(""));
        }
    }
    for (i, expectation) in scenario.expect.iter().enumerate() {
        match &expectation.expect {
            Some(expectation::Expect::Alert(e)) => add(format!("spec.expect[{i}].alert"), "SLO", e.alert.split('/').next().unwrap_or("")),
            Some(expectation::Expect::Verdict(e)) => add(format!("spec.expect[{i}].probe"), "Probe", &e.probe),
            Some(expectation::Expect::Budget(e)) => add(format!("spec.expect[{i}].slo"), "SLO", &e.slo),
            None => {}
        }
    }
    found
}
