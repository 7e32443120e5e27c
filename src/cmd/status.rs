//! `status`: one look at the cluster; exit 1 when something is not as it should be.

use std::process::ExitCode;

use serde_json::Value;

use crate::Outcome;
use crate::api::Api;
use crate::args::Format;
use crate::output::{Table, at, cell, duration, paint, print_json, print_lines, print_yaml};

pub(super) async fn status(api: &mut Api, format: Format) -> Outcome {
    let value = api.read("/api/v1/status").await?;
    match format {
        Format::Json => print_json(&value),
        Format::Yaml => print_yaml(&value),
        _ => print_lines(&lines(&value)),
    }
    let degraded = value["degraded"].as_array().is_some_and(|d| !d.is_empty());
    Ok(if degraded { ExitCode::from(crate::exit::NO) } else { ExitCode::SUCCESS })
}

fn lines(value: &Value) -> Vec<String> {
    let mut lines = vec![
        format!("cluster   {} ({}), command version {}", cell(value, "cluster.name"), cell(value, "cluster.id"), cell(value, "cluster.version")),
        match value["leader"].as_object() {
            Some(_) => format!(
                "leader    {} ({}), term {}, index {}",
                cell(value, "leader.name"),
                cell(value, "leader.address"),
                cell(value, "term"),
                cell(value, "index")
            ),
            None => format!("leader    {}", paint("unknown")),
        },
        format!("probers   {} alive of {}, {} sick", cell(value, "probers.alive"), cell(value, "probers.total"), cell(value, "probers.sick")),
        format!("checks    {} up, {} down, {} unknown", cell(value, "checks.up"), cell(value, "checks.down"), cell(value, "checks.unknown")),
        format!("alerts    {} firing, {} pending", cell(value, "alerts.firing"), cell(value, "alerts.pending")),
        account_line(&value["runs"]),
    ];
    if value["halt"].is_object() {
        lines.push(format!("HALT      {} (by {}, {})", cell(value, "halt.reason"), cell(value, "halt.actor"), cell(value, "halt.at")));
    }
    let running = at(value, "gameDays.running").as_array().cloned().unwrap_or_default();
    for name in running {
        lines.push(format!("game day  {} runs", name.as_str().unwrap_or("?")));
    }
    if let Some(members) = value["members"].as_array() {
        let mut table = Table::new(&["MEMBER", "ADDRESS", "ROLE", "LAG"]);
        for member in members {
            let [name, address, role] = ["name", "address", "role"].map(|path| cell(member, path));
            table.row([name, address, role, super::cluster::lag(member)]);
        }
        lines.push(String::new());
        lines.extend(table.lines());
    }
    lines.push(String::new());
    match value["degraded"].as_array().filter(|d| !d.is_empty()) {
        Some(reasons) => {
            lines.push(format!("degraded, as of {} ago:", duration(value, "asOf.ageSeconds")));
            lines.extend(reasons.iter().map(|r| format!("  {}", r.as_str().unwrap_or("?"))));
        }
        None => lines.push(format!("all well, as of {} ago", duration(value, "asOf.ageSeconds"))),
    }
    lines
}

fn account_line(runs: &Value) -> String {
    let missed: u64 = runs["missed"].as_object().map_or(0, |m| m.values().filter_map(Value::as_u64).sum());
    let unexplained = cell(runs, "unexplained");
    format!(
        "runs      {} planned = {} good + {} bad + {missed} missed + {} pending, {unexplained} unexplained",
        cell(runs, "planned"),
        cell(runs, "good"),
        cell(runs, "bad"),
        cell(runs, "pending"),
    )
}
