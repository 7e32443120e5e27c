//! `kind: Scenario`: its shape. What faults there are, and what they take, the fault vocabulary knows.

use super::read::{At, Fields, Mistakes};
use crate::units;
use crate::v1::*;

const VERDICTS: &[(&str, Verdict)] = &[("up", Verdict::Up), ("down", Verdict::Down), ("unknown", Verdict::Unknown)];
const UNDO: &[(&str, UndoClass)] = &[
    ("kernel-lease", UndoClass::KernelLease),
    ("descriptor-lifetime", UndoClass::FdLifetime),
    ("guardian", UndoClass::Guardian),
    ("journal-only", UndoClass::JournalOnly),
    ("irreversible", UndoClass::Irreversible),
];

pub(super) fn read(mut f: Fields<'_>, mistakes: &mut Mistakes) -> ScenarioSpec {
    let parameters = f.get("parameters").and_then(|at| at.fields(mistakes)).map(|_| ()).is_some();
    let parameters = if parameters { self::parameters(&f, mistakes) } else { Vec::new() };
    let max_duration_us = f.duration("maxDuration", mistakes).unwrap_or(15 * 60_000_000);
    let exclude_budget = f.choice("budget", &[("count", false), ("exclude", true)], mistakes).unwrap_or(false);
    let targets = targets(&mut f, mistakes);
    let steady_state = conditions(&mut f, "steadyState", mistakes);
    let steps: Vec<ScenarioStep> =
        f.need("steps", mistakes).map(|at| at.items(mistakes)).unwrap_or_default().iter().filter_map(|at| step(at, mistakes)).collect();
    if steps.is_empty() && f.has("steps") {
        mistakes.add(&f.path_of("steps"), f.place(), "has no step", "");
    }
    let abort_if = conditions(&mut f, "abortIf", mistakes);
    let expect = f.get("expect").map(|at| at.items(mistakes)).unwrap_or_default().iter().filter_map(|at| expectation(at, mistakes)).collect();
    f.finish(mistakes);
    ScenarioSpec { parameters, max_duration_us, exclude_budget, targets, steady_state, steps, abort_if, expect }
}

fn parameters(f: &Fields<'_>, mistakes: &mut Mistakes) -> Vec<ScenarioParameter> {
    let mut found = Vec::new();
    for (name, at) in f.children("parameters") {
        let Some(mut p) = at.fields(mistakes) else { continue };
        let types = [("duration", "duration"), ("int", "int"), ("percent", "percent"), ("string", "string"), ("rate", "rate")];
        let parameter = ScenarioParameter {
            name,
            r#type: p.choice("type", &types, mistakes).unwrap_or("string").to_owned(),
            default: p.text("default", mistakes).unwrap_or_default(),
            max: p.text("max", mistakes).unwrap_or_default(),
        };
        p.finish(mistakes);
        found.push(parameter);
    }
    found
}

fn targets(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> Vec<TargetGroup> {
    if f.get("targets").is_none() {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (name, at) in f.children("targets") {
        let Some(mut t) = at.fields(mistakes) else { continue };
        let mut selector = Selector::default();
        if let Some(mut s) = t.get("selector").and_then(|at| at.fields(mistakes)) {
            selector.match_labels = s.map("matchLabels", mistakes);
            s.finish(mistakes);
        }
        let percent = t.int("percent", 1..=100, mistakes).unwrap_or(100) as u32;
        let max = t.int("max", 1..=10_000, mistakes).unwrap_or(0) as u32;
        t.finish(mistakes);
        found.push(TargetGroup { name, selector: Some(selector), percent, max });
    }
    found
}

fn conditions(f: &mut Fields<'_>, key: &'static str, mistakes: &mut Mistakes) -> Vec<Condition> {
    f.get(key).map(|at| at.items(mistakes)).unwrap_or_default().iter().filter_map(|at| condition(at, mistakes)).collect()
}

fn condition(at: &At<'_>, mistakes: &mut Mistakes) -> Option<Condition> {
    let mut f = at.fields(mistakes)?;
    let condition = Condition {
        probe: f.text("probe", mistakes).unwrap_or_default(),
        verdict: f.choice("verdict", VERDICTS, mistakes).unwrap_or(Verdict::Unknown) as i32,
        slo: f.text("slo", mistakes).unwrap_or_default(),
        budget_left_ppm: f.get("budgetLeft").and_then(|at| at.parsed(mistakes, units::parse_percent_ppm)),
        budget_spent_ppm: f.get("budgetSpent").and_then(|at| at.parsed(mistakes, units::parse_percent_ppm)),
        alert: f.text("alert", mistakes).unwrap_or_default(),
    };
    let probe = !condition.probe.is_empty() && f.has("verdict");
    let slo = !condition.slo.is_empty() && (f.has("budgetLeft") != f.has("budgetSpent"));
    let alert = condition.alert.contains('/');
    f.finish(mistakes);
    if [probe, slo, alert].into_iter().filter(|c| *c).count() != 1 {
        mistakes.add(&at.path, at.place(), "is no condition", "{probe, verdict}, {slo, budgetLeft}, {slo, budgetSpent} or {alert: SLO/RULE}");
        return None;
    }
    Some(condition)
}

fn step(at: &At<'_>, mistakes: &mut Mistakes) -> Option<ScenarioStep> {
    let mut f = at.fields(mistakes)?;
    let time = |text: &str| if text.contains("$(") { Ok(text.to_owned()) } else { units::parse_duration(text).map(|_| text.to_owned()) };
    let step = ScenarioStep {
        name: f.need("name", mistakes).and_then(|at| at.parsed(mistakes, super::name)).unwrap_or_default(),
        fault: f.need_text("fault", mistakes),
        target: f.need_text("target", mistakes),
        with: f.map("with", mistakes),
        after: f.get("after").and_then(|at| at.parsed(mistakes, time)).unwrap_or_else(|| "0s".to_owned()),
        r#for: f.need("for", mistakes).and_then(|at| at.parsed(mistakes, time)).unwrap_or_default(),
        undo: f.choice("undo", UNDO, mistakes).unwrap_or(UndoClass::Guardian) as i32,
    };
    f.finish(mistakes);
    Some(step)
}

fn expectation(at: &At<'_>, mistakes: &mut Mistakes) -> Option<Expectation> {
    use expectation::Expect;
    let mut f = at.fields(mistakes)?;
    let expect = if f.has("alert") {
        let alert = f.need_text("alert", mistakes);
        if !alert.contains('/') {
            mistakes.add(&f.path_of("alert"), f.place(), format!("{alert:?} names no rule"), "want SLO/RULE");
        }
        let never = f.choice("fires", &[("never", true)], mistakes).unwrap_or(false);
        let fires_within_us = f.duration("firesWithin", mistakes).unwrap_or(0);
        let resolves_within_us = f.duration("resolvesWithin", mistakes).unwrap_or(0);
        if !never && fires_within_us == 0 && resolves_within_us == 0 {
            mistakes.add(&at.path, at.place(), "says not what to expect of the alert", "firesWithin, resolvesWithin or fires: never");
        }
        Expect::Alert(AlertExpectation { alert, never, fires_within_us, resolves_within_us })
    } else if f.has("probe") {
        Expect::Verdict(VerdictExpectation {
            probe: f.need_text("probe", mistakes),
            verdict: {
                f.need("verdict", mistakes);
                f.choice("verdict", VERDICTS, mistakes).unwrap_or(Verdict::Unknown) as i32
            },
            within_us: f.duration("within", mistakes).unwrap_or(0),
            recovers_within_us: f.duration("recoversWithin", mistakes).unwrap_or(0),
        })
    } else if f.has("slo") {
        Expect::Budget(BudgetExpectation {
            slo: f.need_text("slo", mistakes),
            at_most_ppm: f.need("budgetSpent", mistakes).and_then(|at| at.parsed(mistakes, units::parse_percent_ppm)).unwrap_or(0),
        })
    } else {
        mistakes.add(&at.path, at.place(), "is no expectation", "{alert, firesWithin, resolvesWithin}, {probe, verdict} or {slo, budgetSpent}");
        return None;
    };
    f.finish(mistakes);
    Some(Expectation { expect: Some(expect) })
}
