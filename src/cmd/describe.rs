//! `describe`: everything about one thing, as a person reads it. `-o yaml` and `-o json` give the read API's own shape.

use std::process::ExitCode;

use serde_json::Value;

use super::get::{item_path, kind};
use super::{gameday, slo};
use crate::Outcome;
use crate::api::{Api, encode};
use crate::args::{Format, OneArgs};
use crate::output::{Table, age, at, cell, duration, pairs, print_json, print_lines, print_yaml};

/// How many of its newest events a description ends with.
const EVENTS: usize = 10;

pub(super) async fn describe(api: &mut Api, args: OneArgs, format: Format) -> Outcome {
    let (kind, namespaced) = kind(&args.kind)?;
    let paged = if kind == "probes" { "?paged=true" } else { "" };
    let value = api.read(&format!("{}{paged}", item_path(kind, namespaced, &api.namespace, &args.name))).await?;
    let mut lines = match (format, kind) {
        (Format::Json, _) => {
            print_json(&value);
            return Ok(ExitCode::SUCCESS);
        }
        (Format::Table | Format::Wide, "probes") => probe(&value),
        (Format::Table | Format::Wide, "slos") => slo::explanation(&value),
        (Format::Table | Format::Wide, "probers") => prober(&value),
        (Format::Table | Format::Wide, "gamedays") => gameday::report_lines(&value),
        _ => {
            print_yaml(&value);
            return Ok(ExitCode::SUCCESS);
        }
    };
    let subject = format!("{}/{}", cell(&value, "kind"), cell(&value, "metadata.name"));
    let path = format!("/api/v1/events?namespace={}&for={}", encode(&api.namespace), encode(&subject));
    lines.extend(events(&api.read(&path).await.unwrap_or_default()));
    print_lines(&lines);
    Ok(ExitCode::SUCCESS)
}

/// The newest events, oldest first; nothing when there are none.
fn events(value: &Value) -> Vec<String> {
    let Some(items) = value["items"].as_array().filter(|items| !items.is_empty()) else { return Vec::new() };
    let mut table = Table::new(&["EVENT", "AGO", "MESSAGE"]);
    for item in &items[items.len().saturating_sub(EVENTS)..] {
        let status = &item["status"];
        table.row([cell(status, "kind"), age(status, "at"), cell(status, "message")]);
    }
    [vec![String::new()], table.lines()].concat()
}

fn head(item: &Value, rows: &[(&str, String)]) -> Vec<String> {
    let namespace = cell(item, "metadata.namespace");
    let name = if namespace == "-" { cell(item, "metadata.name") } else { format!("{namespace}/{}", cell(item, "metadata.name")) };
    let mut table = Table::new(&["name", &name]);
    for (what, value) in rows {
        table.row([(*what).to_owned(), value.clone()]);
    }
    table.lines()
}

fn account(runs: &Value) -> String {
    let n = |path: &str| cell(runs, path);
    let missed = pairs(&runs["missed"]);
    let missed = if missed == "-" { String::new() } else { format!(" ({missed})") };
    let total: u64 = runs["missed"].as_object().map_or(0, |m| m.values().filter_map(Value::as_u64).sum());
    let retried = runs["retried"].as_u64().filter(|n| *n > 0).map_or_else(String::new, |n| format!("; {n} good ones after a retry"));
    format!("{} planned = {} good + {} bad + {total} missed{missed} + {} pending{retried}", n("planned"), n("good"), n("bad"), n("pending"))
}

fn probe(item: &Value) -> Vec<String> {
    let status = &item["status"];
    let spec = &item["spec"];
    let every = if spec["interval"].is_null() { "30s".to_owned() } else { cell(spec, "interval") };
    let mut lines = head(
        item,
        &[
            ("kind", cell(status, "kind")),
            ("target", cell(status, "target")),
            ("every", every),
            ("labels", pairs(at(item, "metadata.labels"))),
            ("verdict", format!("{} for {}", cell(status, "verdict"), age(status, "since"))),
            ("runs", account(&status["runs"])),
        ],
    );
    lines.extend(discovery(&status["discovery"], &cell(item, "metadata.name")));
    for check in status["checks"].as_array().into_iter().flatten() {
        lines.push(String::new());
        lines.push(format!("{}  {}  {} for {}", cell(check, "check"), cell(check, "target"), cell(check, "verdict"), age(check, "since")));
        if let Some(why) = check["nobody"].as_str() {
            lines.push(format!("  nobody runs it: {why}"));
            continue;
        }
        lines.extend(check["findings"].as_array().into_iter().flatten().map(|f| format!("  {}", finding(f))));
        let mut table = Table::new(&["PROBER", "ZONE", "SAYS", "LAST RUN", "TOOK", "NEWEST OUTCOMES"]);
        for p in check["probers"].as_array().into_iter().flatten() {
            table.row([cell(p, "prober"), cell(p, "zone"), cell(p, "voice"), cell(p, "lastReason"), duration(p, "lastDurationSeconds"), recent(p)]);
        }
        lines.extend(table.lines().into_iter().map(|l| format!("  {l}")));
        lines.extend(sample(check));
    }
    lines
}

/// Where its targets come from, when they are discovered.
pub(super) fn discovery(discovery: &Value, probe: &str) -> Vec<String> {
    if discovery["pending"] == true {
        return vec!["targets  discovered: none yet".to_owned()];
    }
    if !discovery.is_object() {
        return Vec::new();
    }
    let changed = if discovery["changedAt"].is_null() {
        "never changed".to_owned()
    } else {
        format!("changed {} ago", age(discovery, "changedAt").replace("now", "0 s"))
    };
    let mut lines = vec![format!("targets  {} discovered, {changed}", cell(discovery, "targets"))];
    if let Some(error) = discovery["error"].as_str() {
        lines.push(format!("  discovery fails for {}, these are kept: {error}", age(discovery, "failingSince")));
    }
    if let Some(note) = discovery["note"].as_str() {
        lines.push(format!("  left out: {note}"));
    }
    let held = &discovery["held"];
    if held.is_object() {
        let lost: Vec<&str> = held["lostFirst"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let more = held["lost"].as_u64().unwrap_or(0).saturating_sub(lost.len() as u64);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        lines.push(format!("  HELD for {}: {} targets were found, without {}{more}", age(held, "since"), cell(held, "targets"), lost.join(", ")));
        lines.push(format!("  `probity targets accept {probe}` takes them; else these stay until the set grows back"));
    }
    lines
}

/// Down, a broken path and a sick prober are three different things.
fn finding(finding: &Value) -> String {
    let list = |key: &str| finding[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join(", ");
    let (probers, zones) = (list("probers"), list("zones"));
    match finding["what"].as_str() {
        Some("target_down") => format!("target down: say {probers}"),
        Some("path_broken") if zones.is_empty() => format!("path broken: {probers} cannot reach it, others of the same zone can"),
        Some("path_broken") => format!("path broken: nobody in zone {zones} reaches it ({probers}), others do"),
        _ => format!("prober sick: {probers} does not count: {}", cell(finding, "reason")),
    }
}

/// `14 good, 30 connection_reset, 16 good`: oldest first.
fn recent(prober: &Value) -> String {
    let runs: Vec<String> = prober["recent"].as_array().into_iter().flatten().map(|r| format!("{} {}", cell(r, "count"), cell(r, "reason"))).collect();
    if runs.is_empty() { "-".to_owned() } else { runs.join(", ") }
}

/// The newest detailed run, with its phases; a bad one before a good one.
fn sample(check: &Value) -> Vec<String> {
    let details = check["probers"].as_array().into_iter().flatten().flat_map(|p| p["details"].as_array().into_iter().flatten().map(move |d| (p, d)));
    let Some((prober, run)) = details.max_by_key(|(_, d)| (d["reason"] != "good", d["at"].as_str().unwrap_or_default().to_owned())) else { return Vec::new() };
    let mut lines = vec![format!(
        "  a run: {} from {} to {}, {} in {}, trace {}",
        age(run, "at").replace("now", "0 s") + " ago",
        cell(prober, "prober"),
        cell(run, "peer"),
        cell(run, "reason"),
        duration(run, "durationSeconds"),
        cell(run, "traceId")
    )];
    let phases: Vec<String> =
        run["phases"].as_array().into_iter().flatten().map(|p| format!("{} {}", cell(p, "name"), duration(p, "durationSeconds"))).collect();
    if !phases.is_empty() {
        lines.push(format!("    {}", phases.join(" + ")));
    }
    if let Some(message) = run["message"].as_str().filter(|m| !m.is_empty()) {
        lines.push(format!("    {message}"));
    }
    lines
}

fn prober(item: &Value) -> Vec<String> {
    let status = &item["status"];
    let mut lines = head(
        item,
        &[
            ("alive", format!("{} for {}", cell(status, "alive"), age(status, "since"))),
            ("sick", if status["sick"] == true { format!("for {}: {}", age(status, "sickSince"), cell(status, "sickReason")) } else { "no".to_owned() }),
            ("heard of", format!("{} ago", duration(status, "lastHeartbeatSeconds"))),
            ("labels", pairs(at(item, "metadata.labels"))),
            ("checks", cell(status, "checks")),
            ("spool", format!("{} rows, {} bytes, {} slots dropped", cell(status, "spooledRows"), cell(status, "spooledBytes"), cell(status, "droppedSlots"))),
            ("version", cell(status, "version")),
        ],
    );
    let mut table = Table::new(&["CAPABILITY", "AVAILABLE", "UNDO", "DETAIL"]);
    for c in status["capabilities"].as_array().into_iter().flatten() {
        table.row([cell(c, "name"), cell(c, "available"), cell(c, "undo"), cell(c, "detail")]);
    }
    lines.push(String::new());
    lines.extend(table.lines());
    for proxy in status["proxies"].as_array().into_iter().flatten() {
        lines.push(format!("fault proxy {}: {} -> {}", cell(proxy, "name"), cell(proxy, "listen"), cell(proxy, "upstream")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_probe_shows_who_says_what_and_the_worst_newest_run() {
        let run = |reason: &str, at: &str| {
            json!({"at": at, "reason": reason, "peer": "10.0.0.1:80", "durationSeconds": 0.002, "traceId": "t", "message": "refused",
            "phases": [{"name": "resolve", "durationSeconds": 0.001}, {"name": "connect", "durationSeconds": 0.001}]})
        };
        let item = json!({"metadata": {"namespace": "shop", "name": "web", "labels": {}}, "spec": {}, "status": {"kind": "tcp", "target": "h:80", "verdict": "down",
            "runs": {"planned": 5, "good": 1, "bad": 2, "missed": {"prober_off": 1}, "pending": 1},
            "checks": [{"check": "shop/web", "target": "h:80", "verdict": "down", "probers": [{"prober": "a", "zone": "z", "voice": "down", "lastReason": "connect_refused",
                "recent": [{"count": 1, "reason": "good"}, {"count": 2, "reason": "connect_refused"}],
                "details": [run("connect_refused", "2026-01-01T00:00:00Z"), run("good", "2026-01-02T00:00:00Z")]}]}]}});
        let text = probe(&item).join("\n");
        for words in [
            "shop/web",
            "5 planned = 1 good + 2 bad + 1 missed (prober_off=1) + 1 pending",
            "1 good, 2 connect_refused",
            "connect_refused in 2.0 ms",
            "resolve 1.0 ms + connect 1.0 ms",
        ] {
            assert!(text.contains(words), "{words:?} is not in\n{text}");
        }
    }
}
