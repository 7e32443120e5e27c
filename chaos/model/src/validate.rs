//! What a scenario's shape cannot tell: that its faults exist, take what they are given, and end as surely as it wants.

use probity_proto::lower::references;
use probity_proto::units;
use probity_proto::v1::*;

use crate::fault::{self, check_params, undo_word};

/// Something wrong with a scenario, at a path of its document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecProblem {
    /// `spec.steps[0].with.delay`
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What would be right; may be empty.
    pub hint: String,
}

/// Everything that is wrong.
pub fn validate(spec: &ScenarioSpec) -> Vec<SpecProblem> {
    let mut found = Vec::new();
    for (i, step) in spec.steps.iter().enumerate() {
        self::step(spec, step, &format!("spec.steps[{i}]"), &mut found);
    }
    let total: u64 = spec.steps.iter().filter_map(|s| Some(units::parse_duration(&s.after).ok()? + units::parse_duration(&s.r#for).ok()?)).sum();
    if total > spec.max_duration_us {
        found.push(SpecProblem {
            path: "spec.maxDuration".to_owned(),
            message: format!("the steps take {}, which is above maxDuration", units::format_duration(total)),
            hint: format!("at least {}", units::format_duration(total)),
        });
    }
    found
}

fn step(spec: &ScenarioSpec, step: &ScenarioStep, path: &str, found: &mut Vec<SpecProblem>) {
    let mut add = |field: &str, message: String, hint: String| found.push(SpecProblem { path: format!("{path}.{field}"), message, hint });
    if !spec.targets.iter().any(|t| t.name == step.target) {
        let known: Vec<&str> = spec.targets.iter().map(|t| t.name.as_str()).collect();
        add("target", format!("no target group {:?}", step.target), format!("known: {}", known.join(", ")));
    }
    let texts = step.with.iter().map(|(k, v)| (format!("with.{k}"), v)).chain([("after".to_owned(), &step.after), ("for".to_owned(), &step.r#for)]);
    for (field, text) in texts {
        for name in references(text) {
            let known = name.strip_prefix("params.").is_some_and(|p| spec.parameters.iter().any(|known| known.name == p));
            if !known {
                let all: Vec<&str> = spec.parameters.iter().map(|p| p.name.as_str()).collect();
                add(&field, format!("$({name}) refers to nothing"), format!("parameters: {}", all.join(", ")));
            }
        }
    }
    let Some(kind) = fault::kind(&step.fault) else {
        let known: Vec<&str> = fault::KINDS.iter().map(|k| k.name).collect();
        add("fault", format!("unknown fault {:?}", step.fault), format!("known: {}", known.join(", ")));
        return;
    };
    for (name, message) in check_params(kind, &step.with, |value| value.contains("$(")) {
        add(&format!("with.{name}"), message, String::new());
    }
    if (kind.undo as i32) < step.undo {
        let message = format!("{} ends by {}, which is weaker than the accepted {}", kind.name, undo_word(kind.undo), undo_word(step.undo()));
        add("undo", message, format!("undo: {}", undo_word(kind.undo)));
    }
}
