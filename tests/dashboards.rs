//! `dashboards/`: a Grafana dashboard and Prometheus alert rules for Probity itself, made from the list of its metrics.
//!
//! `PROBITY_WRITE=1 cargo test --test dashboards` writes them anew; without it the test says when they are stale. The list is what the sources
//! that serve `/metrics` declare: a new metric is on the dashboard by that alone, and an alert on one that is gone fails here.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// The sources that declare metrics as `"name", "kind", "help"`, or as a histogram.
const SOURCES: [&str; 2] = ["coordinator/src/metrics.rs", "prober/src/health.rs"];

/// Rows of the dashboard: a title, and how the names of its metrics begin. The first that fits has it.
const ROWS: [(&str, &[&str]); 6] = [
    ("Objectives and alerts", &["probity_slo_", "probity_alert_", "probity_notifications_"]),
    ("Checks", &["probity_check_", "probity_probe_", "probity_discovery_"]),
    ("The account of runs", &["probity_runs_", "probity_invariant_"]),
    ("Faults", &["probity_fault", "probity_game"]),
    ("Probers", &["probity_prober_"]),
    ("Coordinators", &["probity_"]),
];

/// Name, expression, how long, severity, summary.
const ALERTS: [(&str, &str, &str, &str, &str); 9] = [
    (
        "ProbityNoLeader",
        "sum(probity_raft_leader) == 0 or absent(probity_raft_leader)",
        "1m",
        "page",
        "No coordinator leads: nothing is scheduled anew, and no alert is decided.",
    ),
    (
        "ProbityMemberBehind",
        "probity_raft_commit_index - probity_raft_applied_index > 1000",
        "5m",
        "ticket",
        "A coordinator does not keep up with what is committed.",
    ),
    ("ProbityProberGone", "probity_prober_alive == 0", "5m", "ticket", "A prober is not heard of; its checks run elsewhere."),
    ("ProbityProberDisconnected", "probity_prober_connected == 0", "5m", "ticket", "A prober reaches no coordinator; it goes on by itself and spools."),
    (
        "ProbitySlotsDropped",
        "increase(probity_prober_dropped_slots_total[15m]) > 0",
        "0m",
        "ticket",
        "A prober's spool is full: outcomes are lost, and counted as missed.",
    ),
    ("ProbityRunsUnexplained", "probity_runs_unexplained != 0", "5m", "ticket", "The account of runs does not add up: a bug in Probity."),
    ("ProbityInvariantBroken", "probity_invariant_violations > 0", "1m", "ticket", "A rule of Probity's own design is broken: a bug in Probity."),
    ("ProbityDiscoveryFails", "probity_discovery_failing == 1", "15m", "ticket", "A probe's targets cannot be discovered; the old ones are checked on."),
    (
        "ProbityNotificationsStuck",
        "probity_notifications_waiting > 0",
        "10m",
        "page",
        "A receiver does not take notifications: pages do not arrive by this way.",
    ),
];

#[derive(Debug, Clone)]
struct Metric {
    kind: &'static str,
    help: String,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// By name. A string literal stands between every second pair of quotes, as none of these has a quote in it.
fn metrics() -> BTreeMap<String, Metric> {
    let mut found = BTreeMap::new();
    for source in SOURCES {
        let text = std::fs::read_to_string(root().join(source)).unwrap_or_else(|e| panic!("{source}: {e}"));
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        let parts: Vec<&str> = text.split('"').collect();
        for (i, part) in parts.iter().enumerate() {
            let is_name = part.starts_with("probity_") && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            let (Some(next), Some(then)) = (parts.get(i + 2), parts.get(i + 4)) else { continue };
            if !is_name {
                continue;
            }
            let (kind, help) = match (*next, next.split_once("# HELP {name} ")) {
                ("gauge", _) => ("gauge", (*then).to_owned()),
                ("counter", _) => ("counter", (*then).to_owned()),
                (next, Some((_, help))) if next.contains("# TYPE {name} histogram") => ("histogram", help.split("\\n").next().unwrap_or_default().to_owned()),
                _ => continue,
            };
            found.insert((*part).to_owned(), Metric { kind, help });
        }
    }
    found
}

/// The labels of a series that tell it from its likes, for the legend.
fn query(name: &str, kind: &str) -> Vec<(String, &'static str)> {
    match kind {
        "counter" => vec![(format!("rate({name}[$__rate_interval])"), "")],
        "histogram" => ["0.5", "0.99"]
            .map(|q| {
                (format!("histogram_quantile({q}, sum by (le, instance) (rate({name}_bucket[$__rate_interval])))"), if q == "0.5" { "p50 " } else { "p99 " })
            })
            .to_vec(),
        _ => vec![(name.to_owned(), "")],
    }
}

fn unit(name: &str) -> &'static str {
    match name {
        n if n.ends_with("_seconds") => "s",
        n if n.ends_with("_bytes") => "bytes",
        n if n.ends_with("_ratio") => "percentunit",
        n if n.ends_with("_total") => "ops",
        _ => "short",
    }
}

fn dashboard(metrics: &BTreeMap<String, Metric>) -> Value {
    let source = json!({"type": "prometheus", "uid": "${datasource}"});
    let mut panels = Vec::new();
    let mut y = 0;
    for (row, (title, _)) in ROWS.iter().enumerate() {
        let of_row = |name: &str| ROWS.iter().position(|(_, prefixes)| prefixes.iter().any(|p| name.starts_with(p))) == Some(row);
        let in_row: Vec<_> = metrics.iter().filter(|(name, _)| of_row(name)).collect();
        if in_row.is_empty() {
            continue;
        }
        panels.push(
            json!({"id": panels.len() + 1, "type": "row", "title": title, "collapsed": false, "gridPos": {"h": 1, "w": 24, "x": 0, "y": y}, "panels": []}),
        );
        y += 1;
        for (i, (name, metric)) in in_row.iter().enumerate() {
            let targets: Vec<Value> = query(name, metric.kind)
                .into_iter()
                .zip('A'..)
                .map(|((expr, legend), id)| json!({"refId": id.to_string(), "expr": expr, "legendFormat": if legend.is_empty() { "__auto".to_owned() } else { format!("{legend}{{{{instance}}}}") }, "datasource": source}))
                .collect();
            panels.push(json!({
                "id": panels.len() + 1,
                "type": "timeseries",
                "title": name,
                "description": metric.help,
                "datasource": source,
                "gridPos": {"h": 8, "w": 8, "x": i % 3 * 8, "y": y + i / 3 * 8},
                "fieldConfig": {"defaults": {"unit": unit(name), "min": 0, "custom": {"fillOpacity": 5}}, "overrides": []},
                "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
                "targets": targets,
            }));
        }
        y += in_row.len().div_ceil(3) * 8;
    }
    json!({
        "uid": "probity",
        "title": "Probity",
        "tags": ["probity"],
        "schemaVersion": 39,
        "editable": true,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}]},
        "panels": panels,
    })
}

fn alerts() -> String {
    let mut out = "# Made by tests/dashboards.rs; do not edit.\ngroups:\n  - name: probity\n    rules:\n".to_owned();
    for (name, expr, lasts, severity, summary) in ALERTS {
        let _ = write!(
            out,
            "      - alert: {name}\n        expr: {expr:?}\n        for: {lasts}\n        labels: {{severity: {severity}}}\n        annotations:\n          summary: {summary:?}\n"
        );
    }
    out
}

fn check(file: &str, wanted: &str) {
    let path: &Path = &root().join("dashboards").join(file);
    if std::env::var_os("PROBITY_WRITE").is_some() {
        std::fs::create_dir_all(path.parent().expect("it has one")).expect("dashboards/ can be made");
        std::fs::write(path, wanted).expect("it can be written");
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(found == wanted, "dashboards/{file} is stale: PROBITY_WRITE=1 cargo test --test dashboards");
}

#[test]
fn dashboards_are_those_of_the_metrics() {
    let metrics = metrics();
    for (name, kind) in [("probity_raft_leader", "gauge"), ("probity_runs_planned_total", "counter"), ("probity_probe_duration_seconds", "histogram")] {
        assert_eq!(metrics.get(name).map(|m| m.kind), Some(kind), "{name} is not found in the sources: {metrics:#?}");
    }
    let text = serde_json::to_string_pretty(&dashboard(&metrics)).expect("it is JSON");
    check("probity.json", &format!("{text}\n"));
}

#[test]
fn alerts_are_on_metrics_that_there_are() {
    let metrics = metrics();
    for (alert, expr, ..) in ALERTS {
        let words = expr.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit() && c != '_').filter(|w| w.starts_with("probity_"));
        for word in words {
            assert!(metrics.contains_key(word), "{alert} is on {word}, which nothing serves");
        }
    }
    check("alerts.yaml", &alerts());
}
