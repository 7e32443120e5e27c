//! From a scenario to a plan: parameters filled in, targets picked by a seed, every fault concrete.

use std::collections::BTreeMap;
use std::hash::Hasher;

use probity_proto::v1::resource::Spec;
use probity_proto::v1::*;
use probity_proto::{lower, units};
use siphasher::sip::SipHasher13;

use crate::fault::{self, Fault, undo_word};

/// Why a scenario cannot be run as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PlanProblem(pub String);

/// The plan of a game day. Fault ids are unique inside it; apply puts the game day's name before them.
pub fn plan(scenario: &Resource, parameters: &BTreeMap<String, String>, probers: &[&ProberRecord], seed: u64) -> Result<GameDayPlan, Vec<PlanProblem>> {
    let Some(Spec::Scenario(spec)) = &scenario.spec else {
        return Err(vec![PlanProblem(format!("{} {:?} is no Scenario", scenario.kind, scenario.name))]);
    };
    let mut problems = Vec::new();
    let values = fill(spec, parameters, &mut problems);
    let steps = spec.steps.iter().filter_map(|s| step(spec, s, &values, probers, seed, &mut problems)).collect();
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(GameDayPlan {
        namespace: scenario.namespace.clone(),
        scenario: scenario.name.clone(),
        scenario_generation: scenario.generation,
        name: String::new(),
        parameters: values,
        seed,
        max_duration_us: spec.max_duration_us,
        exclude_budget: spec.exclude_budget,
        steady_state: spec.steady_state.clone(),
        steps,
        abort_if: spec.abort_if.clone(),
        expect: spec.expect.clone(),
    })
}

/// Given values over defaults, checked against type and maximum.
fn fill(spec: &ScenarioSpec, given: &BTreeMap<String, String>, problems: &mut Vec<PlanProblem>) -> BTreeMap<String, String> {
    for name in given.keys().filter(|name| !spec.parameters.iter().any(|p| &p.name == *name)) {
        let known: Vec<&str> = spec.parameters.iter().map(|p| p.name.as_str()).collect();
        problems.push(PlanProblem(format!("no parameter {name:?} (known: {})", known.join(", "))));
    }
    let mut values = BTreeMap::new();
    for parameter in &spec.parameters {
        let value = given.get(&parameter.name).unwrap_or(&parameter.default).clone();
        let number = |text: &str| match parameter.r#type.as_str() {
            "duration" => units::parse_duration(text),
            "percent" => units::parse_percent_ppm(text).map(u64::from),
            "rate" => units::parse_bytes(text),
            "int" => text.parse::<u64>().map_err(|_| format!("{text:?} is no whole number")),
            _ => Ok(0),
        };
        match number(&value) {
            Err(message) => problems.push(PlanProblem(format!("parameter {}: {message}", parameter.name))),
            Ok(n) if !parameter.max.is_empty() && number(&parameter.max).is_ok_and(|max| n > max) => {
                problems.push(PlanProblem(format!("parameter {}: {value} is above its maximum of {}", parameter.name, parameter.max)));
            }
            Ok(_) => {}
        }
        values.insert(parameter.name.clone(), value);
    }
    values
}

fn step(
    spec: &ScenarioSpec,
    step: &ScenarioStep,
    values: &BTreeMap<String, String>,
    probers: &[&ProberRecord],
    seed: u64,
    problems: &mut Vec<PlanProblem>,
) -> Option<PlannedStep> {
    let mut say = |message: String| problems.push(PlanProblem(format!("step {}: {message}", step.name)));
    let mut params = BTreeMap::new();
    for (key, text) in &step.with {
        match lower::with_parameters(text, values) {
            Ok(value) => drop(params.insert(key.clone(), value)),
            Err(message) => say(message),
        }
    }
    let mut time = |text: &str| lower::with_parameters(text, values).and_then(|t| units::parse_duration(&t)).map_err(&mut say).ok();
    let (after_us, hold_us) = (time(&step.after)?, time(&step.r#for)?);
    let kind = fault::kind(&step.fault)?;
    let fault_spec = FaultSpec { kind: step.fault.clone(), params, undo: kind.undo as i32 };
    let fault = match Fault::parse(&fault_spec) {
        Ok(fault) => fault,
        Err(error) => {
            say(error.to_string());
            return None;
        }
    };
    if (kind.undo as i32) < step.undo {
        say(format!("{} ends by {} only", kind.name, undo_word(kind.undo)));
    }
    let group = spec.targets.iter().find(|t| t.name == step.target)?;
    let chosen = pick(group, &fault, &step.fault, probers, seed);
    match chosen {
        Ok(chosen) => {
            let faults =
                chosen.into_iter().map(|prober| PlannedFault { fault_id: format!("{}/{prober}", step.name), prober, spec: Some(fault_spec.clone()) }).collect();
            Some(PlannedStep { name: step.name.clone(), after_us, hold_us, faults })
        }
        Err(message) => {
            say(message);
            None
        }
    }
}

/// The probers of a group that can do it, as many as wanted, in an order that the seed gives.
fn pick(group: &TargetGroup, fault: &Fault, kind: &str, probers: &[&ProberRecord], seed: u64) -> Result<Vec<String>, String> {
    let labels = group.selector.as_ref().map(|s| s.match_labels.clone()).unwrap_or_default();
    let matching: Vec<&&ProberRecord> = probers.iter().filter(|p| p.alive && labels.iter().all(|(k, v)| p.labels.get(k) == Some(v))).collect();
    if matching.is_empty() {
        return Err(format!("no prober that is alive matches target group {:?}", group.name));
    }
    let capability = format!("fault/{kind}");
    let mut able: Vec<&&ProberRecord> = matching
        .iter()
        .copied()
        .filter(|p| p.capabilities.iter().any(|c| c.name == capability && c.available))
        .filter(|p| p.proxies.iter().any(|proxy| proxy.name == fault.proxy()))
        .collect();
    if able.is_empty() {
        let why = matching
            .iter()
            .find_map(|p| p.capabilities.iter().find(|c| c.name == capability && !c.available))
            .map(|c| c.detail.clone())
            .unwrap_or_else(|| format!("none has a proxy {:?}", fault.proxy()));
        return Err(format!("none of {} probers in target group {:?} can do {kind}: {why}", matching.len(), group.name));
    }
    able.sort_by_key(|p| (order(seed, &p.name), p.name.clone()));
    let mut count = (able.len() * group.percent as usize).div_ceil(100).max(1);
    if group.max > 0 {
        count = count.min(group.max as usize);
    }
    let mut names: Vec<String> = able.into_iter().take(count).map(|p| p.name.clone()).collect();
    names.sort();
    Ok(names)
}

fn order(seed: u64, name: &str) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write_u64(seed);
    hasher.write(name.as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prober(name: &str) -> ProberRecord {
        ProberRecord {
            name: name.to_owned(),
            alive: true,
            capabilities: vec![Capability { name: "fault/proxy.latency".to_owned(), available: true, ..Capability::default() }],
            proxies: vec![ProxyInfo { name: "db".to_owned(), ..ProxyInfo::default() }],
            ..ProberRecord::default()
        }
    }

    fn scenario() -> Resource {
        let spec = ScenarioSpec {
            parameters: vec![ScenarioParameter { name: "delay".to_owned(), r#type: "duration".to_owned(), default: "300ms".to_owned(), max: "2s".to_owned() }],
            max_duration_us: 600_000_000,
            targets: vec![TargetGroup { name: "app".to_owned(), selector: None, percent: 50, max: 2 }],
            steps: vec![ScenarioStep {
                name: "slow".to_owned(),
                fault: "proxy.latency".to_owned(),
                target: "app".to_owned(),
                with: [("proxy".to_owned(), "db".to_owned()), ("delay".to_owned(), "$(params.delay)".to_owned())].into(),
                after: "0s".to_owned(),
                r#for: "5m".to_owned(),
                undo: UndoClass::FdLifetime as i32,
            }],
            ..ScenarioSpec::default()
        };
        Resource { kind: "Scenario".to_owned(), name: "slow".to_owned(), spec: Some(Spec::Scenario(spec)), ..Resource::default() }
    }

    #[test]
    fn the_same_seed_picks_the_same_targets() {
        let fleet: Vec<ProberRecord> = (0..6).map(|i| prober(&format!("p{i}"))).collect();
        let refs: Vec<&ProberRecord> = fleet.iter().collect();
        let one = plan(&scenario(), &BTreeMap::new(), &refs, 7).expect("plans");
        let same = plan(&scenario(), &BTreeMap::new(), &refs, 7).expect("plans");
        assert_eq!(one, same);
        assert_eq!(one.steps[0].faults.len(), 2, "half of six, at most two");
        assert_eq!(one.steps[0].faults[0].spec.as_ref().map(|s| s.params["delay"].as_str()), Some("300ms"));
        let picks: std::collections::BTreeSet<_> =
            (0..20).filter_map(|seed| plan(&scenario(), &BTreeMap::new(), &refs, seed).ok()).map(|p| p.steps[0].faults[0].prober.clone()).collect();
        assert!(picks.len() > 1, "other seeds pick others");
    }

    #[test]
    fn parameters_are_bounded() {
        let fleet = [prober("p")];
        let refs: Vec<&ProberRecord> = fleet.iter().collect();
        let given = [("delay".to_owned(), "3s".to_owned())].into();
        let problems = plan(&scenario(), &given, &refs, 1).expect_err("too slow");
        assert_eq!(problems[0].to_string(), "parameter delay: 3s is above its maximum of 2s");
    }

    #[test]
    fn who_cannot_is_not_picked() {
        let mut other = prober("p");
        other.proxies.clear();
        let problems = plan(&scenario(), &BTreeMap::new(), &[&other], 1).expect_err("no proxy");
        assert_eq!(problems[0].to_string(), "step slow: none of 1 probers in target group \"app\" can do proxy.latency: none has a proxy \"db\"");
    }
}
