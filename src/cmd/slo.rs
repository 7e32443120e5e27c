//! `slo explain`: what an objective promises, when it pages, and what is left.

use std::process::ExitCode;

use serde_json::Value;

use crate::Outcome;
use crate::api::Api;
use crate::args::Format;
use crate::output::{Table, at, cell, duration, percent, print_json, print_lines, print_yaml};

pub(super) async fn explain(api: &mut Api, name: &str, format: Format) -> Outcome {
    let value = api.read(&super::get::item_path("slos", true, &api.namespace, name)).await?;
    match format {
        Format::Json => print_json(&value),
        Format::Yaml => print_yaml(&value),
        _ => print_lines(&explanation(&value)),
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn headline(value: &Value) -> String {
    let status = &value["status"];
    let ppm = |path: &str| percent(at(status, path).as_f64().unwrap_or(0.0));
    format!(
        "SLO {}: {} over {}, budget left {} ({})",
        cell(value, "metadata.name"),
        ppm("targetPpm"),
        duration(status, "windowSeconds"),
        duration(status, "budget.leftSeconds"),
        ppm("budget.leftPpm"),
    )
}

pub(super) fn explanation(value: &Value) -> Vec<String> {
    let status = &value["status"];
    let window = |key: &str| cell(status, &format!("window.{key}"));
    let mut lines = vec![
        headline(value),
        format!(
            "  of probe {}: {} good, {} bad, {} missed of {} planned in the window",
            cell(status, "probe"),
            window("good"),
            window("bad"),
            window("missed"),
            window("planned")
        ),
        format!("  the whole budget is {} of a full outage", duration(status, "budget.totalSeconds")),
        String::new(),
    ];
    let mut table = Table::new(&["RULE", "SEVERITY", "BURN RATE", "LONG/SHORT", "NOW", "STATE", "FULL OUTAGE ALERTS AFTER", "BAD RUNS TO ALERT"]);
    for rule in status["rules"].as_array().into_iter().flatten() {
        table.row([
            cell(rule, "name"),
            cell(rule, "severity"),
            format!("{}x", cell(rule, "burnRate")),
            format!("{}/{}", duration(rule, "longSeconds"), duration(rule, "shortSeconds")),
            format!("{}x/{}x", cell(rule, "longBurn"), cell(rule, "shortBurn")),
            cell(rule, "state"),
            duration(rule, "fullOutageFiresAfterSeconds"),
            match rule["oneFailureFires"].as_bool() {
                Some(true) => "1: a single bad run alerts".to_owned(),
                _ => cell(rule, "failuresToFire"),
            },
        ]);
    }
    lines.extend(table.lines());
    if status["noData"] == true {
        lines.push("no data: too many runs are missing; a firing alert stays until they are back".to_owned());
    }
    lines
}
